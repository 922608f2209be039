r"""Calibration of a witness on noisy draws: one scale and one prior weight.

The raw witness is overconfident on draws ``z ~ q(z|x)``. The calibrated witness answers
:math:`softmax(a \cdot \text{logits} + b \log \bar T)`. It is fitted on training rows and scored on others, so it is as
valid as any fixed witness, and its channel margin is closer to the information in the channel. Sources: Guo et al.,
2017, https://arxiv.org/abs/1706.04599, for temperature scaling; the prior weight is Platt scaling's bias along one
direction.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from certvae.theory.arguments import MAX_NATS, as_float64, as_tensor, as_whole_number
from certvae.theory.information import as_logits, as_probabilities

__all__ = ["Calibration", "fit_calibration"]

ROUNDING = 1e-14  # of a loss in nats, relative; a stricter test would stop at random close to the optimum


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
        """Calibrated logits, float64, of the shape of ``logits``, ``(..., K)``.

        Raises:
            TypeError: if ``logits`` are not an array of real numbers.
            ValueError: if they do not have K components, or are not finite.
        """
        values = as_float64(as_tensor(logits, "logits"))
        if values.shape[-1:] != (len(self.prior),):
            raise ValueError(f"`logits` must have {len(self.prior)} components, got shape {tuple(values.shape)}.")
        if not bool((values.abs() <= MAX_NATS).all()):
            raise ValueError(f"`logits` must be finite and at most {MAX_NATS:g} in size; clip them.")
        prior = torch.tensor(self.prior, dtype=torch.float64, device=values.device)
        return self.scale * values + self.prior_weight * _log_prior(prior)


def _log_prior(prior: Tensor) -> Tensor:
    """``log Tbar``, kept finite for a component with average probability 0."""
    return prior.clamp(min=1e-300).log()


def fit_calibration(teacher_probs: Tensor, channel_logits: Tensor, iterations: int = 50) -> Calibration:
    r"""Fit scale and prior weight: minimize the mean alignment loss over draws by Newton's method.

    The loss is convex in both. The fit starts at the better of the raw witness and the best constant one, and no step
    raises the loss. So on these rows the fit is at least as good as both. The scale of the logits does not matter.

    Args:
        teacher_probs: teacher probabilities of training rows, shape ``(N, K)``.
        channel_logits: the raw witness on draws of the latent, shape ``(draws, N, K)``.
        iterations: largest number of Newton steps, at least 1.

    Returns:
        The calibration.

    Raises:
        TypeError: if an argument is not an array of real numbers.
        ValueError: if shapes do not match, there is no row or no draw, ``teacher_probs`` are not probabilities, or
            logits are not finite.
    """
    as_whole_number(iterations, "iterations", 1)
    teacher = as_probabilities(teacher_probs, may_be_empty=False)
    draws = as_tensor(channel_logits, "channel_logits")
    if draws.ndim != 3 or draws.shape[1:] != teacher.shape or draws.shape[0] == 0:
        raise ValueError(
            f"`channel_logits` must have shape (draws, N, K) with (N, K) = {tuple(teacher.shape)} and a draw, got "
            f"{tuple(draws.shape)}."
        )
    logits = torch.stack([as_logits(draw, "channel_logits") for draw in draws]).to(teacher.device)
    prior = teacher.mean(dim=0)
    logits = logits - logits.amax(dim=-1, keepdim=True)  # small logits then keep their digits in the division
    unit = -float(logits.mean()) or 1.0
    loss = _Loss.of(teacher, logits / unit, _log_prior(prior))
    raw, constant = torch.tensor([[unit, 0.0], [0.0, 1.0]], dtype=torch.float64)
    weights = min(raw, constant, key=lambda start: float(loss.at(start)))
    for _ in range(iterations):
        step = loss.newton_step(weights)
        weights = weights - step
        if float(step.abs().max()) < 1e-10:
            break
    return Calibration(float(weights[0]) / unit, float(weights[1]), tuple(prior.tolist()), teacher.shape[0])


@dataclass(frozen=True)
class _Loss:
    """The mean alignment loss as a function of the two weights, ``(2,)``, of logits and prior.

    Attributes:
        logits: shape ``(draws, N, K)``.
        log_prior: shape ``(K,)``.
        targets: the mean over rows of the teacher's average of each, shape ``(2,)``.
    """

    logits: Tensor
    log_prior: Tensor
    targets: Tensor

    @classmethod
    def of(cls, teacher: Tensor, logits: Tensor, log_prior: Tensor) -> "_Loss":
        targets = [(teacher * logits).sum(dim=-1).mean(), (teacher @ log_prior).mean()]
        return cls(logits, log_prior, torch.stack(targets).cpu())

    def _answers(self, weights: Tensor) -> Tensor:
        return float(weights[0]) * self.logits + float(weights[1]) * self.log_prior

    def at(self, weights: Tensor) -> Tensor:
        return self._answers(weights).logsumexp(dim=-1).mean().cpu() - weights @ self.targets

    def newton_step(self, weights: Tensor) -> Tensor:
        """Newton's step, halved until the loss does not rise by more than its rounding error."""
        answers = self._answers(weights)
        total = answers.logsumexp(dim=-1, keepdim=True)
        probs = (answers - total).exp()
        means = (probs * self.logits).sum(dim=-1, keepdim=True), (probs @ self.log_prior)[..., None]
        centered = self.logits - means[0], self.log_prior - means[1]
        weighted = [probs * values for values in centered]
        pairs = [(weighted[i] * centered[j]).sum(dim=-1).mean() for i, j in ((0, 0), (0, 1), (1, 0), (1, 1))]
        hessian = torch.stack(pairs).cpu().view(2, 2)
        gradient = torch.stack([mean.mean() for mean in means]).cpu() - self.targets
        step = torch.linalg.solve(hessian + 1e-10 * torch.eye(2, dtype=torch.float64), gradient)
        before = total.mean().cpu() - weights @ self.targets
        most = before + ROUNDING * (1 + before.abs())
        for _ in range(30):
            if self.at(weights - step) <= most:
                return step
            step = step / 2
        return torch.zeros_like(step)
