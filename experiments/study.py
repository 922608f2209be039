"""What studies share: runs made of a base YAML and changes, their certificates on kept rows, tables and figures.

A study is started as a module from the root of a checkout, such as ``python -m experiments.stress.study``.
"""

import argparse
import json
import logging
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from matplotlib.figure import Figure
from pytorch_lightning.cli import LightningCLI
from torch import Tensor

from certvae.certificate.certificate import Certificate
from certvae.certificate.figures import save_figure
from certvae.commands.certify import CertifyOptions, certify_checkpoint
from certvae.commands.lightning import run_lightning
from certvae.datamodules import CIFAR100DataModule, DigitsDataModule
from certvae.io.files import csv_text, sha256_file, write_atomic
from certvae.teachers import Teacher, load_teacher
from experiments.tables import Line, commit, markdown, origin
from experiments.values import part_of, set_value

__all__ = ["Run", "Study", "errors_on_kept_rows", "numbers", "study_parser"]

EXPERIMENTS = Path(__file__).parent
RESULTS = EXPERIMENTS / "results"
PLACES = ("data_dir", "output_dir", "results", "strict")
OPTIONS = CertifyOptions(permutations=0)
Measure = Callable[[LightningCLI], dict[str, Any]]


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        certificate: on the rows kept for it, with the calibrated witness fitted on training rows.
        mean_squared_error: of a pixel, reconstructed from a draw of the code.
        constant_squared_error: of a pixel, of the best constant image.
        energy: ``E|mu|^2 / 2`` in nats, over the coordinates that the simplex witness reads.
        seconds: of the last start, with everything.
        more: what the study itself measured.
        commit: of the code that trained it.
    """

    certificate: Certificate
    mean_squared_error: float
    constant_squared_error: float
    energy: float
    seconds: float
    more: dict[str, Any]
    commit: str

    def line(self) -> Line:
        """What a table says of every run."""
        values: dict[str, Any] = {
            "energy": self.energy,
            "mean_squared_error": self.mean_squared_error,
            "constant_squared_error": self.constant_squared_error,
            **self.more,
            "seconds": self.seconds,
        }
        return numbers(self.certificate) | {name: round(float(value), 5) for name, value in values.items()}


def numbers(certificate: Certificate) -> Line:
    """What a table says of a certificate; nats. With a normal bound at 95 % the interval of the margin has 90 %."""
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
    }
    rounded = {name: round(float(value), 5) for name, value in values.items() if value is not None}
    return {"status": str(c.status), **rounded}


def study_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The options that every study has, for the module ``experiments.<name>.study``."""
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.{name}.study",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="scikit-learn's digits instead of CIFAR-100, one seed")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: those of the study, or 0 with --quick")
    parser.add_argument("--max_epochs", type=int, help="of each run, instead of the YAML's")
    parser.add_argument("--subset", type=int, help="at most this many rows of each split")
    parser.add_argument("--data_dir", default="data", help="where CIFAR-100 is")
    parser.add_argument("--output_dir", type=Path, help="default: in runs; a study that is there goes on")
    parser.add_argument("--results", action="store_true", help="copy table and figures to experiments/results")
    parser.add_argument("--strict", action="store_true", help="end with status 1 if a claim of the study does not hold")
    return parser


class Study:
    """The runs of a study, ``seed<n>/<name>`` in its folder; what is done is kept.

    Args:
        name: of its module ``experiments.<name>.study``.
        given: what :func:`study_parser` read.
        seeds: if none are given.
        results: name of table and figure; default: ``name``.

    Attributes:
        dataset: whose YAMLs are the base, ``"digits"`` or ``"cifar100"``.
        seeds: one teacher search and all runs for each.
        folder: where everything goes.
        seconds: of all runs.
    """

    def __init__(
        self, name: str, given: argparse.Namespace, seeds: Sequence[int] = (0, 1, 2), results: str | None = None
    ) -> None:
        self.name, self.given, self.results = name, given, results or name
        self.dataset = "digits" if given.quick else "cifar100"
        self.seeds: list[int] = given.seeds or ([0] if given.quick else list(seeds))
        self.home = f"{self.results}_quick" if given.quick else self.results
        self.folder: Path = given.output_dir or Path("runs") / self.home
        self.seconds = 0.0
        self.commits: set[str] = set()
        _quiet()

    def teacher(self, seed: int) -> Teacher:
        """The teacher of a seed, searched unless it is there."""
        folder = self.folder / f"seed{seed}" / "search"
        path = folder / "teacher.safetensors"
        settings = self._write(self._base("search"), folder, seed, {})
        if not path.is_file():
            _fit(settings, folder)
        return load_teacher(path)

    def run(
        self,
        seed: int,
        name: str,
        changes: Mapping[str, Any],
        base: dict[str, Any] | None = None,
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
            ValueError: if the folder holds a run with other settings.
        """
        folder, teacher = self.folder / f"seed{seed}" / name, self.teacher(seed)
        source = folder.parent / "search" / "teacher.safetensors"
        epochs = {} if self.given.max_epochs is None else {"trainer.max_epochs": self.given.max_epochs}
        changes = {"model.teacher": str(source), **epochs, **changes}
        head = f"# teacher: SHA-256 {sha256_file(source)}\n"
        path = self._write(base or self._base("full"), folder, seed, changes, head)
        done = folder / "run.json"
        if not done.is_file():
            started = time.perf_counter()
            cli = _fit(path, folder)
            certify_checkpoint(folder / "checkpoints" / "last.ckpt", source, path, OPTIONS).save(
                folder / "certificate.json"
            )
            kept = errors_on_kept_rows(cli.model, cli.datamodule, teacher.num_components)
            found = {**kept, "more": {} if measure is None else measure(cli)}
            values = {**found, "seconds": round(time.perf_counter() - started, 2), "commit": commit()}
            write_atomic(done, json.dumps(values, indent=2) + "\n")
        run = Run(Certificate.load(folder / "certificate.json"), **json.loads(done.read_text()))
        self.seconds += run.seconds
        self.commits.add(run.commit)
        return run

    def batches(self, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Images in [0, 1] and their indices, the rows of a split in order."""
        rows = {"batch_size": 500, "subset": self.given.subset}
        data = DigitsDataModule(**rows) if self.dataset == "digits" else CIFAR100DataModule(self.given.data_dir, **rows)
        for batch in data.loader(split):
            images, _, index = data.on_after_batch_transfer(batch, 0)
            yield images, index

    def base(self, name: str) -> Any:
        """A value of the base ``full.yaml`` by its name on the command line, such as ``model.encoder``."""
        part, last = part_of(self._base("full"), name)
        return part[last]

    def _base(self, name: str) -> dict[str, Any]:
        return dict(yaml.safe_load((EXPERIMENTS / self.dataset / f"{name}.yaml").read_text()))

    def _write(
        self, values: dict[str, Any], folder: Path, seed: int, changes: Mapping[str, Any], head: str = ""
    ) -> Path:
        """Write the complete YAML of a run, below ``head``; another one that is there is refused."""
        home = values["trainer"]["default_root_dir"]
        values = json.loads(json.dumps(values).replace(home, json.dumps(str(folder))[1:-1]))
        label = {"class_path": "certvae.callbacks.StatusLine", "init_args": {"label": f"seed {seed} {folder.name:<16}"}}
        values["trainer"]["callbacks"].append(label)
        data = {} if self.dataset == "digits" else {"data.data_dir": self.given.data_dir}
        rows = {} if self.given.subset is None else {"data.subset": self.given.subset}
        general = {"seed_everything": seed, "trainer.enable_progress_bar": False, **data, **rows}
        for key, value in {**general, **changes}.items():
            set_value(values, key, value)
        content, path = head + yaml.safe_dump(values, sort_keys=False), folder / "run.yaml"
        if path.is_file() and path.read_text() != content:
            raise ValueError(
                f"{folder} holds a run with other settings than now asked for (compare {path}). Give another "
                "`--output_dir`, or delete that folder to run it anew."
            )
        return write_atomic(path, content)

    def report(
        self,
        lines: Sequence[Line],
        columns: Mapping[str, str],
        figure: Figure,
        claims: Mapping[str, bool],
        more: Mapping[str, Figure] | None = None,
    ) -> Path:
        """Write ``<results>.csv``, ``.md`` and ``.png``; with ``--results``, copy them there.

        Args:
            lines: one for each run, all with the same keys.
            columns: headings of the Markdown table, and the format of their cells; see :func:`markdown`.
            figure: the study in one figure.
            claims: what the study is to show, and whether these lines do.
            more: other figures, by the names of their files.

        Returns:
            The Markdown file.

        Raises:
            SystemExit: with ``--strict``, after everything is written, if a claim does not hold.
        """
        paths = [self.folder / f"{self.results}.{kind}" for kind in ("csv", "md", "png")]
        write_atomic(paths[0], csv_text(lines[0], lines))
        found = "".join(f"- {'holds' if holds else '**does not hold**'}: {claim}.\n" for claim, holds in claims.items())
        write_atomic(paths[1], f"{markdown(lines, columns)}\n{found}\n{self._origin()}")
        save_figure(figure, paths[2])
        paths += [save_figure(other, self.folder / f"{name}.png") for name, other in (more or {}).items()]
        if self.given.results:
            (RESULTS / self.home).mkdir(parents=True, exist_ok=True)
            for path in paths:
                shutil.copyfile(path, RESULTS / self.home / path.name)
        print(paths[1].read_text())
        if self.given.strict and not all(claims.values()):
            raise SystemExit(f"{paths[1]}: not everything that the study claims holds.")
        return paths[1]

    def _origin(self) -> str:
        options = {key: value for key, value in vars(self.given).items() if key not in PLACES}
        commits = (
            f"trained at commit {', '.join(sorted(self.commits))}" if self.commits else f"table at commit {commit()}"
        )
        return origin(f"experiments.{self.name}.study", options, commits, self.seconds)


def _quiet() -> None:
    """Lightning's hints do not apply to these runs, and it would give them for each."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", "(?s).*(LightningCLI's args parameter|does not have many workers).*")


def _fit(path: Path, folder: Path) -> LightningCLI:
    resume = ["--ckpt_path", "last"] if any((folder / "checkpoints").glob("*.ckpt")) else []
    return run_lightning(["fit", "--config", str(path), *resume])


@torch.no_grad()
def errors_on_kept_rows(model: Any, data: Any, num_components: int) -> dict[str, float]:
    """Squared errors of a pixel and energy, in float32 on the CPU, with draws that belong to the rows.

    Args:
        model: a :class:`certvae.VAE`, which stays on the CPU in eval mode.
        data: its DataModule, set up for tests.
        num_components: of the teacher; the simplex witness reads one coordinate less.

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
