"""Lightning's command line for runs from YAMLs: ``certvae fit``, ``validate``, ``test`` and ``predict``."""

import os
import signal
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities.exceptions import SIGTERMException

from certvae.commands.mistakes import one_line
from certvae.commands.precision import AutoPrecisionTrainer
from certvae.io.files import write_atomic
from certvae.monitoring.loggers import log_facts, log_yaml
from certvae.terminal import INTERRUPTED, chain, is_interrupt

__all__ = ["main", "run_lightning"]

SEARCH = ".../search.yaml"  # placeholder in the message about a missing teacher
RESUME = "the same command with `--ckpt_path last` resumes if the YAML names LastCheckpoint."
# Old and new names in YAMLs of earlier versions: classes, modules (ending with a dot) and arguments.
RENAMED = {
    "certvae.constraints.": "certvae.models.",
    "certvae.networks.": "certvae.models.",
    "certvae.objectives.": "certvae.models.",
    "certvae.priors.": "certvae.models.",
    "certvae.schedules.": "certvae.models.",
    "certvae.vae.": "certvae.models.",
    "certvae.search.TeacherSearch": "certvae.TeacherSearch",
    "certvae.search_table.SearchBounds": "certvae.teachers.search.SelectionCriteria",
    "certificate_fraction": "test_fraction",
    "initialisations": "initializations",
    "bounds": "criteria",  # of a TeacherSearch
}


class _SaveConfig(SaveConfigCallback):
    """Lightning's callback, but it writes ``config.yaml`` atomically."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._folder = trainer.log_dir or trainer.default_root_dir  # a collective, which every process must reach
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        path = Path(self._folder) / self.config_filename
        write_atomic(path, self.parser.dump(self.config, skip_none=False))
        log_yaml(trainer, path)
        log_facts(trainer, pl_module)


class _CommandLine(LightningCLI):
    """Lightning's command line, with parser errors in one line and without loss of ``metrics.csv``.

    A resumed run keeps the ``metrics.csv`` of its first part, which ``CSVLogger`` would delete.
    """

    parsers: list[LightningArgumentParser]

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = super().init_parser(**kwargs, exit_on_error=False)
        self.__dict__.setdefault("parsers", []).append(parser)
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "LightningCLI's args parameter")
                super().parse_arguments(parser, args)
        except ArgumentError as error:
            if os.environ.get("CERTVAE_TRACEBACK"):
                raise
            names = [name for one in self.parsers for action in one._actions for name in action.option_strings]
            print(f"certvae: {one_line(str(error), names)}", file=sys.stderr)
            raise SystemExit(2) from None

    def before_instantiate_classes(self) -> None:
        """Keep ``WANDB_DIR`` or another logger's folder, which Lightning's logger would replace by its ``save_dir``."""
        folder = os.environ.get("WANDB_DIR")
        given = self._get(self.config, "trainer").logger if folder else None
        loggers: list[Any] = given if isinstance(given, list) else [given]
        for logger in loggers:
            if str(getattr(logger, "class_path", "")).endswith("WandbLogger"):
                logger.init_args.save_dir = folder

    def before_fit(self) -> None:
        if not (self.config["fit"].get("ckpt_path") and self.trainer.is_global_zero):
            return
        for logger in self.trainer.loggers:
            path = Path(logger.log_dir) / "metrics.csv" if isinstance(logger, CSVLogger) else None
            if path is not None and path.is_file():
                free = (path.with_name(f"metrics-{number}.csv") for number in count(1))
                os.rename(path, next(other for other in free if not other.exists()))


def run_lightning(args: Sequence[str] | dict[str, Any] | None = None, run: bool = True) -> LightningCLI:
    """Run Lightning's command line in subclass mode: any model and any DataModule by ``class_path``.

    Args:
        args: arguments, or a configuration as a dict; default: the arguments of the process.
        run: True runs the subcommand; False only builds trainer, model and data.

    Raises:
        ValueError: if a YAML uses names of an earlier version.
        SystemExit: with status 2, after a one-line message, if the parser rejects an argument.
    """
    _refuse_old_names(sys.argv[1:] if args is None else args)
    return _CommandLine(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        trainer_class=AutoPrecisionTrainer,
        save_config_callback=_SaveConfig,
        save_config_kwargs={"save_to_log_dir": False},
        args=list(args) if isinstance(args, tuple) else args,  # type: ignore[arg-type]
        run=run,
    )


def _refuse_old_names(args: Sequence[str] | Mapping[str, Any]) -> None:
    """Raise an error with the new names if the configuration or its YAMLs use old ones."""
    for place, values in {"the run's YAML": args}.items() if isinstance(args, Mapping) else _yamls(args):
        found = dict(sorted(pair for part in _parts(values) for pair in _old_names(part)))
        if found:
            changes = ", ".join(f"`{new}` instead of `{old}`" for old, new in found.items())
            raise ValueError(f"{place} has names of an earlier version of certvae: write {changes}.")


def _yamls(args: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """The YAMLs in arguments such as ``--config=run.yaml``, and their values."""
    for path in (argument.rpartition("=")[2] for argument in args):
        if path.endswith((".yaml", ".yml")) and Path(path).is_file():
            try:
                yield path, yaml.safe_load(Path(path).read_text())
            except (yaml.YAMLError, UnicodeDecodeError, RecursionError, OSError):
                continue  # the parser reports the error


def _parts(values: Any) -> Iterator[dict[str, Any]]:
    """Yield every mapping within the values once."""
    left, seen = [values], set()
    while left:
        node = left.pop()
        if id(node) in seen:  # an alias of the YAML
            continue
        seen.add(id(node))
        if isinstance(node, Mapping):
            yield dict(node)
            left.extend(node.values())
        elif isinstance(node, list):
            left.extend(node)


def _old_names(part: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Old and new names of a class of this package and of its arguments."""
    path, arguments = str(part.get("class_path")), part.get("init_args")
    for old, new in RENAMED.items():
        if path == old or (old.endswith(".") and path.startswith(old)):
            yield path, new + path[len(old) :]
        elif path.startswith("certvae.") and isinstance(arguments, Mapping) and old in arguments:
            yield old, new


def _with_search(message: str, args: Sequence[str]) -> str:
    """The message, with the path of the search YAML in the folder of the run's YAML."""
    beside = (Path(argument.rpartition("=")[2]).with_name("search.yaml") for argument in args if ".yaml" in argument)
    return message.replace(SEARCH, next((str(path) for path in beside if path.is_file()), SEARCH))


def main(args: Sequence[str] | None = None) -> int:
    """``certvae fit`` and Lightning's other subcommands; return the exit status."""
    words = sys.argv[1:] if args is None else args
    try:
        run_lightning(args)
    except Exception as error:  # the parser may have wrapped a file error
        missing = next((link for link in chain(error) if isinstance(link, FileNotFoundError)), None)
        if missing is None or SEARCH not in str(missing):
            raise
        raise FileNotFoundError(_with_search(str(missing), words)) from error
    except SIGTERMException:  # Lightning would end with status 0
        print("certvae: stopped by SIGTERM; the same command with `--ckpt_path last` resumes.", file=sys.stderr)
        return 128 + signal.SIGTERM
    except (KeyboardInterrupt, SystemExit) as stop:
        if not is_interrupt(stop) or "fit" not in words:
            raise
        print(f"certvae: interrupted; {RESUME}", file=sys.stderr)
        return INTERRUPTED
    return 0
