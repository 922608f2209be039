"""Running a model over rows outside training, and keeping what a certificate needs of each row."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning import LightningDataModule, LightningModule
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler, Subset

from certvae.reading.inputs import inputs_and_index
from certvae.reading.latents import Captured, LatentCapture, read_latents
from certvae.teachers import Teacher
from certvae.theory.posterior import Posterior

__all__ = ["EncodedRows", "encode_rows", "evenly_spaced"]


@dataclass
class EncodedRows:
    """What a model and a teacher say of some rows; N rows, on the CPU.

    Attributes:
        teacher_probs: shape ``(N, K)``.
        mean: codes on the mean path, shape ``(N, latent_dim)``.
        log_variance: of the posterior, shape ``(N, latent_dim)``, or None.
        rate: nats of each row, shape ``(N,)``, or None.
        rows_sha256: digest of the multiset of input rows, which no order of the rows changes.
    """

    teacher_probs: Tensor
    mean: Tensor
    log_variance: Tensor | None
    rate: Tensor | None
    rows_sha256: str

    def draws(self, samples: int, seed: int) -> Tensor | None:
        """Draws of the latent, shape ``(samples, N, latent_dim)``; None without a posterior variance."""
        if self.log_variance is None or samples == 0:
            return None
        return Posterior(self.mean, self.log_variance).row_draws(torch.arange(len(self.mean)), samples, seed)


@torch.no_grad()
def encode_rows(
    model: LightningModule,
    teacher: Teacher,
    batches: Iterable[Any],
    data: LightningDataModule | None = None,
    latents: str | None = None,
) -> EncodedRows:
    """Run a model in eval mode, in float32 on the CPU, over batches.

    Args:
        model: its ``forward`` gives the code: a mean, a ``(mean, log_variance)`` pair or a distribution.
        teacher: the fixed teacher.
        batches: batches ``(images, ...)`` in their order.
        data: the DataModule whose ``on_after_batch_transfer`` prepares a batch.
        latents: dotted path of the submodule that gives the code, if ``forward`` does not.

    Raises:
        ValueError: if there is no row.
    """
    model.eval()
    capture = LatentCapture(latents)
    capture.attach(model)
    capture.listen()
    teachers: list[Tensor] = []
    codes: list[Captured] = []
    digests = 0
    try:
        for batch in batches:
            prepared = batch if data is None else data.on_after_batch_transfer(batch, 0)
            images, index = inputs_and_index(prepared)
            if not codes:
                teacher.check_values(images)
            output = model(images)
            caught = read_latents(output) if latents is None else capture.read(model, prepared, None)
            codes.append(caught.checked())
            teachers.append(teacher(images, index))
            digests = (digests + _digest_rows(images)) % 2**256
    finally:
        capture.detach()
    if not codes:
        raise ValueError("the split holds no row to certify.")
    parts = [None if any(p is None for p in column) else torch.cat(column) for column in zip(*codes, strict=True)]
    assert parts[0] is not None
    return EncodedRows(torch.cat(teachers), parts[0], parts[1], parts[2], f"{digests:064x}")


def evenly_spaced(loader: DataLoader[Any], rows: int) -> DataLoader[Any]:
    """A loader, in order, of at most ``rows`` rows spread evenly over a loader's data set.

    Raises:
        ValueError: if the loader's sampler leaves rows out, or the data set has no length.
    """
    dataset: Any = getattr(loader, "dataset", None)
    if not isinstance(getattr(loader, "sampler", None), RandomSampler | SequentialSampler) or loader.batch_size is None:
        raise ValueError(
            "`calibration_rows` above 0 needs a plain training DataLoader, whose sampler visits every row of its data "
            "set, so that no held-out row is used; set `calibration_rows` to 0."
        )
    count = len(dataset)
    positions = [position * count // rows for position in range(rows)] if rows < count else list(range(count))
    return DataLoader(Subset(dataset, positions), loader.batch_size, shuffle=False, collate_fn=loader.collate_fn)


def _digest_rows(images: Tensor) -> int:
    """Sum of the rows' SHA-256 modulo 2**256: independent of their order, and it counts repeats."""
    rows = images.detach().cpu().contiguous().flatten(start_dim=1).numpy()
    return sum(int.from_bytes(hashlib.sha256(row.data).digest(), "big") for row in rows)
