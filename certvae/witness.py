r"""The simplex witness: a fixed linear map from the latent code to component probabilities.

It has no parameters, so nothing but the latent can carry the answer. Source: the follow-up of the certificate's
paper, https://arxiv.org/abs/2605.18224; the prior is ours (see :class:`SimplexWitness`).
"""

import math

import torch
from torch import Tensor, nn

from certvae.information import as_probabilities

__all__ = ["SimplexWitness", "centred", "centred_log", "own_witness", "simplex_basis"]


def simplex_basis(num_components: int) -> Tensor:
    r"""Helmert's orthonormal basis of the vectors that sum to zero.

    Column ``j`` is :math:`(1, \dots, 1, -j, 0, \dots, 0) / \sqrt{j (j + 1)}`.

    Args:
        num_components: K, at least 2.

    Returns:
        ``U``, float64, shape ``(K, K - 1)``, with ``U.T @ U = I`` and columns that sum to 0.
    """
    basis = torch.zeros(num_components, num_components - 1, dtype=torch.float64)
    for j in range(1, num_components):
        basis[:j, j - 1] = 1.0
        basis[j, j - 1] = -j
        basis[:, j - 1] /= math.sqrt(j * (j + 1))
    return basis


def centred_log(probs: Tensor) -> Tensor:
    r""":math:`c(p) = \log p - \frac1K \sum_k \log p_k`, the centred log-ratio (Aitchison, 1982).

    Args:
        probs: positive probabilities, shape ``(..., K)``.
    """
    return centred(probs.log())


def centred(values: Tensor) -> Tensor:
    """Values minus their mean over the last axis."""
    return values - values.mean(dim=-1, keepdim=True)


class SimplexWitness(nn.Module):
    r"""Fixed witness :math:`S(\cdot|z) = softmax(\text{scale} \cdot z_{1..K-1} U^T + \log \text{prior})`.

    ``U`` is an orthonormal basis of the sum-zero subspace. With ``prior`` the collapsed code ``z = 0`` answers the
    prior; if that is the teacher's average, collapse lands exactly on the threshold of the certificate. Without
    it ``z = 0`` answers the uniform distribution, as in arXiv 2605.18224.

    Args:
        num_components: K, at least 2.
        latent_dim: size of the latent, at least ``K - 1``; only the first ``K - 1`` coordinates are read.
        scale: positive factor of the code. Larger makes codes cheaper on the mean path and noisier on the channel.
        prior: positive probabilities that the zero code answers, shape ``(K,)``; default uniform.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        num_components: int,
        latent_dim: int,
        scale: float = 2.0,
        prior: Tensor | list[float] | None = None,
    ) -> None:
        super().__init__()
        if num_components < 2:
            raise ValueError(f"`num_components` must be at least 2, got {num_components}.")
        if latent_dim < num_components - 1:
            raise ValueError(
                f"`latent_dim` must be at least num_components - 1 = {num_components - 1}, got {latent_dim}. "
                "Enlarge the latent or search a teacher with fewer components."
            )
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"`scale` must be positive and finite, got {scale}.")
        self.num_components = num_components
        self.latent_dim = latent_dim
        self.scale = float(scale)
        # Not buffers: a module cast to bfloat16, or moved to a device without float64, must not round them.
        self._basis = simplex_basis(num_components)
        self._log_prior = _log_prior(prior, num_components)
        self._cache: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def forward(self, latents: Tensor) -> Tensor:
        """Logits of the witness.

        Args:
            latents: codes of any float type, shape ``(..., latent_dim)``; computed in float32 or wider.

        Returns:
            Logits, shape ``(..., K)``.
        """
        if latents.shape[-1] != self.latent_dim:
            raise ValueError(f"`latents` must have {self.latent_dim} coordinates, got {latents.shape[-1]}.")
        codes = latents[..., : self.num_components - 1]
        codes = codes.to(torch.promote_types(codes.dtype, torch.float32))
        with torch.autocast(codes.device.type, enabled=False):
            basis, log_prior = self._constants(codes)
            return self.scale * codes @ basis.T + log_prior

    def inverse(self, probs: Tensor) -> Tensor:
        r"""The code that makes the witness answer ``probs``; alignment loss 0.

        .. math:: \mu^*(T) = U^T (c(T) - c(\text{prior})) / \text{scale}

        Args:
            probs: positive probabilities, shape ``(N, K)``.

        Returns:
            Codes, float64, shape ``(N, latent_dim)``; coordinates that the witness does not read are 0.

        Raises:
            ValueError: if a probability is 0.
        """
        teacher = _positive(probs)
        basis, log_prior = self._constants(teacher)
        codes = (centred_log(teacher) - centred(log_prior)) @ basis / self.scale
        return nn.functional.pad(codes, (0, self.latent_dim - self.num_components + 1))

    def energy(self, probs: Tensor) -> Tensor:
        r"""Rate that the inverse code costs through its mean, :math:`|c(T) - c(prior)|^2 / (2\, scale^2)`.

        Args:
            probs: positive probabilities, shape ``(N, K)``.

        Returns:
            Energy of each row in nats, float64, shape ``(N,)``.
        """
        teacher = _positive(probs)
        prior = centred(self._constants(teacher)[1])
        return ((centred_log(teacher) - prior) ** 2).sum(dim=-1) / (2 * self.scale**2)

    def alignment_gradient(self, latents: Tensor, probs: Tensor) -> Tensor:
        r"""Gradient of the row's alignment loss by its code: :math:`\text{scale} \cdot (S - T) U`, in closed form.

        It is not zero at the collapsed code for any teacher that differs from the prior.

        Args:
            latents: codes, shape ``(N, latent_dim)``.
            probs: teacher probabilities, shape ``(N, K)``.

        Returns:
            Gradient, shape ``(N, latent_dim)``.
        """
        difference = self(latents).softmax(dim=-1) - probs
        gradient = self.scale * difference @ self._constants(difference)[0]
        return nn.functional.pad(gradient, (0, self.latent_dim - self.num_components + 1))

    @property
    def prior(self) -> Tensor:
        """The distribution that the zero code answers, float64, shape ``(K,)``."""
        return self._log_prior.exp()

    def _constants(self, like: Tensor) -> tuple[Tensor, Tensor]:
        key = (like.device, like.dtype)
        if key not in self._cache:
            with torch.inference_mode(False):  # Lightning's `validate` would leave tensors that cannot be trained with
                constants = (self._basis, self._log_prior)
                basis, log_prior = (value.to(like.dtype).to(like.device) for value in constants)
            self._cache[key] = (basis, log_prior)
        return self._cache[key]

    def extra_repr(self) -> str:  # noqa: D102
        return f"num_components={self.num_components}, latent_dim={self.latent_dim}, scale={self.scale:g}"


def own_witness(module: nn.Module, num_components: int) -> nn.Module | None:
    """The module's attribute ``witness``, unless it belongs to a teacher with other components."""
    witness = getattr(module, "witness", None)
    if isinstance(witness, SimplexWitness) and witness.num_components != num_components:
        return None
    return witness if isinstance(witness, nn.Module) else None


def _log_prior(prior: Tensor | list[float] | None, num_components: int) -> Tensor:
    if prior is None:
        return torch.full((num_components,), -math.log(num_components), dtype=torch.float64)
    probs = as_probabilities(torch.as_tensor(prior, dtype=torch.float64)[None], "prior")[0]
    if probs.shape[0] != num_components or bool((probs <= 0).any()):
        raise ValueError(
            f"`prior` must hold {num_components} positive probabilities, got {probs.shape[0]} with minimum "
            f"{probs.min():.3g}. Give the searched teacher's average, or a larger probability floor."
        )
    return probs.log()


def _positive(probs: Tensor) -> Tensor:
    teacher = as_probabilities(probs, "probs")
    if bool((teacher <= 0).any()):
        raise ValueError("`probs` must be positive for a finite code; floor them: (1 - floor) * T + floor / K.")
    return teacher
