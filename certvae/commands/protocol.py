"""The paper's protocol for each seed: search a teacher, then run ``full``, ``no_align``, ``rescue`` and others.

Each phase is one run of ``certvae fit`` on a YAML that is first written into the phase's folder. So you can repeat each
phase with ``certvae fit --config``.
"""

import argparse
import hashlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, get_args

import yaml
from rich.console import Console

from certvae.commands.lightning import run_lightning
from certvae.commands.mistakes import missing_file
from certvae.commands.run_config import complete, move_paths, part_of
from certvae.commands.runs import Run, certify_held_out_rows, execute, interruptible
from certvae.commands.summary import OPTIONAL_PHASES, PHASES, summarize, summary_table
from certvae.commands.tables import origin
from certvae.io.files import sha256_file, write_atomic
from certvae.models.vae import AlignmentPath
from certvae.teachers import TargetTable, load_teacher, teacher_file

__all__ = [
    "ALIGNMENT_PATHS",
    "PHASES",
    "WITNESSES",
    "Protocol",
    "alignment_path_of",
    "find_teacher",
    "main",
    "raw_head",
    "run_protocol",
]

RAW_HEADS: dict[str, dict[str, Any]] = {"head": {}, "perceptron": {"hidden": 64}}  # their arguments
WITNESSES = ("simplex", *RAW_HEADS)  # simplex: the witness of the phase's YAML
ON_DRAWS = {"temperature": 0.1}  # of a raw head that is aligned on draws: at the default it learns slowly
ALIGNMENT_PATHS = get_args(AlignmentPath)
OPTIONS = ("seeds", "teachers", "max_epochs", "alignment_path")  # options in a summary; the others are paths


def raw_head(witness: str, alignment_path: str) -> dict[str, Any]:
    """The trained witness ``"head"`` or ``"perceptron"`` as in a YAML, for codes aligned on the mean or on draws."""
    arguments = RAW_HEADS[witness] | (ON_DRAWS if alignment_path == "sample" else {})
    return {"class_path": "certvae.RawHead"} | ({"init_args": arguments} if arguments else {})


def alignment_path_of(values: dict[str, Any]) -> str:
    """What a run with these values aligns, ``"mean"`` or ``"sample"``; the model checks it."""
    model, name = part_of(values, "model.alignment_path")
    return str(model.get(name, "mean"))


@dataclass(frozen=True)
class Protocol:
    """The settings of a protocol, from its YAML and the command line.

    Attributes:
        dataset: name for tables and figures.
        phases: paths of the YAMLs of ``search`` and of each phase; ``ablate``, ``guarded`` and ``prefit`` are optional.
        seeds: seeds; each has one search and all phases.
        output_dir: folder of the results, with ``seed<n>/<phase>`` for each phase.
        file: path of the YAML.
        moved_from: folder in the YAMLs; paths below it are moved to ``output_dir/seed<n>``.
        targets: ``"mixture"``: probabilities of the searched teacher; ``"table"``: fixed targets for each index.
        witness: witness of all phases: ``"simplex"`` (fixed), or trained by the alignment term: ``"head"`` (linear) or
            ``"perceptron"`` (64 hidden units). Its temperature is 0.1 if ``full`` aligns draws, and 1 if it
            aligns the mean.
        teachers: teacher files, one per seed, instead of a search.
        max_epochs: epochs of each phase, instead of the YAMLs' values.
        alignment_path: what all phases align, ``"mean"`` or ``"sample"``, instead of the YAMLs' values.
        data_dir: data folder, instead of the YAMLs' values.
        wandb: Weights & Biases project in which each phase is logged as a run, grouped by ``dataset``.
        download: whether to download a data set that is missing.
    """

    dataset: str
    phases: dict[str, Path]
    seeds: tuple[int, ...]
    output_dir: Path
    file: Path
    moved_from: str
    targets: str = "mixture"
    witness: str = "simplex"
    teachers: tuple[Path, ...] = ()
    max_epochs: int | None = None
    alignment_path: str | None = None
    data_dir: str | None = None
    wandb: str | None = None
    download: bool | None = None

    def __post_init__(self) -> None:
        missing = [name for name in ("search", *PHASES) if name not in self.phases]
        if missing:
            raise ValueError(f"`phases` must name the YAML of {missing}.")
        unknown = sorted(set(self.phases) - {"search", *PHASES, *OPTIONAL_PHASES})
        if unknown:
            raise ValueError(f"`phases` may name search, {', '.join((*PHASES, *OPTIONAL_PHASES))}, got {unknown}.")
        if self.targets not in ("mixture", "table"):
            raise ValueError(f"`targets` must be 'mixture' or 'table', got {self.targets!r}.")
        if self.witness not in WITNESSES:
            raise ValueError(f"`witness` must be one of {', '.join(WITNESSES)}, got {self.witness!r}.")
        if self.alignment_path not in (None, *ALIGNMENT_PATHS):
            raise ValueError(f"`alignment_path` must be 'mean' or 'sample', got {self.alignment_path!r}.")
        if not self.seeds:
            raise ValueError("`seeds` must hold at least one seed.")
        if self.teachers and len(self.teachers) != len(self.seeds):
            raise ValueError(f"`teachers` must be one for each of {len(self.seeds)} seeds, got {len(self.teachers)}.")

    @property
    def names(self) -> tuple[str, ...]:
        """The phases after the search, in order of execution."""
        return tuple(name for name in (*PHASES, *OPTIONAL_PHASES) if name in self.phases)

    @classmethod
    def read(cls, path: str | Path, **changes: Any) -> "Protocol":
        """Read a protocol's YAML; ``changes`` that are not None replace its values.

        Raises:
            ValueError: if a key is missing or unknown.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no protocol at {path}.{missing_file(path)}")
        values = yaml.safe_load(path.read_text())
        known = {"dataset", "phases", "targets", "witness", "seeds", "output_dir"}
        if not isinstance(values, dict) or set(values) - known or {"dataset", "phases", "output_dir"} - set(values):
            raise ValueError(f"{path} must hold dataset, phases, output_dir and may hold targets, witness, seeds.")
        values["file"], values["moved_from"] = path, str(values["output_dir"])
        values["phases"] = {name: path.parent / file for name, file in values["phases"].items()}
        values.update({key: value for key, value in changes.items() if value is not None})
        values["output_dir"], values["seeds"] = Path(values["output_dir"]), tuple(values.get("seeds", (0,)))
        return cls(**values)

    def seed_dir(self, seed: int) -> Path:
        """The folder of a seed's phases."""
        return self.output_dir / f"seed{seed}"

    def run(self, phase: str, seed: int) -> Run:
        """The complete run of a phase; its YAML is written on execution."""
        folder, searched = self.seed_dir(seed) / phase, self.searched_path(seed)
        label = f"{self.dataset} seed {seed} {phase:<8}"
        values = move_paths(yaml.safe_load(self.phases[phase].read_text()), self.moved_from, str(self.seed_dir(seed)))
        config = complete(values, seed=seed, label=label, changes=self._changes(values, phase, seed))
        if phase == "search":
            return Run(folder, config, label, product=searched)
        return Run(folder, config, label, teacher=searched)

    def _changes(self, values: dict[str, Any], phase: str, seed: int) -> dict[str, Any]:
        """The protocol's changes to the YAML of a phase, by command-line names."""
        changes: dict[str, Any] = {}
        if self.data_dir is not None and "data_dir" in values["data"].get("init_args", {}):
            changes["data.data_dir"] = self.data_dir
        if self.download:
            changes["data.download"] = True
        if self.wandb:
            changes["trainer.logger"] = [values["trainer"]["logger"], self._wandb_logger(phase, seed)]
        if phase == "search":
            return changes
        if self.witness in RAW_HEADS:  # one for all phases, as they start from each other's weights
            full = yaml.safe_load(self.phases["full"].read_text())
            changes["model.witness"] = raw_head(self.witness, self.alignment_path or alignment_path_of(full))
        if self.max_epochs is not None:
            changes["trainer.max_epochs"] = self.max_epochs
        if self.alignment_path is not None:
            changes["model.alignment_path"] = self.alignment_path
        return {**changes, "model.teacher": str(self.teacher_path(seed))}

    def _wandb_logger(self, phase: str, seed: int) -> dict[str, Any]:
        folder = self.seed_dir(seed) / phase
        run = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]  # the same when the phase is resumed
        name = f"{self.dataset}-seed{seed}-{phase}"
        arguments = {
            "project": self.wandb,
            "name": name,
            "group": self.dataset,
            "job_type": phase,
            "tags": [self.dataset, phase, f"seed{seed}"],
            "id": run,
            "save_dir": os.environ.get("WANDB_DIR", str(folder)),
            "log_model": phase != "search",
        }
        return {"class_path": "pytorch_lightning.loggers.WandbLogger", "init_args": arguments}

    def searched_path(self, seed: int) -> Path:
        """The path of the searched or given teacher of a seed."""
        if self.teachers:
            return self.teachers[self.seeds.index(seed)]
        return self.seed_dir(seed) / "search" / "teacher.safetensors"

    def teacher_path(self, seed: int) -> Path:
        """The path of the teacher file that the phases use."""
        if self.targets == "table":
            return self.seed_dir(seed) / "search" / "targets.safetensors"
        return self.searched_path(seed)


def run_protocol(protocol: Protocol) -> dict[str, Any]:
    """Run the phases that are not done, and write ``summary.json``, ``summary.csv``, ``summary.md`` and ``margin.png``.

    Returns:
        The summary.

    Raises:
        RunError: if a folder holds a run with other settings, or a phase was interrupted.
    """
    with interruptible(protocol.output_dir):
        records: list[dict[str, Any]] = []
        for seed in protocol.seeds:
            _run_seed(protocol, seed, records)
        options = {name: getattr(protocol, name) for name in OPTIONS}
        options["witness"] = None if protocol.witness == "simplex" else protocol.witness
        commits = f"trained at commit {', '.join(sorted({record['commit'] for record in records}))}"
        command = ["certvae", "protocol", str(protocol.file)]
        made = origin(command, options, commits, sum(record["seconds"] for record in records))
        folders = {seed: protocol.seed_dir(seed) for seed in protocol.seeds}
        teachers = {seed: protocol.teacher_path(seed) for seed in protocol.seeds}
        return summarize(protocol.dataset, protocol.output_dir, folders, teachers, protocol.names, made)


def find_teacher(protocol: Protocol, seed: int, records: list[dict[str, Any]]) -> None:
    """Run the search of a seed if no teacher is given, and write fixed targets if the protocol uses them."""
    if not protocol.teachers:
        print(_progress(protocol, records), flush=True)
        records.append(execute(protocol.run("search", seed)))
    if protocol.targets == "table":
        _write_targets(protocol, seed)


def _run_seed(protocol: Protocol, seed: int, records: list[dict[str, Any]]) -> None:
    """Run the search and the phases of a seed, and add their records."""
    find_teacher(protocol, seed, records)
    for run in [protocol.run(phase, seed) for phase in protocol.names]:
        print(_progress(protocol, records), flush=True)
        records.append(execute(run, partial(certify_held_out_rows, folder=run.folder)))


def _progress(protocol: Protocol, records: Sequence[dict[str, Any]]) -> str:
    """The number of the next run, with the time left, estimated from the finished runs."""
    total = len(protocol.seeds) * (len(protocol.names) + (not protocol.teachers))
    mean = sum(record["seconds"] for record in records) / max(1, len(records))
    left = timedelta(seconds=round(mean * (total - len(records))))
    return f"Run {len(records) + 1} of {total}{f', about {left} left' if records else ''}:"


def _write_targets(protocol: Protocol, seed: int) -> None:
    """Write a teacher's probabilities as fixed targets for every row of the data."""
    path, source = protocol.teacher_path(seed), sha256_file(protocol.searched_path(seed))
    made_from = path.with_suffix(".source")
    if path.is_file() and made_from.is_file() and made_from.read_text().strip() == source:
        return
    config = {"data": protocol.run("full", seed).values["data"]}
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
        "--teachers",
        type=teacher_file,
        nargs="+",
        help="teacher files, one for each seed, instead of a search",
    )
    parser.add_argument("--witness", choices=WITNESSES, help="instead of the file's witness")
    parser.add_argument("--max_epochs", type=int, help="epochs of each phase, instead of the YAMLs'")
    parser.add_argument("--alignment_path", choices=ALIGNMENT_PATHS, help="align means or draws, instead of the YAMLs'")
    parser.add_argument("--data_dir", help="data folder")
    parser.add_argument("--download", action="store_true", default=None, help="download the data set if it is missing")
    parser.add_argument("--output_dir", help="folder of the results; an interrupted run in it is resumed")
    parser.add_argument("--wandb", metavar="PROJECT", help="log each phase to Weights & Biases too, as its own run")
    given = parser.parse_args(args)
    if given.max_epochs is not None and given.max_epochs < 1:
        parser.error(f"--max_epochs must be at least 1, got {given.max_epochs}")
    changes = {key: value for key, value in vars(given).items() if key != "file"}
    changes["seeds"] = tuple(given.seeds) if given.seeds else None
    changes["teachers"] = tuple(given.teachers) if given.teachers else None
    protocol = Protocol.read(given.file, **changes)
    summary = run_protocol(protocol)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(summary_table(summary, console.width))
    print(f"Summary, table and figure: {protocol.output_dir}/summary.json, summary.csv, summary.md, margin.png")
