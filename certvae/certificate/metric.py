"""The certificate as a torchmetrics metric; batches and processes do not change the result."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, Self

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics import Metric

from certvae.certificate.certificate import Certificate
from certvae.certificate.figures import certificates_figure, shown_axes
from certvae.certificate.settings import CertificateSettings
from certvae.certificate.verdict import certificate_from_sums
from certvae.theory.arguments import MAX_COMPONENTS, as_whole_number
from certvae.theory.scores import OrderedRows, ScoredRows
from certvae.theory.sums import CertificateSums

__all__ = ["CertificateMetric"]


class CertificateMetric(Metric):
    """Torchmetrics metric that accumulates the sums of a certificate; ``compute()`` returns the :class:`Certificate`.

    The state has O(K^2) float64 numbers, which are summed over processes. For a bound that needs the rows themselves,
    the metric also keeps ``K + 4`` numbers a row, up to ``settings.max_kept`` numbers. The result equals that of
    :func:`certvae.certify` on all rows at once, up to float64 rounding.

    The sums stay in float64 if a module is cast, and move to the CPU if a device has no float64. The result is not
    cached. Rejected rows do not change the metric.

    As in every torchmetrics metric the state is not part of ``state_dict()``, so a checkpoint does not carry the rows
    of one validation into the next. ``metric.persistent(True)`` includes it.

    Args:
        num_components: K, from 2 to 32768.
        settings: bound, confidence and safety margin; default: ``CertificateSettings()``.
        kwargs: passed to :class:`torchmetrics.Metric`.

    Raises:
        TypeError: if ``num_components`` is not a whole number.
        ValueError: if ``num_components`` is not from 2 to 32768.

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
    floors: Tensor
    rows: list[Tensor]

    def __init__(self, num_components: int, settings: CertificateSettings | None = None, **kwargs: Any) -> None:
        super().__init__(compute_with_cache=False, **kwargs)
        self.num_components = as_whole_number(num_components, "num_components", 2, MAX_COMPONENTS)
        self.settings = settings or CertificateSettings()
        self._too_many = False  # rows to keep
        zeros = torch.zeros(CertificateSums.packed_size(self.num_components), dtype=torch.float64)
        self.add_state("packed", default=zeros, dist_reduce_fx="sum")
        # A state, because a MetricCollection shares updates between metrics with equal states.
        floors = torch.tensor([self.settings.teacher_floor, self.settings.applied_floor], dtype=torch.float64)
        self.add_state("floors", default=floors, dist_reduce_fx="max")
        # Flat, so that a process without rows can take part.
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    @property
    def update_called(self) -> bool:
        """Whether the metric has rows, from updates, merging or loading."""
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
        positions: Tensor | None = None,
    ) -> None:
        """Add rows.

        With unequal ``weights`` the bound uses Kish's effective size. It is valid only for weights that were chosen
        independently of teacher and witness, so not for class-balancing weights.

        Args:
            teacher_probs: teacher probabilities, shape ``(N, K)``.
            witness_logits: the witness on the mean path, shape ``(N, K)``.
            weights: weight of each row, from 0 to 1e50, shape ``(N,)``; default: all 1.
            channel_logits: the witness on draws of the latent, shape ``(draws, N, K)``.
            calibrated_logits: the calibrated witness on draws of the latent, shape ``(draws, N, K)``.
            rate: ``KL(q(z|x) || p(z))`` of each row in nats, shape ``(N,)``.
            positions: of the rows in the data set, integers, shape ``(N,)``, for a bound that needs ordered rows.
                Default: the order of the updates.

        Raises:
            TypeError: if an array does not hold real numbers.
            ValueError: if the rows do not have ``num_components`` components, shapes do not match, or a value is out
                of range.
        """
        rows = ScoredRows.check(
            teacher_probs,
            witness_logits,
            weights,
            channel_logits=channel_logits,
            calibrated_logits=calibrated_logits,
            rate=rate,
            witness_floor=self.settings.applied_floor,
            teacher_floor=self.settings.teacher_floor,
        )
        if rows.teacher.shape[1] != self.num_components:
            raise ValueError(
                f"`teacher_probs` must have shape (N, {self.num_components}), got {rows.teacher.shape[1]} components."
            )
        # Not in place: the sums may be an inference tensor, or shared with a state_dict that was loaded.
        self.packed = self.packed + CertificateSums.of(rows).pack().to(self.packed.device)
        if self.settings.bound.needs_rows and not self._too_many:
            self._keep(rows, positions)

    def _keep(self, rows: ScoredRows, positions: Tensor | None) -> None:
        kept = sum(packed.numel() for packed in self.rows)
        if positions is None:
            positions = torch.arange(len(rows.teacher)) + kept // (self.num_components + 4)
        packed = rows.pack(positions).flatten().to(self.packed.device)
        # The bound needs all rows, so a part of them is discarded.
        self._too_many = kept + packed.numel() > self.settings.max_kept
        self.rows = [] if self._too_many else [*self.rows, packed]

    def reset(self) -> None:
        """Forget all rows."""
        super().reset()
        self._too_many = False

    def forward(self, *args: Any, **kwargs: Any) -> Certificate:
        """Add rows with :meth:`update`; returns the certificate of these rows only.

        Raises:
            TypeError: see :meth:`update`.
            ValueError: see :meth:`update` and :meth:`compute`.
        """
        alone = deepcopy(self)
        alone.reset()
        alone.update(*args, **kwargs)
        self.packed, self.rows = self.packed + alone.packed, [*self.rows, *alone.rows]
        return alone.compute() if self.dist_sync_on_step else alone._certificate()

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Sum the states of all processes; a process without rows also takes part in float64."""
        if self.settings.bound.needs_rows:
            if kwargs.get("should_sync", True) and self._too_many_together(kwargs.get("process_group")):
                self.rows = []
            if not len(self.rows):
                self.rows = [self.packed.new_empty(0)]
        super().sync(*args, **kwargs)

    def _too_many_together(self, group: Any) -> bool:
        """Whether the processes together keep more than ``max_kept`` numbers, so that no process gathers its rows."""
        if not torch.distributed.is_available() or not torch.distributed.is_initialized():
            return False
        kept = torch.tensor([sum(part.numel() for part in self.rows)], device=self.packed.device)
        torch.distributed.all_reduce(kept, group=group or self.process_group)
        return int(kept) > self.settings.max_kept

    def compute(self) -> Certificate:
        """The certificate of all rows so far.

        Raises:
            ValueError: if no row has positive weight, or the method needs equal weights and they differ.
        """
        return self._certificate()

    def _certificate(self) -> Certificate:
        sums = self.sums()
        return certificate_from_sums(sums, self.settings, self._ordered_rows(sums.num_rows))

    def _ordered_rows(self, expected: int) -> OrderedRows | None:
        """The rows, if all of them were kept."""
        if not self.settings.bound.needs_rows:
            return None
        packed = self.rows if isinstance(self.rows, Tensor) else torch.cat([self.packed.new_empty(0), *self.rows])
        rows = packed.view(-1, self.num_components + 4)
        return OrderedRows.unpack(rows) if len(rows) == expected and rows.numel() <= self.settings.max_kept else None

    def sums(self) -> CertificateSums:
        """The additive sums so far."""
        return CertificateSums.unpack(self.packed, self.num_components)

    def plot(
        self, val: Certificate | Sequence[Certificate] | None = None, ax: Axes | None = None
    ) -> tuple[Figure, Axes]:
        """Plot margins with their lower bounds between 0 and the teacher information.

        Args:
            val: certificates; default: the result of :meth:`compute`.
            ax: axes to draw in; default: a new figure.
        """
        given = self.compute() if val is None else val
        certificates = [given] if isinstance(given, Certificate) else list(given)
        return certificates_figure(certificates, shown_axes() if ax is None else ax)

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the rows of another metric, or of its ``metric_state``.

        Raises:
            TypeError: if it is neither.
            ValueError: if its number of components or its floors differ.
        """
        state: Any = incoming_state.metric_state if isinstance(incoming_state, CertificateMetric) else incoming_state
        self._check_state(state)
        super().merge_state({"rows": [], **state})

    def _check_state(self, state: Any) -> None:
        """Reject a state that does not fit this metric."""
        packed, floors = (state.get("packed"), state.get("floors")) if isinstance(state, Mapping) else (None, None)
        if not (isinstance(packed, Tensor) and isinstance(floors, Tensor)):
            raise TypeError("`incoming_state` must be a CertificateMetric, or hold its tensors `packed` and `floors`.")
        if packed.shape != self.packed.shape or floors.shape != self.floors.shape:
            raise ValueError(f"`packed` must be of {self.num_components} components, got shape {tuple(packed.shape)}.")
        if not torch.equal(floors.to(self.floors), self.floors):
            raise ValueError(
                f"`floors` must be the teacher and witness floors {self.floors.tolist()}, got {floors.tolist()}."
            )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Not by a hook: torchmetrics removes its states from the dict before torch calls any hook.
        if prefix + "packed" in state_dict:
            self._check_state({name: state_dict.get(prefix + name) for name in ("packed", "floors")})
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Self:
        """Follow a module to its device, but never round the sums."""

        def move(values: Tensor) -> Tensor:
            device = fn(torch.empty(0, device=values.device)).device
            return values if device.type == "mps" else values.to(device)

        super()._apply(move, exclude_state)
        return self
