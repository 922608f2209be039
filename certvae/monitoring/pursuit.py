"""Finds the weight that keeps a lower bound at a target, and gives up if a larger weight does not help."""

import math
from typing import Any

import torch
from torch import Tensor

from certvae.monitoring.dual_controller import DualController
from certvae.theory.information import entropy

__all__ = ["Pursuit", "training_number"]

PATIENCE = 3  # validations without a better bound
GROWTH = math.log(10)  # required growth of the logarithm of the weight since the best bound
BETTER = 0.02  # share of the target by which a bound must rise to count as better


def training_number(means: Tensor) -> Tensor:
    """The rate, or the margin ``H(Tbar) + E sum_k T_k log S_k`` from means of shape ``(1 + K,)``; nats."""
    return means[0] if len(means) == 1 else means[0] + entropy(means[1:])


class Pursuit:
    """Adjusts the weight of a term that raises a lower bound, from a training number at each step.

    The bound is known only at looks (validations). Steps drive the training number to the target, plus headroom, plus
    the *gap*: the distance between the training number and the bound at the last looks. If the model overfits, the gap
    grows with the weight, and the weight would rise forever. So the pursuit **gives up** at a look if the bound is
    below the target, the training number is above target plus headroom, and neither ``PATIENCE`` such looks in a row
    nor ten times the weight has given a better bound. The weight then returns to its value at the best bound, and stays
    there until a look finds the bound at the target.

    Args:
        target: target of the bound in nats, positive; also the unit of the deficit.
        headroom: nats above the target to aim at.
        controller: controller that computes the weight from the deficit.
    """

    def __init__(self, target: float, headroom: float, controller: DualController) -> None:
        self.target, self.headroom, self.controller = target, headroom, controller
        self.log_weight = torch.tensor(controller.log_weight, dtype=torch.float64)
        self.weight = self.log_weight.exp()
        self.gap = 0.0
        self.given_up = False
        self._best, self._best_log_weight = -math.inf, controller.log_weight
        self._stale = 0

    def step(self, number: Tensor) -> Tensor:
        """The weight for the training number, both scalars on the same device; does not wait for the device."""
        log_weight = self.log_weight.to(number.device)  # a copy at the first step only
        if self.given_up:
            self.weight = self.weight.to(number.device)
        else:
            deficit = (self.target + self.headroom + self.gap - number) / self.target
            self.log_weight, self.weight = self.controller.step(log_weight, deficit)
        return self.weight

    def look(self, bound: float, number: float) -> str | None:
        """Update the gap; return the reason if the pursuit gives up at this look.

        Args:
            bound: the lower bound in nats.
            number: the training number in nats.
        """
        log_weight = float(self.log_weight)
        if bound > self._best + BETTER * self.target:
            self._best, self._best_log_weight, self._stale = bound, log_weight, 0
        elif number >= self.target + self.headroom:
            self._stale += 1
        else:
            self._stale = 0  # the training number can still rise
        if bound >= self.target:
            self._stale, self.given_up = 0, False
        if self.given_up:
            return None
        if self._stale >= PATIENCE and log_weight >= self._best_log_weight + GROWTH:
            return self._give_up(bound, number)
        if math.isfinite(bound):
            # While the number rises, its running average lags, and the lag is not a gap. Move half the way only: the
            # whole way would oscillate from look to look.
            self.gap += (max(0.0, number - bound) - self.gap) / 2
        return None

    def _give_up(self, bound: float, number: float) -> str:
        reached = float(self.weight)
        self.log_weight = torch.full_like(self.log_weight, self._best_log_weight)
        self.given_up, self.weight, self._stale = True, self.log_weight.exp(), 0
        return (
            f"the target of {self.target:g} nats does not carry over to validation: {number:.3f} nats in training, "
            f"at least {bound:.3f} in validation, and no better bound than {self._best:.3f} although the weight rose "
            f"to {reached:.3g}. It returns to {float(self.weight):.3g}, its value at the best bound, and stays there. "
            "More rows, a smaller model, augmentation or a lower target help; a larger weight does not"
        )

    def state(self) -> dict[str, Any]:
        """State for a checkpoint."""
        return {
            "log_weight": float(self.log_weight),
            "weight": float(self.weight),
            "gap": self.gap,
            "given_up": self.given_up,
            "best": [self._best, self._best_log_weight],
            "stale": self._stale,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state`, also from a version that did not keep the best bound."""
        self.log_weight = torch.tensor(state["log_weight"], dtype=torch.float64)
        self.weight = torch.tensor(state.get("weight", math.exp(state["log_weight"])), dtype=torch.float64)
        self.gap = state["gap"]
        self.given_up, self._stale = state.get("given_up", False), state.get("stale", 0)
        self._best, self._best_log_weight = state.get("best", (-math.inf, state["log_weight"]))
