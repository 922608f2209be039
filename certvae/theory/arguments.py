"""Checks and conversions of arguments. An error names the argument, what is allowed and what was given.

A wrong type raises :class:`TypeError`; a wrong value or shape raises :class:`ValueError`.
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

MAX_MAGNITUDE = 1e50  # limit on weights: sums of weighted squares stay finite
MAX_NATS = 1e9  # limit on log-probabilities and rates: float64 then keeps their mean to 1e-6 nats
MAX_COMPONENTS = 2**15  # the sums of a certificate have K^2 numbers, 8 GiB at this K


def as_tensor(values: Any, name: str) -> Tensor:
    """Convert an array to a dense, detached tensor of the same dtype; lists of numbers become float64.

    Args:
        values: tensor, array, or nested list of numbers.
        name: the argument's name, for the error.

    Raises:
        TypeError: if ``values`` is not an array of real numbers.
        ValueError: if the tensor is sparse, nested, quantized, or holds no values (device ``meta``), or the array has
            masked values.
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
    # A copy: torch rejects negative strides and warns about read-only arrays.
    return torch.from_numpy(np.array(array, dtype=native, order="C"))


def float64_device(device: torch.device) -> torch.device:
    """The device itself, or the CPU if the device has no float64 (MPS)."""
    return torch.device("cpu") if device.type == "mps" else device


def as_float64(tensor: Tensor) -> Tensor:
    """The tensor in float64, moved to the CPU if its device has no float64."""
    return tensor.to(float64_device(tensor.device)).to(torch.float64)


def as_number(value: Any, name: str) -> float:
    """A real number as a float.

    Raises:
        TypeError: if it is not a number. A bool is not accepted.
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
        ValueError: if it is not in ``[0, 1)``.
    """
    share = as_number(value, name)
    if not 0 <= share < 1:
        raise ValueError(f"`{name}` must be at least 0 and below 1, got {share}.")
    return share


def as_whole_number(value: Any, name: str, least: int, most: int = 10**9) -> int:
    """A whole number from ``least`` to ``most``.

    Raises:
        TypeError: if it is not a whole number. A bool or a float is not accepted.
        ValueError: if it is below ``least`` or above ``most``.
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
