r"""The information of a discrete code about its input, and the use of its codebook. Proofs are in docs/codebooks.md.

Everything is in nats. Axes: N rows, P codes a row, m entries of a codebook. A code is an index, or a distribution
:math:`q(k|x)` over the entries; an index is a distribution that is sure.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from certvae.theory.arguments import as_number, as_tensor, as_whole_number, float64_device
from certvae.theory.information import as_logits, as_probabilities, entropy
from certvae.theory.self_bounding import (
    information_growth,
    information_step,
    lower_bound_of_expectation,
    upper_bound_of_expectation,
)

__all__ = ["CodeKind", "CodebookInformation", "CodebookSums", "Positions", "codebook_information", "codebook_sums"]

CHUNK = 2**22  # numbers held at once
MAX_SIZE = 2**24
CodeKind = Literal["indices", "logits", "probs"]
Positions = Literal["shared", "each"]


@dataclass(frozen=True)
class CodebookInformation:
    r"""What some rows say of a discrete code, in nats.

    Attributes:
        lower: the information of all codes of a row about the input is at least this, with ``confidence``. Proved for
            independent rows.
        upper: it is at most this, with ``confidence``. Proved for independent rows.
        estimate: of one code, :math:`H(\bar q) - \bar H(q)`, averaged over codebooks; with one code a row it is exactly
            the information for the data set that these rows are. Where codes at several positions share a codebook it
            counts the information about the position too.
        rate: :math:`KL(q \| uniform)` of all codes of a row, averaged over rows.
        used: entries that are the code, or the likeliest code, of some row, over all codebooks.
        size: entries of a codebook, m.
        perplexity: :math:`\exp H(\bar q)`, from 1 to m; the geometric mean over codebooks.
        rows: N.
        codes: codes a row, P.
        codebooks: 1, or P if every position has its own.
        confidence: of each side.
    """

    lower: float
    upper: float
    estimate: float
    rate: float
    used: int
    size: int
    perplexity: float
    rows: int
    codes: int
    codebooks: int
    confidence: float

    @property
    def dead(self) -> int:
        """Entries that no row uses."""
        return self.codebooks * self.size - self.used

    @property
    def few_used(self) -> bool:
        """Whether at most half of the entries are used, by rows that have at least as many codes as there are."""
        entries = self.codebooks * self.size
        return 2 * self.used <= entries <= self.rows * self.codes

    def to_dict(self) -> dict[str, float | int]:
        """All of it."""
        return asdict(self) | {"dead": self.dead}

    def line(self) -> str:
        """The reading in words."""
        of = f"({self.confidence:.4g} confidence, {self.rows:,} rows)".replace("0.95 ", "95 % ")
        books = "" if self.codebooks == 1 else f"{self.codebooks} x "
        use = f"{self.used:,} of {books}{self.size:,} codes used, perplexity {self.perplexity:.4g}"
        carry = f"between {self.lower:.3g} and {self.upper:.3g}" if self.lower else f"at most {self.upper:.3g}"
        if self.codes == 1:
            return f"{use}; the code carries {carry} of {math.log(self.size):.3g} possible nats {of}"
        return f"{use}; the {self.codes:,} codes of a row carry {carry} nats, each about {self.estimate:.3g} {of}"


@dataclass(frozen=True)
class CodebookSums:
    """Additive sums over rows, from which every figure follows; add two with ``+``. O(m) numbers for a codebook.

    Attributes:
        weights: ``sum q(k|x)``, float64, shape ``(codebooks, m)``; of indices whole numbers.
        chosen: how often an entry is the likeliest, float64, same shape.
        entropies: ``sum H(q)`` over all codes, and ``sum H`` of the average of a row's codes, float64, shape
            ``(codebooks, 2)``.
        rows: N.
        codes: P.
        soft: whether codes are distributions.
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
                f"all batches must have codes of one kind and shape, got {self._shape()} and {other._shape()}. Give "
                "rows with another number of codes to a measurement of their own."
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
        """Rows and sums as one float64 vector, so that one collective adds them up."""
        rows = self.weights.new_tensor([self.rows])
        return torch.cat([rows, self.weights.flatten(), self.chosen.flatten(), self.entropies.flatten()])

    @classmethod
    def unpack(cls, packed: Tensor, size: int, codebooks: int, codes: int, soft: bool) -> "CodebookSums":
        """Read the sums from one vector, as made by :meth:`pack`."""
        table = codebooks * size
        rows, weights, chosen, entropies = packed.split([1, table, table, 2 * codebooks])
        shape = (codebooks, size)
        return cls(weights.view(shape), chosen.view(shape), entropies.view(-1, 2), int(rows), codes, soft)

    def information(self, confidence: float = 0.95) -> CodebookInformation:
        """Use and information of the codes.

        Args:
            confidence: of each bound on its own, in (0, 1).

        Raises:
            ValueError: if there are fewer than 2 rows.
        """
        if not 0 < as_number(confidence, "confidence") < 1:
            raise ValueError(f"`confidence` must lie between 0 and 1, got {confidence}.")
        if self.rows < 2:
            raise ValueError(f"there must be at least 2 rows, to compare one with another, got {self.rows}; give more.")
        books, size = self.weights.shape
        counted = self.rows * self.codes // books
        whole = entropy(self.weights / counted)
        own, mixed = (self.entropies / self.entropies.new_tensor([counted, self.rows])).unbind(dim=1)
        code = (whole - own).clamp(min=0)
        error = 1 - confidence
        return CodebookInformation(
            lower=_lower((whole - mixed).clamp(min=0), self.rows, error),
            upper=self._upper(float(code.mean()) * self.codes, float(own.mean()) * self.codes, error),
            estimate=float(code.mean()),
            rate=max(0.0, self.codes * (math.log(size) - float(own.mean()))),
            used=int((self.chosen > 0).sum()),
            size=size,
            perplexity=math.exp(float(whole.mean())),
            rows=self.rows,
            codes=self.codes,
            codebooks=books,
            confidence=confidence,
        )

    def _upper(self, information: float, own: float, error: float) -> float:
        """Of all codes of a row, from the sum over them of their information and of their entropy."""
        rows, (books, size) = self.rows, self.weights.shape
        most = self.codes * math.log(size)
        share = error / 2 if self.soft else error  # an index has no noise, so that its rate is known beforehand
        # A row has `codes / books` codes from one codebook, and tells those apart too.
        step = self.codes * (information_step(rows) + math.log(min(size, self.codes // books)))
        bound = upper_bound_of_expectation(rows * information, step, information_growth(rows), rows, share) / rows
        limits = [most, bound + self.codes * math.log1p((size - 1) / rows)]
        if self.soft:
            rate = max(0.0, most - own)
            limits.append(upper_bound_of_expectation(rows * rate, most, 1.0, rows, share) / rows)
        return min(limits)


def _lower(information: Tensor, rows: int, error: float) -> float:
    """The largest of the codebooks' lower bounds, which share the error probability."""
    step, growth, share = information_step(rows), information_growth(rows), error / len(information)
    bounds = [lower_bound_of_expectation(rows * value, step, growth, rows, share) for value in information.tolist()]
    return max(0.0, *bounds) / rows


def codebook_information(
    codes: Any,
    size: int | None = None,
    *,
    kind: CodeKind | None = None,
    axis: int | None = None,
    positions: Positions = "shared",
    confidence: float = 0.95,
) -> CodebookInformation:
    r"""Use of a codebook, and bounds on the information of a discrete code about its input.

    For one code a row, :math:`I(X; k) = H(E\,q) - E\,H(q)`, the entropy of the index where it is a function of the
    input. For several, the information of all codes of a row together: the lower side is that of the code at a
    position drawn at random or, if every position has its own codebook, of the best position; the upper side adds up
    positions, whose draws must be independent given the input. Sources: Paninski, 2003, *Estimation of entropy and
    mutual information*, for the bias; McDiarmid, 1989, and Maurer, 2006, for the deviation.

    Args:
        codes: integers from 0, shape ``(N,)`` or ``(N, ...)``, such as ``(N, h, w)``; or probabilities or logits, with
            a further axis for the entries of the codebook.
        size: entries of the codebook, from 2. Needed for indices.
        kind: None takes integers as ``"indices"`` and floats as ``"probs"``, which must sum to 1.
        axis: of the entries, for probabilities and logits; None: the last or axis 1, whichever has ``size`` entries.
        positions: several codes of a row are from one codebook, ``"shared"``, or ``"each"`` has its own.
        confidence: of each bound on its own, in (0, 1).

    Raises:
        TypeError: if an argument is of a wrong kind.
        ValueError: if an index is out of range, ``size`` is missing, a row is no distribution, or there are fewer than
            2 rows.
    """
    return codebook_sums(codes, size, kind=kind, axis=axis, positions=positions).information(confidence)


def codebook_sums(
    codes: Any,
    size: int | None = None,
    *,
    kind: CodeKind | None = None,
    axis: int | None = None,
    positions: Positions = "shared",
) -> CodebookSums:
    """The sums of some rows; see :func:`codebook_information`.

    Raises:
        TypeError: if an argument is of a wrong kind.
        ValueError: if an index is out of range, ``size`` is missing, or a row is no distribution.
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
            f"`codes` of shape {tuple(values.shape)} look one-hot, and not like indices. Give codes.argmax(-1), or "
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
        raise ValueError("`size` must be given with indices: how many entries the codebook has, such as size=512.")
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
            raise ValueError(f"`axis` must say which axis of `codes` has the entries, 1 or -1, for shape {shape}.")
        axis = fitting.pop()
    place = as_whole_number(axis, "axis", -values.ndim, values.ndim - 1) % values.ndim
    if place == 0 or (size is not None and shape[place] != size):
        raise ValueError(f"`axis` must be the one of `codes` with size={size} entries, and not 0; got {axis}, {shape}.")
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
    """Of distributions, or of their logarithms, shape ``(n, P, m)``."""
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
