"""The paper's protocol for each seed: search a teacher, then ``full``, ``no_align``, ``rescue`` and perhaps ``ablate``.

Every phase is one run of the ordinary command line on a YAML that is written into its folder first, so that each can
be run again by itself with ``certvae fit --config``.
"""

import argparse
import hashlib
import json
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from certvae.certificate.certificate import Certificate
from certvae.commands.summary import OPTIONAL_PHASES, PHASES, summarize, summary_table
from certvae.io.files import sha256_file, write_atomic
from certvae.teachers import TargetTable, load_teacher

__all__ = ["PHASES", "Protocol", "ProtocolError", "main", "run_protocol"]


class ProtocolError(RuntimeError):
    """The protocol cannot go on."""


@dataclass(frozen=True)
class Protocol:
    """What a protocol's YAML says, with the command line's changes.

    Attributes:
        dataset: name for tables and figures.
        phases: path of the YAML of ``search`` and of each phase; ``ablate`` may be left out.
        seeds: one search and the phases for each.
        output_dir: where everything goes, ``seed<n>/<phase>`` for each phase.
        moved_from: the folder that the YAMLs name; paths below it are moved to ``output_dir/seed<n>``.
        targets: ``"mixture"``: the searched teacher answers; ``"table"``: fixed targets for each index.
        teachers: given teacher files, one for each seed, instead of a search.
        max_epochs: instead of the phases' own.
        data_dir: instead of the YAMLs' own.
        wandb: project in which each phase is a run of Weights & Biases too, grouped by ``dataset``.
    """

    dataset: str
    phases: dict[str, Path]
    seeds: tuple[int, ...]
    output_dir: Path
    moved_from: str
    targets: str = "mixture"
    teachers: tuple[Path, ...] = ()
    max_epochs: int | None = None
    data_dir: str | None = None
    wandb: str | None = None

    def __post_init__(self) -> None:
        missing = [name for name in ("search", *PHASES) if name not in self.phases]
        if missing:
            raise ValueError(f"`phases` must name the YAML of {missing}.")
        unknown = sorted(set(self.phases) - {"search", *PHASES, *OPTIONAL_PHASES})
        if unknown:
            raise ValueError(f"`phases` may name search, {', '.join((*PHASES, *OPTIONAL_PHASES))}, got {unknown}.")
        if self.targets not in ("mixture", "table"):
            raise ValueError(f"`targets` must be 'mixture' or 'table', got {self.targets!r}.")
        if not self.seeds:
            raise ValueError("`seeds` must hold at least one seed.")
        if self.teachers and len(self.teachers) != len(self.seeds):
            raise ValueError(f"`teachers` must be one for each of {len(self.seeds)} seeds, got {len(self.teachers)}.")

    @property
    def names(self) -> tuple[str, ...]:
        """The phases after the search, in the order in which they run."""
        return tuple(name for name in (*PHASES, *OPTIONAL_PHASES) if name in self.phases)

    @classmethod
    def read(cls, path: str | Path, **changes: Any) -> "Protocol":
        """Read a protocol's YAML; ``changes`` that are not None replace its values.

        Raises:
            ValueError: if a key is missing or unknown.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no protocol at {path}.")
        values = yaml.safe_load(path.read_text())
        known = {"dataset", "phases", "targets", "seeds", "output_dir"}
        if not isinstance(values, dict) or set(values) - known or {"dataset", "phases", "output_dir"} - set(values):
            raise ValueError(f"{path} must hold dataset, phases, output_dir and may hold targets, seeds.")
        values["moved_from"] = str(values["output_dir"])
        values["phases"] = {name: path.parent / file for name, file in values["phases"].items()}
        values.update({key: value for key, value in changes.items() if value is not None})
        values["output_dir"], values["seeds"] = Path(values["output_dir"]), tuple(values.get("seeds", (0,)))
        return cls(**values)

    def seed_dir(self, seed: int) -> Path:
        """Where a seed's phases go."""
        return self.output_dir / f"seed{seed}"

    def config(self, phase: str, seed: int) -> dict[str, Any]:
        """The complete configuration of a phase, as it is written into its folder."""
        config = yaml.safe_load(self.phases[phase].read_text())
        config = _move_paths(config, self.moved_from, str(self.seed_dir(seed)))
        config["seed_everything"] = seed
        trainer = config["trainer"]
        trainer["enable_progress_bar"] = False
        label = f"{self.dataset} seed {seed} {phase:<8}"
        status = {"class_path": "certvae.callbacks.StatusLine", "init_args": {"label": label}}
        trainer["callbacks"] = [*trainer.get("callbacks", []), status]
        arguments = config["data"].setdefault("init_args", {})
        if self.data_dir is not None and "data_dir" in arguments:
            arguments["data_dir"] = self.data_dir
        if phase != "search":
            trainer["max_epochs"] = self.max_epochs or trainer["max_epochs"]
            config["model"]["init_args"]["teacher"] = str(self.teacher_path(seed))
            if self.wandb:
                trainer["logger"] = [trainer["logger"], self._wandb_logger(phase, seed)]
        return config

    def _wandb_logger(self, phase: str, seed: int) -> dict[str, Any]:
        folder = self.seed_dir(seed) / phase
        run = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]  # the same when the phase goes on
        name = f"{self.dataset}-seed{seed}-{phase}"
        arguments = {"project": self.wandb, "name": name, "group": self.dataset, "id": run, "save_dir": str(folder)}
        return {"class_path": "pytorch_lightning.loggers.WandbLogger", "init_args": arguments}

    def searched_path(self, seed: int) -> Path:
        """The teacher that was searched or given for a seed."""
        if self.teachers:
            return self.teachers[self.seeds.index(seed)]
        return self.seed_dir(seed) / "search" / "teacher.safetensors"

    def teacher_path(self, seed: int) -> Path:
        """The file that the phases take their teacher from."""
        if self.targets == "table":
            return self.seed_dir(seed) / "search" / "targets.safetensors"
        return self.searched_path(seed)


def _move_paths(value: Any, old: str, new: str) -> Any:
    if isinstance(value, dict):
        return {key: _move_paths(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [_move_paths(item, old, new) for item in value]
    if isinstance(value, str) and (value == old or value.startswith(old + "/")):
        return new + value[len(old) :]
    return value


def run_protocol(protocol: Protocol) -> dict[str, Any]:
    """Run what is not done yet, and write ``summary.json``, ``summary.csv`` and ``margin.png``.

    Returns:
        The summary.

    Raises:
        ProtocolError: if a folder holds a run with other settings, or a phase was interrupted.
    """
    with _interruptible(protocol.output_dir):
        for seed in protocol.seeds:
            if not protocol.teachers:
                _run_phase(protocol, "search", seed)
            if protocol.targets == "table":
                _write_targets(protocol, seed)
            for phase in protocol.names:
                _run_phase(protocol, phase, seed)
        return summarize(protocol.dataset, protocol.output_dir, protocol.seeds, protocol.teacher_path, protocol.names)


@contextmanager
def _interruptible(folder: Path) -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM, wherever they come, into a `ProtocolError`."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if in_main_thread else None
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        # Lightning turns Ctrl-C into `sys.exit(1)`; other exits are the parser's.
        if isinstance(stop, SystemExit) and stop.code != 1:
            raise
        raise ProtocolError(f"{folder} was interrupted; run the same command again to go on.") from None
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _run_phase(protocol: Protocol, phase: str, seed: int) -> None:
    folder = protocol.seed_dir(seed) / phase
    config = protocol.config(phase, seed)
    content = yaml.safe_dump(config, sort_keys=False)
    if phase != "search":
        content = f"# teacher: SHA-256 {sha256_file(protocol.searched_path(seed))}\n{content}"
    _check_same_run(folder, content)
    done = folder / "phase.json"
    if done.is_file() and (phase != "search" or protocol.searched_path(seed).is_file()):
        print(f"{protocol.dataset} seed {seed} {phase}: done before, kept.")
        return
    path = write_atomic(folder / "run.yaml", content)
    started = time.perf_counter()
    epochs = _fit(path, folder, certificate=phase != "search")
    seconds = time.perf_counter() - started
    values = {"seconds": round(seconds, 2), "epochs_run": epochs}
    write_atomic(done, json.dumps(values, indent=2) + "\n")


def _check_same_run(folder: Path, content: str) -> None:
    path = folder / "run.yaml"
    ran = folder.is_dir() and any(item != path for item in folder.iterdir())
    if ran and path.is_file() and path.read_text() != content:
        raise ProtocolError(
            f"{folder} holds a run with other settings than now asked for (compare {path}). Give another "
            "`--output_dir`, or delete that folder to run it anew."
        )


def _fit(path: Path, folder: Path, certificate: bool) -> int:
    """Fit, going on from the last checkpoint if there is one, then certify on the kept rows; returns epochs run now."""
    from certvae.commands.lightning import run_lightning
    from certvae.monitoring.loggers import end_runs

    resume = ["--ckpt_path", "last"] if any((folder / "checkpoints").glob("*.ckpt")) else []
    cli = run_lightning(["fit", "--config", str(path), *resume])
    epochs = cli.trainer.current_epoch - getattr(cli.trainer.checkpoint_callback, "resumed_at", 0)
    if certificate:
        cli.trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)
        Certificate.load(folder / "certificate_test.json")
    end_runs(cli.trainer)
    return epochs


def _write_targets(protocol: Protocol, seed: int) -> None:
    """Turn a teacher into fixed targets for every row of the data."""
    from certvae.commands.lightning import run_lightning

    path, source = protocol.teacher_path(seed), sha256_file(protocol.searched_path(seed))
    made_from = path.with_suffix(".source")
    if path.is_file() and made_from.is_file() and made_from.read_text().strip() == source:
        return
    config = {key: value for key, value in protocol.config("full", seed).items() if key == "data"}
    plain = write_atomic(protocol.seed_dir(seed) / "search" / "data.yaml", yaml.safe_dump(config))
    data = run_lightning(["--config", str(plain), "--model=certvae.TeacherSearch"], run=False).datamodule
    teacher = load_teacher(protocol.searched_path(seed))
    data.prepare_data()
    loaders = (data.loader(split) for split in ("train", "val", "test"))
    TargetTable.from_teacher(teacher, loaders).save(path)
    write_atomic(made_from, source + "\n")
    print(f"Fixed targets saved to {path}.")


def main(args: Sequence[str] | None = None) -> None:
    """``certvae protocol FILE``: run a protocol and print its table."""
    parser = argparse.ArgumentParser(prog="certvae protocol", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="the protocol's YAML, such as experiments/digits.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the file's seeds")
    parser.add_argument(
        "--teachers", type=Path, nargs="+", help="teacher files, one for each seed, instead of a search"
    )
    parser.add_argument("--max_epochs", type=int, help="epochs of each phase, instead of the YAMLs'")
    parser.add_argument("--data_dir", help="where the data set is")
    parser.add_argument("--output_dir", help="where results go; a run that is there goes on")
    parser.add_argument("--wandb", metavar="PROJECT", help="log each phase to Weights & Biases too, as its own run")
    given = parser.parse_args(args)
    if given.max_epochs is not None and given.max_epochs < 1:
        parser.error(f"--max_epochs must be at least 1, got {given.max_epochs}")
    changes = {key: value for key, value in vars(given).items() if key != "file"}
    changes["seeds"] = tuple(given.seeds) if given.seeds else None
    changes["teachers"] = tuple(given.teachers) if given.teachers else None
    protocol = Protocol.read(given.file, **changes)
    summary = run_protocol(protocol)
    Console(width=None if sys.stdout.isatty() else 100).print(summary_table(summary))
    print(f"Summary, table and figure: {protocol.output_dir}/summary.json, summary.csv, margin.png")
