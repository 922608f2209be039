"""Margins of a fitted reader, scored on rows that it was not fitted on."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from certvae.certificate.margins import bounded_margin
from certvae.certificate.settings import CertificateSettings
from certvae.theory.fitted_reader import FittedReader
from certvae.theory.scores import ScoredRows
from certvae.theory.sums import CertificateSums

__all__ = ["FittedMargin", "fitted_margin"]

FEWEST = 16  # smallest number of rows


@dataclass(frozen=True)
class FittedMargin:
    """Cross-fitted margins in nats: readers are fitted on one half of the rows and scored on the other half.

    They do not depend on the raw witness. In the population each is at most the information that its path carries.

    Attributes:
        mean: margin on the posterior's mean. The mean may carry information that no draw shows.
        draw: margin on one draw a row, which the decoder receives; None if the code has no variance.
        lower: lower bound on ``draw`` with ``confidence``; on ``mean`` if there is no draw.
        rows: number of rows.
        confidence: of ``lower``.
        method: name of the bound.
    """

    mean: float
    draw: float | None
    lower: float
    rows: int
    confidence: float
    method: str

    def line(self) -> str:
        """The margins in words."""
        bound = "" if self.lower == -math.inf else f" (at least {self.lower:.3f} at {100 * self.confidence:.4g} %)"
        if self.draw is None:
            return f"finds {self.mean:.3f} nats on the mean{bound}"
        return f"finds {self.draw:.3f} nats on draws{bound}, {self.mean:.3f} on the mean"


def fitted_margin(
    teacher_probs: Tensor, mean: Tensor, draws: Tensor | None, settings: CertificateSettings
) -> FittedMargin | None:
    """Cross-fit one reader on the mean and one on the draws.

    The bound of each half gets half of the error probability. So both hold at once, and their average is valid too. If
    there are draws, the information bracket decides the reading, and the faster ``"normal"`` replaces ``"betting"``.

    Args:
        teacher_probs: teacher probabilities, shape ``(n, K)``.
        mean: codes, shape ``(n, latent_dim)``, in an order that does not depend on their values.
        draws: one draw a row, same shape, or None.
        settings: method, floors and confidence of the bound.

    Returns:
        None for fewer than 16 rows.
    """
    if len(mean) < FEWEST:
        return None
    decisive = replace(settings, confidence=1 - (1 - settings.confidence) / 2, look=None)
    if draws is not None and decisive.bound.needs_rows:
        decisive = replace(decisive, method="normal")  # the bracket decides then, and the proven bound is slow
    shown = replace(decisive, method="plugin")
    of_mean, lower = _cross_fitted(teacher_probs, mean, decisive if draws is None else shown)
    of_draw = None
    if draws is not None:
        of_draw, lower = _cross_fitted(teacher_probs, draws, decisive)
    return FittedMargin(of_mean, of_draw, lower, len(mean), settings.confidence, decisive.bound.name)


def _cross_fitted(teacher: Tensor, codes: Tensor, settings: CertificateSettings) -> tuple[float, float]:
    """Margin and lower bound, each averaged over both halves, in nats."""
    scored = torch.arange(len(codes), device=codes.device) < len(codes) // 2
    margin = lower = 0.0
    for half in (scored, ~scored):
        reader, share = FittedReader.fit(codes[~half], teacher[~half]), float(half.sum()) / len(codes)
        rows = ScoredRows.check(
            teacher[half].cpu(),
            reader(codes[half]),
            witness_floor=settings.applied_floor,
            teacher_floor=settings.teacher_floor,
        )
        found = bounded_margin(CertificateSums.of(rows), settings, rows.counted(), "mean")
        margin, lower = margin + share * found[0], lower + share * found[1]
    return margin, lower
