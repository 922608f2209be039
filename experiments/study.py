"""Shared code of the studies: options, a teacher and data for each seed, and runs certified on reserved rows.

A study is started as a module from the root of a checkout, such as ``python -m experiments.stress.study``. Its runs are
those of :mod:`certvae.commands.runs`, its table, claims and figures those of :mod:`certvae.commands.tables`.
"""

import argparse
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from pytorch_lightning.cli import LightningCLI
from torch import Tensor

from certvae.certificate.certificate import Certificate
from certvae.commands import runs
from certvae.commands.certify import CertifyOptions, EncodedCheckpoint
from certvae.commands.protocol import ALIGNMENT_PATHS
from certvae.commands.run_config import complete, move_paths, part_of
from certvae.commands.tables import Line, Results, commit, origin
from certvae.datamodules import CIFAR100DataModule, DigitsDataModule, ImageDataModule, MNISTDataModule
from certvae.io.files import csv_text, write_atomic
from certvae.teachers import Teacher, load_teacher
from certvae.terminal import quiet

__all__ = [
    "Run",
    "Study",
    "errors_on_kept_rows",
    "numbers",
    "protocol_dataset",
    "protocol_parser",
    "study_parser",
]

EXPERIMENTS = Path(__file__).parent
RESULTS = EXPERIMENTS / "results"
PLACES = ("data_dir", "output_dir", "results", "strict")
OPTIONS = CertifyOptions(permutations=0, method="normal")
Measure = Callable[[LightningCLI], dict[str, Any]]


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: folder of the run.
        certificate: certificate on the reserved rows by ``normal``, with the calibrated witness fitted on training
            rows.
        proven: the same by the default proven bound.
        mean_squared_error: mean squared error per pixel of the reconstruction from a draw of the code.
        constant_squared_error: mean squared error per pixel of the best constant image.
        energy: ``E|mu|^2 / 2`` in nats, over the coordinates that the simplex witness reads.
        seconds: seconds since the last start, including everything.
        more: further measurements of the study.
    """

    folder: Path
    certificate: Certificate
    proven: Certificate
    mean_squared_error: float
    constant_squared_error: float
    energy: float
    seconds: float
    more: dict[str, Any]

    def line(self) -> Line:
        """The table values of every run."""
        values: dict[str, Any] = {
            "energy": self.energy,
            "mean_squared_error": self.mean_squared_error,
            "constant_squared_error": self.constant_squared_error,
            **self.more,
            "seconds": self.seconds,
        }
        return numbers(self.certificate, self.proven) | {name: round(float(value), 5) for name, value in values.items()}


def numbers(certificate: Certificate, proven: Certificate) -> Line:
    """The table values of a run's certificates, in nats.

    Args:
        certificate: certificate by ``normal`` at 95 %, so that the interval of the margin has 90 %.
        proven: certificate by the proven bound; its reading holds with its confidence.
    """
    c = certificate
    values = {
        "teacher_information": c.teacher_information,
        "margin": c.margin,
        "margin_lower": c.margin_lower,
        "margin_upper": 2 * c.margin - c.margin_lower,
        "channel_margin": c.channel_margin,
        "calibrated_channel_margin": c.calibrated_channel_margin,
        "rate": c.rate,
        "witness_information": c.witness_information,
        "proven_margin": proven.margin,
        "proven_lower": proven.margin_lower,
        "channel_lower": proven.channel_margin_lower,
        "information_lower": proven.information_lower,
        "information_upper": proven.information_upper,
        "fitted_mean": None if proven.fitted is None else proven.fitted.mean,
        "fitted_draw": proven.fitted_margin,
        "fitted_lower": None if proven.fitted is None else proven.fitted.lower,
    }
    rounded = {name: round(float(value), 5) for name, value in values.items() if value is not None}
    return {"status": str(c.status), "proven_status": str(proven.status), "reading": str(proven.reading), **rounded}


def study_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The options common to all studies, for the module ``experiments.<name>.study``."""
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.{name}.study",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="scikit-learn's digits, one seed")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: those of the study, or 0 with --quick")
    parser.add_argument("--max_epochs", type=int, help="of each run, instead of the YAML's")
    parser.add_argument("--subset", type=int, help="at most this many rows of each split")
    parser.add_argument("--data_dir", default="data", help="where the data set is")
    parser.add_argument("--output_dir", type=Path, help="default: in runs; an interrupted study in it is resumed")
    parser.add_argument("--results", action="store_true", help="copy table and figures to experiments/results")
    parser.add_argument("--strict", action="store_true", help="end with status 1 if a claim of the study does not hold")
    return parser


def protocol_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The options common to the studies of a whole protocol; :func:`protocol_dataset` reads them."""
    parser = study_parser(name, description)
    parser.add_argument("--dataset", choices=("cifar100", "tiny_imagenet"), help="default: cifar100")
    parser.add_argument("--alignment_path", choices=ALIGNMENT_PATHS, help="align means or draws, instead of the YAMLs'")
    return parser


def protocol_dataset(parser: argparse.ArgumentParser, given: argparse.Namespace) -> tuple[str, str]:
    """The data set of a protocol, and the same with the path that all phases align, for names of results."""
    if given.quick and given.dataset:
        parser.error("--quick runs on the digits; leave out --dataset.")
    if given.subset is not None:
        parser.error("a protocol runs on all rows; --subset does not apply.")
    dataset = "digits" if given.quick else given.dataset or "cifar100"
    return dataset, "_".join(filter(None, (dataset, given.alignment_path)))


class Study:
    """The runs of a study, ``seed<n>/<name>`` in its folder; what is done is kept.

    Args:
        name: of its module ``experiments.<name>.study``.
        given: what :func:`study_parser` read.
        seeds: if none are given.
        results: name of table and figure; default: ``name``.
        dataset: whose YAMLs are the base; with ``--quick``, ``"digits"``.

    Attributes:
        dataset: whose YAMLs are the base.
        seeds: one teacher search and all runs for each.
        folder: where everything goes.
        seconds: of all runs.
    """

    def __init__(
        self,
        name: str,
        given: argparse.Namespace,
        seeds: Sequence[int] = (0, 1, 2),
        results: str | None = None,
        dataset: str = "cifar100",
    ) -> None:
        self.name, self.given, self.results = name, given, results or name
        self.dataset = "digits" if given.quick else dataset
        self.seeds: list[int] = given.seeds or ([0] if given.quick else list(seeds))
        self.home = f"{self.results}_quick" if given.quick else self.results
        self.folder: Path = given.output_dir or Path("runs") / self.home
        self.seconds = 0.0
        self.commits: set[str] = set()
        self._teachers: dict[int, Teacher] = {}
        quiet()

    def teacher(self, seed: int) -> Teacher:
        """The teacher of a seed, searched unless it is there."""
        if seed not in self._teachers:
            path = self._teacher_path(seed)
            self._execute(self._run("search", seed, self.values("search"), {}, product=path))
            self._teachers[seed] = load_teacher(path)
        return self._teachers[seed]

    def run(
        self,
        seed: int,
        name: str,
        changes: Mapping[str, Any],
        base: Mapping[str, Any] | None = None,
        measure: Measure | None = None,
    ) -> Run:
        """Fit a YAML with changes, going on where an earlier call stopped, and certify on the kept rows.

        Args:
            seed: of the run; its teacher has been searched with it.
            name: of the run's folder.
            changes: values by their names on the command line, such as ``model.objective.beta``.
            base: values of a complete YAML; default: the data set's ``full.yaml``.
            measure: what else to measure of the fitted model, kept with the run.

        Raises:
            RunError: if the folder holds a run with other settings.
        """
        self.teacher(seed)
        path = self._teacher_path(seed)
        epochs = {} if self.given.max_epochs is None else {"trainer.max_epochs": self.given.max_epochs}
        changes = {"model.teacher": str(path), **epochs, **changes}
        run = self._run(name, seed, base or self.values("full"), changes, teacher=path)
        record = self._execute(run, partial(_finish, run=run, measure=measure))
        self.count([run])
        kept = {key: value for key, value in record.items() if key not in ("commit", "epochs_run")}
        normal, proven = (Certificate.load(run.folder / f"{name}.json") for name in ("certificate", "proven"))
        return Run(run.folder, normal, proven, **kept)

    def count(self, finished: Iterable[runs.Run]) -> None:
        """Add runs to the time and the commits that the table names."""
        for run in finished:
            self.seconds += run.record["seconds"]
            self.commits.add(run.record["commit"])

    def _teacher_path(self, seed: int) -> Path:
        return self.place(seed, "search") / "teacher.safetensors"

    def _execute(self, run: runs.Run, finish: Measure | None = None) -> dict[str, Any]:
        with runs.interruptible(self.folder):
            return runs.execute(run, finish)

    def batches(self, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Images in [0, 1] and their indices, the rows of a split in order."""
        rows = {"batch_size": 500, "subset": self.given.subset}
        data: ImageDataModule
        if self.dataset == "digits":
            data = DigitsDataModule(**rows)
        else:
            data = {"cifar100": CIFAR100DataModule, "mnist": MNISTDataModule}[self.dataset](self.given.data_dir, **rows)
        for batch in data.loader(split):
            images, _, index = data.on_after_batch_transfer(batch, 0)
            yield images, index

    def base(self, name: str) -> Any:
        """A value of the base ``full.yaml`` by its command-line name, such as ``model.encoder``."""
        part, last = part_of(self.values("full"), name)
        return part[last]

    def values(self, name: str) -> dict[str, Any]:
        """The data set's YAML ``<name>.yaml``."""
        return dict(yaml.safe_load((EXPERIMENTS / self.dataset / f"{name}.yaml").read_text()))

    def place(self, seed: int, name: str) -> Path:
        """The folder of a run."""
        return self.folder / f"seed{seed}" / name

    def _run(
        self, name: str, seed: int, values: Mapping[str, Any], changes: Mapping[str, Any], **files: Path
    ) -> runs.Run:
        """A complete run in the study's folder, on the study's data."""
        folder, label = self.place(seed, name), f"seed {seed} {name:<16}"
        moved = move_paths(values, values["trainer"]["default_root_dir"], str(folder))
        data = {} if self.dataset == "digits" else {"data.data_dir": self.given.data_dir}
        rows = {} if self.given.subset is None else {"data.subset": self.given.subset}
        config = complete(moved, seed=seed, label=label, changes={**data, **rows, **changes})
        return runs.Run(folder, config, label, **files)

    def report(self, results: Results) -> Path:
        """Write table, claims and figures to the study's folder; with ``--results``, copy them to the committed ones.

        Returns:
            The Markdown file.

        Raises:
            SystemExit: with ``--strict``, after everything is written, if a claim does not hold.
        """
        paths = results.write(self.folder, self.results, self._origin())
        if self.given.results:
            (RESULTS / self.home).mkdir(parents=True, exist_ok=True)
            for path in paths:
                shutil.copyfile(path, RESULTS / self.home / path.name)
        print(paths[1].read_text())
        if self.given.strict and not all(results.claims.values()):
            raise SystemExit(f"{paths[1]}: not everything that the study claims holds.")
        return paths[1]

    def keep(self, name: str, lines: Sequence[Line]) -> None:
        """Write another table, ``<name>.csv``, to the study's folder; with ``--results`` to the committed ones too."""
        folders = [self.folder, RESULTS / self.home] if self.given.results else [self.folder]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / f"{name}.csv", csv_text(lines[0], lines))

    def _origin(self) -> str:
        options = {key: value for key, value in vars(self.given).items() if key not in PLACES}
        commits = ", ".join(sorted(self.commits))
        made_at = f"trained at commit {commits}" if commits else f"table at commit {commit()}"
        return origin(["python", "-m", f"experiments.{self.name}.study"], options, made_at, self.seconds)


def _finish(cli: LightningCLI, *, run: runs.Run, measure: Measure | None) -> dict[str, Any]:
    """Certify a fitted run on the reserved rows, and measure it."""
    assert run.teacher is not None
    encoded = EncodedCheckpoint.read(run.checkpoint, run.teacher, run.config, OPTIONS)
    certificate = encoded.certify()
    certificate.save(run.folder / "certificate.json")
    # the default: betting, for a teacher with a guaranteed floor
    encoded.certify(method=None).save(run.folder / "proven.json")
    found = errors_on_kept_rows(cli.model, cli.datamodule, certificate.num_components)
    return {**found, "more": {} if measure is None else measure(cli)}


@torch.no_grad()
def errors_on_kept_rows(model: Any, data: Any, num_components: int) -> dict[str, float]:
    """Squared errors per pixel and energy, in float32 on the CPU, with fixed draws per row.

    Args:
        model: a :class:`certvae.VAE`, which stays on the CPU in eval mode.
        data: its DataModule, set up for tests.
        num_components: K of the teacher; the simplex witness reads K - 1 coordinates.

    Returns:
        ``mean_squared_error``, ``constant_squared_error`` and ``energy``, as in :class:`Run`.
    """
    model.cpu().eval()
    errors, energies, pixels = [], [], []
    for batch in data.test_dataloader():
        images, _, index = data.on_after_batch_transfer(batch, 0)
        posterior = model(images)
        pixels.append(images)
        errors.append(model.squared_error(images, posterior.row_draws(index, 1, 0)[0]) / images[0].numel())
        energies.append((posterior.mean[:, : num_components - 1] ** 2).sum(dim=1) / 2)
    constant = torch.cat(pixels).double().var(dim=0, correction=0)
    means = (float(values.double().mean()) for values in (torch.cat(errors), constant, torch.cat(energies)))
    return dict(zip(("mean_squared_error", "constant_squared_error", "energy"), means, strict=True))
