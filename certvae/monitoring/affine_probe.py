"""An affine map from codes to the teacher's components, fitted one batch of training rows at a time."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["AffineProbe"]

WINDOW = 10  # steps; codes drift while a model trains, so an average over more steps is less accurate
UNRESOLVED = 1e-6  # below this ratio of deviation to size, a coordinate's variation is float32 rounding


class AffineProbe(nn.Module):
    r"""Multinomial logistic regression with soft targets: ``logits = W (z - m) / s + b``.

    Adam (Kingma and Ba, 2015) minimizes the mean of :math:`-\sum_k T_k \log S_k`, with the closed-form gradient ``(S -
    T)^T z``. Codes are standardized with the mean ``m`` and deviation ``s`` of recent rows, so the scale of a code does
    not matter. Coordinates that do not vary are left out. The probe predicts with an average of its latest weights
    (Polyak and Juditsky, 1992), which removes most of the batch noise. Both averages are exponential, over a quarter of
    the steps so far and at most 10. While the code still changes fast the probe lags behind, so early margins are lower
    than the margin of the best affine map. All computation is in float64, in plain tensors that precision plugins and
    the module's optimizer do not see.

    Args:
        learning_rate: of Adam, above 0.

    Attributes:
        steps: number of batches that the probe was fitted on.

    Raises:
        ValueError: if ``learning_rate`` is not above 0.
    """

    def __init__(self, learning_rate: float = 0.05) -> None:
        super().__init__()
        if not 0 < learning_rate < float("inf"):
            raise ValueError(f"`learning_rate` must be above 0 and finite, got {learning_rate}.")
        self.learning_rate, self.steps = learning_rate, 0
        self._optimizer: torch.optim.Adam | None = None

    def _create(self, weights: Tensor, average: Tensor, sums: Tensor) -> torch.optim.Adam:
        self._weights, self._average, self._sums = weights, average, sums
        self._optimizer = torch.optim.Adam([weights], lr=self.learning_rate, betas=(0.9, 0.99))
        return self._optimizer

    def forward(self, codes: Tensor) -> Tensor:
        """Logits of codes ``(B, latent_dim)``, float64, shape ``(B, K)``; call :meth:`fit` first.

        Raises:
            ValueError: if the codes have another ``latent_dim`` than the fitted codes.
        """
        return self._features(codes.to(self._average)) @ self._average.T

    def _features(self, codes: Tensor) -> Tensor:
        """Standardized codes with a column of ones appended, shape ``(B, latent_dim + 1)``."""
        dim = self._weights.shape[1] - 1
        if codes.shape[1] != dim:
            raise ValueError(f"`latents` must have {dim} numbers per row, as in the fit, got {codes.shape[1]}.")
        count, total, squares = self._sums.split([1, dim, dim])
        mean, second = total / count.clamp(min=1), squares / count.clamp(min=1)
        variance = second - mean**2
        resolved = variance > UNRESOLVED**2 * second
        inverse = torch.where(resolved, variance, torch.inf).rsqrt()
        return nn.functional.pad((codes - mean) * inverse, (0, 1), value=1.0)

    @torch.no_grad()
    def fit(self, codes: Tensor, probs: Tensor, reduce: Callable[[Tensor], Tensor]) -> None:
        """Take one step on a batch of training rows.

        Args:
            codes: shape ``(B, latent_dim)``; the probe keeps float64 tensors on their device.
            probs: teacher probabilities, shape ``(B, K)``.
            reduce: sums a vector over processes; called once.

        Raises:
            ValueError: if the codes have another ``latent_dim`` than before.
        """
        codes, probs = codes.double(), probs.to(codes.device).double()
        if self._optimizer is None:
            zeros = torch.zeros(probs.shape[1], codes.shape[1] + 1, dtype=torch.float64, device=codes.device)
            self._create(zeros, zeros.clone(), zeros.new_zeros(1 + 2 * codes.shape[1]))
        features = self._features(codes)
        gradient = ((features @ self._weights.T).softmax(dim=1) - probs).T @ features
        rows = codes.new_tensor([float(len(codes))])
        batch = reduce(torch.cat([gradient.flatten(), rows, codes.sum(dim=0), (codes**2).sum(dim=0)]))
        # Skip rows that have diverged: the same on all processes, and without waiting for the device.
        batch = torch.where(batch.isfinite().all(), batch, torch.zeros_like(batch))
        self._step(*batch.split([gradient.numel(), len(self._sums)]))

    def _step(self, gradient: Tensor, sums: Tensor) -> None:
        assert self._optimizer is not None
        self._weights.grad = gradient.view_as(self._weights) / sums[0].clamp(min=1)
        self._optimizer.step()
        self.steps += 1
        keep = 1 - 1 / max(1.0, min(WINDOW, self.steps / 4))
        self._sums = keep * self._sums + sums
        self._average.lerp_(self._weights, 1 - keep)

    def state(self) -> dict[str, Any]:
        """Weights, sums and optimizer state as plain values and tensors; empty before the first :meth:`fit`."""
        if self._optimizer is None:
            return {}
        return deepcopy(
            {
                "steps": self.steps,
                "weights": self._weights.detach(),
                "average": self._average,
                "sums": self._sums,
                "optimizer": self._optimizer.state_dict(),
            }
        )

    @torch.inference_mode(False)  # a separate validation may load the state, and a later fit continue from it
    def load(self, state: dict[str, Any], device: torch.device) -> None:
        """Continue from a :meth:`state`, on a device with float64."""
        if state:
            self.steps = state["steps"]
            tensors = (state[name].to(device, copy=True) for name in ("weights", "average", "sums"))
            self._create(*tensors).load_state_dict(deepcopy(state["optimizer"]))
