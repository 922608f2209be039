r"""A classifier, fitted in closed form, that predicts the teacher's component from the code.

The raw witness reads the code in fixed coordinates. The fitted reader finds an affine map that predicts the teacher. It
is scored on other rows than it is fitted on, so it is a fixed witness there: its margin is at most the information that
the code carries (Barber and Agakov, 2003, *The IM algorithm*).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from certvae.theory.calibration import Calibration, fit_calibration

__all__ = ["FittedReader"]

ROUNDING = 1e-9  # a coordinate whose deviation is below this share of its largest size is rounding error


@dataclass(frozen=True)
class FittedReader:
    r"""Linear discriminant analysis with soft labels, then calibration by a scale and a prior weight.

    With :math:`\pi_k = E\,T_k`, :math:`m_k = E\,T_k z / \pi_k` and the covariance :math:`\Sigma` within components,

    .. math:: \mathrm{logit}_k(z) = m_k^\top \Sigma^{-1} z - \tfrac12 m_k^\top \Sigma^{-1} m_k + \log \pi_k .

    :math:`\Sigma` is shrunk towards a multiple of the identity by the share :math:`d / (n + d)`, so that codes with
    more coordinates than rows can be read. Source: Fisher, 1936; Hastie, Tibshirani and Friedman, 2009, *The Elements
    of Statistical Learning*, section 4.3. Soft labels blur the means, and many coordinates overfit. A scale and a prior
    weight (:func:`certvae.theory.calibration.fit_calibration`) correct both. They are fitted on held-out answers: a
    reader fitted on one half of the rows predicts the other half.

    Attributes:
        weights: shape ``(latent_dim, K)``.
        offsets: shape ``(K,)``.
        calibration: scale and prior weight.
    """

    weights: Tensor
    offsets: Tensor
    calibration: Calibration

    @classmethod
    def fit(cls, codes: Tensor, teacher_probs: Tensor) -> "FittedReader":
        """Fit a reader. Score it on other rows only.

        Args:
            codes: shape ``(n, latent_dim)``, finite, with at least two rows.
            teacher_probs: teacher probabilities, shape ``(n, K)``.
        """
        codes = codes.double()
        teacher = teacher_probs.to(codes)
        parts = torch.arange(len(codes), device=codes.device) % 2
        held_out = teacher.new_empty(teacher.shape)
        for part in (0, 1):
            weights, offsets = _discriminant(codes[parts != part], teacher[parts != part])
            held_out[parts == part] = codes[parts == part] @ weights + offsets
        return cls(*_discriminant(codes, teacher), fit_calibration(teacher.cpu(), held_out.cpu()[None]))

    def __call__(self, codes: Tensor) -> Tensor:
        """Logits for codes ``(n, latent_dim)``, float64 on the CPU, shape ``(n, K)``."""
        logits = codes.to(self.weights) @ self.weights + self.offsets
        return self.calibration(logits.cpu()[None])[0]


def _discriminant(codes: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and offsets of the uncalibrated reader."""
    center, scale = codes.mean(dim=0), _scale(codes)
    prior = teacher.mean(dim=0).clamp(min=1e-12)
    standard = (codes - center) / scale
    means = (teacher.T @ standard) / (len(codes) * prior[:, None])
    directions = _solve_shrunk(standard, teacher @ means, means).T
    weights = directions / scale[:, None]
    return weights, prior.log() - 0.5 * (means.T * directions).sum(dim=0) - center @ weights


def _scale(codes: Tensor) -> Tensor:
    """Deviation of each coordinate; infinite if it is only rounding error, so the coordinate is ignored."""
    deviation = codes.std(dim=0, correction=0)
    resolved = deviation > ROUNDING * codes.abs().amax(dim=0)
    return torch.where(resolved, deviation, torch.inf)


def _solve_shrunk(codes: Tensor, fitted: Tensor, means: Tensor) -> Tensor:
    r""":math:`m_k^\top \Sigma^{-1}` for the shrunk covariance within components, shape ``(K, latent_dim)``.

    Args:
        codes: standardized, shape ``(n, latent_dim)``.
        fitted: ``sum_k T_k m_k`` of each row, same shape.
        means: m_k, shape ``(K, latent_dim)``.
    """
    rows, dim = codes.shape
    within = codes - fitted
    share = dim / (rows + dim)
    spread = float(within.square().mean()) or 1.0
    if dim <= rows:
        covariance = (1 - share) / rows * within.T @ within
        covariance.diagonal().add_(share * spread)
        return torch.linalg.solve(covariance, means.T).T
    # Fewer rows than coordinates: Woodbury's identity gives the same from an n x n system.
    ridge, factor = share * spread, within * ((1 - share) / rows) ** 0.5
    gram = factor @ factor.T
    gram.diagonal().add_(ridge)
    return (means - torch.linalg.solve(gram, factor @ means.T).T @ factor) / ridge
