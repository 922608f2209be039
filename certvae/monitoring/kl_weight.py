"""The weight of the KL term in somebody's module, found by the name of its attribute."""

import math
from difflib import get_close_matches
from typing import Any

from torch import nn

__all__ = ["KLWeight"]


class KLWeight:
    """A number that a module multiplies its KL term with, which may be lowered and never raised.

    A module that sets the attribute itself, as in annealing, is followed: what it sets counts as its own value, and is
    divided from then on.

    Args:
        module: the module.
        name: dotted name of the attribute, such as ``"beta"`` or ``"objective.beta"``.
        own: value that the module had by itself, if ``now`` is what was made of it before.
        now: see ``own``.

    Attributes:
        own: the module's own value.
        now: the value that the attribute has.

    Raises:
        ValueError: if there is no such attribute, or it is negative or not finite.
        TypeError: if it is not a number.
    """

    def __init__(self, module: nn.Module, name: str, own: float | None = None, now: float | None = None) -> None:
        self._name, self._holder, self._attribute = name, *_find(module, name)
        self.now = self._read()
        self.own = own if own is not None and self.now == now else self.now

    def _read(self) -> float:
        value = getattr(self._holder, self._attribute)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(
                f"`kl_weight={self._name!r}` must name a number, which the guard can lower; it is a "
                f"{type(value).__name__}. Keep the weight of the KL term in a float attribute that the step reads."
            )
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"`kl_weight={self._name!r}` must name a finite number of at least 0, it is {value}.")
        return float(value)

    def divide(self, divisor: float) -> float:
        """Set the attribute to the module's own value, divided by at least 1; returns it."""
        if (value := self._read()) != self.now:
            self.own = value
        self.now = self.own / max(1.0, divisor)
        setattr(self._holder, self._attribute, self.now)
        return self.now


def _find(module: nn.Module, name: str) -> tuple[Any, str]:
    *parts, attribute = name.split(".")
    holder: Any = module
    for part in parts:
        holder = getattr(holder, part, None)
    if holder is None or not attribute or not hasattr(holder, attribute):
        names = [key for key, value in vars(module).items() if isinstance(value, float)]
        near = get_close_matches(attribute, names, n=5, cutoff=0.0)
        raise ValueError(
            f"`kl_weight={name!r}` names no attribute of {type(module).__name__}; give the dotted name of the float "
            f"that its step multiplies the KL term with. Its own float attributes: {near or 'none'}."
        )
    return holder, attribute
