"""The three places where a code can be found: the step's output, a submodule's output, a function's answer."""

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

from certvae.reading.captured import Captured, read_latents, select_part
from certvae.reading.inputs import as_floats, select_inputs
from certvae.reading.statistics import kept_statistics

__all__ = ["OURS", "CodeFunction", "CodeReader", "FunctionCode", "Latents", "StepCode", "SubmoduleCode"]

CodeFunction = Callable[[Any, Any], Any]
OURS = "certvae"  # marks in a graph what our reading added to it


@dataclass(frozen=True)
class Latents:
    """Where the latent code of a model is, when the name of a submodule alone does not say it.

    A string is short for the first two: ``"encoder.fc:chunk"`` is ``Latents("encoder.fc", "chunk")``.

    Args:
        path: dotted path of the submodule whose output holds the code.
        part: which part of that output: ``"chunk"`` takes the first half of axis 1 as mean and the second as
            log-variance; a key, an attribute or a position names the mean; two of them with a comma name mean and
            log-variance, such as ``"mu,logvar"`` or ``"0,1"``.
        spatial: what becomes of a code ``(B, C, h, w)``: ``"flatten"`` takes all its values, ``"pool"`` its mean over
            positions.
        calls: which call counts when the submodule is called several times in a step.
        deterministic: whether the decoder receives the mean itself, without noise, as in a plain autoencoder. Then
            there is no rate and no bracket, whatever else the submodule gives.

    Raises:
        ValueError: if an argument is not among these.
    """

    path: str
    part: str = ""
    spatial: Literal["flatten", "pool"] | None = None
    calls: Literal["error", "first", "last"] = "error"
    deterministic: bool = False

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("`latents` must name a submodule, such as 'encoder.fc_mu', got an empty path.")
        if self.spatial not in (None, "flatten", "pool"):
            raise ValueError(f"`spatial` must be 'flatten', 'pool' or None, got {self.spatial!r}.")
        if self.calls not in ("error", "first", "last"):
            raise ValueError(f"`calls` must be 'error', 'first' or 'last', got {self.calls!r}.")

    def read(self, output: Any) -> Captured:
        """The code in an output of the submodule."""
        captured = read_latents(output, self.part, self.spatial)
        return Captured(captured.mean, deterministic=True) if self.deterministic else captured


class CodeReader(Protocol):
    """What finds the code of a batch; :class:`certvae.reading.latents.LatentCapture` says when it is called."""

    def attach(self, module: nn.Module) -> None:
        """Put a hook in place, where one is needed."""

    def listen(self, listening: bool) -> None:
        """Start or stop catching, and forget what was caught."""

    def detach(self) -> None:
        """Remove the hook."""

    def read(self, module: nn.Module, batch: Any, outputs: Any) -> Captured:
        """The code of the batch that was just seen."""

    def output(self, module: nn.Module, batch: Any, outputs: Any) -> Any:
        """The same as it was given, whatever it is."""

    def read_again(self, module: nn.Module, batch: Any, rows: Tensor, count: int) -> Captured:
        """The code of some of its rows, encoded once more."""


class _Unhooked:
    """A place that needs no hook."""

    def attach(self, module: nn.Module) -> None:
        """Nothing to put in place."""

    def listen(self, listening: bool) -> None:
        """Nothing to forget."""

    def detach(self) -> None:
        """Nothing to remove."""


class StepCode(_Unhooked):
    """Reads ``outputs["posterior"]`` of the module's own step, and ``outputs["rate"]`` if it is there."""

    def output(self, module: nn.Module, batch: Any, outputs: Any) -> Any:
        """See :class:`CodeReader`.

        Raises:
            ValueError: if the outputs hold no ``"posterior"``.
        """
        if not (isinstance(outputs, dict) and "posterior" in outputs):
            raise ValueError(
                "without `latents` the module's step must return a dict with 'posterior', as certvae.VAE does; got "
                f"{type(outputs).__name__}. Name the submodule that gives the code: latents='encoder.fc_mu'."
            )
        return outputs["posterior"]

    def read(self, module: nn.Module, batch: Any, outputs: Any) -> Captured:
        """See :class:`CodeReader`."""
        captured = read_latents(self.output(module, batch, outputs))
        return replace(captured, rate=outputs["rate"]) if "rate" in outputs else captured

    def read_again(self, module: nn.Module, batch: Any, rows: Tensor, count: int) -> Captured:
        """See :class:`CodeReader`.

        Raises:
            TypeError: if ``forward`` does not give the code for the batch's input.
        """
        return read_latents(module(_rows_of(as_floats(select_inputs(batch)), rows, count)))


class FunctionCode(_Unhooked):
    """Calls a function with the module and the batch.

    Args:
        function: gives what :func:`certvae.reading.captured.read_latents` understands.
    """

    def __init__(self, function: CodeFunction) -> None:
        self.function = function

    def read(self, module: nn.Module, batch: Any, outputs: Any) -> Captured:
        """See :class:`CodeReader`."""
        return read_latents(self.output(module, batch, outputs))

    def output(self, module: nn.Module, batch: Any, outputs: Any) -> Any:
        """See :class:`CodeReader`. No statistic of a batch norm moves."""
        with kept_statistics(module):
            return self.function(module, batch)

    def read_again(self, module: nn.Module, batch: Any, rows: Tensor, count: int) -> Captured:
        """See :class:`CodeReader`."""
        return self.read(module, _rows_of(batch, rows, count), None)


class SubmoduleCode:
    """Catches a submodule's output by a hook.

    Args:
        source: names it.
    """

    def __init__(self, source: Latents) -> None:
        self.source = source
        self._handle: RemovableHandle | None = None
        self._caught: list[Any] = []
        self._listening = False
        self._inputs: Any = ()

    def attach(self, module: nn.Module) -> None:
        """See :class:`CodeReader`.

        Raises:
            ValueError: if there is no submodule of this name.
        """
        self.detach()
        try:
            submodule = module.get_submodule(self.source.path)
        except AttributeError:
            raise ValueError(
                f"`latents={self.source.path!r}` names no submodule. {_nearest(self.source.path, module)}"
            ) from None
        self._handle = submodule.register_forward_hook(self._catch)

    def listen(self, listening: bool) -> None:
        """See :class:`CodeReader`."""
        self._listening, self._caught, self._inputs = listening, [], ()

    def _catch(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._listening:
            self._caught.append(_snapshot(output))
            self._inputs = inputs

    def detach(self) -> None:
        """See :class:`CodeReader`."""
        self.listen(False)
        if self._handle is not None:
            self._handle.remove()
        self._handle = None

    def read(self, module: nn.Module, batch: Any, outputs: Any) -> Captured:
        """See :class:`CodeReader`.

        Raises:
            ValueError: if nothing was caught, or more than one call and none was chosen.
        """
        return self.source.read(self._latest())

    def output(self, module: nn.Module, batch: Any, outputs: Any) -> Any:
        """See :class:`CodeReader`."""
        return select_part(self._latest(), self.source.part)

    def _latest(self) -> Any:
        caught, self._caught = self._caught, []
        return _choose(caught, self.source)

    def read_again(self, module: nn.Module, batch: Any, rows: Tensor, count: int) -> Captured:
        """See :class:`CodeReader`."""
        listening, self._listening = self._listening, False
        output = module.get_submodule(self.source.path)(*_rows_of(self._inputs, rows, count))
        self._listening = listening
        return self.source.read(output)


def _rows_of(value: Any, rows: Tensor, count: int) -> Any:
    """Some rows of every tensor that has one for each row of the batch."""

    def pick(tensor: Tensor) -> Tensor:
        return tensor[rows.to(tensor.device)] if tensor.ndim and tensor.shape[0] == count else tensor

    return apply_to_collection(value, Tensor, pick)


def _copied(value: Tensor) -> Tensor:
    twin = value.clone()
    if twin.grad_fn is not None and not torch.compiler.is_compiling():
        marks: Any = twin.grad_fn.metadata
        marks[OURS] = True
    return twin


def _snapshot(value: Any) -> Any:
    """A copy: what a step does in place to an encoder's output afterwards is not the encoder's answer."""
    if isinstance(value, Tensor):
        return _copied(value)
    if isinstance(value, tuple | list):
        items = [_snapshot(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        twin = copy(value)
        twin.update({key: _snapshot(item) for key, item in value.items()})
        return twin
    if isinstance(value, nn.Module) or not hasattr(value, "__dict__"):
        return value
    twin = copy(value)
    for name, item in vars(value).items():
        if isinstance(item, Tensor | Distribution):
            twin.__dict__[name] = _snapshot(item)
    return twin


def _choose(caught: list[Any], source: Latents) -> Any:
    if not caught:
        raise ValueError(
            f"`latents={source.path!r}` was not called during this step, so nothing was caught. Name a submodule that "
            "the step calls; a model that was compiled and run before needs torch.compiler.reset() first."
        )
    if len(caught) > 1 and source.calls == "error":
        raise ValueError(
            f"`latents={source.path!r}` was called {len(caught)} times in one step; say which call is meant, "
            f"Latents({source.path!r}, calls='first') or 'last', or give a function (pl_module, batch) -> code."
        )
    return caught[0 if source.calls == "first" else -1]


def _nearest(name: str, module: nn.Module) -> str:
    names = [path for path, _ in module.named_modules() if path]
    return f"The nearest are {get_close_matches(name, names, n=5, cutoff=0.0)}."
