"""Adding a term to the loss that somebody's ``training_step`` returns, without a change to their module."""

import functools
from collections.abc import Callable
from typing import Any

from pytorch_lightning import LightningModule
from torch import Tensor

__all__ = ["AuxiliaryLoss", "own_step"]

_OWN = "_certvae_own_step"


def own_step(pl_module: LightningModule) -> Callable[..., Any]:
    """The module's ``training_step`` without the terms that are added to it."""
    step: Callable[..., Any] = pl_module.training_step
    while hasattr(step, _OWN):
        step = getattr(step, _OWN)
    return step


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
        self._module: LightningModule | None = None
        self._replaced: Any = None

    def attach(self, pl_module: LightningModule) -> None:
        """Put the term in place."""
        self.detach()
        original = pl_module.training_step
        # A compiled module has its step as an instance attribute, which has to come back.
        self._replaced = vars(pl_module).get("training_step")

        @functools.wraps(original)
        def training_step(*args: Any, **kwargs: Any) -> Any:
            if not pl_module.trainer.training:  # called by their validation_step
                return original(*args, **kwargs)
            self._before()
            outputs = original(*args, **kwargs)
            if outputs is None or (not isinstance(outputs, Tensor) and outputs.get("loss") is None):
                return outputs  # the module skips this batch
            term = self._term(args[0] if args else next(iter(kwargs.values())), outputs)
            if isinstance(outputs, Tensor):
                return outputs + term
            return {**outputs, "loss": outputs["loss"] + term}

        setattr(training_step, _OWN, original)
        pl_module.training_step = training_step  # type: ignore[method-assign]
        self._module = pl_module

    def detach(self) -> None:
        """Give the module its own step back."""
        if self._module is None:
            return
        if self._replaced is None:
            del self._module.training_step
        else:
            self._module.training_step = self._replaced  # type: ignore[method-assign]
        self._module = self._replaced = None
