"""What a bound is, what it may look at, and the list of all bounds by their names."""

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
Claim = tuple[str, bool]
PROVEN = "A proven bound holds if the rows were drawn independently, and nothing was fitted on them."


@dataclass(frozen=True)
class Evidence:
    """What the rows say of one margin; nats.

    Attributes:
        margin: plug-in margin.
        deviation: sample standard deviation (``n - 1``) of the plug-in scores; NaN for fewer than two rows.
        size: number of rows, or Kish's effective size of weighted ones.
        num_components: K.
        teacher_floor: every teacher probability is at least ``teacher_floor / K``.
        witness_floor: every witness probability is at least ``witness_floor / K``.
        equal_weights: whether every row counts the same.
        teacher_probs: of the rows in a fixed order, float64, shape ``(N, K)``; None where they were not kept.
        scores: ``sum_k T_k log S_k`` of these rows, shape ``(N,)``; None where they were not kept.
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
        """Width of the interval that holds every score; see :func:`score_range`."""
        return score_range(self.num_components, self.teacher_floor, self.witness_floor)


class Bound(ABC):
    """A lower confidence bound on a margin. A new one is a file here, with ``@register`` before its class.

    Attributes:
        name: by which settings, certificates and commands know it.
        rigorous: whether it is proved for every number of rows. It then needs both floors, and equal weights.
        min_rows: fewest rows of which it says anything.
        needs_rows: whether it needs the rows themselves and not only their sums.
        fallback: name of the bound that is taken where it needs the rows and there are too many to keep.
        default_witness_floor: share of the uniform distribution that is mixed into the witness unless told otherwise.
        sentence: what a report says of its confidence.
        confidence_text: how a report states the confidence; ``{}`` stands for it.
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
        """The bound.

        Args:
            evidence: what the rows say.
            alpha: allowed error probability, in (0, 1).

        Returns:
            Nats, at most the margin; minus infinity where there are too few rows.
        """

    def claims(self, evidence: Evidence, alpha: float, lower: float) -> list[Claim]:
        """What must hold of a stated bound; ``evidence`` comes without deviation and rows.

        Returns:
            Sentences, and whether each holds.
        """
        return [
            ("margin_lower <= margin", alpha > 0.5 or lower <= evidence.margin + 1e-9),
            ("one row bounds nothing", evidence.size >= self.min_rows or lower == -math.inf),
        ]

    def check(self, teacher_floor: float, witness_floor: float) -> None:
        """Refuse floors with which the bound does not hold.

        Raises:
            ValueError: naming the floors, and what to give.
        """
        if self.rigorous and not (teacher_floor > 0 and witness_floor > 0):
            raise ValueError(
                f"`method={self.name!r}` needs bounded log-probabilities: `teacher_floor` and `witness_floor` must be "
                f"above 0, got {teacher_floor} and {witness_floor}. A searched teacher states its floor; for another "
                "one mix (1 - floor) * T + floor / K. `witness_floor` is applied for you."
            )


BOUNDS: dict[str, Bound] = {}


def register(cls: type[Bound]) -> type[Bound]:
    """Add a bound to the list.

    Raises:
        ValueError: if another bound has its name.
    """
    if cls.name in BOUNDS:
        raise ValueError(f"`name` must be new among {', '.join(BOUNDS)}, got {cls.name!r}.")
    BOUNDS[cls.name] = cls()
    return cls


def find_bound(method: str) -> Bound:
    """The bound of a name.

    Raises:
        ValueError: if there is none, with all names.
    """
    if not isinstance(method, str) or method not in BOUNDS:
        raise ValueError(f"`method` must be one of {', '.join(BOUNDS)}, got {method!r}.")
    return BOUNDS[method]


def score_range(num_components: int, teacher_floor: float, witness_floor: float) -> float:
    r"""Width of the interval that holds every :math:`g_i`, in nats.

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
    """The arguments as floats, in this order; one out of its range is a TypeError or ValueError that names it."""
    if not abs(as_number(margin, "margin")) <= _MAX_SQUARE:
        raise ValueError(f"`margin` must be finite, got {margin}.")
    if not 0 < as_number(alpha, "alpha") < 1:
        raise ValueError(f"`alpha` must be between 0 and 1, got {alpha}.")
    if not 0 < as_number(size, "size") <= _MAX_SQUARE:
        raise ValueError(f"`size` must be positive and finite, got {size}.")
    for name, value in spreads.items():
        one_row = name == "deviation" and size < 2  # has none
        if not (0 <= as_number(value, name) <= _MAX_SQUARE or one_row):
            raise ValueError(f"`{name}` must be finite and at least 0, got {value}.")
    return tuple(float(value) for value in (margin, alpha, size, *spreads.values()))
