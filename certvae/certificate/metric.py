"""The certificate as a torchmetrics metric: exact however the rows are split into batches or processes."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, Self

import torch
from torch import Tensor
from torchmetrics import Metric

from certvae.certificate.certificate import Certificate
from certvae.certificate.verdict import CertificateSettings, certificate_from_sums
from certvae.theory.arguments import MOST_COMPONENTS, as_whole_number
from certvae.theory.sums import CertificateSums

__all__ = ["CertificateMetric"]

_ELSEWHERE = "found on rows of another process, metric or checkpoint"


class CertificateMetric(Metric):
    """Accumulate the additive sums of a certificate; :meth:`compute` gives the :class:`Certificate`.

    The state is O(K^2) numbers in float64 that are added over processes, and four marks. Nothing is kept per row. The
    result equals :func:`certvae.certify` on all rows at once, up to float64 rounding.

    The sums stay in float64 whatever type a module is cast to, and on the CPU where a device has no float64. A result
    is never cached, because marks can be set after it. Rows that are refused leave the metric as it was.

    As with every torchmetrics metric the state is not part of ``state_dict()``, so that a checkpoint of a module does
    not carry the rows of one validation into the next. After ``metric.persistent(True)`` it is, with its marks.

    Args:
        num_components: K, from 2 to 32768.
        safety_margin: nats by which the lower bound must exceed the threshold.
        confidence: probability with which the lower bound holds.
        method: the bound; see :mod:`certvae.theory.bounds`.
        teacher_floor: every teacher probability is at least ``teacher_floor / K``, by construction.
        witness_floor: share of the uniform distribution mixed into the witness.
        look: number of this look, if the error is spent over looks.
        kwargs: passed to :class:`torchmetrics.Metric`.

    Raises:
        TypeError: if a number is none.
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
    marks: Tensor

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
        super().__init__(compute_with_cache=False, **kwargs)
        self.num_components = as_whole_number(num_components, "num_components", 2, MOST_COMPONENTS)
        self.settings = CertificateSettings(safety_margin, confidence, method, teacher_floor, witness_floor, look)
        self._leaks: list[str] = []
        zeros = torch.zeros(CertificateSums.packed_size(self.num_components), dtype=torch.float64)
        self.add_state("packed", default=zeros, dist_reduce_fx="sum")
        # The floors are part of the state: a MetricCollection lets metrics of equal state share their updates.
        floors = [self.settings.teacher_floor, self.settings.applied_floor]
        self.add_state("marks", default=torch.tensor([0, 0, *floors], dtype=torch.float64), dist_reduce_fx="max")

    @property
    def partial(self) -> bool:
        """Whether the rows are only a part of their set; set it, and the status is ``PARTIAL``."""
        return bool(self.marks[0] > 0)

    @partial.setter
    def partial(self, value: bool) -> None:
        self._mark(0, value)

    @property
    def leaks(self) -> list[str]:
        """What leak tests found; set it, and the status is ``LEAKING``."""
        return self._leaks or ([_ELSEWHERE] if bool(self.marks[1] > 0) else [])

    @leaks.setter
    def leaks(self, value: Sequence[str]) -> None:
        self._leaks = list(value)
        self._mark(1, bool(self._leaks))

    def _mark(self, position: int, value: bool) -> None:
        self.marks = self.marks.clone()
        self.marks[position] = float(value)

    @property
    def update_called(self) -> bool:
        """Whether there are rows, also such that came by merging or loading."""
        return super().update_called or bool(self.packed.any())

    def update(
        self,
        teacher_probs: Any,
        witness_logits: Any,
        weights: Any = None,
        *,
        channel_logits: Any = None,
        calibrated_logits: Any = None,
        rate: Any = None,
    ) -> None:
        """Add rows; arguments as in :meth:`certvae.theory.sums.CertificateSums.from_rows`.

        With unequal ``weights`` the bound uses Kish's effective size, and holds for weights that were fixed
        independently of teacher and witness; class-balancing weights are not.

        Raises:
            TypeError: if an array does not hold real numbers.
            ValueError: if the rows do not have ``num_components`` components, or are not what they should be.
        """
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
        if sums.num_components != self.num_components:
            raise ValueError(
                f"`teacher_probs` must have shape (N, {self.num_components}), got {sums.num_components} components."
            )
        # Not in place: the sums may be an inference tensor, or shared with a state_dict that was loaded.
        self.packed = self.packed + sums.pack().to(self.packed.device)

    def forward(self, *args: Any, **kwargs: Any) -> Certificate:
        """Add rows, as :meth:`update` does, and give the certificate of these rows alone.

        Raises:
            TypeError: as :meth:`update` does.
            ValueError: as :meth:`update` and :meth:`compute` do.
        """
        alone = deepcopy(self)
        alone.packed = torch.zeros_like(self.packed)
        alone.update(*args, **kwargs)
        self.packed = self.packed + alone.packed
        return alone.compute() if self.dist_sync_on_step else alone._certificate()

    def compute(self) -> Certificate:
        """The certificate of all rows so far.

        Raises:
            ValueError: if no row was counted, or the method needs equal weights and they are not.
        """
        return self._certificate()

    def _certificate(self) -> Certificate:
        return certificate_from_sums(self.sums(), self.settings, partial=self.partial, leaks=self.leaks)

    def reset(self) -> None:
        """Forget all rows, and what was found of them."""
        super().reset()
        self._leaks = []

    def sums(self) -> CertificateSums:
        """The additive sums so far."""
        return CertificateSums.unpack(self.packed, self.num_components)

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the rows of another metric, or of its ``metric_state``.

        Raises:
            TypeError: if it is neither.
            ValueError: if it was made for other components or floors.
        """
        state = incoming_state.metric_state if isinstance(incoming_state, CertificateMetric) else incoming_state
        packed, marks = self._checked(state)
        self.packed = self.packed + packed
        self.marks = torch.maximum(self.marks, marks)
        self._leaks += [found for found in getattr(incoming_state, "_leaks", []) if found not in self._leaks]

    def _checked(self, state: Any) -> tuple[Tensor, Tensor]:
        """The sums and marks of a state, if they can stand in for this metric's."""
        packed, marks = (state.get("packed"), state.get("marks")) if isinstance(state, Mapping) else (None, None)
        if not (isinstance(packed, Tensor) and isinstance(marks, Tensor)):
            raise TypeError("`incoming_state` must be a CertificateMetric, or hold its tensors `packed` and `marks`.")
        packed, marks = packed.to(self.packed), marks.to(self.marks)
        if packed.shape != self.packed.shape or marks.shape != self.marks.shape:
            raise ValueError(f"`packed` must be of {self.num_components} components, got shape {tuple(packed.shape)}.")
        if not torch.equal(marks[2:], self.marks[2:]):
            raise ValueError(
                f"`marks` must be of teacher and witness floors {self.marks[2:].tolist()}, got {marks[2:].tolist()}."
            )
        return packed, marks

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if prefix + "packed" in state_dict:
            given = {name: state_dict.get(prefix + name) for name in self.metric_state}
            state_dict[prefix + "packed"], state_dict[prefix + "marks"] = self._checked(given)
            self._leaks = []
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Self:
        """Follow a module to its device, but never round the sums."""

        def move(values: Tensor) -> Tensor:
            device = fn(torch.empty(0, device=values.device)).device
            return values if device.type == "mps" else values.to(device)

        super()._apply(move, exclude_state)
        return self
