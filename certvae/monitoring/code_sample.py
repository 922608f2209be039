"""A sample of rows from which information about the code is computed at the end of an epoch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pytorch_lightning import Trainer
from torch import Tensor

from certvae.certificate.fitted_margin import FittedMargin, fitted_margin
from certvae.certificate.settings import CertificateSettings
from certvae.reading.captured import Captured
from certvae.theory.bracket import BLOCK, InformationBracket, information_bracket
from certvae.theory.posterior import Posterior
from certvae.theory.row_sample import RowSample

__all__ = ["CodeSample", "SampledCodes"]

NUMBERS, FEWEST = 2**22, 512  # at most so many numbers of 8 bytes each, but at least so many rows
READ = 2048  # rows for the fitted reader; its cost grows with the number of rows


@dataclass(frozen=True)
class SampledCodes:
    """Codes of n sampled rows, float64, the same on all processes, in an order independent of their values.

    Attributes:
        mean: shape ``(n, latent_dim)``.
        log_variance: same shape, or None.
        rate: nats, shape ``(n,)``, or None.
        teacher_probs: shape ``(n, K)``, or None.
    """

    mean: Tensor
    log_variance: Tensor | None
    rate: Tensor | None
    teacher_probs: Tensor | None

    @property
    def captured(self) -> Captured:
        """The codes without the teacher's probabilities."""
        return Captured(self.mean, self.log_variance, self.rate)

    def bracket(self, confidence: float, block: int = BLOCK, seed: int = 0) -> InformationBracket | None:
        """Bounds on the information of the code in nats; None if the code has no variance.

        Args:
            confidence: confidence of each side, in (0, 1).
            block: largest number of rows that are compared with each other.
            seed: of the draws.

        Raises:
            ValueError: if a log-variance is not within 500 of 0, or there is only one row.
        """
        if self.log_variance is None:
            return None
        return information_bracket(
            self.mean, self.log_variance, rate=self.rate, confidence=confidence, block=block, seed=seed
        )

    def fitted(self, settings: CertificateSettings, seed: int = 0) -> FittedMargin | None:
        """Margin of a reader that is fitted to the first 2,048 codes; None without a teacher.

        Args:
            settings: settings of the bound.
            seed: of the draws.
        """
        if self.teacher_probs is None:
            return None
        few, draws = slice(READ), None
        if self.log_variance is not None:
            posterior = Posterior(self.mean[few], self.log_variance[few])
            draws = posterior.row_draws(torch.arange(len(posterior.mean)), 1, seed)[0]
        return fitted_margin(self.teacher_probs[few], self.mean[few], draws, settings)


class CodeSample:
    """A random sample of rows over all processes: those with the smallest hash of their position.

    Args:
        rows: largest number of rows to keep. For wide codes fewer are kept, so that memory stays below 64 MiB for codes
            of up to 4,096 coordinates.
        seed: seed of the hash.
        groups: number of groups of latents.
    """

    def __init__(self, rows: int, seed: int, groups: int = 1) -> None:
        self._rows, self._seed = rows, seed
        self._sample: RowSample | None = None
        self._layout = [0] * (3 * groups + 1)

    def add(self, codes: Sequence[Captured], positions: Tensor, counted: Tensor, probs: Tensor | None = None) -> None:
        """Add the rows of a batch that belong to the sample.

        Args:
            codes: codes of each group, finite.
            positions: positions of the rows in their data set, shape ``(B,)``.
            counted: whether a row counts, bool, shape ``(B,)``.
            probs: teacher probabilities, shape ``(B, K)``.
        """
        columns = [*(part for code in codes for part in code), probs]
        columns = [part[:, None] if part is not None and part.ndim == 1 else part for part in columns]
        self._layout = [0 if part is None else part.shape[1] for part in columns]
        if self._sample is None:
            self._sample = self._empty(self._layout)
        kept = counted.cpu()
        rows = torch.cat([part.detach().cpu().double() for part in columns if part is not None], dim=1)
        self._sample.add(rows[kept], positions.cpu()[kept])

    def _empty(self, layout: list[int]) -> RowSample:
        return RowSample(min(self._rows, max(FEWEST, NUMBERS // max(1, sum(layout)))), self._seed)

    def gather(self, trainer: Trainer, device: torch.device) -> list[SampledCodes]:
        """The sample of each group over all processes, empty without rows; collectives that every rank must reach."""
        strategy = trainer.strategy
        layouts = strategy.all_gather(torch.tensor(self._layout, device=device)).view(-1, len(self._layout))
        layout = [int(width) for width in layouts.amax(dim=0).tolist()]
        if not sum(layout):
            return []
        sample = self._sample or self._empty(layout)
        rows = sample.gather(lambda values: strategy.all_gather(values.to(device)), sum(layout)).rows
        *parts, probs = (part if part.shape[1] else None for part in rows.split(layout, dim=1))
        groups = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
        return [
            SampledCodes(mean, log_variance, None if rate is None else rate[:, 0], probs)
            for mean, log_variance, rate in groups
            if mean is not None and len(mean)
        ]
