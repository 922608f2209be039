"""Readers for the three sources of a code: the step's output, a submodule's output, and a function's result."""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal, Protocol

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.utils.hooks import RemovableHandle

from certvae.reading.captured import Captured, Spatial, read_latents, select_part
from certvae.reading.found import describe
from certvae.reading.inputs import as_floats, select_inputs
from certvae.reading.posteriors import SCALES, Scale
from certvae.reading.statistics import kept_statistics

__all__ = [
    "OURS",
    "CodeFunction",
    "CodeReader",
    "FunctionCode",
    "HeadsCode",
    "Latents",
    "StepCode",
    "SubmoduleCode",
    "copied",
    "submodule_of",
]

CodeFunction = Callable[[Any, Any], Any]
OURS = "certvae"  # marks the nodes that certvae adds to a graph


@dataclass(frozen=True)
class Latents:
    """Where the latent code of a model is, if the path of a submodule is not enough.

    A string sets ``path`` and ``part``: ``"encoder.fc:chunk"`` is ``Latents("encoder.fc", "chunk")``, and ``":1,2"``
    selects parts of the module's own output. Two names are two heads: ``("fc_mu", "fc_var")`` is
    ``Latents("fc_mu", scale_path="fc_var")``.

    Args:
        path: dotted path of the submodule whose output holds the code; empty, with a ``part``: the module itself. Or a
            function ``(pl_module, batch) -> output``.
        part: part of that output. ``"chunk"``: the first half of axis 1 is the mean, the second half the log-variance.
            A key, an attribute or a position: the mean. Two of them with a comma, such as ``"mu,logvar"`` or
            ``"0,1"``: mean and log-variance.
        spatial: for a code ``(B, C, h, w)``: ``"flatten"`` uses all values, ``"pool"`` the mean over positions. For
            several samples a row, ``(B, S, latent_dim)``: ``"samples"`` uses the first.
        calls: which call is used if the submodule is called several times in a step.
        deterministic: whether the decoder receives the mean without noise, as in a plain autoencoder. There is then no
            rate and no bracket, even if the submodule returns a log-variance.
        scale: kind of the second value: ``"log_variance"``, ``"variance"``, ``"std"`` or ``"log_std"`` (half the
            log-variance). None: from the name of a part or attribute (``std``, ``stddev``, ``scale``, ``variance``,
            ``log_std``, ``logstd``, ``log_scale``), else a log-variance.
        scale_path: dotted path of a second submodule, whose output is the scale.

    Raises:
        ValueError: if an argument is not one of these.
    """

    path: str | CodeFunction
    part: str = ""
    spatial: Spatial | None = None
    calls: Literal["error", "first", "last"] = "error"
    deterministic: bool = False
    scale: Scale | None = None
    scale_path: str = ""

    def __post_init__(self) -> None:
        if not self.path and not self.part:
            raise ValueError(
                "`latents` must name a submodule, such as 'encoder.fc_mu', got an empty path. The output of the module "
                "itself needs a part: latents=':1,2'."
            )
        if self.spatial not in (None, "flatten", "pool", "samples"):
            raise ValueError(f"`spatial` must be 'flatten', 'pool' or None, got {self.spatial!r}; or 'samples'.")
        if self.calls not in ("error", "first", "last"):
            raise ValueError(f"`calls` must be 'error', 'first' or 'last', got {self.calls!r}.")
        if self.scale not in (None, *SCALES):
            raise ValueError(f"`scale` must be one of {', '.join(SCALES)} or None, got {self.scale!r}.")
        if self.scale_path and callable(self.path):
            raise ValueError("`scale_path` goes with the path of a submodule: let the function give (mean, scale).")

    @property
    def shown(self) -> str:
        """The source as shown in messages: the path in quotes, or the name of the function."""
        return getattr(self.path, "__name__", "function") if callable(self.path) else repr(self.path)

    @property
    def scale_head(self) -> "Latents | None":
        """The second submodule as a source; None if there is none."""
        return Latents(self.scale_path, calls=self.calls) if self.scale_path else None

    def read(self, output: Any) -> Captured:
        """Read the code from the submodule's output; for two heads, from the pair of outputs."""
        captured = read_latents(output, self.part, self.spatial, self.scale, self.shown)
        return Captured(captured.mean, deterministic=True) if self.deterministic else captured

    def read_outputs(self, outputs: list[Any]) -> Captured:
        """Read the code from the output of the submodule, or from the outputs of both heads."""
        if len(outputs) == 1:
            return self.read(outputs[0])
        return replace(self, part="").read((select_part(outputs[0], self.part), outputs[1]))


class CodeReader(Protocol):
    """Interface of the readers; :class:`certvae.reading.latents.LatentCapture` calls them."""

    def attach(self, module: nn.Module) -> None:
        """Register a hook if one is needed."""

    def listen(self, listening: bool) -> None:
        """Start or stop capturing, and discard what was captured."""

    def detach(self) -> None:
        """Remove the hook."""

    def read(self, module: nn.Module, batch: Any, outputs: Any) -> Captured:
        """The code of the current batch."""

    def output(self, module: nn.Module, batch: Any, outputs: Any) -> Any:
        """The raw output for the current batch."""

    def read_again(self, module: nn.Module, batch: Any, rows: Tensor, count: int) -> Captured:
        """The code of some rows of the batch, encoded again."""


class _Unhooked:
    """Base class of readers that need no hook."""

    def attach(self, module: nn.Module) -> None:
        """Does nothing."""

    def listen(self, listening: bool) -> None:
        """Does nothing."""

    def detach(self) -> None:
        """Does nothing."""


class StepCode(_Unhooked):
    """Reads ``outputs["posterior"]`` of the module's own step, and ``outputs["rate"]`` if present."""

    def output(self, module: nn.Module, batch: Any, outputs: Any) -> Any:
        """See :class:`CodeReader`.

        Raises:
            ValueError: if the outputs hold no ``"posterior"``.
        """
        if not (isinstance(outputs, dict) and "posterior" in outputs):
            raise ValueError(
                "without `latents` the module's step must return a dict with 'posterior', as certvae.VAE does; got "
                f"{describe(outputs)}. Name the submodule that gives the code: latents='encoder.fc_mu'."
            )
        return outputs["posterior"]

    def read(self, module: nn.Module, batch: Any, outputs: Any) -> Captured:
        """See :class:`CodeReader`."""
        captured = read_latents(self.output(module, batch, outputs))
        return replace(captured, rate=outputs["rate"]) if "rate" in outputs else captured

    def read_again(self, module: nn.Module, batch: Any, rows: Tensor, count: int) -> Captured:
        """See :class:`CodeReader`.

        Raises:
            TypeError: if ``forward`` does not return the code for the batch's input.
        """
        return read_latents(module(_rows_of(as_floats(select_inputs(batch)), rows, count)))


class FunctionCode(_Unhooked):
    """Calls a function with the module and the batch.

    Args:
        source: its ``path`` is the function.
    """

    def __init__(self, source: Latents) -> None:
        self.source = source

    def read(self, module: nn.Module, batch: Any, outputs: Any) -> Captured:
        """See :class:`CodeReader`."""
        return self.source.read(self._output(module, batch))

    def output(self, module: nn.Module, batch: Any, outputs: Any) -> Any:
        """See :class:`CodeReader`. Batch norm statistics are not updated."""
        return select_part(self._output(module, batch), self.source.part)

    def _output(self, module: nn.Module, batch: Any) -> Any:
        assert callable(self.source.path)
        with kept_statistics(module):
            return self.source.path(module, batch)

    def read_again(self, module: nn.Module, batch: Any, rows: Tensor, count: int) -> Captured:
        """See :class:`CodeReader`."""
        return self.read(module, _rows_of(batch, rows, count), None)


class SubmoduleCode:
    """Captures a submodule's output by a hook.

    Args:
        source: its ``path`` is the submodule.
    """

    def __init__(self, source: Latents) -> None:
        self.source = source
        self._handles: list[RemovableHandle] = []
        self._caught: list[Any] = []
        self._calls, self._begun = 0, list[int]()
        self._listening = False
        self._inputs: Any = ()

    def attach(self, module: nn.Module) -> None:
        """See :class:`CodeReader`.

        Raises:
            ValueError: if there is no submodule with this name.
        """
        self.detach()
        submodule = submodule_of(self.source, module)
        self._handles = [submodule.register_forward_hook(self._catch)]
        if submodule is module:
            self._handles.append(submodule.register_forward_pre_hook(self._begin))

    def listen(self, listening: bool) -> None:
        """See :class:`CodeReader`."""
        self._listening, self._caught, self._inputs = listening, [], ()

    def _begin(self, module: nn.Module, inputs: Any) -> None:
        self._begun.append(self._calls)

    def _catch(self, module: nn.Module, inputs: Any, output: Any) -> None:
        # Under DDP the step itself is a call of the module, which contains the call of its `forward`.
        outer = bool(self._begun) and self._begun.pop() < self._calls
        self._calls += 1
        if self._listening and not outer:
            # A copy, because the step may later change the output in place.
            self._caught.append(copied(output, _marked))
            self._inputs = inputs

    def detach(self) -> None:
        """See :class:`CodeReader`."""
        self.listen(False)
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def read(self, module: nn.Module, batch: Any, outputs: Any) -> Captured:
        """See :class:`CodeReader`.

        Raises:
            ValueError: if nothing was captured, or several calls were captured and ``calls`` selects none.
        """
        return self.source.read(self.latest())

    def output(self, module: nn.Module, batch: Any, outputs: Any) -> Any:
        """See :class:`CodeReader`."""
        return select_part(self.latest(), self.source.part)

    def latest(self) -> Any:
        """The whole output of the selected call; the captured outputs are then discarded."""
        caught, self._caught = self._caught, []
        return _choose(caught, self.source)

    def read_again(self, module: nn.Module, batch: Any, rows: Tensor, count: int) -> Captured:
        """See :class:`CodeReader`."""
        return self.source.read(self.call_again(module, rows, count))

    def call_again(self, module: nn.Module, rows: Tensor, count: int) -> Any:
        """The whole output for some rows of the current batch."""
        listening, self._listening = self._listening, False
        output = submodule_of(self.source, module)(*_rows_of(self._inputs, rows, count))
        self._listening = listening
        return output


class HeadsCode:
    """Captures the outputs of two submodules: one gives the mean, the other the scale.

    Args:
        source: its ``path`` gives the mean, its ``scale_path`` the scale.
    """

    def __init__(self, source: Latents) -> None:
        head = source.scale_head
        assert head is not None
        self.source, self._mean, self._scale = source, SubmoduleCode(source), SubmoduleCode(head)

    def attach(self, module: nn.Module) -> None:
        """See :class:`CodeReader`."""
        self._mean.attach(module)
        self._scale.attach(module)

    def listen(self, listening: bool) -> None:
        """See :class:`CodeReader`."""
        self._mean.listen(listening)
        self._scale.listen(listening)

    def detach(self) -> None:
        """See :class:`CodeReader`."""
        self._mean.detach()
        self._scale.detach()

    def read(self, module: nn.Module, batch: Any, outputs: Any) -> Captured:
        """See :class:`CodeReader`."""
        return self.source.read_outputs([self._mean.latest(), self._scale.latest()])

    def output(self, module: nn.Module, batch: Any, outputs: Any) -> Any:
        """See :class:`CodeReader`; the result is the pair of outputs."""
        return self._mean.output(module, batch, outputs), self._scale.latest()

    def read_again(self, module: nn.Module, batch: Any, rows: Tensor, count: int) -> Captured:
        """See :class:`CodeReader`."""
        heads = (self._mean, self._scale)
        return self.source.read_outputs([head.call_again(module, rows, count) for head in heads])


def submodule_of(source: Latents, module: nn.Module) -> nn.Module:
    """The submodule that a source names.

    Raises:
        ValueError: if there is no submodule with this name.
    """
    assert isinstance(source.path, str)
    try:
        return module.get_submodule(source.path)
    except AttributeError:
        raise ValueError(f"`latents={source.path!r}` names no submodule. {_nearest(source.path, module)}") from None


def _rows_of(value: Any, rows: Tensor, count: int) -> Any:
    """Select rows from every tensor whose first axis has the batch's length."""

    def pick(tensor: Tensor) -> Tensor:
        return tensor[rows.to(tensor.device)] if tensor.ndim and tensor.shape[0] == count else tensor

    return apply_to_collection(value, Tensor, pick)


def _marked(value: Tensor) -> Tensor:
    twin = value.clone()
    if twin.grad_fn is not None and not torch.compiler.is_compiling():
        marks: Any = twin.grad_fn.metadata
        marks[OURS] = True
    return twin


def copied(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A copy of an encoder's output with ``change`` applied to every tensor."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple | list):
        items: list[Any] = [copied(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        twin = copy(value)
        for key, item in value.items():  # not `update`: the outputs of transformers and diffusers refuse it
            twin[key] = copied(item, change)
        return twin
    if isinstance(value, nn.Module) or not hasattr(value, "__dict__"):
        return value
    twin = copy(value)
    for name, item in vars(value).items():
        if isinstance(item, Tensor | Distribution):
            twin.__dict__[name] = copied(item, change)
    return twin


def _choose(caught: list[Any], source: Latents) -> Any:
    if not caught:
        raise ValueError(
            f"`latents={source.path!r}` was not called during this step, so there is no code. Name a submodule that "
            "the step calls; a model that was compiled and run before needs torch.compiler.reset() first."
        )
    if len(caught) > 1 and source.calls == "error":
        raise ValueError(
            f"`latents={source.path!r}` was called {len(caught)} times in one step; choose a call, "
            f"Latents({source.path!r}, calls='first') or 'last', or give a function (pl_module, batch) -> code."
        )
    return caught[0 if source.calls == "first" else -1]


def _nearest(name: str, module: nn.Module) -> str:
    names = [path for path, _ in module.named_modules() if path]
    near = f"The nearest are {get_close_matches(name, names, n=5, cutoff=0.0)}."
    if "," in name:
        return f"{near} Two heads are a tuple: latents={tuple(part.strip() for part in name.split(','))}."
    if callable(getattr(module, name, None)):
        return f"{near} It is a method: give a function, latents=lambda pl_module, batch: pl_module.{name}(batch[0])."
    return near
