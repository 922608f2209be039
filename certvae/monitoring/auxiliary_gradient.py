"""Adding the gradient of a term at the code, where a module optimizes by hand and returns no loss to add a term to."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from certvae.reading.captured import Captured
from certvae.reading.latents import Latents, LatentSource
from certvae.reading.sources import copied, submodule_of

__all__ = ["AuxiliaryGradient"]


class AuxiliaryGradient:
    """Adds the gradient of a term by the code to what reaches the code in a backward pass.

    The chain rule does the rest: the encoder's parameters get what they would have got from ``loss + term``. The
    gradient is known as soon as the code is, in the forward pass. For the alignment term on means it is
    :meth:`certvae.SimplexWitness.alignment_gradient` over the rows of the batch.

    It is added once between two optimizer steps, to the first backward pass that reaches the code: losses that are
    accumulated do not count it twice, and a discriminator's pass does not take it from the encoder's. A gradient scaler
    of mixed precision is followed. A module that divides its losses, to accumulate gradients, divides the weight too.

    Args:
        source: a submodule, or two heads; called once in a step, or with ``calls="first"``.
        term: called with the batch and the code, whose graph ends at the submodule's output; returns a scalar.
    """

    def __init__(self, source: LatentSource | None, term: Callable[[Any, Captured], Tensor]) -> None:
        self._source, self._term = source, term
        self._module: LightningModule | None = None
        self._replaced: Any = None
        self._handles: list[RemovableHandle] = []
        self._batch: Any = None
        self._inside = False
        self._outputs: dict[int, Any] = {}
        self._added = set[int]()

    def attach(self, pl_module: LightningModule) -> None:
        """Put hooks in place.

        Raises:
            ValueError: if the code is not the output of a submodule, or its last call is asked for.
        """
        self.detach()
        source = self._named(pl_module)
        heads = [source] if source.scale_head is None else [source, source.scale_head]
        for place, head in enumerate(heads):
            hook = functools.partial(self._catch, source, len(heads), place)
            self._handles.append(submodule_of(head, pl_module).register_forward_hook(hook))
        original, self._replaced = pl_module.training_step, vars(pl_module).get("training_step")

        @functools.wraps(original)
        def training_step(*args: Any, **kwargs: Any) -> Any:
            self._begin(pl_module, args[0] if args else next(iter(kwargs.values())))
            try:
                return original(*args, **kwargs)
            finally:
                self._inside, self._batch = False, None

        pl_module.training_step = training_step  # type: ignore[method-assign]
        self._module = pl_module

    def _named(self, pl_module: LightningModule) -> Latents:
        source = self._source
        if isinstance(source, Latents) and source.path and not callable(source.path) and source.calls != "last":
            return source
        raise ValueError(
            f"{type(pl_module).__name__} sets `automatic_optimization = False`, so the alignment gradient is added "
            "where the code is made: `latents` must name one submodule, as in latents='encoder.fc_mu', ('fc_mu', "
            f"'fc_var') or Latents('encoder', calls='first'), got {source!r}."
        )

    def _begin(self, pl_module: LightningModule, batch: Any) -> None:
        self._inside, self._batch = pl_module.trainer.training, batch
        self._outputs, self._added = {}, set()

    def stepped(self) -> None:
        """An optimizer takes its step: what comes after it is another pass."""
        self._added = set()

    def _catch(self, source: Latents, heads: int, place: int, module: Any, inputs: Any, output: Any) -> None:
        if not (self._inside and torch.is_grad_enabled()):
            return
        if place in self._outputs:
            if source.calls == "error":
                raise ValueError(
                    f"`latents={source.path!r}` was called twice in one step; say that the first call counts, "
                    f"Latents({source.path!r}, calls='first')."
                )
            return
        self._outputs[place] = output
        if len(self._outputs) == heads:
            self._hook_gradients(source, [self._outputs[head] for head in range(heads)])

    def _hook_gradients(self, source: Latents, outputs: list[Any]) -> None:
        pairs: list[tuple[Tensor, Tensor]] = []

        def leaf(tensor: Tensor) -> Tensor:
            if not (tensor.is_floating_point() and tensor.requires_grad):
                return tensor
            pairs.append((tensor, tensor.detach().clone().requires_grad_()))
            return pairs[-1][1]

        term = self._term(self._batch, source.read_outputs([copied(output, leaf) for output in outputs]))
        if not term.requires_grad:
            return
        gradients = torch.autograd.grad(term, [twin for _, twin in pairs], allow_unused=True)
        for place, ((tensor, _), gradient) in enumerate(zip(pairs, gradients, strict=True)):
            if gradient is not None:
                tensor.register_hook(functools.partial(self._add, place, gradient))

    def _add(self, place: int, gradient: Tensor, passing: Tensor | None) -> Tensor | None:
        if place in self._added:
            return passing
        self._added.add(place)
        assert self._module is not None
        scaler = getattr(self._module.trainer.precision_plugin, "scaler", None)
        gradient = gradient if scaler is None else gradient * scaler.get_scale()
        return gradient if passing is None else passing + gradient  # None: a part that the loss does not read

    def detach(self) -> None:
        """Remove the hooks, and give the module its own step back."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._module is None:
            return
        if self._replaced is None:
            del self._module.training_step
        else:
            self._module.training_step = self._replaced  # type: ignore[method-assign]
        self._module = self._replaced = None
