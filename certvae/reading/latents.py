"""Finding the latent code of a batch in a LightningModule that may know nothing of certificates."""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal
from torch.utils.hooks import RemovableHandle

from certvae.reading.inputs import as_floats, select_inputs
from certvae.theory.posterior import Posterior

__all__ = ["Captured", "LatentCapture", "LatentSource", "Latents", "read_latents"]


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

    Raises:
        ValueError: if an argument is not among these.
    """

    path: str
    part: str = ""
    spatial: Literal["flatten", "pool"] | None = None
    calls: Literal["error", "first", "last"] = "error"

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("`latents` must name a submodule, such as 'encoder.fc_mu', got an empty path.")
        if self.spatial not in (None, "flatten", "pool"):
            raise ValueError(f"`spatial` must be 'flatten', 'pool' or None, got {self.spatial!r}.")
        if self.calls not in ("error", "first", "last"):
            raise ValueError(f"`calls` must be 'error', 'first' or 'last', got {self.calls!r}.")


LatentSource = str | Latents | Callable[[Any, Any], Any]


class Captured(NamedTuple):
    """The latent code of a batch.

    Attributes:
        mean: the code on the mean path, float32 or wider, shape ``(B, latent_dim)``.
        log_variance: of the posterior, shape ``(B, latent_dim)``, or None.
        rate: ``KL(q(z|x) || p(z))`` of each row in nats, shape ``(B,)``, or None.
    """

    mean: Tensor
    log_variance: Tensor | None
    rate: Tensor | None

    def checked(self) -> "Captured":
        """The same without a graph.

        Raises:
            ValueError: if the code is not finite.
        """
        if not all(bool(value.isfinite().all()) for value in self if value is not None):
            raise ValueError("`latents` hold NaN or infinite values: the model has diverged.")
        mean, log_variance, rate = self
        return Captured(
            mean.detach(),
            None if log_variance is None else log_variance.detach(),
            None if rate is None else rate.detach(),
        )


def read_latents(value: Any, part: str = "", spatial: str | None = None) -> Captured:
    """Understand what an encoder gave.

    Args:
        value: a mean ``(B, latent_dim)``; a pair of mean and log-variance; or a ``torch.distributions`` object. Of one
            that is not a diagonal Gaussian only the mean is taken: its rate and its draws are not known here.
        part: see :class:`Latents`.
        spatial: see :class:`Latents`.

    Raises:
        TypeError: if it is none of these.
        ValueError: if the output has no such part, or the code is not one vector a row.
    """
    value = _select(value, part)
    if isinstance(value, Distribution):
        gaussian = value.base_dist if isinstance(value, Independent) else value
        value = (value.mean, 2 * value.stddev.log()) if isinstance(gaussian, Normal) else value.mean
    if isinstance(value, Tensor):
        return Captured(_rows(value, spatial), None, None)
    if isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(item, Tensor) for item in value):
        return _gaussian(_wide(value[0]), _wide(value[1]), spatial)
    has = f" with {list(value)}" if isinstance(value, dict) else ""
    raise TypeError(
        "`latents` must give a mean tensor, a (mean, log_variance) pair, or a torch.distributions object, got "
        f"{type(value).__name__}{has}. Name the part after a colon, 'encoder:mu,logvar', or give a function "
        "(pl_module, batch) -> ... that picks it."
    )


def _select(value: Any, part: str) -> Any:
    if not part:
        return value
    if part == "chunk":
        if not isinstance(value, Tensor) or value.ndim < 2 or value.shape[1] % 2:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"`latents` with ':chunk' needs a tensor with an even axis 1, got {shape}.")
        return value.chunk(2, dim=1)
    picked = [_pick_part(value, name.strip()) for name in part.split(",")]
    return picked[0] if len(picked) == 1 else tuple(picked)


def _pick_part(value: Any, name: str) -> Any:
    if isinstance(value, dict) and name in value:
        return value[name]
    if isinstance(value, tuple | list) and name.lstrip("-").isdigit() and -len(value) <= int(name) < len(value):
        return value[int(name)]
    if name.isidentifier() and hasattr(value, name) and not isinstance(value, Tensor):
        return getattr(value, name)
    has = list(value) if isinstance(value, dict) else type(value).__name__
    raise ValueError(f"`latents` names the part {name!r} of an output that lacks it; the output has {has}.")


def _gaussian(mean: Tensor, log_variance: Tensor, spatial: str | None) -> Captured:
    if mean.shape != log_variance.shape:
        raise ValueError(
            f"`latents` gave a mean of shape {tuple(mean.shape)} with a log-variance of {tuple(log_variance.shape)}."
        )
    # Of the whole code: pooling loses information, so that the rate bounds the pooled channel's margin too.
    rate = Posterior(mean, log_variance).kl_to_standard_normal().flatten(start_dim=1).sum(dim=1)
    if spatial == "pool" and mean.ndim > 2:
        positions = mean[0, 0].numel()
        pooled = log_variance.flatten(start_dim=2).logsumexp(dim=2) - 2 * torch.tensor(float(positions)).log()
        return Captured(_rows(mean, spatial), pooled, rate)
    return Captured(_rows(mean, spatial), _rows(log_variance, spatial), rate)


def _wide(values: Tensor) -> Tensor:
    # Callback hooks run outside autocast: a code in bfloat16 would not go with a float32 witness.
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _rows(values: Tensor, spatial: str | None) -> Tensor:
    if values.ndim > 2 and spatial == "flatten":
        values = values.flatten(start_dim=1)
    elif values.ndim > 2 and spatial == "pool":
        values = values.flatten(start_dim=2).mean(dim=2)
    if values.ndim != 2:
        raise ValueError(
            f"`latents` must have shape (B, latent_dim), got {tuple(values.shape)}; flatten or pool them: "
            "Latents('encoder', spatial='flatten')."
        )
    return _wide(values)


class LatentCapture:
    """Gets the latent code of each batch, by one of three ways.

    Args:
        source: None reads ``outputs["posterior"]`` of the module's own step, as :class:`certvae.VAE` gives it; a
            dotted path or :class:`Latents` names a submodule whose output is caught by a hook; a function is called
            with the module and the batch.
    """

    def __init__(self, source: LatentSource | None) -> None:
        if isinstance(source, str):
            path, _, part = source.partition(":")
            source = Latents(path, part)
        self.source = source
        self._handle: RemovableHandle | None = None
        self._caught: list[Any] = []
        self._listening = False
        self._inputs: Any = ()

    def attach(self, module: nn.Module) -> None:
        """Put the hook in place, before a compiler sees the module; it catches nothing until :meth:`listen`.

        Raises:
            ValueError: if there is no submodule of this name.
        """
        self.detach()
        if not isinstance(self.source, Latents):
            return
        try:
            submodule = module.get_submodule(self.source.path)
        except AttributeError:
            raise ValueError(
                f"`latents={self.source.path!r}` names no submodule. {_nearest(self.source.path, module)}"
            ) from None
        self._handle = submodule.register_forward_hook(self._catch)

    def listen(self, listening: bool = True) -> None:
        """Start or stop catching, and forget what was caught."""
        self._listening, self._caught, self._inputs = listening, [], ()

    def _catch(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._listening:
            self._caught.append(_snapshot(output))
            self._inputs = inputs

    def detach(self) -> None:
        """Remove the hook."""
        self.listen(False)
        if self._handle is not None:
            self._handle.remove()
        self._handle = None

    def read(self, module: nn.Module, batch: Any, outputs: Any) -> Captured:
        """The latent code of the batch that was just seen, with its graph if there is one.

        Raises:
            ValueError: if nothing was caught, or more than one call and none was chosen.
        """
        if isinstance(self.source, Latents):
            caught, self._caught = self._caught, []
            return read_latents(_choose(caught, self.source), self.source.part, self.source.spatial)
        if self.source is not None:
            return read_latents(self.source(module, batch))
        if not (isinstance(outputs, dict) and "posterior" in outputs):
            raise ValueError(
                "without `latents` the module's step must return a dict with 'posterior', as certvae.VAE does; got "
                f"{type(outputs).__name__}. Name the submodule that gives the code: latents='encoder.fc_mu'."
            )
        captured = read_latents(outputs["posterior"])
        return captured._replace(rate=outputs["rate"]) if "rate" in outputs else captured

    def read_again(self, module: nn.Module, batch: Any, rows: Tensor, count: int) -> Captured:
        """Encode some rows of the batch that was just read once more, by the submodule, the function or ``forward``.

        Args:
            module: in eval mode.
            batch: the batch.
            rows: positions in it, int64, shape ``(n,)``.
            count: rows of the batch.

        Raises:
            TypeError: if the code was the step's own output, and ``forward`` does not give it for the batch's input.
        """
        if isinstance(self.source, Latents):
            listening, self._listening = self._listening, False
            output = module.get_submodule(self.source.path)(*_rows_of(self._inputs, rows, count))
            self._listening = listening
            return read_latents(output, self.source.part, self.source.spatial)
        if self.source is not None:
            return read_latents(self.source(module, _rows_of(batch, rows, count)))
        return read_latents(module(_rows_of(as_floats(select_inputs(batch)), rows, count)))


def _rows_of(value: Any, rows: Tensor, count: int) -> Any:
    """Some rows of every tensor that has one for each row of the batch."""

    def pick(tensor: Tensor) -> Tensor:
        return tensor[rows.to(tensor.device)] if tensor.ndim and tensor.shape[0] == count else tensor

    return apply_to_collection(value, Tensor, pick)


def _snapshot(value: Any) -> Any:
    """A copy: what a step does in place to an encoder's output afterwards is not the encoder's answer."""
    if isinstance(value, Tensor):
        return value.clone()
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
