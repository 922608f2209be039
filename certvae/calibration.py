r"""One scale and one prior weight that make a witness fit the noise of the channel.

The raw witness is overconfident on draws ``z ~ q(z|x)``. The calibrated one answers
:math:`softmax(a \cdot \text{logits} + b \log \bar T)`. Fitted on training rows and scored on others, it is as valid as
any fixed witness, and its channel margin is closer to what the channel carries. Temperature scaling: Guo et al., 2017,
https://arxiv.org/abs/1706.04599; the prior weight is the bias of Platt scaling along one direction.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from certvae.information import as_logits, as_probabilities

__all__ = ["Calibration", "fit_calibration"]


@dataclass(frozen=True)
class Calibration:
    """A fitted scale and prior weight.

    Attributes:
        scale: ``a``.
        prior_weight: ``b``.
        prior: average teacher on the rows of the fit, shape ``(K,)``.
        rows: rows of the fit.
    """

    scale: float
    prior_weight: float
    prior: tuple[float, ...]
    rows: int

    def __call__(self, logits: Tensor) -> Tensor:
        """Calibrated logits, float64, of the shape of ``logits``, ``(..., K)``."""
        log_prior = torch.tensor(self.prior, dtype=torch.float64, device=logits.device).log()
        return self.scale * logits.double() + self.prior_weight * log_prior


def fit_calibration(teacher_probs: Tensor, channel_logits: Tensor, iterations: int = 50) -> Calibration:
    r"""Fit scale and prior weight by the mean alignment loss over draws, which is convex in both; Newton's method.

    Args:
        teacher_probs: teacher probabilities of training rows, shape ``(N, K)``.
        channel_logits: the raw witness on draws of the latent, shape ``(draws, N, K)``.
        iterations: most Newton steps.

    Returns:
        The calibration.

    Raises:
        ValueError: if shapes do not fit, or there is no row.
    """
    teacher = as_probabilities(teacher_probs)
    if channel_logits.ndim != 3 or channel_logits.shape[1:] != teacher.shape or teacher.shape[0] == 0:
        raise ValueError(
            f"`channel_logits` must have shape (draws, N, K) with (N, K) = {tuple(teacher.shape)} and N >= 1, got "
            f"{tuple(channel_logits.shape)}."
        )
    logits = torch.stack([as_logits(draw, "channel_logits") for draw in channel_logits])
    prior = teacher.mean(dim=0)
    features = torch.stack([logits, prior.clamp(min=1e-300).log().expand_as(logits)], dim=-1)
    weights = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for _ in range(iterations):
        step = _newton_step(teacher, features, weights)
        weights = weights - step
        if float(step.abs().max()) < 1e-10:
            break
    return Calibration(float(weights[0]), float(weights[1]), tuple(prior.tolist()), teacher.shape[0])


def _loss(teacher: Tensor, features: Tensor, weights: Tensor) -> Tensor:
    return -(teacher * (features @ weights).log_softmax(dim=-1)).sum(dim=-1).mean()


def _newton_step(teacher: Tensor, features: Tensor, weights: Tensor) -> Tensor:
    """Newton's step, halved until the loss does not rise."""
    probs = (features @ weights).softmax(dim=-1)
    mean = (probs[..., None] * features).sum(dim=-2)
    gradient = (mean - (teacher[..., None] * features).sum(dim=-2)).mean(dim=(0, 1))
    centred = features - mean[..., None, :]
    hessian = torch.einsum("snk,snki,snkj->ij", probs, centred, centred) / probs[..., 0].numel()
    step = torch.linalg.solve(hessian + 1e-10 * torch.eye(2, dtype=torch.float64), gradient)
    before = _loss(teacher, features, weights)
    for _ in range(30):
        if _loss(teacher, features, weights - step) <= before:
            return step
        step = step / 2
    return torch.zeros_like(step)
