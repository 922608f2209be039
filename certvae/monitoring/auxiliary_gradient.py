"""Adds the gradient of a loss term at the code, for modules that use manual optimization and return no loss."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from certvae.monitoring.wrapped_step import WrappedStep
from certvae.reading.captured import Captured
from certvae.reading.latents import Latents, LatentSource
from certvae.reading.sources import copied, submodule_of

__all__ = ["AuxiliaryGradient"]


class AuxiliaryGradient:
    """Adds the gradient of a term at the code to the gradient that reaches the code in a backward pass.

    By the chain rule, the encoder's parameters receive the same gradient as from ``loss + term``. The gradient of the
    term is computed in the forward pass, as soon as the code is known. For the alignment term on means it is
    :meth:`certvae.SimplexWitness.alignment_gradient` over the rows of the batch.

    It is added once between two optimizer steps, in the first backward pass that reaches the code. So accumulated
    losses do not count it twice, and a discriminator's pass does not use it up. The gradient scaler of mixed precision
    is applied to it. If your module divides its losses to accumulate gradients, divide the weight too.

    Args:
        source: a submodule, or two heads; called once per step, or with ``calls="first"``.
        term: function of the batch and the code that returns a scalar; the code's graph ends at the submodule's output.
    """

    def __init__(self, source: LatentSource | None, term: Callable[[Any, Captured], Tensor]) -> None:
        self._source, self._term = source, term
        self._step = WrappedStep()
        self._handles: list[RemovableHandle] = []
        self._batch: Any = None
        self._inside = False
        self._outputs: dict[int, Any] = {}
        self._gradients: dict[int, list[Tensor | None]] = {}
        self._added = set[int]()

    def attach(self, pl_module: LightningModule) -> None:
        """Put hooks in place.

        Raises:
            ValueError: if the code is not the output of a submodule, or ``source`` has ``calls="last"``.
        """
        self.detach()
        source = self._named(pl_module)
        heads = [source] if source.scale_head is None else [source, source.scale_head]
        for place, head in enumerate(heads):
            hook = functools.partial(self._catch, source, len(heads), place)
            self._handles.append(submodule_of(head, pl_module).register_forward_hook(hook))

        def watched(step: Callable[[], Any], batch: Any) -> Any:
            self._begin(pl_module, batch)
            try:
                return step()
            finally:
                self._inside, self._batch = False, None

        self._step.attach(pl_module, watched)

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
        self._outputs, self._gradients, self._added = {}, {}, set()

    def stepped(self) -> None:
        """Note that an optimizer has stepped: the next backward pass may add the gradient again."""
        self._added = set()

    def _catch(self, source: Latents, heads: int, place: int, module: Any, inputs: Any, output: Any) -> Any:
        if not (self._inside and torch.is_grad_enabled()):
            return None
        if place in self._outputs:
            if source.calls == "error":
                raise ValueError(
                    f"`latents={source.path!r}` was called twice in one step; select the first call, "
                    f"Latents({source.path!r}, calls='first')."
                )
            return None
        self._outputs[place] = output
        if len(self._outputs) == heads:
            self._find_gradients(source)
        return self._passed_on(place, output)

    def _find_gradients(self, source: Latents) -> None:
        """Differentiate the term with respect to the outputs, detached from their graph."""
        twins: dict[int, list[Tensor]] = {place: [] for place in self._outputs}

        def read(place: int) -> Any:
            def leaf(tensor: Tensor) -> Tensor:
                twin = tensor.detach().clone().requires_grad_(_is_trained(tensor))
                twins[place] += [twin] if twin.requires_grad else []
                return twin

            return copied(self._outputs[place], leaf)

        term = self._term(self._batch, source.read_outputs([read(place) for place in sorted(self._outputs)]))
        every = [twin for place in twins.values() for twin in place]
        if not term.requires_grad:
            return
        found = iter(torch.autograd.grad(term, every, allow_unused=True))
        self._gradients = {place: [next(found) for _ in leaves] for place, leaves in twins.items()}

    def _passed_on(self, place: int, output: Any) -> Any:
        """The output for the rest of the step; a backward pass through any part of it adds the whole gradient."""
        trained: list[Tensor] = []

        def note(tensor: Tensor) -> Tensor:
            trained.extend([tensor] if _is_trained(tensor) else [])
            return tensor

        copied(output, note)
        if not trained:
            return None
        passed = iter(_Adding.apply(self, place, *trained))
        return copied(output, lambda tensor: next(passed) if _is_trained(tensor) else tensor)

    def added(self, place: int, passing: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Gradients of an output's tensors, with the term's gradients added."""
        gradients = self._gradients.get(place)
        if gradients is None or place in self._added:
            return passing
        self._added.add(place)
        assert self._step.module is not None
        scaler = getattr(self._step.module.trainer.precision_plugin, "scaler", None)
        scale = 1.0 if scaler is None else scaler.get_scale()
        pairs = zip(passing, gradients, strict=True)
        return tuple(one if more is None else one + scale * more for one, more in pairs)

    def detach(self) -> None:
        """Remove the hooks and restore the module's own step."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._step.detach()


class _Adding(torch.autograd.Function):
    """Identity on tensors; its backward pass adds the term's gradients."""

    @staticmethod
    def forward(ctx: Any, owner: AuxiliaryGradient, place: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.owner, ctx.place = owner, place
        return tuple(tensor.clone() for tensor in tensors)  # the step could not change a view in place

    @staticmethod
    def backward(ctx: Any, *passing: Tensor) -> Any:
        return None, None, *ctx.owner.added(ctx.place, passing)


def _is_trained(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.requires_grad
