"""Finding the latent code of a batch in a LightningModule that may know nothing of certificates."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal
from torch.utils.hooks import RemovableHandle

from certvae.posterior import Posterior

__all__ = ["Captured", "LatentCapture", "LatentSource", "read_latents"]

LatentSource = str | Callable[[Any, Any], Any]


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


def read_latents(value: Any) -> Captured:
    """Understand what an encoder gave.

    Args:
        value: a mean ``(B, latent_dim)``; a pair of mean and log-variance; or a ``torch.distributions`` object. Of one
            that is not a diagonal Gaussian only the mean is taken: its rate and its draws are not known here.

    Raises:
        TypeError: if it is none of these.
    """
    if isinstance(value, Distribution):
        gaussian = value.base_dist if isinstance(value, Independent) else value
        value = (value.mean, 2 * value.stddev.log()) if isinstance(gaussian, Normal) else value.mean
    if isinstance(value, Tensor):
        return Captured(_rows(value), None, None)
    if isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(part, Tensor) for part in value):
        posterior = Posterior(_rows(value[0]), _rows(value[1]))
        return Captured(*posterior, posterior.kl_to_standard_normal().sum(dim=1))
    raise TypeError(
        "`latents` must give a mean tensor, a (mean, log_variance) pair, or a torch.distributions object, got "
        f"{type(value).__name__}. Give a function (pl_module, batch) -> ... that picks the right part."
    )


def _rows(values: Tensor) -> Tensor:
    # Callback hooks run outside autocast: a code in bfloat16 would not go with a float32 witness.
    wide = values.detach().to(torch.promote_types(values.dtype, torch.float32))
    if wide.ndim != 2:
        raise ValueError(f"`latents` must have shape (B, latent_dim), got {tuple(wide.shape)}; flatten or pool them.")
    if not bool(wide.isfinite().all()):
        raise ValueError("`latents` hold NaN or infinite values: the model has diverged.")
    return wide


class LatentCapture:
    """Gets the latent code of each batch, by one of three ways.

    Args:
        source: None reads ``outputs["posterior"]`` of the module's own step, as :class:`certvae.VAE` gives it; a
            dotted path names a submodule whose output is caught by a hook; a function is called with the module and
            the batch.
    """

    def __init__(self, source: LatentSource | None) -> None:
        self.source = source
        self._handle: RemovableHandle | None = None
        self._caught: Any = None

    def attach(self, module: nn.Module) -> None:
        """Start catching; does nothing unless ``source`` is a path.

        Raises:
            ValueError: if there is no submodule of this name.
        """
        self.detach()
        if not isinstance(self.source, str):
            return
        try:
            submodule = module.get_submodule(self.source)
        except AttributeError:
            raise ValueError(f"`latents={self.source!r}` names no submodule. {_nearest(self.source, module)}") from None
        self._handle = submodule.register_forward_hook(self._catch)

    def _catch(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._caught is not None:
            raise ValueError(
                f"`latents={self.source!r}` was called twice in one step; give a function (pl_module, batch) -> code "
                "that says which call is meant."
            )
        self._caught = output

    def detach(self) -> None:
        """Stop catching."""
        if self._handle is not None:
            self._handle.remove()
        self._handle, self._caught = None, None

    def read(self, module: nn.Module, batch: Any, outputs: Any) -> Captured:
        """The latent code of the batch that was just seen.

        Raises:
            ValueError: if nothing was caught.
        """
        if callable(self.source):
            with torch.no_grad():
                return read_latents(self.source(module, batch))
        if isinstance(self.source, str):
            if self._caught is None:
                raise ValueError(f"`latents={self.source!r}` was not called during this step, so nothing was caught.")
            caught, self._caught = self._caught, None
            return read_latents(caught)
        if not (isinstance(outputs, dict) and "posterior" in outputs):
            raise ValueError(
                "without `latents` the module's step must return a dict with 'posterior', as certvae.VAE does; got "
                f"{type(outputs).__name__}. Name the submodule that gives the code: latents='encoder.fc_mu'."
            )
        captured = read_latents(outputs["posterior"])
        return captured._replace(rate=outputs["rate"].detach()) if "rate" in outputs else captured


def _nearest(name: str, module: nn.Module) -> str:
    from difflib import get_close_matches

    names = [path for path, _ in module.named_modules() if path]
    return f"The nearest are {get_close_matches(name, names, n=5, cutoff=0.0)}."
