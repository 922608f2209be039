r"""The information of a discrete code about its input, and codebook usage. Proofs are in docs/codebooks.md.

Everything is in nats. Axes: N rows, P codes a row, m entries of a codebook. A code is an index, or a distribution
:math:`q(k|x)` over the entries; an index is a one-hot distribution.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from certvae.theory.arguments import as_number
from certvae.theory.codebook_sums import CodebookSums, CodeKind, Positions, codebook_sums
from certvae.theory.information import entropy
from certvae.theory.self_bounding import (
    information_growth,
    information_step,
    lower_bound_of_expectation,
    upper_bound_of_expectation,
)

__all__ = ["CodebookInformation", "codebook_information", "information_of_sums"]


@dataclass(frozen=True)
class CodebookInformation:
    r"""Bounds on the information in a discrete code, and the use of its codebook; information is in nats.

    Attributes:
        lower: lower bound on the information of all codes of a row about the input, with ``confidence``. Proved for
            independent rows.
        upper: upper bound on the same, with ``confidence``. Proved for independent rows.
        estimate: of one code, :math:`H(\bar q) - \bar H(q)`, averaged over codebooks. With one code a row it is exactly
            the information for this data set. If several positions share a codebook, it includes the information about
            the position.
        rate: :math:`KL(q \| uniform)` of all codes of a row, averaged over rows.
        used: number of entries that are the code, or the likeliest code, of some row, over all codebooks.
        size: entries of a codebook, m.
        perplexity: :math:`\exp H(\bar q)`, from 1 to m; the geometric mean over codebooks.
        rows: N.
        codes: codes a row, P.
        codebooks: 1, or P if every position has its own.
        confidence: of each bound.
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
        """Whether at most half of the entries are used, although the rows have at least as many codes as entries."""
        entries = self.codebooks * self.size
        return 2 * self.used <= entries <= self.rows * self.codes

    def to_dict(self) -> dict[str, float | int]:
        """All fields as plain values, with ``dead``."""
        return asdict(self) | {"dead": self.dead}

    def line(self) -> str:
        """Usage and bounds in one sentence."""
        of = f"({self.confidence:.4g} confidence, {self.rows:,} rows)".replace("0.95 ", "95 % ")
        books = "" if self.codebooks == 1 else f"{self.codebooks} x "
        use = f"{self.used:,} of {books}{self.size:,} codes used, perplexity {self.perplexity:.4g}"
        carry = f"between {self.lower:.3g} and {self.upper:.3g}" if self.lower else f"at most {self.upper:.3g}"
        if self.codes == 1:
            return f"{use}; the code carries {carry} of {math.log(self.size):.3g} possible nats {of}"
        return f"{use}; the {self.codes:,} codes of a row carry {carry} nats, each about {self.estimate:.3g} {of}"


def codebook_information(
    codes: Any,
    size: int | None = None,
    *,
    kind: CodeKind | None = None,
    axis: int | None = None,
    positions: Positions = "shared",
    confidence: float = 0.95,
) -> CodebookInformation:
    r"""Codebook usage, and bounds in nats on the information of a discrete code about its input.

    One code a row: :math:`I(X; k) = H(E\,q) - E\,H(q)`, which is the entropy of the index if the input determines it.
    Several codes a row: the information of all codes of a row together. The lower bound is that of the code at a random
    position or, if every position has its own codebook, of the best position. The upper bound is a sum over positions,
    whose draws must be independent given the input. Sources: Paninski, 2003, *Estimation of entropy and mutual
    information*, for the bias; McDiarmid, 1989, and Maurer, 2006, for the deviation.

    Args:
        codes: integers from 0, shape ``(N,)`` or ``(N, ...)``, such as ``(N, h, w)``; or probabilities or logits, with
            an additional axis for the entries of the codebook.
        size: number of entries of the codebook, from 2. Required for indices.
        kind: ``"indices"``, ``"probs"`` or ``"logits"``. None: integers are indices, and floats are probabilities that
            must sum to 1.
        axis: axis of the entries in probabilities or logits. None: the last axis or axis 1, whichever has length
            ``size``.
        positions: ``"shared"``: all codes of a row use one codebook; ``"each"``: every position has its own.
        confidence: of each bound on its own, in (0, 1).

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an index is out of range, ``size`` is missing, a row is not a distribution, or there are fewer
            than 2 rows.
    """
    sums = codebook_sums(codes, size, kind=kind, axis=axis, positions=positions)
    return information_of_sums(sums, confidence)


def information_of_sums(sums: CodebookSums, confidence: float = 0.95) -> CodebookInformation:
    """Codebook usage and information bounds from additive sums.

    Args:
        sums: over all rows, see :func:`certvae.theory.codebook_sums.codebook_sums`.
        confidence: of each bound on its own, in (0, 1).

    Raises:
        ValueError: if there are fewer than 2 rows.
    """
    if not 0 < as_number(confidence, "confidence") < 1:
        raise ValueError(f"`confidence` must lie between 0 and 1, got {confidence}.")
    if sums.rows < 2:
        raise ValueError(f"there must be at least 2 rows, to compare one with another, got {sums.rows}; give more.")
    books, size = sums.weights.shape
    counted = sums.rows * sums.codes // books
    whole = entropy(sums.weights / counted)
    own, mixed = (sums.entropies / sums.entropies.new_tensor([counted, sums.rows])).unbind(dim=1)
    code = (whole - own).clamp(min=0)
    error = 1 - confidence
    return CodebookInformation(
        lower=_lower((whole - mixed).clamp(min=0), sums.rows, error),
        upper=_upper(sums, float(code.mean()) * sums.codes, float(own.mean()) * sums.codes, error),
        estimate=float(code.mean()),
        rate=max(0.0, sums.codes * (math.log(size) - float(own.mean()))),
        used=int((sums.chosen > 0).sum()),
        size=size,
        perplexity=math.exp(float(whole.mean())),
        rows=sums.rows,
        codes=sums.codes,
        codebooks=books,
        confidence=confidence,
    )


def _upper(sums: CodebookSums, information: float, own: float, error: float) -> float:
    """Upper bound for all codes of a row, from the sums of their information and of their entropy."""
    rows, (books, size) = sums.rows, sums.weights.shape
    most = sums.codes * math.log(size)
    share = error / 2 if sums.soft else error  # an index has no noise, so its rate is known in advance
    # A row has `codes / books` codes from one codebook, so it also carries information about the position.
    step = sums.codes * (information_step(rows) + math.log(min(size, sums.codes // books)))
    bound = upper_bound_of_expectation(rows * information, step, information_growth(rows), rows, share) / rows
    limits = [most, bound + sums.codes * math.log1p((size - 1) / rows)]
    if sums.soft:
        rate = max(0.0, most - own)
        limits.append(upper_bound_of_expectation(rows * rate, most, 1.0, rows, share) / rows)
    return min(limits)


def _lower(information: Tensor, rows: int, error: float) -> float:
    """The largest of the codebooks' lower bounds; they share the error probability."""
    step, growth, share = information_step(rows), information_growth(rows), error / len(information)
    bounds = [lower_bound_of_expectation(rows * value, step, growth, rows, share) for value in information.tolist()]
    return max(0.0, *bounds) / rows
