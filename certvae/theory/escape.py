r"""The escape force: how strongly the alignment term pulls on the codes, collapsed codes included.

The force on a row is the length of the gradient of its alignment loss at its code. For the simplex witness it is
:math:`\text{scale} \cdot |S - T|`, because ``S - T`` sums to zero and the basis preserves its length. No backward pass
and no decoder are needed. The force is a property of codes, teacher and witness, not of the encoder.
Source of the name: the follow-up of the certificate's paper, https://arxiv.org/abs/2605.18224. The bound on the
collapsed manifold is ours; its proof is on the page Mathematics.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from certvae.theory.information import as_probabilities, teacher_information

__all__ = ["escape_force", "escape_force_sums", "has_escape_force", "least_escape_force"]


def has_escape_force(witness: nn.Module) -> bool:
    """Whether a witness has its alignment gradient in closed form, and its parameters are not sharded."""
    sharded = any(hasattr(value, "full_tensor") for value in witness.parameters())
    return callable(getattr(witness, "alignment_gradient", None)) and not sharded


@torch.no_grad()
def escape_force(witness: nn.Module, latents: Tensor, probs: Any) -> Tensor:
    r"""Gradient norm of each row's alignment loss at its code, :math:`|\nabla_z KL(T \| S(\cdot|z))|`.

    Args:
        witness: with a method ``alignment_gradient(latents, probs)``, such as :class:`certvae.SimplexWitness` or
            :class:`certvae.RawHead`.
        latents: codes, shape ``(N, latent_dim)``.
        probs: teacher probabilities, shape ``(N, K)``.

    Returns:
        Nats per unit of the code, float64, shape ``(N,)``.

    Raises:
        TypeError: if the witness has no such method.
        ValueError: if shapes do not match.
    """
    gradient = getattr(witness, "alignment_gradient", None)
    if not callable(gradient):
        raise TypeError(
            f"`witness` must have a method `alignment_gradient(latents, probs)`, got {type(witness).__name__}. Use a "
            "SimplexWitness or a RawHead, or give yours the method."
        )
    forces: Tensor = gradient(latents, probs).norm(dim=1)
    return forces


def escape_force_sums(witness: nn.Module, latents: Tensor, probs: Any, weights: Tensor | None) -> Tensor:
    """Weighted sum of :func:`escape_force` and sum of the weights, shape ``(2,)``; their ratio is the mean force.

    Args:
        witness: see :func:`escape_force`.
        latents: codes, shape ``(N, latent_dim)``.
        probs: teacher probabilities, shape ``(N, K)``.
        weights: of the rows, shape ``(N,)``; None: all 1.

    Raises:
        TypeError: see :func:`escape_force`.
        ValueError: see :func:`escape_force`.
    """
    forces = escape_force(witness, latents, probs)
    weights = torch.ones_like(forces) if weights is None else weights.to(forces)
    return torch.stack([weights @ forces, weights.sum()])


def least_escape_force(probs: Any, scale: float) -> float:
    r"""Lower bound on the mean force at any collapsed code under a simplex witness.

    .. math:: E\,|\nabla_z KL(T \| S(\cdot|c))| \ge \tfrac{\text{scale}}{\sqrt 2} \min_k \bar T_k \cdot I_T

    over the components with :math:`\bar T_k > 0`, for every constant code ``c``, every prior and every latent size. It
    is above 0 for every teacher that varies.

    Args:
        probs: teacher probabilities, shape ``(N, K)``.
        scale: of the witness.

    Returns:
        Nats per unit of the code.

    Raises:
        TypeError: if ``probs`` is not an array of real numbers.
        ValueError: if the rows are not probabilities, or there is no row.
    """
    rows = as_probabilities(probs, "probs", may_be_empty=False)
    average = rows.mean(dim=0)
    return scale / math.sqrt(2) * float(average[average > 0].min()) * float(teacher_information(rows))
