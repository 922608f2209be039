"""Attributes of a module that set the cost of its rate: the KL weight or the free-bits floor."""

import math
from abc import ABC, abstractmethod
from difflib import get_close_matches
from typing import Any, ClassVar

from torch import nn

__all__ = ["FreeBitsFloor", "KLWeight", "ModuleNumber"]


class ModuleNumber(ABC):
    """A float attribute of a module that a weight above 1 changes to make the rate cheaper.

    If the module sets the attribute itself, as in annealing, the new value becomes its own value.

    Args:
        module: the module.
        name: dotted name of the attribute, such as ``"beta"`` or ``"objective.beta"``.
        own: the module's own value, if ``now`` was computed from it before.
        now: value that was last set.

    Attributes:
        own: the module's own value.
        now: current value of the attribute.

    Raises:
        ValueError: if the attribute does not exist, or is negative or not finite.
        TypeError: if the attribute is not a number.
    """

    argument: ClassVar[str]
    role: ClassVar[str]

    def __init__(self, module: nn.Module, name: str, own: float | None = None, now: float | None = None) -> None:
        self._name = name
        self._holder, self._attribute = self._find(module)
        self.now = self._read()
        self.own = own if own is not None and self.now == now else self.now

    def _read(self) -> float:
        value = getattr(self._holder, self._attribute)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(
                f"`{self.argument}={self._name!r}` must name a number, which the guard can change; it is a "
                f"{type(value).__name__}. Keep {self.role} in a float attribute that the step reads."
            )
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(
                f"`{self.argument}={self._name!r}` must name a finite number of at least 0, it is {value}."
            )
        return float(value)

    def apply(self, weight: float) -> float:
        """Set the attribute from the module's own value and a weight; a weight below 1 counts as 1.

        Returns:
            The new value.
        """
        if (value := self._read()) != self.now:
            self.own = value
        self.now = self._weighed(max(1.0, weight))
        setattr(self._holder, self._attribute, self.now)
        return self.now

    @abstractmethod
    def _weighed(self, weight: float) -> float:
        """The new value, from the own value and a weight of at least 1."""

    def _find(self, module: nn.Module) -> tuple[Any, str]:
        *parts, attribute = self._name.split(".")
        holder: Any = module
        for part in parts:
            holder = getattr(holder, part, None)
        if holder is None or not attribute or not hasattr(holder, attribute):
            names = [key for key, value in vars(module).items() if isinstance(value, float)]
            saved = getattr(module, "hparams", {})
            names += [f"hparams.{key}" for key, value in saved.items() if isinstance(value, float)]
            near = get_close_matches(attribute, names, n=5, cutoff=0.0)
            raise ValueError(
                f"`{self.argument}={self._name!r}` names no attribute of {type(module).__name__}; give the dotted name "
                f"of the float that its step reads as {self.role}. Its own float attributes: {near or 'none'}."
            )
        return holder, attribute


class KLWeight(ModuleNumber):
    """The weight of the KL term: the module's own value divided by the guard's weight, so never raised."""

    argument, role = "kl_weight", "the weight of the KL term"

    def _weighed(self, weight: float) -> float:
        return self.own / weight


class FreeBitsFloor(ModuleNumber):
    """The rate below which the KL term costs nothing: the module's own value times the guard's weight."""

    argument, role = "free_bits", "the rate that is free"

    def _read(self) -> float:
        if (value := super()._read()) == 0:
            raise ValueError(
                f"`{self.argument}={self._name!r}` must name a number above 0, for the guard multiplies it. Start at a "
                "small one, such as 0.01 nats."
            )
        return value

    def _weighed(self, weight: float) -> float:
        return self.own * weight
