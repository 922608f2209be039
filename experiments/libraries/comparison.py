"""Shared code of the library scripts: train a model with and without certvae, and recompute its numbers.

Each script names its cases and runs them from the root of a checkout:

    python -m experiments.libraries.pythae_models --results build/libraries

It prints a table, writes it as ``<script>.csv``, and fails if a case fails. A case marks the lines that a user adds to
a script of the library by ``# new``.
"""

import argparse
import csv
import inspect
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import certvae
from certvae.callbacks import CertificateCallback
from certvae.certificate.certificate import Certificate
from certvae.reading.latents import Latents
from certvae.teachers import LabelTeacher, Teacher
from certvae.terminal import quiet

__all__ = [
    "Case",
    "Row",
    "Watched",
    "by_lightning",
    "compare",
    "digits",
    "main",
    "read_rows",
    "seen",
    "train",
    "watched_loop",
]

SMOOTHING = 0.1  # default of LabelTeacher
TOLERANCE, LIGHTNING_TOLERANCE = 1e-7, 1e-9


@dataclass(frozen=True)
class Watched:
    """A trained model, its certificate, and the inputs of an independent recomputation.

    Attributes:
        module: module whose weights are compared.
        mean: codes of the validation rows, computed by the library alone, shape ``(N, d)``.
        log_variance: same shape; None for a code without noise.
        labels: labels of the validation rows, shape ``(N,)``; negative if a row has none.
        train_labels: labels that the teacher was measured on, shape ``(M,)``.
        certificate: the certificate; None without certvae.
        lightning: certificate of the same rows by a Lightning trainer, if the case does not train with one.
        codebook: entropy of a codebook by certvae, and its indices; only for a VQ model.
    """

    module: nn.Module
    mean: Tensor
    log_variance: Tensor | None
    labels: Tensor
    train_labels: Tensor
    certificate: Certificate | None = None
    lightning: Certificate | None = None
    codebook: tuple[float, Tensor] | None = None


@dataclass(frozen=True)
class Case:
    """One model of a library.

    Attributes:
        library: name of the library's distribution.
        model: name in the table.
        run: function that trains it, with or without certvae.
        source: functions with marked lines that a user adds; default: ``run``.
        outside: number of lines that a user adds outside of them.
    """

    library: str
    model: str
    run: Callable[[bool], Watched]
    source: tuple[Callable[..., Any], ...] = ()
    outside: int = 0

    @property
    def lines(self) -> int:
        """Number of lines that a user adds."""
        return self.outside + sum(inspect.getsource(part).count("# new\n") for part in self.source or (self.run,))


@dataclass(frozen=True)
class Row:
    """A line of the table; information in nats.

    Attributes:
        rate: rate, or the entropy of the codebook for a VQ model.
        difference: largest difference from the recomputation, relative to the number or, for a margin near 0, to the
            teacher information.
        lightning_difference: absolute difference of the margin; None for models that Lightning trains.
        weights_equal: whether training with and without certvae gives bit-equal weights.
        seconds: seconds of training with certvae.
        seconds_alone: seconds of training without certvae.
        error: first line of the error; empty if there is none.
    """

    library: str
    version: str
    torch: str
    model: str
    lines: int
    verdict: str = ""
    margin: float | None = None
    margin_anew: float | None = None
    rate: float | None = None
    rate_anew: float | None = None
    difference: float | None = None
    lightning_difference: float | None = None
    weights_equal: bool | None = None
    seconds: float | None = None
    seconds_alone: float | None = None
    error: str = ""

    @property
    def holds(self) -> bool:
        """Whether every check holds."""
        near = self.difference is not None and self.difference <= TOLERANCE
        same = self.lightning_difference is None or self.lightning_difference <= LIGHTNING_TOLERANCE
        return not self.error and near and same and bool(self.weights_equal)


def digits(size: int = 8, rows: int = 600) -> tuple[Any, Any]:
    """Shuffled training rows and 250 validation rows of scikit-learn's digits: images ``(B, 1, size, size)``, labels.

    Args:
        size: of an image; pixels are repeated.
        rows: for training.
    """
    data = load_digits()
    images = torch.tensor(data.images[:, None] / 16, dtype=torch.float32)
    images = images.repeat_interleave(size // 8, dim=2).repeat_interleave(size // 8, dim=3)
    labels = torch.tensor(data.target)
    train_set, val_set = (TensorDataset(images[part], labels[part]) for part in (slice(rows), slice(1500, 1750)))
    return DataLoader(train_set, 100, shuffle=True), DataLoader(val_set, 125)


def train(
    model: nn.Module, batches: Iterable[Any], loss: Callable[[Any], Tensor], after_epoch: Callable[[], None]
) -> None:
    """A plain loop of two epochs.

    Args:
        model: what Adam moves.
        batches: of training rows.
        loss: of a batch.
        after_epoch: called after each of them.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(2):
        for batch in batches:
            optimizer.zero_grad()
            loss(batch).backward()
            optimizer.step()
        after_epoch()


def watched_loop(
    model: nn.Module,
    loss: Callable[[Any], Tensor],
    latents: Latents,
    own: Callable[[Tensor], tuple[Tensor, Tensor | None]],
    watching: bool,
    size: int = 8,
) -> Watched:
    """Train a model on digits in a plain loop, and watch it after each epoch.

    Args:
        model: takes images ``(B, 1, size, size)``.
        loss: of a batch.
        latents: a function of the model and the batch.
        own: mean and log-variance of images, by the library alone.
        watching: whether certvae is there.
        size: of an image.
    """
    rows, val = digits(size)
    found: list[Certificate] = []
    teacher = None
    if watching:
        teacher = LabelTeacher(10).measure(rows, images=1)  # new

    def after_epoch() -> None:
        if teacher is not None:
            found.append(certvae.watch(model, val, teacher, latents, images=1))  # new

    train(model, rows, loss, after_epoch)
    return seen(model, own, rows, val, found[-1] if found else None, latents)


def seen(
    model: nn.Module,
    own: Callable[[Tensor], tuple[Tensor, Tensor | None]],
    rows: Any,
    val: Any,
    certificate: Certificate | None,
    latents: Latents,
) -> Watched:
    """A trained model with its own codes of the validation rows, and the certificate that Lightning gives."""
    model.eval()
    with torch.no_grad():
        codes = [own(images) for images, _ in val]
    means, spreads = zip(*codes, strict=True)
    train_labels, labels = rows.dataset.tensors[1], val.dataset.tensors[1]
    lightning = None
    if certificate is not None:
        teacher = LabelTeacher(10).measure([train_labels])
        lightning = by_lightning(model, val, teacher, latents)
    return Watched(
        model,
        torch.cat(means).flatten(1),
        None if spreads[0] is None else torch.cat(spreads).flatten(1),
        labels,
        train_labels,
        certificate,
        lightning,
    )


class _Wrapped(LightningModule):
    """A plain model as Lightning validates it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Do nothing: a function reads the code of the batch."""


def by_lightning(model: nn.Module, batches: Any, teacher: Teacher, latents: Latents, images: Any = 1) -> Certificate:
    """The certificate of a model by a callback in ``Trainer.validate``, for a function as ``latents``."""
    function: Any = latents.path
    place = replace(latents, path=lambda pl_module, batch: function(pl_module.model, batch))
    callback = CertificateCallback(teacher, place, images=images)
    quiet()
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.validate(_Wrapped(model), batches, verbose=False)
    assert callback.certificate is not None
    return callback.certificate


def compare(case: Case) -> Row:
    """Run a case with and without certvae, and recompute its numbers."""
    row = Row(case.library, version(case.library), torch.__version__, case.model, case.lines)
    try:
        (watched, seconds), (alone, seconds_alone) = (_timed(case.run, watching) for watching in (True, False))
        return replace(row, **_figures(watched, alone), seconds=seconds, seconds_alone=seconds_alone)
    except Exception as error:  # an error of one model becomes a line of the table and must not hide the others
        traceback.print_exc()
        return replace(row, error=f"{type(error).__name__}: {error}".splitlines()[0][:200])


def _timed(run: Callable[[bool], Watched], watching: bool) -> tuple[Watched, float]:
    seed_everything(0, verbose=False)
    start = time.perf_counter()
    found = run(watching)
    return found, time.perf_counter() - start


def _figures(watched: Watched, alone: Watched) -> dict[str, Any]:
    certificate = watched.certificate
    if certificate is None:
        raise ValueError("there is no certificate: no validation ran.")
    margin, rate, anew = _margin(watched, certificate), certificate.rate, _rate(watched)
    if watched.codebook is not None:
        rate, anew = watched.codebook[0], _entropy(watched.codebook[1])
    pairs = [(certificate.margin, margin)] + ([] if rate is None or anew is None else [(rate, anew)])
    lightning = watched.lightning
    return {
        "verdict": f"{certificate.reading}, {certificate.status}",
        "margin": certificate.margin,
        "margin_anew": margin,
        "rate": rate,
        "rate_anew": anew,
        "difference": max(abs(one - other) / max(abs(other), certificate.teacher_information) for one, other in pairs),
        "lightning_difference": None if lightning is None else abs(lightning.margin - certificate.margin),
        "weights_equal": _same_bits(watched.module, alone.module),
    }


def _same_bits(one: nn.Module, other: nn.Module) -> bool:
    pairs = ((value, other.state_dict()[name]) for name, value in one.state_dict().items())
    return all(torch.equal(a, b) for a, b in pairs if isinstance(a, Tensor))


def _margin(watched: Watched, certificate: Certificate) -> float:
    """The margin by its definition, in numpy, of smoothed labels and the simplex witness of scale 2."""
    classes = certificate.num_components
    kept = watched.labels.numpy() >= 0
    teacher = _smoothed(watched.labels.numpy()[kept], classes)
    prior = _smoothed(watched.train_labels.numpy()[watched.train_labels.numpy() >= 0], classes).mean(axis=0)
    basis = np.zeros((classes, classes - 1))
    for j in range(1, classes):
        basis[:j, j - 1], basis[j, j - 1] = 1, -j
    basis /= np.linalg.norm(basis, axis=0)
    codes = watched.mean.detach().double().numpy()[kept, : classes - 1]
    logits = 2 * codes @ basis.T + np.log(prior)
    answers = np.exp(logits - logits.max(axis=1, keepdims=True))
    answers /= answers.sum(axis=1, keepdims=True)
    answers = (1 - certificate.witness_floor) * answers + certificate.witness_floor / classes
    return float((teacher * (np.log(answers) - np.log(teacher.mean(axis=0)))).sum(axis=1).mean())


def _smoothed(labels: Any, classes: int) -> Any:
    return (1 - SMOOTHING) * np.eye(classes)[labels] + SMOOTHING / classes


def _rate(watched: Watched) -> float | None:
    """The divergence from N(0, 1) by its formula, in numpy, of the rows with a label."""
    if watched.log_variance is None:
        return None
    kept = watched.labels.numpy() >= 0
    mean, spread = (value.detach().double().numpy()[kept] for value in (watched.mean, watched.log_variance))
    return float(((mean**2 + np.exp(spread) - spread - 1) / 2).sum(axis=1).mean())


def _entropy(indices: Tensor) -> float:
    shares = np.unique(indices.numpy(), return_counts=True)[1] / indices.numel()
    return float(-(shares * np.log(shares)).sum())


def main(script: str, cases: Sequence[Case], arguments: Sequence[str] | None = None) -> None:
    """The command of a script: run its cases, print them, write ``<script>.csv``, fail if one fails.

    Raises:
        SystemExit: if a case does not hold.
    """
    parser = argparse.ArgumentParser(description=f"certvae with the models of {script}")
    parser.add_argument("--results", type=Path, help="folder of the table; default: it is only printed")
    parser.add_argument("--suffix", default="", help="of the table's name")
    parser.add_argument("--only", nargs="*", help="names of models")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    chosen = [case for case in cases if options.only is None or case.model in options.only]
    rows: list[Row] = []
    for row in _told(chosen):
        rows.append(row)
        if options.results is not None:
            write_rows(rows, options.results / f"{Path(script).stem}{options.suffix}.csv")
    sys.exit(not all(row.holds for row in rows))


def _told(cases: Sequence[Case]) -> Iterator[Row]:
    for case in cases:
        row = compare(case)
        numbers = f"margin {row.margin:.6f}, off by {row.difference:.1e}" if row.margin is not None else row.error
        says = f"{row.lines} lines, {row.verdict}, {numbers}, weights equal: {row.weights_equal}"
        print(f"{'holds' if row.holds else 'FAILS'}: {row.library} {row.version} {row.model}: {says}", flush=True)
        yield row


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write a table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def read_rows(path: Path) -> list[Row]:
    """Read a table."""
    with path.open(newline="") as file:
        return [Row(**{name: _value(name, text) for name, text in line.items()}) for line in csv.DictReader(file)]


def _value(name: str, text: str) -> Any:
    kind = {"library": str, "version": str, "torch": str, "model": str, "verdict": str, "error": str}.get(name)
    if kind is str:
        return text
    if name == "weights_equal":
        return {"True": True, "False": False}.get(text)
    return None if not text else int(text) if name == "lines" else float(text)
