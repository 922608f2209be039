"""What a caller hands in, as a tensor or a number; or an error that names the argument and says what came.

A wrong kind of object is a :class:`TypeError`; everything else that is wrong with an argument is a :class:`ValueError`.
"""

import numbers
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "MAX_COMPONENTS",
    "MAX_MAGNITUDE",
    "MAX_NATS",
    "as_float64",
    "as_fraction",
    "as_number",
    "as_tensor",
    "as_whole_number",
    "float64_device",
]

MAX_MAGNITUDE = 1e50  # of weights: sums of weighted squares stay finite
MAX_NATS = 1e9  # of log-probabilities and rates: float64 then keeps their mean to 1e-6 nats
MAX_COMPONENTS = 2**15  # the sums of a certificate have K^2 numbers: 8 GiB here


def as_tensor(values: Any, name: str) -> Tensor:
    """An array as a dense tensor without a graph, in its own type; numbers of a list are taken in float64.

    Args:
        values: tensor, array, or nested list of numbers.
        name: the argument's name, for the error.

    Raises:
        TypeError: if ``values`` are not an array of real numbers.
        ValueError: if the tensor is sparse, nested, quantized, or holds no values (device ``meta``), or values of the
            array are masked.
    """
    tensor = values if isinstance(values, Tensor) else _from_array(values, name)
    if tensor.is_complex():
        raise TypeError(f"`{name}` must hold real numbers, got {tensor.dtype}.")
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized or tensor.is_meta:
        raise ValueError(
            f"`{name}` must be a dense tensor that holds values, got {tensor.dtype}, {tensor.layout} on "
            f"{tensor.device}. Give values.to_dense(), or values.dequantize()."
        )
    return tensor.detach()


def _from_array(values: Any, name: str) -> Tensor:
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"`{name}` must be an array or tensor of numbers, got {type(values).__name__}: {error}"
        ) from None
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"`{name}` must be an array or tensor of real numbers, got {type(values).__name__} of {array.dtype}."
        )
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise ValueError(
            f"`{name}` must have no masked values, got {np.ma.count_masked(values)} of {array.size}; leave them out."
        )
    native = np.float64 if array.dtype.itemsize > 8 else array.dtype.newbyteorder("=")
    # A copy: torch takes no negative strides, and warns of arrays that may not be written.
    return torch.from_numpy(np.array(array, dtype=native, order="C"))


def float64_device(device: torch.device) -> torch.device:
    """The device itself, or the CPU where it has no float64, as MPS has none."""
    return torch.device("cpu") if device.type == "mps" else device


def as_float64(tensor: Tensor) -> Tensor:
    """The tensor in float64, on the CPU where its device has none."""
    return tensor.to(float64_device(tensor.device)).to(torch.float64)


def as_number(value: Any, name: str) -> float:
    """A real number as a float.

    Raises:
        TypeError: if it is not a number; a bool is none.
        ValueError: if it is too large for a float.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"`{name}` must be a number, got {value!r}.")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"`{name}` must be a number that a float can hold, got one above 1e308.") from None


def as_fraction(value: Any, name: str) -> float:
    """A number in ``[0, 1)``.

    Raises:
        TypeError: if it is not a number.
        ValueError: if it is out of that range.
    """
    share = as_number(value, name)
    if not 0 <= share < 1:
        raise ValueError(f"`{name}` must be at least 0 and below 1, got {share}.")
    return share


def as_whole_number(value: Any, name: str, least: int, most: int = 10**9) -> int:
    """A whole number from ``least`` to ``most``.

    Raises:
        TypeError: if it is not a whole number; a bool or a float is none.
        ValueError: if it is out of that range.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"`{name}` must be a whole number, got {value!r}.")
    number = int(value)
    came = number if abs(number) < 10**20 else "one of more than 20 digits"
    if number < least:
        raise ValueError(f"`{name}` must be at least {least}, got {came}.")
    if number > most:
        raise ValueError(f"`{name}` must be at most {most}, got {came}.")
    return number
