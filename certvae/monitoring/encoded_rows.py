"""Runs a model over rows outside training and keeps what a certificate needs of each row."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pytorch_lightning import LightningDataModule, LightningModule
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler, Subset

from certvae.certificate.leaks import check_encoder
from certvae.certificate.settings import CertificateSettings
from certvae.reading.inputs import inputs_and_index
from certvae.reading.latents import Captured, LatentCapture, read_latents
from certvae.teachers import Teacher
from certvae.theory.posterior import Posterior
from certvae.theory.row_sample import RowSample

__all__ = ["DrawnRows", "EncodedRows", "encode_rows", "evenly_spaced"]

SAMPLED = 64  # rows that are encoded again


@dataclass
class EncodedRows:
    """Codes and teacher probabilities of N rows, on the CPU.

    Attributes:
        teacher_probs: teacher probabilities, shape ``(N, K)``.
        mean: mean of the posterior, shape ``(N, latent_dim)``.
        log_variance: log-variance of the posterior, shape ``(N, latent_dim)``, or None.
        rate: rate of each row in nats, shape ``(N,)``, or None.
        repeats: whether an earlier row has the same input, bool, shape ``(N,)``.
        rows_sha256: digest of the multiset of input rows, independent of their order.
        leaks: findings of the leak test of the encoder.
    """

    teacher_probs: Tensor
    mean: Tensor
    log_variance: Tensor | None
    rate: Tensor | None
    repeats: Tensor
    rows_sha256: str
    leaks: list[str]

    def blocks(self, samples: int, seed: int, most: int) -> Iterator["DrawnRows"]:
        """Yield draws of the latent, some rows at a time; a row's draws do not depend on the block size.

        Args:
            samples: draws per row, at least 1.
            seed: seed of the draws.
            most: largest number of values, of draws or of logits, in memory at once; at least one row is read.

        Raises:
            ValueError: if there is no posterior variance.
        """
        if self.log_variance is None:
            raise ValueError("`log_variance` must be there: without a variance there are no draws.")
        count = max(1, most // (samples * max(self.mean.shape[1], self.teacher_probs.shape[1])))
        for places in torch.arange(len(self.mean)).split(count):
            part = self._at(places)
            draws = Posterior(self.mean[places], self.log_variance[places]).row_draws(places, samples, seed)
            yield DrawnRows(part, draws)

    def _at(self, places: Tensor) -> "EncodedRows":
        values: dict[str, Any] = {key: value[places] for key, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **values)

    def weights(self, settings: CertificateSettings) -> Tensor | None:
        """Row weights for a proven bound, which needs independent rows: a repeated row counts once."""
        return (~self.repeats).double() if settings.bound.rigorous and bool(self.repeats.any()) else None


@dataclass
class DrawnRows:
    """A block of rows with draws of the latent.

    Attributes:
        rows: the n rows.
        draws: draws of the latent, shape ``(samples, n, latent_dim)``.
    """

    rows: EncodedRows
    draws: Tensor

    def answers(self, witness: Callable[[Tensor], Tensor]) -> Tensor:
        """Logits of a witness for every draw, shape ``(samples, n, K)``."""
        return torch.stack([witness(draw) for draw in self.draws])


@torch.no_grad()
def encode_rows(
    model: LightningModule,
    teacher: Teacher,
    batches: Iterable[Any],
    data: LightningDataModule | None = None,
    latents: str | None = None,
) -> EncodedRows:
    """Encode batches in eval mode, in float32 on the CPU; some rows are encoded again alone as a leak test.

    Args:
        model: a module whose ``forward`` returns the code: a mean, a ``(mean, log_variance)`` pair or a distribution.
        teacher: the fixed teacher.
        batches: batches ``(images, ...)`` in order.
        data: DataModule whose ``on_after_batch_transfer`` prepares a batch.
        latents: dotted path of the submodule that returns the code, if ``forward`` does not.

    Raises:
        ValueError: if there are no rows.
    """
    encode = _Encoder(model, latents)
    teachers, codes, digests, sample = list[Tensor](), list[Captured](), list[bytes](), RowSample(SAMPLED, 0)
    for batch in batches:
        prepared = batch if data is None else data.on_after_batch_transfer(batch, 0)
        images, index = inputs_and_index(prepared)
        if not codes:
            teacher.check_values(images)
        codes.append(encode(images))
        teachers.append(teacher(images, index))
        place = torch.arange(len(digests), len(digests) + len(images))
        sample.add(torch.cat([place[:, None].double(), images.cpu().flatten(start_dim=1).double()], dim=1), place)
        digests += _digest_rows(images)
    if not codes:
        raise ValueError("the split holds no row to certify.")
    parts = [None if any(p is None for p in column) else torch.cat(column) for column in zip(*codes, strict=True)]
    assert parts[0] is not None
    repeats = torch.tensor(_repeats(digests))
    whole = hashlib.sha256(b"".join(sorted(digests))).hexdigest()
    leaks = _check_sample(encode, sample, images, parts[0])
    return EncodedRows(torch.cat(teachers), parts[0], parts[1], parts[2], repeats, whole, leaks)


class _Encoder:
    """Computes a model's code of images in eval mode."""

    def __init__(self, model: LightningModule, latents: str | None) -> None:
        self.model, self.capture = model.eval(), LatentCapture(latents)

    def __call__(self, images: Tensor) -> Captured:
        self.capture.attach(self.model)
        self.capture.listen()
        try:
            output = self.model(images)
            named = self.capture.source is not None
            return (self.capture.read(self.model, images, None) if named else read_latents(output)).checked()
        finally:
            self.capture.detach()


def _check_sample(encode: _Encoder, sample: RowSample, like: Tensor, codes: Tensor) -> list[str]:
    """Test that sampled rows get the same codes again when they are encoded alone and together."""
    places, images = sample.rows[:, 0].long(), sample.rows[:, 1:].reshape(-1, *like.shape[1:]).to(like)
    return check_encoder(codes[places], lambda rows: encode(images[rows]).mean)


def _repeats(digests: Sequence[bytes]) -> list[bool]:
    first = {digest: place for place, digest in reversed(list(enumerate(digests)))}
    return [first[digest] != place for place, digest in enumerate(digests)]


def evenly_spaced(loader: DataLoader[Any], rows: int) -> DataLoader[Any]:
    """A loader of at most ``rows`` rows, in order and evenly spaced over the data set of ``loader``.

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


def _digest_rows(images: Tensor) -> list[bytes]:
    rows = images.detach().cpu().contiguous().flatten(start_dim=1).numpy()
    return [hashlib.sha256(row.data).digest() for row in rows]
