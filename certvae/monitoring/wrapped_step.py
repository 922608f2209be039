"""Wraps a module's training step, and restores it."""

import functools
from collections.abc import Callable
from typing import Any

from pytorch_lightning import LightningModule

__all__ = ["WrappedStep", "own_step"]

_OWN = "_certvae_own_step"


def own_step(pl_module: LightningModule) -> Callable[..., Any]:
    """The module's ``training_step`` without the wrapper."""
    step: Callable[..., Any] = pl_module.training_step
    while hasattr(step, _OWN):
        step = getattr(step, _OWN)
    return step


class WrappedStep:
    """A wrapper around a module's ``training_step``.

    Attributes:
        module: the module whose step is wrapped; None while no step is.
    """

    def __init__(self) -> None:
        self.module: LightningModule | None = None
        self._replaced: Any = None

    def attach(self, pl_module: LightningModule, around: Callable[[Callable[[], Any], Any], Any]) -> None:
        """Wrap the step in a function.

        Args:
            pl_module: the module.
            around: function of the step, with its arguments bound, and of the batch; returns the step's outputs.
        """
        self.detach()
        original = pl_module.training_step
        # A compiled module has its step as an instance attribute, which must be restored.
        self._replaced = vars(pl_module).get("training_step")

        @functools.wraps(original)
        def training_step(*args: Any, **kwargs: Any) -> Any:
            batch = args[0] if args else next(iter(kwargs.values()), None)
            return around(functools.partial(original, *args, **kwargs), batch)

        setattr(training_step, _OWN, original)
        pl_module.training_step = training_step  # type: ignore[method-assign]
        self.module = pl_module

    def detach(self) -> None:
        """Restore the module's own step."""
        if self.module is None:
            return
        if self._replaced is None:
            del self.module.training_step
        else:
            self.module.training_step = self._replaced  # type: ignore[method-assign]
        self.module = self._replaced = None
