"""The command line: Lightning's fit, validate, test and predict, and the commands of this project."""

import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.cli import LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities.exceptions import SIGTERMException

from certvae.files import write_atomic

__all__ = ["main", "run_lightning"]

USAGE = """usage: certvae COMMAND ...

  fit | validate | test | predict   run a model from a YAML:   certvae fit --config experiments/digits/full.yaml
  protocol                          search, full, no_align, rescue for each seed, then a table, a summary and a figure
  certify                           certificate.json from a checkpoint, a teacher and a YAML, on rows kept for it
  verify                            recompute a certificate.json; exit status 0 only if it holds
  report                            one HTML file on a run, or on several side by side

certvae COMMAND --help tells the options of each."""


class _SaveConfig(SaveConfigCallback):
    """Lightning's, but ``config.yaml`` is written whole or not at all."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._folder = trainer.log_dir or trainer.default_root_dir  # a broadcast, which every process must reach
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        write_atomic(Path(self._folder) / self.config_filename, self.parser.dump(self.config, skip_none=False))


class _CommandLine(LightningCLI):
    """Lightning's, but a resumed run keeps the ``metrics.csv`` of its first part, which ``CSVLogger`` deletes."""

    def before_fit(self) -> None:
        if not (self.config["fit"].get("ckpt_path") and self.trainer.is_global_zero):
            return
        for logger in self.trainer.loggers:
            path = Path(logger.log_dir) / "metrics.csv" if isinstance(logger, CSVLogger) else None
            if path is not None and path.is_file():
                free = (path.with_name(f"metrics-{number}.csv") for number in count(1))
                os.rename(path, next(other for other in free if not other.exists()))


def run_lightning(args: Sequence[str] | dict[str, Any] | None = None, run: bool = True) -> LightningCLI:
    """Lightning's command line in subclass mode: any model and any DataModule by ``class_path``.

    Args:
        args: arguments, or a configuration as a dict; default: those of the process.
        run: whether to run the subcommand, or only to build trainer, model and data.
    """
    return _CommandLine(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=_SaveConfig,
        save_config_kwargs={"save_to_log_dir": False},
        args=list(args) if isinstance(args, tuple) else args,  # type: ignore[arg-type]
        run=run,
    )


def _command(name: str, args: Sequence[str]) -> int:
    """Run a command of this project; its module is imported only now."""
    _quiet()
    module = import_module(f"certvae.{_COMMANDS[name]}")
    return int(module.main(args) or 0)


def _quiet() -> None:
    """Leave the terminal to our own lines: Lightning's hints do not apply to the runs that these commands make."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in _HINTS:
        warnings.filterwarnings("ignore", f"(?s).*{text}.*")


_HINTS = (
    "does not have many workers",
    "smaller than the logging interval",
    "LeafSpec",
    "exists and is not empty",
    "LightningCLI's args parameter",
    "tensorboardX",
    "deprecated in v4",
)
_COMMANDS = {"protocol": "protocol", "certify": "publish", "verify": "verify", "report": "report"}
_SUBCOMMANDS = ("fit", "validate", "test", "predict")


def main(args: Sequence[str] | None = None) -> int:
    """Entry point of ``certvae``; returns the exit status.

    An error that the user can mend is printed in one line; ``CERTVAE_TRACEBACK=1`` shows where it came from.
    """
    from certvae.errors import user_errors

    given = list(sys.argv[1:] if args is None else args)
    if not given or given[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if given[0] not in (*_COMMANDS, *_SUBCOMMANDS) and not given[0].startswith("-"):
        print(f"certvae: there is no command {given[0]!r}.\n\n{USAGE}", file=sys.stderr)
        return 2
    with user_errors() as outcome:
        if given[0] in _COMMANDS:
            outcome.status = _command(given[0], given[1:])
        else:
            outcome.status = _run(args)
    return outcome.status


def _run(args: Sequence[str] | None) -> int:
    try:
        run_lightning(args)
    except SIGTERMException:  # of Lightning, which would end with status 0
        print("certvae: stopped by SIGTERM; the same command with `--ckpt_path last` goes on.", file=sys.stderr)
        return 128 + signal.SIGTERM
    return 0


if __name__ == "__main__":
    sys.exit(main())
