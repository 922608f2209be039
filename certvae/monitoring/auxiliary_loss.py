"""Adds a term to the loss that ``training_step`` returns, without changes to the module's code."""

from collections.abc import Callable
from typing import Any

from pytorch_lightning import LightningModule
from torch import Tensor

from certvae.monitoring.wrapped_step import WrappedStep

__all__ = ["AuxiliaryLoss"]


class AuxiliaryLoss:
    """Wraps a module's ``training_step`` from :meth:`attach` to :meth:`detach`.

    The term is added to the returned loss inside the forward of distributed wrappers, before Lightning divides the loss
    for gradient accumulation and scales it for mixed precision. So it is treated like the module's own terms.

    Args:
        before: function called before each step.
        term: function of the batch and the step's outputs that returns a scalar to add.
    """

    def __init__(self, before: Callable[[], None], term: Callable[[Any, Any], Tensor]) -> None:
        self._before, self._term = before, term
        self._step = WrappedStep()

    def attach(self, pl_module: LightningModule) -> None:
        """Wrap the module's step."""

        def with_term(step: Callable[[], Any], batch: Any) -> Any:
            if not pl_module.trainer.training:  # called by the module's validation_step
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
        """Restore the module's own step."""
        self._step.detach()
