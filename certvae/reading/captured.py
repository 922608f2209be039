"""Reads the latent code from an encoder's output, in any supported form."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from certvae.reading.found import describe, parts_of
from certvae.reading.posteriors import Scale, posterior_of, scale_named, wide
from certvae.theory.posterior import Posterior

__all__ = ["Captured", "Spatial", "joined", "read_latents", "select_part"]

Spatial = Literal["flatten", "pool", "samples"]


@dataclass(frozen=True, eq=False)
class Captured:
    """The latent code of a batch; unpacks into mean, log-variance and rate.

    Attributes:
        mean: the code on the mean path, float32 or wider, shape ``(B, latent_dim)``.
        log_variance: of the posterior, shape ``(B, latent_dim)``, or None.
        rate: ``KL(q(z|x) || p(z))`` of each row in nats, shape ``(B,)``, or None.
        deterministic: whether the decoder receives the mean, or a part of it, without noise.
    """

    mean: Tensor
    log_variance: Tensor | None = None
    rate: Tensor | None = None
    deterministic: bool = False

    def __iter__(self) -> Iterator[Tensor | None]:
        return iter((self.mean, self.log_variance, self.rate))

    def checked(self) -> "Captured":
        """The same code, detached and checked.

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
    """Concatenate the codes of several groups, in order; the rates are added.

    If a group has no log-variance, the result has none. It is deterministic if any group is.
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


def read_latents(
    value: Any, part: str = "", spatial: Spatial | None = None, scale: Scale | None = None, shown: str = "'encoder'"
) -> Captured:
    """Read the latent code from an encoder's output.

    Args:
        value: a mean, shape ``(B, latent_dim)``, or a posterior that
            :func:`certvae.reading.posteriors.posterior_of` accepts. For a categorical distribution the code is its
            probabilities, concatenated. For a distribution that is neither diagonal Gaussian nor categorical only the
            mean is used; it has no rate and no draws here.
        part: see :class:`certvae.callbacks.Latents`.
        spatial: see :class:`certvae.callbacks.Latents`.
        scale: see :class:`certvae.callbacks.Latents`.
        shown: the source as shown in errors: a path in quotes, or the name of a function.

    Raises:
        TypeError: if the output has none of these forms.
        ValueError: if the output has no such part, the code is not one vector a row, or a scale is not positive.
    """
    mean, log_variance, rate, classes = posterior_of(select_part(value, part), scale or scale_named(part), shown)
    if log_variance is not None:
        return _gaussian(mean, log_variance, spatial, shown)
    return Captured(_rows(mean, "flatten" if classes else spatial, shown), None, rate)


def select_part(value: Any, part: str) -> Any:
    """Select the part of an encoder's output that holds the code.

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
    raise ValueError(
        f"`latents` names the part {name!r} of an output that lacks it; the output has "
        f"{list(parts_of(value)) or 'no parts'}, {describe(value)}."
    )


def _gaussian(mean: Tensor, log_variance: Tensor, spatial: Spatial | None, shown: str) -> Captured:
    if spatial == "samples" and mean.ndim == log_variance.ndim == 3:
        mean, log_variance = mean[:, 0], log_variance[:, 0]  # further samples carry the same information
    if mean.shape != log_variance.shape:
        raise ValueError(
            f"`latents` gave a mean of shape {tuple(mean.shape)} with a log-variance of {tuple(log_variance.shape)}."
        )
    # The rate of the whole code: pooling loses information, so this rate also bounds the pooled channel margin.
    rate = Posterior(mean, log_variance).kl_to_standard_normal().flatten(start_dim=1).sum(dim=1)
    if spatial == "pool" and mean.ndim > 2:
        positions = mean[0, 0].numel()
        pooled = log_variance.flatten(start_dim=2).logsumexp(dim=2) - 2 * torch.tensor(float(positions)).log()
        return Captured(_rows(mean, spatial, shown), pooled, rate)
    return Captured(_rows(mean, spatial, shown), _rows(log_variance, spatial, shown), rate)


def _rows(values: Tensor, spatial: Spatial | None, shown: str) -> Tensor:
    if values.is_nested:
        raise ValueError(
            f"`latents` gave rows of different lengths, {describe(values)}. A code is one vector a row: pool them in a "
            "function, latents=lambda pl_module, batch: torch.stack([row.mean(0) for row in pl_module.encoder(...)])."
        )
    if values.ndim > 2 and spatial == "flatten":
        values = values.flatten(start_dim=1)
    elif values.ndim > 2 and spatial == "pool":
        values = values.flatten(start_dim=2).mean(dim=2)
    elif values.ndim == 3 and spatial == "samples":
        values = values[:, 0]
    if values.ndim != 2:
        raise ValueError(f"`latents` must have shape (B, latent_dim), got {tuple(values.shape)}{_cure(values, shown)}.")
    return wide(values)


def _cure(values: Tensor, shown: str) -> str:
    if values.ndim < 2:
        return ": one number a row needs values[:, None]"
    samples = f", or the first of S samples of (B, S, latent_dim): Latents({shown}, spatial='samples')"
    return f"; flatten or pool them: Latents({shown}, spatial='flatten'){samples if values.ndim == 3 else ''}"
