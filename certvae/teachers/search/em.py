"""Expectation-maximization (EM) of a diagonal or spherical Gaussian mixture on additive sums."""

from typing import Any

import torch
from torch import Tensor

from certvae.teachers.mixture import gaussian_log_joint

__all__ = ["COVARIANCES", "MixtureEM"]

COVARIANCES = ("diagonal", "spherical")
_PARAMETERS = ("log_weights", "means", "variances", "covariance", "variance_floor")
_RESULTS = ("log_likelihood", "gain", "restarted")
_NEGLIGIBLE = (
    -500.0
)  # nats below the largest; processors are many times slower with numbers near the smallest of float64


class MixtureEM:
    """One mixture that learns from a stream: each pass over the data is one EM iteration.

    Source: Dempster, Laird and Rubin, 1977; the M step is that of scikit-learn's ``GaussianMixture``.

    Args:
        log_weights: log mixture weights, shape ``(K,)``.
        means: component means, shape ``(K, d)``.
        variances: component variances, shape ``(K, d)``.
        covariance: ``"diagonal"`` or ``"spherical"``.
        variance_floor: added to every variance, in squared units of the features.

    Attributes:
        log_likelihood: mean log-likelihood of a row in nats under the parameters before the last step.
        gain: increase of the log-likelihood in the last step, nats a row.
        restarted: number of empty components that were restarted, over all steps.
    """

    def __init__(
        self,
        log_weights: Tensor,
        means: Tensor,
        variances: Tensor,
        covariance: str = "diagonal",
        variance_floor: float = 1e-6,
    ) -> None:
        if covariance not in COVARIANCES:
            raise ValueError(f"`covariance` must be one of {', '.join(COVARIANCES)}, got {covariance!r}.")
        self.log_weights, self.means, self.variances = log_weights, means, variances
        self.covariance = covariance
        self.variance_floor = variance_floor
        self.log_likelihood = -float("inf")
        self.gain = float("inf")
        self.restarted = 0
        self.sums = self._zeros()

    @classmethod
    def from_sample(
        cls, sample: Tensor, num_components: int, covariance: str, seed: int, variance_floor: float = 1e-6
    ) -> "MixtureEM":
        """Start from k-means (with k-means++ seeding, Arthur and Vassilvitskii, 2007) on a sample of rows.

        Args:
            sample: rows of features, shape ``(m, d)`` with ``m >= K``.
            num_components: K.
            covariance: ``"diagonal"`` or ``"spherical"``.
            seed: of the k-means.
            variance_floor: added to every variance.
        """
        from sklearn.cluster import KMeans

        if sample.shape[0] < num_components:
            raise ValueError(f"a mixture of {num_components} components needs as many rows, got {sample.shape[0]}.")
        rows = sample.cpu()
        labels = torch.from_numpy(KMeans(num_components, n_init=1, random_state=seed).fit(rows.numpy()).labels_)
        mixture = cls(*_uniform_start(rows, num_components), covariance, variance_floor)
        mixture._maximize(torch.nn.functional.one_hot(labels.long(), num_components).double(), rows)
        return mixture.to(sample.device)

    def to(self, device: torch.device) -> "MixtureEM":
        """Move parameters and sums."""
        self.log_weights, self.means = self.log_weights.to(device), self.means.to(device)
        self.variances, self.sums = self.variances.to(device), self.sums.to(device)
        return self

    def state_dict(self) -> dict[str, Any]:
        """Everything but the sums of the current pass, as tensors and plain values."""
        return {name: getattr(self, name) for name in (*_PARAMETERS, *_RESULTS)}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any], sums: Tensor) -> "MixtureEM":
        """Rebuild from the output of :meth:`state_dict` and the sums of the current pass."""
        mixture = cls(*(state[name] for name in _PARAMETERS))
        for name in _RESULTS:
            setattr(mixture, name, state[name])
        mixture.sums = sums
        return mixture

    def _zeros(self) -> Tensor:
        components, dim = self.means.shape
        return torch.zeros(2 + components * (1 + 2 * dim), dtype=torch.float64, device=self.means.device)

    def log_joint(self, features: Tensor) -> Tensor:
        """Log of weight times density for each row and component, shape ``(B, K)``."""
        return gaussian_log_joint(features, self.log_weights, self.means, self.variances)

    def accumulate(self, features: Tensor) -> None:
        """E step: add rows of features, float64, shape ``(B, d)``."""
        log_joint = self.log_joint(features)
        largest = log_joint.amax(dim=1, keepdim=True)
        shares = log_joint.sub_(largest).clamp_(min=_NEGLIGIBLE).exp_()
        total = shares.sum(dim=1, keepdim=True)
        self.sums += _sufficient(shares.div_(total), features, (largest + total.log()).sum())

    def step(self, sums: Tensor) -> None:
        """M step, with the sums of all processes."""
        previous = self.log_likelihood
        self.log_likelihood = float(sums[1] / sums[0])
        self.gain = self.log_likelihood - previous
        self._set_parameters(sums)
        self.sums = self._zeros()

    def _maximize(self, responsibilities: Tensor, features: Tensor) -> None:
        self._set_parameters(_sufficient(responsibilities, features, torch.zeros((), dtype=torch.float64)))

    def _set_parameters(self, sums: Tensor) -> None:
        components, dim = self.means.shape
        size = components * dim
        _, mass, first, second = sums.split([2, components, size, size])
        # The same guard against division by zero as scikit-learn's.
        mass = mass + 10 * torch.finfo(torch.float64).eps
        means = first.view(components, dim) / mass[:, None]
        variances = (second.view(components, dim) / mass[:, None] - means**2).clamp(min=0)
        if self.covariance == "spherical":
            variances = variances.mean(dim=1, keepdim=True).expand(components, dim).clone()
        self.means, self.variances = means, variances + self.variance_floor
        self.log_weights = (mass / mass.sum()).log()
        self._restart_empty(mass)

    def _restart_empty(self, mass: Tensor) -> None:
        """Restart a component with less than one row: split the heaviest component along its widest direction."""
        for empty in (mass < 1).nonzero().flatten().tolist():
            heavy = int(self.log_weights.argmax())
            self.restarted += 1
            offset = torch.zeros_like(self.means[heavy])
            widest = int(self.variances[heavy].argmax())
            offset[widest] = self.variances[heavy, widest].sqrt()
            self.means[empty] = self.means[heavy] + offset
            self.means[heavy] = self.means[heavy] - offset
            self.variances[empty] = self.variances[heavy]
            half = self.log_weights[heavy] - torch.log(torch.tensor(2.0, dtype=torch.float64))
            self.log_weights[empty] = self.log_weights[heavy] = half
        self.log_weights = self.log_weights.log_softmax(dim=0)


def _uniform_start(rows: Tensor, num_components: int) -> tuple[Tensor, Tensor, Tensor]:
    dim = rows.shape[1]
    weights = torch.zeros(num_components, dtype=torch.float64).log_softmax(dim=0)
    return (
        weights,
        torch.zeros(num_components, dim, dtype=torch.float64),
        torch.ones(num_components, dim, dtype=torch.float64),
    )


def _sufficient(responsibilities: Tensor, features: Tensor, likelihood: Tensor) -> Tensor:
    """Rows, log-likelihood, and the mass, first and second moments of each component, as one vector."""
    count = torch.tensor(float(features.shape[0]), dtype=torch.float64, device=features.device)
    first, second = responsibilities.T @ features, responsibilities.T @ features**2
    head = torch.stack([count, likelihood])
    return torch.cat([head, responsibilities.sum(dim=0), first.flatten(), second.flatten()])
