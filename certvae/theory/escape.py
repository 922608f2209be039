r"""The escape force: how hard the alignment term pulls on the codes, also where they have collapsed.

The force on a row is the length of the gradient of its alignment loss at its code. For the simplex witness that is
:math:`\text{scale} \cdot |S - T|`, because ``S - T`` sums to zero and the basis keeps its length: it needs no backward
pass and no decoder. It is a property of codes, teacher and witness; how far an encoder follows is another question.
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
    """Whether a witness says its alignment gradient in closed form, and has its parameters on this process."""
    sharded = any(hasattr(value, "full_tensor") for value in witness.parameters())
    return callable(getattr(witness, "alignment_gradient", None)) and not sharded


@torch.no_grad()
def escape_force(witness: nn.Module, latents: Tensor, probs: Any) -> Tensor:
    r"""Length of the gradient of each row's alignment loss at its code, :math:`|\nabla_z KL(T \| S(\cdot|z))|`.

    Args:
        witness: with a method ``alignment_gradient(latents, probs)``, such as :class:`certvae.SimplexWitness` or
            :class:`certvae.RawHead`.
        latents: codes, shape ``(N, latent_dim)``.
        probs: teacher probabilities, shape ``(N, K)``.

    Returns:
        Nats for each unit of the code, float64, shape ``(N,)``.

    Raises:
        TypeError: if the witness has no such method.
        ValueError: if shapes do not fit.
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
    """What adds up to a mean over rows: the weighted sum of :func:`escape_force`, and of the weights, shape ``(2,)``.

    Args:
        witness: as for :func:`escape_force`, as are the next two.
        latents: see there.
        probs: see there.
        weights: of the rows, shape ``(N,)``; None: all alike.

    Raises:
        TypeError: as :func:`escape_force` does.
        ValueError: as it does.
    """
    forces = escape_force(witness, latents, probs)
    weights = torch.ones_like(forces) if weights is None else weights.to(forces)
    return torch.stack([weights @ forces, weights.sum()])


def least_escape_force(probs: Any, scale: float) -> float:
    r"""The least mean force that any collapsed code can have under a simplex witness.

    .. math:: E\,|\nabla_z KL(T \| S(\cdot|c))| \ge \tfrac{\text{scale}}{\sqrt 2} \min_k \bar T_k \cdot I_T

    over the components that are used at all, for every constant code ``c``, every prior, and every number of
    coordinates. It is above 0 for every teacher that varies.

    Args:
        probs: teacher probabilities, shape ``(N, K)``.
        scale: of the witness.

    Returns:
        Nats for each unit of the code.

    Raises:
        TypeError: if ``probs`` are not an array of real numbers.
        ValueError: if they are not rows of probabilities, or there is none.
    """
    rows = as_probabilities(probs, "probs", may_be_empty=False)
    average = rows.mean(dim=0)
    return scale / math.sqrt(2) * float(average[average > 0].min()) * float(teacher_information(rows))
