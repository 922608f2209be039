"""The settings of a certificate: bound, confidence, safety margin and floors."""

import math
from dataclasses import dataclass, replace
from typing import Any

from certvae.theory.arguments import as_fraction, as_number, as_whole_number
from certvae.theory.bounds import Bound, find_bound, spending

__all__ = ["DEFAULT_RIGOROUS", "CertificateSettings"]

DEFAULT_RIGOROUS = "betting"


@dataclass(frozen=True)
class CertificateSettings:
    """The settings of a certificate: bound, confidence, safety margin and floors.

    Args:
        safety_margin: nats that the lower bound on the margin must exceed, at least 0.
        confidence: probability with which the lower bound holds, in ``(0, 1)``.
        method: name of the bound; see :mod:`certvae.theory.bounds`. Default: :data:`DEFAULT_RIGOROUS` with a teacher
            floor, else ``"normal"``.
        teacher_floor: every teacher probability is at least ``teacher_floor / K``, by construction; in ``[0, 1)``.
        witness_floor: share of the uniform distribution mixed into the witness, in ``[0, 1)``. Default: 1e-3 for
            rigorous bounds, else 0.
        look: number of this look at the run, from 1. The bound then spends only this look's share of the error; see
            :func:`certvae.theory.bounds.spending`. None: a single look.
        max_kept: largest number of values, 8 bytes each, kept for a bound that needs the rows themselves; a row has
            ``K + 4``. Above it the bound's ``fallback`` is used, and the certificate names the fallback.

    Raises:
        TypeError: if a numeric argument is not a number, or ``look`` is not a whole number.
        ValueError: if ``safety_margin`` is below 0, ``confidence`` is not in (0, 1), a floor is not in [0, 1), ``look``
            is below 1, or a proved method lacks its floors.
    """

    safety_margin: float = 0.05
    confidence: float = 0.95
    method: str | None = None
    teacher_floor: float = 0.0
    witness_floor: float | None = None
    look: int | None = None
    max_kept: int = 2**26

    def __post_init__(self) -> None:
        if self.method is None:
            floored = as_fraction(self.teacher_floor, "teacher_floor") > 0
            self._store("method", DEFAULT_RIGOROUS if floored else "normal")
        bound = self.bound
        if self.witness_floor is None:
            self._store("witness_floor", bound.default_witness_floor)
        for name in ("safety_margin", "confidence"):
            self._store(name, as_number(getattr(self, name), name))
        for name in ("teacher_floor", "witness_floor"):
            self._store(name, as_fraction(getattr(self, name), name))
        if self.look is not None:
            self._store("look", as_whole_number(self.look, "look", 1))
        self._store("max_kept", as_whole_number(self.max_kept, "max_kept", 0, 2**40))
        if not (math.isfinite(self.safety_margin) and self.safety_margin >= 0):
            raise ValueError(f"`safety_margin` must be at least 0 nats, got {self.safety_margin}.")
        if not 0 < 1 - self.confidence < 1:
            raise ValueError(f"`confidence` must be between 0 and 1, such as 0.95, got {self.confidence}.")
        bound.check(self.teacher_floor, self.applied_floor)

    @classmethod
    def for_teacher(
        cls, floor: float, *, method: str | None = None, teacher_floor: float | None = None, **others: Any
    ) -> "CertificateSettings":
        """Settings for a teacher that promises a floor.

        Args:
            floor: the teacher's floor; see :class:`certvae.teachers.TeacherCard`.
            method: name of the bound; default: see the class.
            teacher_floor: replaces ``floor``; it is checked on every row.
            others: further arguments of the class.
        """
        given = floor if teacher_floor is None else teacher_floor
        chosen = cls(method=method, teacher_floor=given, **others)
        # A bound that needs no floor does not state one.
        return chosen if chosen.bound.rigorous or teacher_floor is not None else replace(chosen, teacher_floor=0.0)

    def _store(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # the class is frozen; a file needs plain numbers, not numpy's

    @property
    def bound(self) -> Bound:
        """The bound named ``method``."""
        return find_bound(self.method)  # type: ignore[arg-type]

    @property
    def applied_floor(self) -> float:
        """The witness floor that is applied, with the default filled in."""
        return self.witness_floor or 0.0

    @property
    def alpha(self) -> float:
        """Allowed error probability of the bound at this look."""
        alpha = 1 - self.confidence
        return alpha if self.look is None else spending(alpha, self.look)
