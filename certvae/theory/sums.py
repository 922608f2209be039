r"""The additive float64 sums from which every number of a certificate is computed.

Each row has the features ``f = (1, T_1..T_K, h, a, c, d, r)``:

=====  ==========================================================================================
``T``  teacher probabilities
``h``  ``sum_k T_k log T_k``
``a``  ``sum_k T_k log S_k``, the witness on the mean path
``c``  the same on the channel, averaged over draws of the latent
``d``  the same for the calibrated witness on the channel
``r``  rate, ``KL(q(z|x) || p(z))``
=====  ==========================================================================================

The sums are ``sum_i w_i f_i f_i^T``; for the witness information ``sum_i w_i S_i`` and ``sum_i w_i H(S_i)``; and for
the parts of each component ``sum_i w_i T_ik log S_ik`` and ``sum_i w_i T_ik log T_ik``. These are O(K^2) numbers for
any number of rows. They determine the mean, variance and covariance of every linear function of the features. The
margins are such functions: their coefficients depend on the average teacher, which is known at the end.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from certvae.theory.arguments import MAX_MAGNITUDE, as_whole_number
from certvae.theory.information import entropy, rows_of_a_block, x_log_x
from certvae.theory.scores import SCORES, ScoredRows

__all__ = ["CertificateSums", "ComponentMargin", "WholeSums"]

_OPTIONAL = ("channel", "calibrated", "rate")
_PRODUCT = 256  # rows of a product at least, so that it takes longer than to read and write a large result
_ROUNDING = 1e-13  # relative size below which a variance from float64 sums is rounding error


@dataclass  # not frozen: torchmetrics copies a certificate field by field
class ComponentMargin:
    """One component's part of the margin and of the teacher information, in nats.

    Attributes:
        share: average probability of the component.
        margin: its part of the margin; below 0 if the average teacher predicts it better than the witness does.
        information: its part of the teacher information.
    """

    share: float
    margin: float
    information: float


@dataclass(frozen=True)
class CertificateSums:
    """Additive sums over rows; add two with ``+``.

    Attributes:
        moments: ``sum_i w_i f_i f_i^T``, float64, shape ``(K + 6, K + 6)``.
        witness: ``sum_i w_i (S_i, H(S_i))``, float64, shape ``(K + 1,)``.
        counts: number of rows with positive weight, ``sum w^2``, and the total weight of the rows with channel,
            calibrated and rate values, float64, shape ``(5,)``.
        parts: ``sum_i w_i T_ik log S_ik`` and ``sum_i w_i T_ik log T_ik``, float64, shape ``(2, K)``.
    """

    moments: Tensor
    witness: Tensor
    counts: Tensor
    parts: Tensor

    @staticmethod
    def packed_size(num_components: int) -> int:
        """Length of the packed vector for ``num_components`` components."""
        as_whole_number(num_components, "num_components", 2)
        return (num_components + 6) ** 2 + num_components + 1 + 5 + 2 * num_components

    @classmethod
    def unpack(cls, packed: Tensor, num_components: int) -> "CertificateSums":
        """Read the sums from one vector, as made by :meth:`pack`.

        Raises:
            TypeError: if ``num_components`` is not a whole number.
            ValueError: if the length of the vector is not ``packed_size(num_components)``.
        """
        if packed.shape != (cls.packed_size(num_components),):
            raise ValueError(
                f"`packed` must have shape ({cls.packed_size(num_components)},) for {num_components} components, got "
                f"{tuple(packed.shape)}."
            )
        features = num_components + 6
        sizes = [features**2, num_components + 1, 5, 2 * num_components]
        moments, witness, counts, parts = packed.split(sizes)
        return cls(moments.view(features, features), witness, counts, parts.view(2, num_components))

    def pack(self) -> Tensor:
        """All sums as one float64 vector, so that one all-reduce adds them up."""
        return torch.cat([self.moments.flatten(), self.witness, self.counts, self.parts.flatten()])

    def __add__(self, other: "CertificateSums") -> "CertificateSums":
        if self.num_components != other.num_components:
            raise ValueError(
                f"`other` must have {self.num_components} components, got {other.num_components}: sums of different "
                "teachers cannot be added."
            )
        mine, others = (vars(sums).values() for sums in (self, other))
        return CertificateSums(*(one + another for one, another in zip(mine, others, strict=True)))

    @classmethod
    def of(cls, rows: ScoredRows) -> "CertificateSums":
        """Sums over checked rows."""
        numbers, vectors = _in_blocks(rows)
        width, size = 1 + rows.teacher.shape[1] + numbers.shape[1], max(_PRODUCT, rows_of_a_block(rows.teacher))
        moments = numbers.new_zeros(width, width)
        for weights, *parts in zip(*(each.split(size) for each in (rows.weights, rows.teacher, numbers)), strict=True):
            features = torch.cat([torch.ones_like(weights)[:, None], *parts], dim=1)
            moments.addmm_((features * weights[:, None]).T, features)
        return cls(moments, *vectors)

    @property
    def num_components(self) -> int:
        """K."""
        return self.witness.shape[0] - 1

    @property
    def num_rows(self) -> int:
        """Number of rows with positive weight."""
        return int(self.counts[0].item())

    @property
    def total_weight(self) -> Tensor:
        """``sum_i w_i``.

        Raises:
            ValueError: if no row has positive weight, or the weights are so small that their squares underflow.
        """
        total = self.moments[0, 0]
        if self.num_rows == 0:
            raise ValueError("`teacher_probs` must hold at least one row with positive weight, got none.")
        if bool(total < 1 / MAX_MAGNITUDE):
            raise ValueError(f"`weights` must add up to at least {1 / MAX_MAGNITUDE:g}, got {total.item():.3g}.")
        return total

    @property
    def effective_size(self) -> float:
        """Effective number of rows ``(sum w)^2 / sum w^2`` (Kish, 1965); the number of rows for equal weights."""
        return float(self.num_rows) if self.equal_weights else float(self.total_weight**2 / self.counts[1])

    @property
    def equal_weights(self) -> bool:
        """Whether every weight is 0 or one common value."""
        return _equal(self.total_weight**2, self.counts[0] * self.counts[1])

    @property
    def teacher_mean(self) -> Tensor:
        """The average teacher, which is the best constant student, shape ``(K,)``."""
        return self.moments[0, 1 : self.num_components + 1] / self.total_weight

    def has(self, score: str) -> bool:
        """Whether every row has ``score``: ``"mean"``, ``"channel"``, ``"calibrated"`` or ``"rate"``."""
        return score == "mean" or _equal(self.counts[2 + _position(score, _OPTIONAL)], self.total_weight)

    def teacher_information(self) -> float:
        """``H(Tbar) - mean H(T)`` in nats; never below 0."""
        mean_negative_entropy = self.moments[0, self.num_components + 1] / self.total_weight
        return max(0.0, float(entropy(self.teacher_mean) + mean_negative_entropy))

    def witness_information(self) -> float:
        """``H(Sbar) - mean H(S)`` in nats; never below 0."""
        mean = self.witness / self.total_weight
        return max(0.0, float(entropy(mean[:-1]) - mean[-1]))

    def components(self) -> list["ComponentMargin"]:
        r"""Each component's part of the margin and of the teacher information; the parts add up to the totals.

        .. math:: M_k = E\, T_k \log S_k - \bar T_k \log \bar T_k, \qquad
                  I_k = E\, T_k \log T_k - \bar T_k \log \bar T_k \ge M_k + E (T_k - S_k)

        A single :math:`M_k` can exceed its :math:`I_k` if the witness is overconfident in the component.
        """
        mean = self.teacher_mean
        score, most = self.parts / self.total_weight - x_log_x(mean)
        return [ComponentMargin(*values) for values in zip(mean.tolist(), score.tolist(), most.tolist(), strict=True)]

    def influence(self, score: str) -> Tensor:
        r"""Coefficients of :math:`g = score - \sum_k T_k \log \bar T_k`, whose mean is the score's margin.

        Args:
            score: ``"mean"``, ``"channel"`` or ``"calibrated"``.

        Returns:
            Coefficients over the features, shape ``(K + 6,)``.
        """
        mean = self.teacher_mean
        coefficients = torch.zeros_like(self.moments[0])
        coefficients[1 : self.num_components + 1] = -torch.where(mean > 0, mean, torch.ones_like(mean)).log()
        coefficients[self.num_components + 2 + _position(score, SCORES)] = 1.0
        return coefficients

    def rate_coefficients(self) -> Tensor:
        """Coefficients that pick the rate, shape ``(K + 6,)``."""
        coefficients = torch.zeros_like(self.moments[0])
        coefficients[-1] = 1.0
        return coefficients

    def mean(self, coefficients: Tensor) -> float:
        """Weighted mean of a linear function of the features."""
        return float(coefficients @ self.moments[0] / self.total_weight)

    def standard_deviation(self, coefficients: Tensor) -> float:
        """Sample standard deviation (``n - 1``) of a linear function of the features; NaN for one row.

        If the function varies by less than 3e-7 of its size, the sums cannot resolve the deviation. The largest
        possible value is returned then, because a value that is too small would make a lower bound invalid.
        """
        size = self.effective_size
        if size <= 1:
            return float("nan")
        second, scale = (float(total / self.total_weight) for total in self._squares(coefficients))
        variance = max(second - self.mean(coefficients) ** 2, _ROUNDING * scale)
        return float((variance * size / (size - 1)) ** 0.5)

    def _squares(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """Sum over rows of the squared linear function, and of the squared sum of its terms' absolute values."""
        size = coefficients.abs()
        return coefficients @ self.moments @ coefficients, size @ self.moments.abs() @ size


@dataclass(frozen=True)
class WholeSums(CertificateSums):
    """Sums over rows that are all in memory. The rows are kept, and ``moments`` is only its first row.

    This takes O(NK) steps instead of O(NK^2). Such sums cannot be packed or added.

    Attributes:
        teacher: ``T_i``, shape ``(N, K)``.
        numbers: ``(h, a, c, d, r)`` of each row, shape ``(N, 5)``.
        weights: ``w_i``, shape ``(N,)``.
    """

    teacher: Tensor
    numbers: Tensor
    weights: Tensor

    @classmethod
    def of(cls, rows: ScoredRows) -> "WholeSums":
        """See :meth:`CertificateSums.of`."""
        numbers, vectors = _in_blocks(rows)
        first = torch.cat([rows.weights.sum()[None], rows.weights @ rows.teacher, rows.weights @ numbers])
        return cls(first[None], *vectors, rows.teacher, numbers, rows.weights)

    def _squares(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        values = self._linear(self.teacher, self.numbers, coefficients)
        sizes = self._linear(self.teacher, self.numbers.abs(), coefficients.abs())
        return self.weights @ values.square(), self.weights @ sizes.square()

    @staticmethod
    def _linear(teacher: Tensor, numbers: Tensor, coefficients: Tensor) -> Tensor:
        """A linear function of the features, shape ``(N,)``."""
        first, of_teacher, of_numbers = coefficients.split([1, teacher.shape[1], numbers.shape[1]])
        return first + teacher @ of_teacher + numbers @ of_numbers


def _in_blocks(rows: ScoredRows) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """``(h, a, c, d, r)`` of each row, shape ``(N, 5)``, and what :func:`_vectors` adds up; by
    blocks that fit into a processor's cache."""
    entropies, vectors = [], []
    for block in rows.split(rows_of_a_block(rows.teacher)):
        negative_entropies = x_log_x(block.teacher)
        entropies.append(negative_entropies.sum(dim=1))
        vectors.append(_vectors(block, negative_entropies))
    witness, counts, parts = (torch.stack(found).sum(dim=0) for found in zip(*vectors, strict=True))
    scores = rows.scores if rows.rate is None else {**rows.scores, "rate": rows.rate}
    absent = torch.zeros_like(rows.weights)
    numbers = [torch.cat(entropies), *(scores.get(name, absent) for name in (*SCORES, "rate"))]
    return torch.stack(numbers, dim=1), (witness, counts, parts)


def _vectors(rows: ScoredRows, negative_entropies: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The fields of :class:`CertificateSums` other than the moments."""
    teacher, weights, witness = rows.teacher, rows.weights, rows.log_witness.exp()
    total = weights.sum()
    given = [*rows.scores, *([] if rows.rate is None else ["rate"])]
    counts = [(weights > 0).sum().to(total), (weights**2).sum()]
    counts += [total if name in given else torch.zeros_like(total) for name in _OPTIONAL]
    entropy_of_witness = -(witness * rows.log_witness).sum(dim=1)
    sums = torch.cat([weights @ witness, (weights @ entropy_of_witness)[None]])
    parts = torch.stack([weights @ (teacher * rows.log_witness), weights @ negative_entropies])
    return sums, torch.stack(counts), parts


def _position(score: str, scores: tuple[str, ...]) -> int:
    if score not in scores:
        raise ValueError(f"`score` must be one of {', '.join(scores)}, got {score!r}.")
    return scores.index(score)


def _equal(one: Tensor, other: Tensor) -> bool:
    """Equal up to rounding, for weights of any scale."""
    return bool(torch.isclose(one, other, rtol=1e-9, atol=0.0))
