"""Trains a witness with its own optimizer, separate from the module's optimizer."""

from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import nn

__all__ = ["TrainedWitness"]


class TrainedWitness:
    """Updates a witness's parameters with Adam whenever the run's optimizer steps.

    The module's optimizer, its state and its checkpoint keys do not change. So a run with the witness can resume a run
    without it, and the reverse. Gradients are averaged over processes here, because the module's distributed wrapper
    does not include the witness.

    Args:
        witness: a module with parameters.
        learning_rate: of Adam, above 0.

    Raises:
        ValueError: if the witness has no parameters, or ``learning_rate`` is not above 0.
    """

    def __init__(self, witness: nn.Module, learning_rate: float) -> None:
        if not learning_rate > 0:
            raise ValueError(f"`witness_learning_rate` must be above 0, got {learning_rate}.")
        if not any(value.requires_grad for value in witness.parameters()):
            raise ValueError(
                f"`witness_learning_rate` needs a `witness` with parameters, got {type(witness).__name__}. Give a "
                "RawHead, or leave the learning rate out."
            )
        self.witness = witness
        self._optimizer = torch.optim.Adam(witness.parameters(), lr=learning_rate)
        self._moments: dict[str, Any] | None = None

    def start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a run with the witness on its device; refuse a run that would train it wrongly.

        Raises:
            ValueError: if the module owns the witness or uses manual optimization, losses are scaled for float16, or
                the optimizer evaluates the loss several times per step.
        """
        owned = {id(value) for value in pl_module.parameters()}
        if any(id(value) in owned for value in self.witness.parameters()):
            raise ValueError(
                f"`witness` belongs to {type(pl_module).__name__} already, whose own optimizer trains it; leave out "
                "`witness_learning_rate`."
            )
        if not pl_module.automatic_optimization:
            raise ValueError(
                f"`witness_learning_rate` does not go with {type(pl_module).__name__}, which optimizes by hand: the "
                "term's gradient is then known only at the code. Let the module own and train the witness."
            )
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            raise ValueError(
                "`witness_learning_rate` does not go with precision='16-mixed', which scales the loss by a factor that "
                "only the module's optimizer removes. Use 'bf16-mixed', or let the module own the witness."
            )
        if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in trainer.optimizers):
            raise ValueError(
                "`witness_learning_rate` does not go with LBFGS, which evaluates the loss several times per step while "
                "the witness must stay the same. Let the module own the witness."
            )
        if self._moments is not None:
            self._optimizer.load_state_dict(self._moments)
            self._moments = None

    def step(self, trainer: Trainer) -> None:
        """Take one step with the gradients accumulated since the last step; a collective."""
        for value in self.witness.parameters():
            if value.grad is not None and trainer.world_size > 1:
                value.grad = trainer.strategy.reduce(value.grad, reduce_op="mean")
        self._optimizer.step()
        self._optimizer.zero_grad()

    def state(self) -> dict[str, Any]:
        """State for a checkpoint: weights and moments."""
        return {"weights": self.witness.state_dict(), "optimizer": self._optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state`; :meth:`start` restores the moments, when the device is known."""
        self.witness.load_state_dict(state["weights"])
        self._moments = state["optimizer"]
