r"""Additive sums over rows of discrete codes: counts of each codebook entry, and entropies.

Axes: N rows, P codes a row, m entries of a codebook. A code is an index, or a distribution :math:`q(k|x)` over the
entries; an index is a one-hot distribution.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from certvae.theory.arguments import as_tensor, as_whole_number, float64_device
from certvae.theory.information import as_logits, as_probabilities, entropy

__all__ = ["CodeKind", "CodebookSums", "Positions", "codebook_sums"]

CHUNK = 2**22  # values held in memory at a time
MAX_SIZE = 2**24
CodeKind = Literal["indices", "logits", "probs"]
Positions = Literal["shared", "each"]


@dataclass(frozen=True)
class CodebookSums:
    """Additive sums over rows from which all results are computed; add two with ``+``. O(m) numbers a codebook.

    Attributes:
        weights: ``sum q(k|x)``, float64, shape ``(codebooks, m)``; counts if codes are indices.
        chosen: how often an entry is the likeliest, float64, same shape.
        entropies: ``sum H(q)`` over all codes, and ``sum H`` of the average of a row's codes, nats, float64, shape
            ``(codebooks, 2)``.
        rows: N.
        codes: P.
        soft: whether codes are distributions instead of indices.
    """

    weights: Tensor
    chosen: Tensor
    entropies: Tensor
    rows: int
    codes: int
    soft: bool

    def __add__(self, other: "CodebookSums") -> "CodebookSums":
        if self.weights.shape != other.weights.shape or (self.codes, self.soft) != (other.codes, other.soft):
            raise ValueError(
                f"all batches must have codes of one kind and shape, got {self._shape()} and {other._shape()}. Measure "
                "rows with different numbers of codes separately."
            )
        return CodebookSums(
            self.weights + other.weights,
            self.chosen + other.chosen,
            self.entropies + other.entropies,
            self.rows + other.rows,
            self.codes,
            self.soft,
        )

    def _shape(self) -> str:
        kind = "distributions" if self.soft else "indices"
        return f"{self.codes} {kind} a row over {self.weights.shape[1]} entries"

    def pack(self) -> Tensor:
        """Rows and sums as one float64 vector, so that one all-reduce adds them up."""
        rows = self.weights.new_tensor([self.rows])
        return torch.cat([rows, self.weights.flatten(), self.chosen.flatten(), self.entropies.flatten()])

    @classmethod
    def unpack(cls, packed: Tensor, size: int, codebooks: int, codes: int, soft: bool) -> "CodebookSums":
        """Read the sums from one vector, as made by :meth:`pack`."""
        table = codebooks * size
        rows, weights, chosen, entropies = packed.split([1, table, table, 2 * codebooks])
        shape = (codebooks, size)
        return cls(weights.view(shape), chosen.view(shape), entropies.view(-1, 2), int(rows), codes, soft)


def codebook_sums(
    codes: Any,
    size: int | None = None,
    *,
    kind: CodeKind | None = None,
    axis: int | None = None,
    positions: Positions = "shared",
) -> CodebookSums:
    """Sums over a batch of codes; see :func:`certvae.codebook_information` for the arguments.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an index is out of range, ``size`` is missing, or a row is not a distribution.
    """
    values = as_tensor(codes, "codes")
    if size is not None:
        size = as_whole_number(size, "size", 2, MAX_SIZE)
    if positions not in ("shared", "each"):
        raise ValueError(f"`positions` must be 'shared' or 'each', got {positions!r}.")
    if values.ndim == 0 or values.numel() == 0:
        raise ValueError(f"`codes` must hold at least one code, got shape {tuple(values.shape)}.")
    values, each = values.to(float64_device(values.device)), positions == "each"
    if _kind(values, size, kind) == "indices":
        return _index_sums(*_indices(values, size), each)
    rows, read = _entries_last(values, size, axis), as_logits if kind == "logits" else as_probabilities
    parts = rows.split(max(1, CHUNK // rows[0].numel()))
    total = _soft_sums(read(parts[0].flatten(0, 1), "codes").view(parts[0].shape), each, kind == "logits")
    for part in parts[1:]:
        total = total + _soft_sums(read(part.flatten(0, 1), "codes").view(part.shape), each, kind == "logits")
    return total


def _kind(values: Tensor, size: int | None, kind: str | None) -> str:
    if kind not in (None, "indices", "logits", "probs"):
        raise ValueError(f"`kind` must be 'indices', 'logits', 'probs' or None, got {kind!r}.")
    if kind == "indices" and values.is_floating_point():
        raise TypeError(f"`codes` of kind 'indices' must be integers, got {values.dtype}; give codes.long().")
    if kind in ("logits", "probs") and not values.is_floating_point():
        raise TypeError(f"`codes` of kind {kind!r} must be floats, got {values.dtype}; give codes.float().")
    if kind is None and _look_one_hot(values, size):
        raise ValueError(
            f"`codes` of shape {tuple(values.shape)} look one-hot, not like indices. Give codes.argmax(-1), or "
            "kind='indices' if they are indices."
        )
    return kind or ("probs" if values.is_floating_point() else "indices")


def _look_one_hot(values: Tensor, size: int | None) -> bool:
    if values.is_floating_point() or values.ndim == 1 or values.shape[-1] != size:
        return False
    return bool(((values == 0) | (values == 1)).all() & (values.sum(dim=-1) == 1).all())


def _indices(values: Tensor, size: int | None) -> tuple[Tensor, int]:
    """Indices in range, int64, shape ``(N, P)``, and the size of the codebook."""
    if size is None:
        raise ValueError("`size` must be given with indices: the number of codebook entries, such as size=512.")
    indices = values.reshape(len(values), -1).long()
    least, most = int(indices.min()), int(indices.max())
    if least < 0 or most >= size:
        raise ValueError(
            f"`codes` must be indices from 0 to {size - 1} for size={size}, got {least} to {most}. Give the codebook's "
            "true size, and leave out rows that are masked."
        )
    return indices, size


def _entries_last(values: Tensor, size: int | None, axis: int | None) -> Tensor:
    """Distributions or logits, shape ``(N, P, m)``."""
    shape = tuple(values.shape)
    if values.ndim < 2:
        raise ValueError(f"`codes` must have shape (N, ..., size) for probabilities and logits, got {shape}.")
    if axis is None:
        fitting = {values.ndim - 1, 1} if size is None else {i for i in (values.ndim - 1, 1) if shape[i] == size}
        if not fitting:
            raise ValueError(f"`codes` must have size={size} entries on their last axis or on axis 1, got {shape}.")
        if len(fitting) > 1:
            raise ValueError(f"`axis` must be given for `codes` of shape {shape}: the axis of the entries, 1 or -1.")
        axis = fitting.pop()
    place = as_whole_number(axis, "axis", -values.ndim, values.ndim - 1) % values.ndim
    if place == 0 or (size is not None and shape[place] != size):
        raise ValueError(f"`axis` must be an axis of `codes` with size={size} entries, not 0; got {axis}, {shape}.")
    return values.movedim(place, -1).reshape(shape[0], -1, shape[place])


def _index_sums(indices: Tensor, size: int, each: bool) -> CodebookSums:
    rows, codes = indices.shape
    books = codes if each else 1
    entries = indices + size * torch.arange(codes, device=indices.device) if each else indices
    weights = _counts(entries, books * size).view(books, size)
    entropies = weights.new_zeros(books, 2)
    if codes > 1 and not each:
        entropies[0, 1] = _row_entropies(indices, size)
    return CodebookSums(weights, weights, entropies, rows, codes, False)


def _row_entropies(indices: Tensor, size: int) -> Tensor:
    r"""Sum over rows of the entropy of a row's own histogram, :math:`\log P - \frac1P \sum_k c_k \log c_k`."""
    rows, codes = indices.shape
    entries = indices + size * torch.arange(rows, device=indices.device)[:, None]
    counts = entries.sort(dim=1).values.flatten().unique_consecutive(return_counts=True)[1].double()
    return rows * math.log(codes) - torch.xlogy(counts, counts).sum() / codes


def _soft_sums(given: Tensor, each: bool, logits: bool) -> CodebookSums:
    """Sums of distributions, or of their logarithms, shape ``(n, P, m)``."""
    probs = given.exp() if logits else given
    rows, codes, size = probs.shape
    books = codes if each else 1
    likeliest = given.argmax(dim=2)
    entries = likeliest + size * torch.arange(codes, device=given.device) if each else likeliest
    own = entropy(probs).sum(dim=0)
    mixed = own if each else entropy(probs.mean(dim=1)).sum()[None]
    return CodebookSums(
        probs.sum(dim=0) if each else probs.sum(dim=(0, 1))[None],
        _counts(entries, books * size).view(books, size),
        torch.stack([own if each else own.sum()[None], mixed], dim=1),
        rows,
        codes,
        True,
    )


def _counts(entries: Tensor, size: int) -> Tensor:
    return torch.bincount(entries.flatten(), minlength=size).double()
