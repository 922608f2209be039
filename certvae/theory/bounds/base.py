"""The base class of bounds, the evidence they use, and the registry of all bounds by name."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from certvae.theory.arguments import MAX_MAGNITUDE, as_fraction, as_number, as_whole_number

__all__ = [
    "BOUNDS",
    "PROVEN",
    "Bound",
    "Claim",
    "Evidence",
    "check_numbers",
    "find_bound",
    "log_range",
    "register",
    "score_range",
]

_MAX_SQUARE = MAX_MAGNITUDE**2
_ROUNDING = 1e-9
Claim = tuple[str, bool]
PROVEN = "A proven bound holds if the rows were drawn independently, and nothing was fitted on them."


@dataclass(frozen=True)
class Evidence:
    """Statistics of the rows from which a bound on one margin is computed, in nats.

    Attributes:
        margin: plug-in margin.
        deviation: sample standard deviation (``n - 1``) of the plug-in scores; NaN for fewer than two rows.
        size: number of rows, or Kish's effective size of weighted rows.
        num_components: K.
        teacher_floor: every teacher probability is at least ``teacher_floor / K``.
        witness_floor: every witness probability is at least ``witness_floor / K``.
        equal_weights: whether every row counts the same.
        teacher_probs: of the rows in a fixed order, float64, shape ``(N, K)``; None if they were not kept.
        scores: ``sum_k T_k log S_k`` of these rows, shape ``(N,)``; None if they were not kept.
    """

    margin: float
    deviation: float
    size: float
    num_components: int
    teacher_floor: float = 0.0
    witness_floor: float = 0.0
    equal_weights: bool = True
    teacher_probs: Tensor | None = None
    scores: Tensor | None = None

    @property
    def score_range(self) -> float:
        """Width of the interval that contains every score, in nats; see :func:`score_range`."""
        return score_range(self.num_components, self.teacher_floor, self.witness_floor)


class Bound(ABC):
    """A lower confidence bound on a margin. To add one, write a file in this folder with a class under ``@register``.

    Attributes:
        name: used in settings, certificates and commands.
        rigorous: whether it is proved for every number of rows. It then needs both floors and equal weights.
        min_rows: fewest rows for a finite bound.
        needs_rows: whether it needs the rows themselves and not only their sums.
        fallback: name of the bound that is used instead if there are too many rows to keep.
        default_witness_floor: default share of the uniform distribution that is mixed into the witness.
        sentence: a report's sentence about its confidence.
        confidence_text: how a report states the confidence; ``{}`` is replaced by the number.
    """

    name: ClassVar[str]
    rigorous: ClassVar[bool] = False
    min_rows: ClassVar[int] = 1
    needs_rows: ClassVar[bool] = False
    fallback: ClassVar[str | None] = None
    default_witness_floor: ClassVar[float] = 0.0
    sentence: ClassVar[str]
    confidence_text: ClassVar[str] = "by a proven bound, at {} confidence"

    @abstractmethod
    def lower(self, evidence: Evidence, alpha: float) -> float:
        """Compute the bound.

        Args:
            evidence: statistics of the rows.
            alpha: allowed error probability, in (0, 1).

        Returns:
            Nats, at most the margin; minus infinity if there are too few rows.
        """

    def claims(self, evidence: Evidence, alpha: float, lower: float) -> list[Claim]:
        """Statements that a stated bound must satisfy; ``evidence`` has no deviation and no rows.

        Args:
            evidence: statistics of the rows.
            alpha: allowed error probability, in (0, 1).
            lower: the stated bound, nats.

        Returns:
            Each statement, and whether it holds.
        """
        return [
            ("margin_lower <= margin", alpha > 0.5 or lower <= evidence.margin + 1e-9),
            ("one row bounds nothing", evidence.size >= self.min_rows or lower == -math.inf),
        ]

    def check(self, teacher_floor: float, witness_floor: float) -> None:
        """Reject floors for which the bound is not valid.

        Raises:
            ValueError: if the bound is rigorous and a floor is 0.
        """
        if self.rigorous and not (teacher_floor > 0 and witness_floor > 0):
            raise ValueError(
                f"`method={self.name!r}` needs bounded log-probabilities: `teacher_floor` and `witness_floor` must be "
                f"above 0, got {teacher_floor} and {witness_floor}. A searched teacher states its floor; for another "
                "one mix (1 - floor) * T + floor / K. `witness_floor` is applied for you."
            )


BOUNDS: dict[str, Bound] = {}


def register(cls: type[Bound]) -> type[Bound]:
    """Add a bound to :data:`BOUNDS`.

    Raises:
        ValueError: if another bound has its name.
    """
    if cls.name in BOUNDS:
        raise ValueError(f"`name` must be new among {', '.join(BOUNDS)}, got {cls.name!r}.")
    BOUNDS[cls.name] = cls()
    return cls


def find_bound(method: str) -> Bound:
    """The bound with this name.

    Raises:
        ValueError: if there is none. The message lists all names.
    """
    if not isinstance(method, str) or method not in BOUNDS:
        raise ValueError(f"`method` must be one of {', '.join(BOUNDS)}, got {method!r}.")
    return BOUNDS[method]


def score_range(num_components: int, teacher_floor: float, witness_floor: float) -> float:
    r"""Width of the interval that contains every :math:`g_i`, in nats.

    :math:`\log(\epsilon_S / K) \le g_i \le \log(K / \epsilon_T)`, as :math:`S_{ik} \ge \epsilon_S / K` and
    :math:`\bar T_k \ge \epsilon_T / K`.

    Raises:
        TypeError: if an argument is not a number.
        ValueError: if there are fewer than 2 components, or a floor is not in (0, 1).
    """
    return log_range(num_components, teacher_floor, "teacher_floor") + log_range(
        num_components, witness_floor, "witness_floor"
    )


def log_range(num_components: int, floor: float, name: str) -> float:
    """``log(K / floor)``, the size of the smallest log-probability in nats.

    Raises:
        TypeError: if an argument is not a number.
        ValueError: if there are fewer than 2 components, or the floor is not in (0, 1).
    """
    share = as_fraction(floor, name)
    if share == 0:
        raise ValueError(f"`{name}` must be above 0, or log-probabilities have no bound, got {floor}.")
    return math.log(as_whole_number(num_components, "num_components", 2)) - math.log(share)


def check_numbers(margin: float, alpha: float, size: float, **spreads: float) -> tuple[float, ...]:
    """The arguments as floats, in this order. Raises a TypeError or ValueError that names a bad argument."""
    if not abs(as_number(margin, "margin")) <= _MAX_SQUARE:
        raise ValueError(f"`margin` must be finite, got {margin}.")
    if not 0 < as_number(alpha, "alpha") < 1:
        raise ValueError(f"`alpha` must be between 0 and 1, got {alpha}.")
    if not 1 - _ROUNDING <= as_number(size, "size") <= _MAX_SQUARE:  # an effective size is rounded
        raise ValueError(f"`size` must be at least 1 row, and finite, got {size}.")
    for name, value in spreads.items():
        one_row = name == "deviation" and size < 2  # has none
        if not (0 <= as_number(value, name) <= _MAX_SQUARE or one_row):
            raise ValueError(f"`{name}` must be finite and at least 0, got {value}.")
    return tuple(float(value) for value in (margin, alpha, size, *spreads.values()))
