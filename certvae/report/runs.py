"""Reads a run's folder: histories, certificates and the files for images."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from certvae.certificate.certificate import Certificate
from certvae.certificate.claims import check_claims
from certvae.certificate.figures import GOES_ON_FROM
from certvae.certificate.history import read_history
from certvae.commands.certify import CONFIG_LIMIT
from certvae.io.untrusted import own_path, parse_json, parse_yaml, read_limited
from certvae.teachers import teacher_file

__all__ = ["Phase", "Run", "plain_config", "read_run", "read_runs", "readable"]

ORDER = ("full", "no_align", "rescue", "ablate")  # order of a protocol's phases; others follow by name
SUMMARY_LIMIT = 2**26  # bytes; 10,000 seeds
LONGEST_NAME = 255
HISTORY = "s_val.jsonl"  # follows the callback's name


@dataclass(frozen=True)
class Phase:
    """One fit: its history, certificate and files.

    Attributes:
        name: name of the phase, the callback or the folder.
        seed: seed in a protocol, else empty.
        folder: folder of its files.
        path: path of the certificate.
        certificate: the published certificate, else that of the test rows, else the last one of the validation rows.
        split: ``"test"`` or ``"val"``.
        history: certificates of the validation rows during training.
        start: number of validations of the fit from which this one continues.
        root: the run's folder; links out of it are refused; default: ``folder``.
        callback: name of the callback that wrote the certificate.
    """

    name: str
    seed: str
    folder: Path
    path: Path
    certificate: Certificate
    split: str
    history: tuple[Certificate, ...]
    start: int = 0
    root: Path | None = None
    callback: str = "certificate"

    def own(self, path: Path) -> Path:
        """The path of a file of this fit.

        Raises:
            ValueError: if the file is a link out of the run's folder.
        """
        return own_path(path, self.root or self.folder)

    @property
    def label(self) -> str:
        """The name, with the seed if there is one."""
        return f"{self.name}, seed {self.seed}" if self.seed else self.name

    @property
    def config(self) -> Path | None:
        """The fit's YAML.

        Raises:
            ValueError: if it is a link out of the run's folder; so do the other files.
        """
        places = (self.folder / name for name in ("run.yaml", "config.yaml"))
        return next((self.own(path) for path in places if path.is_file()), None)

    @property
    def checkpoint(self) -> Path | None:
        """The path of the last checkpoint, or of the only one."""
        found = sorted([*self.folder.glob("checkpoints/*.ckpt"), *self.folder.glob("*.ckpt")])
        last = [path for path in found if path.stem == "last"] or (found if len(found) == 1 else [])
        return self.own(last[0]) if last else None

    @property
    def teacher(self) -> Path | None:
        """The path of the teacher: first next to the run, then from its YAML, because folders may be moved.

        If both are missing, the copy that the callback saved.
        """
        named = _named_teacher(plain_config(self.config))
        name = Path(named).name if named else "teacher.safetensors"
        beside = self.folder.parent / "search" / name
        if _is_file(beside):
            return own_path(beside, self.folder.parent)
        if _is_file(self.folder / name):
            return self.own(self.folder / name)
        if named and _is_file(teacher_file(named)):
            return teacher_file(named)
        kept = self.folder / f"{self.callback}_teacher.safetensors"
        return self.own(kept) if _is_file(kept) else None


@dataclass(frozen=True)
class Run:
    """A run folder of the report.

    Attributes:
        name: unique name in the report.
        dataset: data set in the protocol's summary, else empty.
        folder: path as given.
        phases: its fits, by seed and then in order of creation.
    """

    name: str
    dataset: str
    folder: Path
    phases: tuple[Phase, ...]

    @property
    def shown(self) -> tuple[Phase, ...]:
        """The phases of the first seed, for which images are made."""
        return tuple(phase for phase in self.phases if phase.seed == self.phases[0].seed)


def readable(text: str) -> str:
    """Text in which each unprintable character, as in unusual paths, is replaced."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def read_runs(folders: list[Path]) -> list[Run]:
    """Read folders; if two have the same name, their paths become the names."""
    names = [folder.resolve().name or str(folder) for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    return [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]


def read_run(folder: Path, name: str) -> Run:
    """Read the folder of a protocol, or of a ``CertificateCallback`` with ``save_dir``.

    Raises:
        FileNotFoundError: if the folder does not exist or contains no run.
        ValueError: if a history, a certificate or the summary is invalid, was altered, or is a link out of the folder.
    """
    if not folder.is_dir():
        there = "it is a file; give the folder that it is in" if folder.is_file() else "give the folder of a run"
        raise FileNotFoundError(f"no folder at {folder}: {there}.")
    phases = tuple(phase for place, seed in _places(folder) for phase in _phases_of(place, seed, folder))
    if not phases:
        raise FileNotFoundError(
            f"{folder} holds no run: neither seed<n>/<phase>/certificates_val.jsonl, as `certvae protocol` leaves, nor "
            "certificates_val.jsonl with a certificate, as a CertificateCallback with `save_dir` leaves after its "
            "first validation."
        )
    return Run(readable(name), readable(_dataset(folder))[:LONGEST_NAME], folder, _with_starts(phases))


def _places(folder: Path) -> Iterator[tuple[Path, str]]:
    """Folders of fits with their seed: the folder itself, else its subfolders, else the subfolders of its seeds."""
    seeds = sorted(folder.glob("seed*"), key=lambda path: (len(path.name), path.name))
    seeds = [own_path(path, folder) for path in seeds if re.fullmatch("seed-?[0-9]+", path.name)]
    for place, seed in [(folder, ""), *((path, path.name.removeprefix("seed")) for path in seeds)]:
        if any(place.glob(f"*{HISTORY}")):
            yield place, seed
            continue
        folders = [own_path(path, folder) for path in place.iterdir() if path.is_dir()]
        inside = [path for path in sorted(folders) if any(path.glob(f"*{HISTORY}"))]
        rank = {name: number for number, name in enumerate(ORDER)}
        inside.sort(key=lambda path: rank.get(path.name, len(rank)))
        yield from ((path, seed) for path in inside)


def _phases_of(folder: Path, seed: str, root: Path) -> Iterator[Phase]:
    """One phase per callback that wrote to the folder."""
    for path in sorted(folder.glob(f"*{HISTORY}")):
        own_path(path, root)
        callback = path.name.removesuffix(HISTORY)
        name = folder.resolve().name if callback == "certificate" else callback
        history = tuple(read_history(path))
        published = folder / "certificate.json"
        candidates = [published] if callback == "certificate" else []
        candidates += [folder / f"{callback}_{split}.json" for split in ("test", "val")]
        found = next((path for path in candidates if path.is_file()), None)
        if not (found or history):
            continue
        certificate = Certificate.load(own_path(found, root)) if found else history[-1]
        check_claims(certificate)
        yield Phase(
            readable(name), seed, folder, found or path, certificate, _split(certificate), history, 0, root, callback
        )


def _split(certificate: Certificate) -> str:
    options = certificate.provenance.get("options")
    stated = options.get("split") if isinstance(options, dict) else certificate.provenance.get("stage")
    return "test" if stated == "test" else "val"


def _with_starts(phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
    lengths = {(phase.seed, phase.name): len(phase.history) for phase in phases}
    starts = [lengths.get((phase.seed, GOES_ON_FROM.get(phase.name, "")), 0) for phase in phases]
    return tuple(Phase(**{**vars(phase), "start": start}) for phase, start in zip(phases, starts, strict=True))


def _dataset(folder: Path) -> str:
    path = folder / "summary.json"
    if not path.is_file():
        return ""
    try:
        values = parse_json(read_limited(own_path(path, folder), SUMMARY_LIMIT, "summary"))
    except ValueError as error:
        raise ValueError(f"{path} is no summary of a protocol: {error}.") from None
    dataset = values.get("dataset") if isinstance(values, dict) else None
    return dataset if isinstance(dataset, str) else ""


def plain_config(path: Path | None) -> dict[str, Any]:
    """The values of a YAML, read without running code; empty if it is missing or not a mapping."""
    if path is None:
        return {}
    try:
        values = parse_yaml(read_limited(path, CONFIG_LIMIT, "YAML"))
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # the name is too long
        return False


def _named_teacher(config: dict[str, Any]) -> str | None:
    """The ``teacher`` argument of the model, or else of a callback."""
    trainer = config.get("trainer")
    callbacks = trainer.get("callbacks") if isinstance(trainer, dict) else None
    parts = [config.get("model"), *(callbacks if isinstance(callbacks, list) else [])]
    arguments = [part.get("init_args") for part in parts if isinstance(part, dict)]
    named = [item.get("teacher") for item in arguments if isinstance(item, dict)]
    return next((name for name in named if isinstance(name, str)), None)
