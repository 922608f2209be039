"""Reads inputs and row index from a batch: a tensor, a tuple, a mapping, a dataclass or any object with attributes."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from certvae.reading.found import describe

__all__ = ["InputSource", "as_floats", "index_of", "inputs_and_index", "select_inputs"]

InputSource = int | str | Callable[[Any], Tensor]


def select_inputs(batch: Any, images: InputSource = 0) -> Tensor:
    """The teacher's inputs from a batch.

    Args:
        batch: batch of a dataloader; a bare tensor is itself the input.
        images: a position, a key or an attribute of the batch, or a function of the batch.

    Raises:
        TypeError: if the result is not a tensor.
        ValueError: if the batch has no such part.
    """
    inputs = images(batch) if callable(images) else _part(batch, images)
    if not isinstance(inputs, Tensor):
        raise TypeError(
            f"`images={images!r}` must give a tensor of the batch's rows, got {describe(inputs)}. Give their place, "
            "images=lambda batch: batch[0][0]; rows of different lengths must be padded: images=lambda batch: "
            "torch.nn.utils.rnn.pad_sequence(batch[0], batch_first=True)."
        )
    return inputs


def _part(batch: Any, images: int | str) -> Any:
    if isinstance(batch, Tensor):
        return batch
    try:
        return batch[images]
    except (KeyError, IndexError, TypeError):
        if isinstance(images, str) and hasattr(batch, images):
            return getattr(batch, images)
    raise ValueError(
        f"`images={images!r}` is not in the batch, which has {_contents(batch)}; give a position, a key, an "
        "attribute, or a function of the batch."
    )


def index_of(batch: Any) -> Tensor | None:
    """The rows' index, shape ``(B,)``: the entry named ``index``, or the third entry of a plain tuple."""
    if isinstance(batch, Mapping):
        index = batch.get("index")
    elif isinstance(batch, tuple | list) and not hasattr(batch, "_fields"):
        index = batch[2] if len(batch) > 2 else None
    else:
        index = getattr(batch, "index", None)  # for a plain tuple this is a method
    if not isinstance(index, Tensor) or index.ndim != 1 or index.is_floating_point() or index.dtype == torch.bool:
        return None
    return index


def inputs_and_index(batch: Any, images: InputSource = 0) -> tuple[Tensor, Tensor | None]:
    """Inputs as floats, and the rows' index or None."""
    return as_floats(select_inputs(batch, images)), index_of(batch)


def as_floats(images: Tensor) -> Tensor:
    """Scale uint8 images to [0, 1]; other inputs do not change."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def _contents(batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return list(batch)
    if isinstance(batch, tuple | list):
        names = list(batch._fields) if hasattr(batch, "_fields") else f"{len(batch)} entries"
        return f"{names} ({describe(batch)})"
    return f"{type(batch).__name__} with {list(vars(batch))}" if hasattr(batch, "__dict__") else type(batch).__name__
