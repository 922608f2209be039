"""What an encoder's output says of a code, in whatever form it comes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from certvae.theory.posterior import Posterior

__all__ = ["Captured", "joined", "read_latents", "select_part"]


@dataclass(frozen=True, eq=False)
class Captured:
    """The latent code of a batch. It unpacks into mean, log-variance and rate.

    Attributes:
        mean: the code on the mean path, float32 or wider, shape ``(B, latent_dim)``.
        log_variance: of the posterior, shape ``(B, latent_dim)``, or None.
        rate: ``KL(q(z|x) || p(z))`` of each row in nats, shape ``(B,)``, or None.
        deterministic: whether the decoder receives the mean itself, or a part of it, without noise.
    """

    mean: Tensor
    log_variance: Tensor | None = None
    rate: Tensor | None = None
    deterministic: bool = False

    def __iter__(self) -> Iterator[Tensor | None]:
        return iter((self.mean, self.log_variance, self.rate))

    def checked(self) -> "Captured":
        """The same without a graph.

        Raises:
            ValueError: if the code is not finite.
        """
        if not all(bool(value.isfinite().all()) for value in self if value is not None):
            raise ValueError("`latents` hold NaN or infinite values: the model has diverged.")
        log_variance, rate = self.log_variance, self.rate
        return Captured(
            self.mean.detach(),
            None if log_variance is None else log_variance.detach(),
            None if rate is None else rate.detach(),
            self.deterministic,
        )


def joined(groups: dict[str, Captured]) -> Captured:
    """The codes of several groups side by side, in their order; rates add up.

    Where one group lacks a log-variance, so does the whole. It is deterministic if a group is.
    """
    if len(groups) == 1:
        return next(iter(groups.values()))
    means, log_variances, rates = zip(*groups.values(), strict=True)
    return Captured(
        torch.cat(means, dim=1),
        None if any(value is None for value in log_variances) else torch.cat(log_variances, dim=1),
        None if any(value is None for value in rates) else torch.stack(rates).sum(dim=0),
        any(code.deterministic for code in groups.values()),
    )


def read_latents(value: Any, part: str = "", spatial: str | None = None) -> Captured:
    """Understand what an encoder gave.

    Args:
        value: a mean ``(B, latent_dim)``; a pair of mean and log-variance; or a ``torch.distributions`` object. Of one
            that is not a diagonal Gaussian only the mean is taken: its rate and its draws are not known here.
        part: see :class:`certvae.callbacks.Latents`.
        spatial: see :class:`certvae.callbacks.Latents`.

    Raises:
        TypeError: if it is none of these.
        ValueError: if the output has no such part, or the code is not one vector a row.
    """
    value = select_part(value, part)
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


def select_part(value: Any, part: str) -> Any:
    """The part of an encoder's output that holds the code.

    Args:
        value: the output.
        part: see :class:`certvae.callbacks.Latents`.

    Raises:
        ValueError: if the output has no such part.
    """
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
