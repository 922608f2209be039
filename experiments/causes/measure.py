"""The numbers in docs/not-certified.md: one small VAE on scikit-learn's digits under many causes of NOT_CERTIFIED.

    python experiments/causes/measure.py

Prints a Markdown table, in nats, in one or two minutes. The model is that of the page, trained for 15 epochs with
seed 0; 500 rows validate.
"""

import logging
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from certvae import TeacherSearch
from certvae.callbacks import AlignmentCallback, CertificateCallback, CertificateGuard, CollapseDiagnostics
from certvae.teachers import LabelTeacher, Teacher

LATENTS = "encoder:chunk"
TRAINED = 1297  # rows; the others are validation rows
DIGITS = load_digits()
ORDER = torch.randperm(len(DIGITS.data), generator=torch.Generator().manual_seed(0))
IMAGES = torch.tensor(DIGITS.data / 16, dtype=torch.float32)[ORDER]
LABELS = torch.tensor(DIGITS.target)[ORDER]


class VAE(pl.LightningModule):
    """The model of the page.

    Args:
        kl_weight: weight of the rate.
    """

    def __init__(self, kl_weight: float = 1.0) -> None:
        super().__init__()
        self.kl_weight = kl_weight
        self.encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 20))
        self.decoder = nn.Sequential(nn.Linear(10, 128), nn.ReLU(), nn.Linear(128, 64))

    def loss(self, batch: list[Tensor]) -> Tensor:
        """Weighted negative ELBO of a batch in nats, at an observation variance of 0.05."""
        mean, log_variance = self.encoder(batch[0]).chunk(2, dim=1)
        code = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        error = (self.decoder(code) - batch[0]).square().sum(dim=1) / (2 * 0.05)
        rate = (mean.square() + log_variance.exp() - log_variance - 1).sum(dim=1) / 2
        return (error + self.kl_weight * rate).mean()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """One step."""
        return self.loss(batch)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log the loss."""
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def loaders(*columns: Tensor, rows: int = 500, batch_size: int = 250) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Training and validation batches."""
    train, val = ([column[part] for column in columns] for part in (slice(TRAINED), slice(TRAINED, TRAINED + rows)))
    return DataLoader(TensorDataset(*train), 64, shuffle=True), DataLoader(TensorDataset(*val), batch_size)


def measure(
    name: str,
    *,
    kl_weight: float = 1.0,
    weight: float | None = None,
    guard: float | None = None,
    smoothing: float = 0.1,
    scale: float = 2.0,
    epochs: int = 15,
    rows: int = 500,
    method: str | None = None,
    teacher: Teacher | None = None,
    images: int | Callable[[Any], Tensor] = 1,
    columns: tuple[Tensor, ...] = (IMAGES, LABELS),
) -> None:
    """Train once and print a row of the table.

    Args:
        name: name of the row.
        kl_weight: KL weight of the model.
        weight: alignment weight, at witness scale 2; None: no alignment.
        guard: target of the guard in nats; None: no guard.
        smoothing: label smoothing.
        scale: witness scale of the certificate.
        epochs: epochs of training.
        rows: number of validation rows.
        method: name of the bound; default: the proven one.
        teacher: the teacher; default: the smoothed labels.
        images: where the teacher's input is in a batch.
        columns: columns of a batch; the encoder sees the first.
    """
    torch.manual_seed(0)
    train, val = loaders(*columns, rows=rows, batch_size=250 if teacher is None else 64)
    teacher = teacher or LabelTeacher(10, smoothing).measure(train, images=images)
    watch = CertificateCallback(teacher, LATENTS, images=images, witness_scale=scale, method=method)
    callbacks: list[Any] = [watch, CollapseDiagnostics(LATENTS)]
    if weight is not None:
        callbacks.append(AlignmentCallback(teacher, LATENTS, images=images, weight=weight))
    if guard is not None:
        callbacks.append(CertificateGuard(guard, path="mean"))
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    options |= {"enable_progress_bar": False, "accelerator": "cpu", "num_sanity_val_steps": 0}
    trainer = pl.Trainer(max_epochs=epochs, callbacks=callbacks, **options)
    model = VAE(kl_weight)
    model.print = lambda *args, **kwargs: None  # type: ignore[method-assign]
    trainer.fit(model, train, val)
    c, seen = watch.certificate, trainer.callback_metrics
    assert c is not None
    assert c.information is not None
    assert c.fitted is not None
    code = f"{c.information.lower:.3f} to {c.information.upper:.3f}"
    margins = (c.margin, c.margin_lower, c.teacher_information, c.witness_information)
    numbers = (*margins, c.rate, c.channel_margin, c.fitted.mean, c.fitted.draw)
    cells = [code, *("-" if value is None else f"{value:.3f}" for value in numbers)]
    units, drift = int(seen["diagnostics/active_units"]), c.provenance["teacher_drift"]
    what = f"{name} | {c.reading}, {c.status} | {c.diagnose().cause}"
    print(f"| {what} | {' | '.join(cells)} | {units} | {drift:.3f} |", flush=True)


def shifted() -> Tensor:
    """The images, each moved by up to two pixels along both axes."""
    draws = torch.randint(-2, 3, (len(IMAGES), 2), generator=torch.Generator().manual_seed(0))
    pairs = zip(IMAGES.view(-1, 8, 8), draws.tolist(), strict=True)
    return torch.stack([torch.roll(image, (down, right), (0, 1)) for image, (down, right) in pairs]).flatten(1)


def searched(images: Tensor) -> Teacher:
    """A teacher of 8 components, searched on images."""
    with TemporaryDirectory() as folder, redirect_stdout(StringIO()):  # hide the search's table of candidates
        settings: dict[str, Any] = {"temperatures": (4.0,), "pca_dim": 16, "pca_passes": 3, "em_iterations": 20}
        search = TeacherSearch((8,), **settings, seed=0, output_dir=folder)
        train, val = loaders(images, batch_size=64)
        return search.search(train, val)


def main() -> None:
    """Print all rows."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "(?s).*(does not have many workers|logging interval|LeafSpec).*")
    warnings.filterwarnings("ignore", ".*nats from the one in its file.*")  # the last column shows the drift
    numbers = "margin | at least | `I_T` | `I_S` | rate | channel | reader, mean | reader, draw | units | drift"
    print(f"| case | reading, status | cause | code | {numbers} |")
    print("|---" * 14 + "|")
    measure("plain")
    measure("aligned, weight 10", weight=10.0)
    measure("aligned, weight 0.3", weight=0.3)
    measure("aligned, weight 1, one epoch", weight=1.0, epochs=1)
    for kl_weight in (8.0, 20.0, 60.0):
        measure(f"KL weight {kl_weight:g}", kl_weight=kl_weight)
    measure("KL weight 60, guard 0.5", kl_weight=60.0, guard=0.5)
    measure("witness scale 0.05", scale=0.05)
    measure("aligned at scale 2, read at scale 20", weight=10.0, scale=20.0)
    measure("labels smoothed by 0.9 instead of 0.1", smoothing=0.9)
    measure("aligned, 30 rows, `hoeffding`", weight=10.0, rows=30, method="hoeffding")
    for smoothing in (0.1, 0.001):
        measure(f"KL weight 20, weight 5, smoothing {smoothing:g}", kl_weight=20.0, weight=5.0, smoothing=smoothing)
    teacher, moved = searched(IMAGES), shifted()
    clean: dict[str, Any] = {"teacher": teacher, "weight": 3.0, "columns": (IMAGES,)}
    measure("searched teacher, the same view", **clean, images=0)
    measure("encoder sees shifted images", teacher=teacher, weight=3.0, images=1, columns=(moved, IMAGES))
    measure("both see shifted images", teacher=searched(moved), weight=3.0, images=0, columns=(moved,))
    measure("teacher sees standardized pixels", **clean, images=lambda batch: (batch[0] - 0.3) / 0.35)
    measure("teacher sees values of 0 to 16", **clean, images=lambda batch: 16 * batch[0])


if __name__ == "__main__":
    main()
