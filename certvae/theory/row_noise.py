"""Random numbers that depend on a row, not on a process: batches and ranks do not change them.

Each number is a hash of (seed, row key, position): the SplitMix64 finalizer of Steele, Lea and Flood, 2014,
*Fast splittable pseudorandom number generators*. The global random state is not used, so observing a run does not
change it.
"""

import math
from typing import Any

import torch
from torch import Tensor

from certvae.theory.arguments import as_tensor, as_whole_number

__all__ = ["as_keys", "row_hash", "row_normal", "row_uniform"]

_GAMMA = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift(values: Tensor, bits: int) -> Tensor:
    """Logical right shift of signed 64-bit integers."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _mix(values: Tensor) -> Tensor:
    values = (values ^ _shift(values, 30)) * _MIX_1
    values = (values ^ _shift(values, 27)) * _MIX_2
    return values ^ _shift(values, 31)


def as_keys(keys: Any) -> Tensor:
    """Keys of rows, int64, shape ``(B,)``.

    Raises:
        TypeError: if they are not an array of numbers.
        ValueError: if they are not one integer a row.
    """
    rows = as_tensor(keys, "keys")
    if rows.ndim != 1 or rows.is_floating_point() or rows.dtype == torch.bool:
        raise ValueError(f"`keys` must hold one integer a row, shape (B,), got {rows.dtype} of {tuple(rows.shape)}.")
    return rows.to(torch.int64)


def row_hash(rows: Tensor, index: Tensor | None = None) -> Tensor:
    """A hash of the contents of each row. It does not depend on the other rows or their order.

    Args:
        rows: numbers, shape ``(B, ...)``. Equal rows of one dtype have equal hashes.
        index: included in the hash, int64, shape ``(B,)``.

    Returns:
        int64, shape ``(B,)``, on the device of the rows.
    """
    flat = rows.detach().flatten(1) if rows.ndim > 1 else rows.detach()[:, None]
    if flat.dtype == torch.float64:
        bits = flat.contiguous().view(torch.int64)
    else:
        bits = flat.float().contiguous().view(torch.int32).long() if flat.is_floating_point() else flat.long()
    places = torch.arange(1, bits.shape[1] + 1, device=bits.device)
    hashed = _mix(_mix(places * _GAMMA) ^ bits).sum(dim=1)
    return hashed if index is None else _mix(hashed + _mix(index.long()))


def row_uniform(keys: Tensor, count: int, seed: int = 0) -> Tensor:
    """Uniform numbers in (0, 1) that depend on the row's key and the seed only.

    Args:
        keys: one integer a row, int64, shape ``(B,)``.
        count: numbers a row, at least 0.
        seed: another seed gives other numbers; from -2^62 to 2^62.

    Returns:
        float64, shape ``(B, count)``.

    Raises:
        TypeError: if ``count`` or ``seed`` is not a whole number, or ``keys`` are not an array of numbers.
        ValueError: if ``count`` is below 0, ``seed`` is not from -2^62 to 2^62, or ``keys`` do not hold one integer a
            row.
    """
    rows, count, seed = (
        as_keys(keys),
        as_whole_number(count, "count", 0),
        as_whole_number(seed, "seed", -(2**62), 2**62),
    )
    start = _mix(torch.tensor([seed + 1], dtype=torch.int64, device=rows.device) * _GAMMA)
    stream = _mix(start + rows[:, None] * _GAMMA)
    position = torch.arange(1, count + 1, device=rows.device, dtype=torch.int64)
    bits = _shift(_mix(stream + position * _GAMMA), 11)
    return (bits.to(torch.float64) + 0.5) * 2.0**-53


def row_normal(keys: Tensor, count: int, seed: int = 0) -> Tensor:
    """Standard normal numbers that depend on the row's key and the seed only (Box and Muller, 1958).

    Args:
        keys: one integer a row, int64, shape ``(B,)``.
        count: numbers a row, at least 0.
        seed: another seed gives other numbers; from -2^62 to 2^62.

    Returns:
        float64, shape ``(B, count)``.

    Raises:
        TypeError: if ``count`` or ``seed`` is not a whole number, or ``keys`` are not an array of numbers.
        ValueError: if ``count`` is below 0, ``seed`` is not from -2^62 to 2^62, or ``keys`` do not hold one integer a
            row.
    """
    half = (as_whole_number(count, "count", 0) + 1) // 2
    uniform = row_uniform(keys, 2 * half, seed)
    radius = (-2 * uniform[:, :half].log()).sqrt()
    angle = 2 * math.pi * uniform[:, half:]
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count]
