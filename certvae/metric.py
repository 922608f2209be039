"""The certificate as a torchmetrics metric: exact however the rows are split into batches or processes."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from certvae.certificate import Certificate
from certvae.sums import CertificateSums
from certvae.verdict import CertificateSettings, certificate_from_sums

__all__ = ["CertificateMetric"]


class CertificateMetric(Metric):
    """Accumulate the additive sums of a certificate; :meth:`compute` gives the :class:`Certificate`.

    The state is one float64 vector of O(K^2) numbers that is summed over processes by one collective. Nothing is
    kept per row. The result equals :func:`certvae.certify` on all rows at once, up to float64 rounding.

    Args:
        num_components: K, at least 2.
        safety_margin: nats by which the lower bound must exceed the threshold.
        confidence: probability with which the lower bound holds.
        method: the bound; see :mod:`certvae.bounds`.
        teacher_floor: every teacher probability is at least ``teacher_floor / K``, by construction.
        witness_floor: share of the uniform distribution mixed into the witness.
        look: number of this look, if the error is spent over looks.
        kwargs: passed to :class:`torchmetrics.Metric`.

    Attributes:
        partial: set it when the rows are only a part of their set; the status is then ``PARTIAL``.
        leaks: what leak tests found; the status is then ``LEAKING``.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> import torch
        >>> metric = CertificateMetric(num_components=3)
        >>> teacher = torch.softmax(3 * torch.eye(3).repeat(50, 1), dim=1)
        >>> metric.update(teacher, teacher.log())
        >>> metric.compute().certified
        True
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    packed: Tensor

    def __init__(
        self,
        num_components: int,
        safety_margin: float = 0.05,
        confidence: float = 0.95,
        method: str = "normal",
        teacher_floor: float = 0.0,
        witness_floor: float | None = None,
        look: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_components < 2:
            raise ValueError(f"`num_components` must be at least 2, got {num_components}.")
        self.num_components = num_components
        self.settings = CertificateSettings(safety_margin, confidence, method, teacher_floor, witness_floor, look)
        self.partial = False
        self.leaks: list[str] = []
        zeros = torch.zeros(CertificateSums.packed_size(num_components), dtype=torch.float64)
        self.add_state("packed", default=zeros, dist_reduce_fx="sum")

    def update(
        self,
        teacher_probs: Tensor,
        witness_logits: Tensor,
        weights: Tensor | None = None,
        *,
        channel_logits: Tensor | None = None,
        calibrated_logits: Tensor | None = None,
        rate: Tensor | None = None,
    ) -> None:
        """Add rows; arguments as in :meth:`certvae.sums.CertificateSums.from_rows`.

        Raises:
            ValueError: if the rows do not have ``num_components`` components, or are not what they should be.
        """
        if teacher_probs.ndim != 2 or teacher_probs.shape[1] != self.num_components:
            raise ValueError(
                f"`teacher_probs` must have shape (N, {self.num_components}), got {tuple(teacher_probs.shape)}."
            )
        sums = CertificateSums.from_rows(
            teacher_probs,
            witness_logits,
            weights,
            channel_logits=channel_logits,
            calibrated_logits=calibrated_logits,
            rate=rate,
            witness_floor=self.settings.applied_floor,
            teacher_floor=self.settings.teacher_floor,
        )
        self.packed += sums.pack().to(self.packed.device)

    def compute(self) -> Certificate:
        """The certificate of all rows so far.

        Raises:
            ValueError: if no row was counted.
        """
        return certificate_from_sums(self.sums(), self.settings, partial=self.partial, leaks=self.leaks)

    def reset(self) -> None:
        """Forget all rows, and what was found of them."""
        super().reset()
        self.partial, self.leaks = False, []

    def sums(self) -> CertificateSums:
        """The additive sums so far."""
        return CertificateSums.unpack(self.packed, self.num_components)
