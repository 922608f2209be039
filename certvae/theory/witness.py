r"""The simplex witness: a fixed linear map from the latent code to component probabilities.

It has no parameters, so its answer can only come from the latent code. Source: the follow-up to the certificate's
paper, https://arxiv.org/abs/2605.18224; the prior is ours (see :class:`SimplexWitness`).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from certvae.theory.arguments import MAX_COMPONENTS, as_number, as_tensor, as_whole_number
from certvae.theory.information import as_probabilities

__all__ = [
    "SimplexWitness",
    "as_codes",
    "centered",
    "centered_log",
    "log_prior_of",
    "own_witness",
    "simplex_basis",
    "teacher_rows",
]


def simplex_basis(num_components: int) -> Tensor:
    r"""Orthonormal basis of the vectors that sum to zero (Helmert's basis).

    Column ``j`` is :math:`(1, \dots, 1, -j, 0, \dots, 0) / \sqrt{j (j + 1)}`.

    Args:
        num_components: K, at least 2.

    Returns:
        ``U``, float64, shape ``(K, K - 1)``, with ``U.T @ U = I`` and columns that sum to 0.

    Raises:
        TypeError: if ``num_components`` is not a whole number.
        ValueError: if it is below 2.
    """
    as_whole_number(num_components, "num_components", 2, MAX_COMPONENTS)
    basis = torch.zeros(num_components, num_components - 1, dtype=torch.float64)
    for j in range(1, num_components):
        basis[:j, j - 1] = 1.0
        basis[j, j - 1] = -j
        basis[:, j - 1] /= math.sqrt(j * (j + 1))
    return basis


def centered_log(probs: Tensor) -> Tensor:
    r""":math:`c(p) = \log p - \frac1K \sum_k \log p_k`, the centered log-ratio (Aitchison, 1982).

    Args:
        probs: positive probabilities, shape ``(..., K)``.
    """
    return centered(probs.log())


def centered(values: Tensor) -> Tensor:
    """Values minus their mean over the last axis."""
    return values - values.mean(dim=-1, keepdim=True)


class SimplexWitness(nn.Module):
    r"""Fixed witness :math:`S(\cdot|z) = softmax(\text{scale} \cdot z_{1..K-1} U^T + \log \text{prior})`.

    ``U`` is an orthonormal basis of the sum-zero subspace. With ``prior`` the answer to the collapsed code ``z = 0`` is
    the prior; if it is the teacher's average, a collapsed code has margin 0. Without ``prior`` the answer to ``z = 0``
    is the uniform distribution, as in arXiv 2605.18224.

    Args:
        num_components: K, at least 2.
        latent_dim: size of the latent, at least ``K - 1``; only the first ``K - 1`` coordinates are read.
        scale: factor of the code, from 1e-15 to 1e15. A larger scale makes codes cheaper on the mean path and logits
            noisier on draws.
        prior: positive probabilities that the witness answers at ``z = 0``, shape ``(K,)``; default uniform.

    Raises:
        TypeError: if an argument is not a number, or ``prior`` is not an array of numbers.
        ValueError: if a size is too small, ``scale`` is not from 1e-15 to 1e15, or a probability of ``prior`` is not
            above 0.
    """

    def __init__(
        self,
        num_components: int,
        latent_dim: int,
        scale: float = 2.0,
        prior: Tensor | list[float] | None = None,
    ) -> None:
        super().__init__()
        num_components = as_whole_number(num_components, "num_components", 2, MAX_COMPONENTS)
        latent_dim = as_whole_number(latent_dim, "latent_dim", 1)
        if latent_dim < num_components - 1:
            raise ValueError(
                f"`latent_dim` must be at least num_components - 1 = {num_components - 1}, got {latent_dim}. "
                f"Enlarge the latent, or take a teacher with at most {latent_dim + 1} components: search one, or merge "
                "classes. InformationCallback needs no teacher, and measures a code of any size."
            )
        if not 1e-15 <= as_number(scale, "scale") <= 1e15:
            raise ValueError(f"`scale` must be positive and finite, from 1e-15 to 1e15, got {scale}.")
        self.num_components = num_components
        self.latent_dim = latent_dim
        self.scale = float(scale)
        # Not buffers: a module cast to bfloat16, or moved to a device without float64, must not round them.
        self._basis = simplex_basis(num_components)
        self._log_prior = log_prior_of(prior, num_components)
        self._cache: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def forward(self, latents: Tensor) -> Tensor:
        """Logits of the witness.

        Args:
            latents: codes of any float type, shape ``(..., latent_dim)``; computed in float32 or wider.

        Returns:
            Logits, shape ``(..., K)``; not finite for a code that is not finite.

        Raises:
            TypeError: if ``latents`` is not a tensor of floats.
            ValueError: if it does not have ``latent_dim`` coordinates, or is not dense.
        """
        codes = as_codes(latents, self.latent_dim)[..., : self.num_components - 1]
        with torch.autocast(codes.device.type, enabled=False):
            basis, log_prior = self._constants(codes)
            return self.scale * codes @ basis.T + log_prior

    def inverse(self, probs: Tensor) -> Tensor:
        r"""The code for which the witness answers ``probs`` exactly, so that the alignment loss is 0.

        .. math:: \mu^*(T) = U^T (c(T) - c(\text{prior})) / \text{scale}

        Args:
            probs: positive probabilities, shape ``(N, K)``.

        Returns:
            Codes, float64, shape ``(N, latent_dim)``; coordinates that the witness does not read are 0.

        Raises:
            TypeError: if ``probs`` is not an array of real numbers.
            ValueError: if they are not rows of K positive probabilities.
        """
        teacher = self._positive(probs)
        basis, log_prior = self._constants(teacher)
        codes = (centered_log(teacher) - centered(log_prior)) @ basis / self.scale
        return nn.functional.pad(codes, (0, self.latent_dim - self.num_components + 1))

    def energy(self, probs: Tensor) -> Tensor:
        r"""Part of the rate due to the mean of the inverse code, :math:`|c(T) - c(prior)|^2 / (2\, scale^2)`.

        Args:
            probs: positive probabilities, shape ``(N, K)``.

        Returns:
            Energy of each row in nats, float64, shape ``(N,)``.

        Raises:
            TypeError: if ``probs`` are not an array of real numbers.
            ValueError: if they are not rows of K positive probabilities.
        """
        teacher = self._positive(probs)
        prior = centered(self._constants(teacher)[1])
        return ((centered_log(teacher) - prior) ** 2).sum(dim=-1) / (2 * self.scale**2)

    def alignment_gradient(self, latents: Tensor, probs: Tensor) -> Tensor:
        r"""Gradient of each row's alignment loss at its code: :math:`\text{scale} \cdot (S - T) U`, in closed form.

        At the collapsed code it is zero only if the teacher equals the prior.

        Args:
            latents: codes, shape ``(N, latent_dim)``.
            probs: teacher probabilities, shape ``(N, K)``.

        Returns:
            Gradient in nats per unit of the code, float64, shape ``(N, latent_dim)``.

        Raises:
            TypeError: if an argument does not hold real numbers.
            ValueError: if shapes do not match, or ``probs`` are not probabilities.
        """
        answers = self(latents)
        teacher = teacher_rows(probs, latents, self.num_components)
        difference = answers.softmax(dim=-1).to(teacher) - teacher
        gradient = self.scale * difference @ self._constants(difference)[0]
        return nn.functional.pad(gradient, (0, self.latent_dim - self.num_components + 1))

    def _positive(self, probs: Any) -> Tensor:
        teacher = teacher_rows(probs, None, self.num_components)
        if bool((teacher <= 0).any()):
            raise ValueError("`probs` must be positive for a finite code; floor them: (1 - floor) * T + floor / K.")
        return teacher

    @property
    def prior(self) -> Tensor:
        """The distribution that the witness answers at ``z = 0``, float64, shape ``(K,)``."""
        return self._log_prior.exp()

    def _constants(self, like: Tensor) -> tuple[Tensor, Tensor]:
        key = (like.device, like.dtype)
        if key not in self._cache:
            with torch.inference_mode(False):  # inference tensors of Lightning's `validate` could not be trained with
                constants = (self._basis, self._log_prior)
                basis, log_prior = (value.to(like.dtype).to(like.device) for value in constants)
            self._cache[key] = (basis, log_prior)
        return self._cache[key]

    def extra_repr(self) -> str:
        return f"num_components={self.num_components}, latent_dim={self.latent_dim}, scale={self.scale:g}"


def own_witness(module: nn.Module, num_components: int) -> nn.Module | None:
    """The module's attribute ``witness``; None if it is not a module or has another number of components."""
    witness = getattr(module, "witness", None)
    ours = callable(getattr(witness, "alignment_gradient", None))
    if ours and getattr(witness, "num_components", num_components) != num_components:
        return None
    return witness if isinstance(witness, nn.Module) else None


def as_codes(latents: Tensor, latent_dim: int) -> Tensor:
    """Checked codes in float32 or wider.

    Args:
        latents: codes of any float type, shape ``(..., latent_dim)``.
        latent_dim: required number of coordinates.

    Raises:
        TypeError: if ``latents`` is not a tensor of floats.
        ValueError: if it does not have ``latent_dim`` coordinates, or is not dense.
    """
    if not (isinstance(latents, Tensor) and latents.is_floating_point()):
        raise TypeError(f"`latents` must be a tensor of floats, got {getattr(latents, 'dtype', type(latents))}.")
    if latents.ndim == 0 or latents.shape[-1] != latent_dim:
        came = latents.shape[-1] if latents.ndim else "one number"
        raise ValueError(f"`latents` must have {latent_dim} coordinates, got {came}.")
    if latents.layout != torch.strided:
        raise ValueError(f"`latents` must be dense, got {latents.layout}. Give latents.to_dense().")
    return latents.to(torch.promote_types(latents.dtype, torch.float32))


def teacher_rows(probs: Any, latents: Tensor | None, num_components: int) -> Tensor:
    """Checked teacher probabilities for a witness, float64, shape ``(N, K)``.

    Args:
        probs: shape ``(N, K)``.
        latents: the codes of these rows, shape ``(N, latent_dim)``; None skips the comparison of the row counts.
        num_components: K of the witness.

    Raises:
        TypeError: if ``probs`` is not an array of real numbers.
        ValueError: if the rows are not K probabilities, or ``probs`` and ``latents`` have different numbers of rows.
    """
    rows = as_probabilities(probs, "probs")
    if rows.shape[1] != num_components:
        raise ValueError(f"`probs` must have {num_components} components, got {rows.shape[1]}.")
    if latents is not None and latents.shape[:-1] != rows.shape[:-1]:
        raise ValueError(
            f"`latents` and `probs` must have the same rows, got {tuple(latents.shape)} and {tuple(rows.shape)}."
        )
    return rows


def log_prior_of(prior: Tensor | list[float] | None, num_components: int) -> Tensor:
    """Log-probabilities of a witness's prior, float64, shape ``(K,)``.

    Args:
        prior: positive probabilities, shape ``(K,)``; None: the uniform distribution.
        num_components: K.

    Raises:
        TypeError: if ``prior`` is not an array of real numbers.
        ValueError: if it does not hold K positive probabilities.
    """
    if prior is None:
        return torch.full((num_components,), -math.log(num_components), dtype=torch.float64)
    probs = as_probabilities(as_tensor(prior, "prior")[None], "prior")[0]
    if probs.shape[0] != num_components or bool((probs <= 0).any()):
        raise ValueError(
            f"`prior` must hold {num_components} positive probabilities, got {probs.shape[0]} with minimum "
            f"{probs.min():.3g}. Give the searched teacher's average, or a larger probability floor."
        )
    return probs.log()
