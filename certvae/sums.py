r"""The additive float64 sums from which every number of a certificate follows.

A row of the data enters through the features ``f = (1, T_1..T_K, h, a, c, d, r)``:

=====  ==========================================================================================
``T``  teacher probabilities
``h``  ``sum_k T_k log T_k``
``a``  ``sum_k T_k log S_k``, the witness on the mean path
``c``  the same on the channel, averaged over draws of the latent
``d``  the same for the calibrated witness on the channel
``r``  rate, ``KL(q(z|x) || p(z))``
=====  ==========================================================================================

The sums are ``sum_i w_i f_i f_i^T`` and, for the witness information, ``sum_i w_i S_i`` and
``sum_i w_i H(S_i)``: O(K^2) numbers however many rows there are, and nothing per row. Means, variances and
covariances of every linear function of the features follow exactly. That covers the margins, because the
average teacher enters them only through coefficients that are known at the end.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from certvae.information import as_logits, as_probabilities, entropy, floor_log_probabilities

__all__ = ["CertificateSums"]

_SCORES = ("mean", "channel", "calibrated")
_ROUNDING = 1e-13  # relative size below which a variance from float64 sums is rounding


@dataclass(frozen=True)
class CertificateSums:
    """Additive sums over rows; add two with ``+``.

    Attributes:
        moments: ``sum_i w_i f_i f_i^T``, float64, shape ``(K + 6, K + 6)``.
        witness: ``sum_i w_i (S_i, H(S_i))``, float64, shape ``(K + 1,)``.
        counts: number of rows with positive weight, ``sum w^2``, and the weight of the rows that came with
            channel, calibrated and rate values, float64, shape ``(5,)``.
    """

    moments: Tensor
    witness: Tensor
    counts: Tensor

    @staticmethod
    def packed_size(num_components: int) -> int:
        """Length of the packed vector for ``num_components`` components."""
        return (num_components + 6) ** 2 + num_components + 1 + 5

    @classmethod
    def unpack(cls, packed: Tensor, num_components: int) -> "CertificateSums":
        """Read the sums from one vector, as made by :meth:`pack`."""
        features = num_components + 6
        moments, witness, counts = packed.split([features**2, num_components + 1, 5])
        return cls(moments.view(features, features), witness, counts)

    def pack(self) -> Tensor:
        """All sums as one float64 vector, so that one collective adds them up."""
        return torch.cat([self.moments.flatten(), self.witness, self.counts])

    def __add__(self, other: "CertificateSums") -> "CertificateSums":
        return CertificateSums(self.moments + other.moments, self.witness + other.witness, self.counts + other.counts)

    @classmethod
    def from_rows(
        cls,
        teacher_probs: Any,
        witness_logits: Any,
        weights: Any = None,
        *,
        channel_logits: Any = None,
        calibrated_logits: Any = None,
        rate: Any = None,
        witness_floor: float = 0.0,
        teacher_floor: float = 0.0,
    ) -> "CertificateSums":
        """Sums over rows.

        Args:
            teacher_probs: shape ``(N, K)``.
            witness_logits: the witness on the mean path, shape ``(N, K)``.
            weights: non-negative weight of each row, shape ``(N,)``; 0 leaves a row out. Default: all 1.
            channel_logits: the witness on draws of the latent, shape ``(draws, N, K)``.
            calibrated_logits: the calibrated witness on draws of the latent, shape ``(draws, N, K)``.
            rate: ``KL(q(z|x) || p(z))`` of each row in nats, shape ``(N,)``.
            witness_floor: share of the uniform distribution mixed into every witness.
            teacher_floor: share for which every teacher probability is promised to be at least
                ``teacher_floor / K``; checked, not applied.

        Raises:
            ValueError: if shapes do not fit each other, or values are not what the names say.
        """
        teacher = as_probabilities(teacher_probs)
        _check_floor(teacher, teacher_floor)
        log_witness = floor_log_probabilities(_same_shape(witness_logits, teacher, "witness_logits"), witness_floor)
        row_weights = _check_weights(weights, teacher)
        scores = {"mean": (teacher * log_witness).sum(dim=1)}
        for name, logits in (("channel", channel_logits), ("calibrated", calibrated_logits)):
            if logits is not None:
                scores[name] = _draw_average(logits, teacher, f"{name}_logits", witness_floor)
        if rate is not None:
            scores["rate"] = _per_row(rate, teacher, "rate")
        return cls._accumulate(teacher, log_witness, row_weights, scores)

    @classmethod
    def _accumulate(
        cls, teacher: Tensor, log_witness: Tensor, weights: Tensor, scores: dict[str, Tensor]
    ) -> "CertificateSums":
        absent = torch.zeros_like(weights)
        columns = [torch.ones_like(weights), *teacher.T, -entropy(teacher)]
        columns += [scores.get(name, absent) for name in (*_SCORES, "rate")]
        features = torch.stack(columns, dim=1)
        weighted = features * weights[:, None]
        witness = log_witness.exp()
        witness_rows = torch.cat([witness, entropy(witness)[:, None]], dim=1)
        total = weights.sum()
        counts = [(weights > 0).sum().to(total), (weights**2).sum()]
        counts += [total if name in scores else torch.zeros_like(total) for name in ("channel", "calibrated", "rate")]
        return cls(weighted.T @ features, weights @ witness_rows, torch.stack(counts))

    @property
    def num_components(self) -> int:
        """K."""
        return self.witness.shape[0] - 1

    @property
    def num_rows(self) -> int:
        """Number of rows with positive weight."""
        return int(self.counts[0].item())

    @property
    def effective_size(self) -> float:
        """``(sum w)^2 / sum w^2`` (Kish, 1965); the number of rows when every weight is 0 or 1."""
        return float(self.moments[0, 0] ** 2 / self.counts[1])

    @property
    def equal_weights(self) -> bool:
        """Whether every weight is 0 or one common value."""
        return bool(torch.isclose(self.moments[0, 0] ** 2, self.counts[0] * self.counts[1], rtol=1e-9))

    @property
    def teacher_mean(self) -> Tensor:
        """The average teacher, the best constant student, shape ``(K,)``."""
        return self.moments[0, 1 : self.num_components + 1] / self.moments[0, 0]

    def has(self, score: str) -> bool:
        """Whether every row came with ``score``: ``"channel"``, ``"calibrated"`` or ``"rate"``."""
        index = 2 + ("channel", "calibrated", "rate").index(score)
        return bool(self.counts[index] > 0) and bool(torch.isclose(self.counts[index], self.moments[0, 0]))

    def teacher_information(self) -> float:
        """``H(Tbar) - mean H(T)`` in nats; never below 0."""
        mean_negative_entropy = self.moments[0, self.num_components + 1] / self.moments[0, 0]
        return max(0.0, float(entropy(self.teacher_mean) + mean_negative_entropy))

    def witness_information(self) -> float:
        """``H(Sbar) - mean H(S)`` in nats; never below 0."""
        mean = self.witness / self.moments[0, 0]
        return max(0.0, float(entropy(mean[:-1]) - mean[-1]))

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
        coefficients[self.num_components + 2 + _SCORES.index(score)] = 1.0
        return coefficients

    def rate_coefficients(self) -> Tensor:
        """Coefficients that pick the rate, shape ``(K + 6,)``."""
        coefficients = torch.zeros_like(self.moments[0])
        coefficients[-1] = 1.0
        return coefficients

    def mean(self, coefficients: Tensor) -> float:
        """Weighted mean of a linear function of the features."""
        return float(coefficients @ self.moments[0] / self.moments[0, 0])

    def standard_deviation(self, coefficients: Tensor) -> float:
        """Sample standard deviation (``n - 1``) of a linear function of the features; NaN for one row."""
        size = self.effective_size
        if size <= 1:
            return float("nan")
        second = float(coefficients @ self.moments @ coefficients / self.moments[0, 0])
        scale = float(coefficients.abs() @ self.moments.abs() @ coefficients.abs() / self.moments[0, 0])
        variance = second - self.mean(coefficients) ** 2
        if variance <= _ROUNDING * scale:
            return 0.0
        return float((variance * size / (size - 1)) ** 0.5)


def _check_floor(teacher: Tensor, floor: float) -> None:
    if floor and teacher.numel() and bool((teacher < floor / teacher.shape[1] * (1 - 1e-5)).any()):
        raise ValueError(
            f"`teacher_floor={floor}` promises probabilities of at least {floor / teacher.shape[1]:.3g}, got "
            f"{teacher.min():.3g}. Mix the teacher with the uniform distribution: (1 - floor) * T + floor / K."
        )


def _same_shape(logits: Any, teacher: Tensor, name: str) -> Tensor:
    log_probs = as_logits(logits, name).to(teacher.device)
    if log_probs.shape != teacher.shape:
        raise ValueError(
            f"`{name}` must have the shape of `teacher_probs`, {tuple(teacher.shape)}, got "
            f"{tuple(log_probs.shape)}. Teacher and witness must have the same rows and components."
        )
    return log_probs


def _draw_average(logits: Any, teacher: Tensor, name: str, floor: float) -> Tensor:
    draws = torch.as_tensor(logits)
    if draws.ndim != 3 or draws.shape[0] == 0:
        raise ValueError(f"`{name}` must have shape (draws, N, K), got {tuple(draws.shape)}.")
    scores = [(teacher * floor_log_probabilities(_same_shape(draw, teacher, name), floor)).sum(dim=1) for draw in draws]
    return torch.stack(scores).mean(dim=0)


def _per_row(values: Any, teacher: Tensor, name: str) -> Tensor:
    rows = torch.as_tensor(values).detach()
    rows = rows.to(device=teacher.device).to(torch.float64) if rows.device.type != "mps" else rows.cpu().double()
    if rows.shape != teacher.shape[:1]:
        raise ValueError(f"`{name}` must have shape ({teacher.shape[0]},), got {tuple(rows.shape)}.")
    if not bool(rows.isfinite().all()):
        raise ValueError(f"`{name}` must be finite, got {rows[~rows.isfinite()][0].item()}.")
    return rows


def _check_weights(weights: Any, teacher: Tensor) -> Tensor:
    if weights is None:
        return torch.ones(teacher.shape[0], dtype=torch.float64, device=teacher.device)
    rows = _per_row(weights, teacher, "weights")
    if bool((rows < 0).any()):
        raise ValueError(f"`weights` must be non-negative, got {rows.min().item()}.")
    return rows
