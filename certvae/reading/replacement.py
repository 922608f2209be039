"""Replaces the code in a submodule's output by another code."""

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

__all__ = ["Change", "other_rows", "replace_code", "standard_normal"]

Change = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]


def replace_code(value: Any, part: str, change: Change) -> Any:
    """A submodule's output with its code replaced; the result has the same type.

    Args:
        value: a mean, a pair of mean and log-variance, a normal distribution, or an output with one of these as
            ``part``.
        part: see :class:`certvae.callbacks.Latents`.
        change: maps mean and log-variance (None if unknown) to replacements of the same shapes.

    Raises:
        TypeError: if the code in this output cannot be replaced.
    """
    if part == "chunk":
        return torch.cat(_pair(change(*value.chunk(2, dim=1))), dim=1)
    if part:
        names = [name.strip() for name in part.split(",")]
        if len(names) == 1:
            return _with(value, names[0], replace_code(_get(value, names[0]), "", change))
        for name, item in zip(names, _pair(change(*(_get(value, name) for name in names))), strict=True):
            value = _with(value, name, item)
        return value
    if isinstance(value, Tensor):
        return change(value, None)[0]
    if isinstance(value, tuple | list) and len(value) == 2:
        return _like(value, _pair(change(*value)))
    return _distribution(value, change)


def other_rows(order: Tensor) -> Change:
    """A change that gives each row the mean and log-variance of another row.

    Args:
        order: index of the row whose code each row gets, int64, shape ``(B,)``.
    """

    def change(mean: Tensor, log_variance: Tensor | None) -> tuple[Tensor, Tensor | None]:
        rows = order.to(mean.device)
        return mean[rows], None if log_variance is None else log_variance[rows]

    return change


def standard_normal(mean: Tensor, log_variance: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Replace the code by mean 0 and log-variance 0; the module's step then samples from N(0, 1)."""
    return torch.zeros_like(mean), None if log_variance is None else torch.zeros_like(log_variance)


def _pair(items: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor]:
    assert items[1] is not None
    return items[0], items[1]


def _distribution(value: Any, change: Change) -> Distribution:
    if isinstance(value, Independent):
        return Independent(_distribution(value.base_dist, change), value.reinterpreted_batch_ndims)
    if isinstance(value, Normal):
        mean, log_variance = _pair(change(value.mean, 2 * value.stddev.log()))
        return Normal(mean, (log_variance / 2).exp(), validate_args=False)
    raise TypeError(
        f"the code in a {type(value).__name__} cannot be replaced: `latents` must name a submodule that returns a "
        "mean, a (mean, log_variance) pair or a normal distribution, or their parts: 'encoder:mu,logvar'."
    )


def _get(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        return value[name]
    return value[int(name)] if name.lstrip("-").isdigit() else getattr(value, name)


def _like(value: Any, items: Sequence[Any]) -> Any:
    """The items as a tuple, list or NamedTuple of the same type as ``value``."""
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


def _with(value: Any, name: str, item: Any) -> Any:
    """A copy of an output with one part replaced."""
    if isinstance(value, dict):
        twin = copy(value)
        twin[name] = item
        return twin
    if isinstance(value, tuple | list):
        place = int(name) if name.lstrip("-").isdigit() else list(getattr(value, "_fields", ())).index(name)
        items = list(value)
        items[place] = item
        return _like(value, items)
    twin = copy(value)
    object.__setattr__(twin, name, item)  # works for a frozen dataclass too
    return twin
