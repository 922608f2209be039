"""Descriptions of module outputs and batches for error messages: types, positions, names and shapes."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.distributions import Distribution

__all__ = ["describe", "parts_of"]

MOST = 12  # parts that are listed


def parts_of(value: Any) -> dict[str, Any]:
    """The parts of an output by the names that ``latents`` accepts after a colon: keys, positions or attributes."""
    if isinstance(value, Mapping):
        return {str(key): item for key, item in value.items()}
    if isinstance(value, tuple | list):
        names = getattr(value, "_fields", range(len(value)))
        return {str(name): item for name, item in zip(names, value, strict=True)}
    if isinstance(value, Tensor | Distribution | str) or not hasattr(value, "__dict__"):
        return {}
    return {name: item for name, item in vars(value).items() if not name.startswith("_")}


def describe(value: Any) -> str:
    """Describe a value in one line, such as ``tuple of 2: 0: float32 (8, 4), 1: NoneType``."""
    parts = parts_of(value)
    if not parts:
        return _brief(value)
    listed = ", ".join(f"{name}: {_brief(item)}" for name, item in list(parts.items())[:MOST])
    more = f" and {len(parts) - MOST} more" if len(parts) > MOST else ""
    return f"{_brief(value)}: {listed}{more}"


def _brief(value: Any) -> str:
    if isinstance(value, Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        return f"{kind} nested {_lengths(value)}" if value.is_nested else f"{kind} {tuple(value.shape)}"
    if isinstance(value, Distribution):
        shape = tuple(value.batch_shape + value.event_shape)
        return f"{type(value).__name__} of shape {shape}"
    if isinstance(value, tuple | list | Mapping):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__


def _lengths(value: Tensor) -> str:
    lengths: Iterable[int] = (len(row) for row in value.unbind())
    return f"with rows of lengths {list(lengths)[:MOST]}"
