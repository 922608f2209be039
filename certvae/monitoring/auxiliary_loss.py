"""Adding a term to the loss that somebody's ``training_step`` returns, without a change to their module."""

from collections.abc import Callable
from typing import Any

from pytorch_lightning import LightningModule
from torch import Tensor

from certvae.monitoring.wrapped_step import WrappedStep

__all__ = ["AuxiliaryLoss"]


class AuxiliaryLoss:
    """Stands between Lightning and a module's ``training_step`` from :meth:`attach` to :meth:`detach`.

    The term is added to the returned loss, before Lightning divides it for gradient accumulation and scales it for
    mixed precision, and inside the forward of distributed wrappers; so it is treated as their own terms are.

    Args:
        before: called before each step.
        term: called with the batch and the step's outputs; returns a scalar to add.
    """

    def __init__(self, before: Callable[[], None], term: Callable[[Any, Any], Tensor]) -> None:
        self._before, self._term = before, term
        self._step = WrappedStep()

    def attach(self, pl_module: LightningModule) -> None:
        """Put the term in place."""

        def with_term(step: Callable[[], Any], batch: Any) -> Any:
            if not pl_module.trainer.training:  # called by their validation_step
                return step()
            self._before()
            outputs = step()
            if outputs is None or (not isinstance(outputs, Tensor) and outputs.get("loss") is None):
                return outputs  # the module skips this batch
            term = self._term(batch, outputs)
            if isinstance(outputs, Tensor):
                return outputs + term
            return {**outputs, "loss": outputs["loss"] + term}

        self._step.attach(pl_module, with_term)

    def detach(self) -> None:
        """Give the module its own step back."""
        self._step.detach()
