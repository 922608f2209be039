"""Reads a posterior in any form: a pair, a distribution, or an object with a mean and a scale."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    Normal,
    OneHotCategorical,
    RelaxedBernoulli,
    RelaxedOneHotCategorical,
)

from certvae.reading.found import describe, parts_of
from certvae.theory.information import entropy

__all__ = [
    "SCALES",
    "Found",
    "Scale",
    "mean_and_scale",
    "posterior_of",
    "scale_likely",
    "scale_named",
    "wide",
    "worded",
]

Scale = Literal["log_variance", "variance", "std", "log_std"]
SCALES = ("log_variance", "variance", "std", "log_std")
CERTAIN: dict[str, Scale] = {  # in the order in which they are looked for
    "logvar": "log_variance",
    "log_var": "log_variance",
    "log_variance": "log_variance",
    "std": "std",
    "stddev": "std",
    "scale": "std",
    "variance": "variance",
    "logstd": "log_std",
    "log_std": "log_std",
    "log_scale": "log_std",
}
# Names that are also used for a log-variance; "var" usually is.
LIKELY: dict[str, Scale] = {"log_sigma": "log_std", "logsigma": "log_std", "sigma": "std", "std": "std"}
MEANS = ("mean", "mu", "loc")
CONVERSIONS: dict[Scale, Callable[[Tensor], Tensor]] = {
    "log_variance": lambda values: values,
    "variance": lambda values: values.log(),
    "std": lambda values: 2 * values.log(),
    "log_std": lambda values: 2 * values,
}


class Found(NamedTuple):
    """A posterior as mean, log-variance and rate.

    Attributes:
        mean: shape ``(B, ...)``; for a categorical posterior its probabilities.
        log_variance: same shape, or None.
        rate: KL divergence of a categorical posterior to the uniform distribution, nats, shape ``(B,)``, or None.
        classes: whether the posterior is categorical: the last axis holds classes and no axis holds positions.
    """

    mean: Tensor
    log_variance: Tensor | None = None
    rate: Tensor | None = None
    classes: bool = False


def scale_named(part: str) -> Scale | None:
    """The kind of scale that the second name of a part such as ``"mu,std"`` states; None if it is not certain."""
    return CERTAIN.get(part.rpartition(",")[2].strip().lower()) if "," in part else None


def scale_likely(name: str) -> Scale | None:
    """The likely kind of scale for the name of a part or head such as ``"fc_sigma"``; None if the name is neutral."""
    name = name.rpartition(",")[2].strip().lower().rpartition(".")[2]
    return next((kind for word, kind in LIKELY.items() if name == word or name.endswith("_" + word)), None)


def posterior_of(value: Any, scale: Scale | None, shown: str = "'encoder'") -> Found:
    """Read a posterior from an encoder's output.

    Args:
        value: a mean; a pair of mean and scale; a ``torch.distributions`` object; or an object or dict with a mean
            (``mean``, ``mu``, ``loc``) and a scale (``logvar``, ``log_var``, ``log_variance``, ``std``, ``stddev``,
            ``scale``, ``variance``, ``log_std``).
        scale: kind of the second value; None: from its name, else a log-variance.
        shown: the source as shown in errors: a path in quotes, or the name of a function.

    Raises:
        TypeError: if the value has none of these forms.
        ValueError: if a standard deviation or a variance is not positive.
    """
    if isinstance(value, Distribution):
        return _of_distribution(value, shown)
    if isinstance(value, Tensor):
        return Found(value)
    found = mean_and_scale(value)
    if found is None:
        raise TypeError(_not_understood(value, shown))
    mean, kind, values = found
    return Found(wide(mean), _log_variance(wide(values), scale or kind or "log_variance", shown))


def mean_and_scale(value: Any) -> tuple[Tensor, Scale | None, Tensor] | None:
    """Mean, kind of scale, and scale of a pair of tensors, or of an object or dict with both; otherwise None."""
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        pair = len(value) == 2 and all(isinstance(item, Tensor) and not item.is_nested for item in value)
        return (value[0], None, value[1]) if pair else None
    mean = next((item for item in map(_getter(value), MEANS) if isinstance(item, Tensor)), None)
    if mean is not None:
        for name, kind in CERTAIN.items():
            if isinstance(values := _getter(value)(name), Tensor):
                return mean, kind, values
    return mean_and_scale(tuple(value)) if isinstance(value, tuple) else None


def _getter(value: Any) -> Callable[[str], Any]:
    return value.get if isinstance(value, Mapping) else lambda name: getattr(value, name, None)


def _log_variance(values: Tensor, scale: Scale, shown: str) -> Tensor:
    if scale in ("variance", "std") and bool((values <= 0).any()):
        raise ValueError(
            f"`latents` gave {worded(scale)} with the value {float(values.min()):.3g}, which is not positive. Set its "
            f"kind, Latents({shown}, ..., scale='log_variance') or scale='log_std', or name the output after the "
            "exponential or softplus."
        )
    return CONVERSIONS[scale](values)


def worded(scale: Scale) -> str:
    """The kind of scale in words, for messages."""
    words = {"std": "a standard deviation", "variance": "a variance", "log_std": "the log of a standard deviation"}
    return words.get(scale, "a log-variance")


def _of_distribution(value: Distribution, shown: str) -> Found:
    base = value
    while isinstance(base, Independent):
        base = base.base_dist
    if isinstance(base, Normal):
        return Found(wide(base.mean), 2 * wide(base.stddev).log())
    if isinstance(base, Categorical | OneHotCategorical):
        probs = wide(base.probs)
        rate = torch.tensor(float(probs.shape[-1])).log() - entropy(probs)
        return Found(probs, rate=rate.flatten(start_dim=1).sum(dim=1) if rate.ndim > 1 else rate, classes=True)
    if isinstance(base, RelaxedOneHotCategorical):
        return Found(wide(base.probs), classes=True)
    if isinstance(base, RelaxedBernoulli):
        return Found(wide(base.probs))
    try:
        return Found(value.mean)
    except NotImplementedError:
        raise TypeError(
            f"`latents` gave a {type(base).__name__}, whose mean is not known in closed form. Where it is made from "
            f"another distribution, name that: {_line(shown, 'base_dist')}; else give a function (pl_module, batch) -> "
            "code."
        ) from None


def wide(values: Tensor) -> Tensor:
    """Convert to float32 or wider: callbacks run outside autocast, where bfloat16 and a float32 witness do not mix."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _not_understood(value: Any, shown: str) -> str:
    line = _line(shown, _likely_part(value) or "mu,logvar")
    return (
        "`latents` must give a mean tensor, a (mean, log_variance) pair, a torch.distributions object, or an object "
        f"with a mean and a scale, got {describe(value)}. Name the part after a colon, {line}, or give a "
        "function (pl_module, batch) -> ... that picks it."
    )


def _line(shown: str, part: str) -> str:
    quoted = shown.startswith("'")
    return f"latents='{shown.strip(chr(39))}:{part}'" if quoted else f"latents=Latents({shown}, {part!r})"


def _likely_part(value: Any) -> str:
    """The part of an output that probably holds the code; empty if there is no candidate."""
    parts = parts_of(value)
    for name, item in parts.items():
        if not isinstance(item, Tensor | str) and item is not None and _is_posterior(item):
            return name
    tensors = [(name, item) for name, item in parts.items() if isinstance(item, Tensor) and item.ndim > 1]
    pairs = pairwise(tensors)
    same = [f"{one},{other}" for (one, mean), (other, scale) in pairs if mean.shape == scale.shape]
    return same[-1] if same else (tensors[0][0] if tensors else "")


def _is_posterior(value: Any) -> bool:
    return isinstance(value, Distribution) or mean_and_scale(value) is not None
