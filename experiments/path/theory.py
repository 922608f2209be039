r"""Margin against energy: along the scaled closed-form code, and the largest margin of any code.

Notation of :mod:`certvae.theory.witness`; ``p`` is the witness's prior, rows are N data points, and energies are
``E |mu|^2 / 2`` at scale 1 over the coordinates that the witness reads: a code at scale ``s`` needs ``1 / s^2`` of it
for the same answers, so every curve here holds for all scales.

**Along the path.** The code ``t mu*(T)`` answers :math:`S_t \propto p^{1-t} T^t`, at energy :math:`t^2 E`. With
:math:`\Lambda_t(x) = \log \sum_k p_k^{1-t} T_k^t`,

.. math:: M(t) = t\, E\,KL(T \| p) - KL(\bar T \| p) - E\,\Lambda_t

:math:`\Lambda_t` is convex in t with :math:`\Lambda_0 = \Lambda_1 = 0` and slope :math:`KL(T \| p)` at 1, so M is
concave, :math:`M(0) = -KL(\bar T \| p)` (0 when the prior is the average teacher), its slope at 0 is
:math:`E[KL(T \| p) + KL(p \| T)]`, and its maximum is :math:`M(1) = I_T`. Beyond t = 1 the witness is overconfident.

**The frontier.** For a price :math:`\lambda > 0`, :math:`KL(T \| S(\mu)) + \lambda |\mu|^2 / 2` is strictly convex in
the code. Let its minimizers have the mean margin :math:`M_\lambda` and energy :math:`E_\lambda`. Then every code of
every encoder on the same rows, with margin M and energy E, has

.. math:: M \le M_\lambda + \lambda (E - E_\lambda)

because its :math:`A + \lambda E` is at least that of the minimizers, and :math:`M = I_T - A`. At :math:`E = E_\lambda`
this is an equality for the minimizers: no code with that energy has a larger margin.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from certvae.theory.information import margin
from certvae.theory.witness import SimplexWitness, simplex_basis

__all__ = ["cheapest_codes", "frontier", "most_margin", "path"]

Point = tuple[float, float]  # energy at scale 1 and margin, nats
_STEPS = 100
_HALVINGS = 30


def path(teacher: Tensor, prior: Tensor | None, fractions: Sequence[float]) -> list[Point]:
    """Energy and exact margin of the codes ``t mu*(T)``.

    Args:
        teacher: positive teacher probabilities, shape ``(N, K)``.
        prior: the witness's distribution at the zero code, shape ``(K,)``; None: the uniform distribution.
        fractions: values of t.
    """
    witness = SimplexWitness(teacher.shape[1], teacher.shape[1] - 1, 1.0, prior)
    codes = witness.inverse(teacher)
    return [_point(witness, teacher, t * codes) for t in fractions]


def frontier(teacher: Tensor, prior: Tensor | None, prices: Sequence[float]) -> list[Point]:
    """Energy and margin of the cheapest codes at each price; arguments as for :func:`path`."""
    witness = SimplexWitness(teacher.shape[1], teacher.shape[1] - 1, 1.0, prior)
    codes, points = torch.zeros_like(witness.inverse(teacher)), {}
    for price in sorted(prices, reverse=True):  # each start is near the next optimum
        codes = cheapest_codes(witness, teacher, price, codes)
        points[price] = _point(witness, teacher, codes)
    return [points[price] for price in prices]


def most_margin(energy: float, prices: Sequence[float], points: Sequence[Point]) -> float:
    """Upper bound on the margin of every code with an energy, from the frontier's points at some prices; nats."""
    return min(margin + price * (energy - at) for price, (at, margin) in zip(prices, points, strict=True))


def cheapest_codes(witness: SimplexWitness, teacher: Tensor, price: float, start: Tensor) -> Tensor:
    """Codes that minimize ``KL(T || S) + price |mu|^2 / 2`` in each row, by Newton's method with halved steps.

    Args:
        witness: with scale 1 and exactly K - 1 coordinates.
        teacher: positive teacher probabilities, shape ``(N, K)``.
        price: above 0.
        start: codes to start from, shape ``(N, K - 1)``.

    Raises:
        ValueError: if ``price`` is not positive.
        RuntimeError: if the minimum is not reached.
    """
    if not price > 0:
        raise ValueError(f"`price` must be above 0, got {price}.")
    codes = start
    for _ in range(_STEPS):
        gradient = witness.alignment_gradient(codes, teacher) + price * codes
        if float(gradient.abs().max()) < 1e-9:
            return codes
        step = torch.linalg.solve(_curvature(witness, codes, price), gradient)
        codes = _descend(witness, teacher, price, codes, step)
    raise RuntimeError(f"the cheapest codes at price {price} were not found in {_STEPS} Newton steps.")


def _curvature(witness: SimplexWitness, codes: Tensor, price: float) -> Tensor:
    """Hessian of each row's cost, shape ``(N, K - 1, K - 1)``."""
    answers, basis = witness(codes).softmax(dim=1), simplex_basis(witness.num_components)
    mean = answers @ basis
    second = torch.einsum("nk,ki,kj->nij", answers, basis, basis)
    return second - mean[:, :, None] * mean[:, None, :] + price * torch.eye(mean.shape[1], dtype=mean.dtype)


def _descend(witness: SimplexWitness, teacher: Tensor, price: float, codes: Tensor, step: Tensor) -> Tensor:
    """Take each row's step, halved until its cost does not rise."""
    before, size = _cost(witness, teacher, price, codes), torch.ones(len(codes), 1, dtype=codes.dtype)
    for _ in range(_HALVINGS):
        rising = _cost(witness, teacher, price, codes - size * step) > before + 1e-13
        if not bool(rising.any()):
            break
        size = torch.where(rising[:, None], size / 2, size)
    return codes - size * step


def _cost(witness: SimplexWitness, teacher: Tensor, price: float, codes: Tensor) -> Tensor:
    cross = -(teacher * witness(codes).log_softmax(dim=1)).sum(dim=1)
    return cross + price * (codes**2).sum(dim=1) / 2


def _point(witness: SimplexWitness, teacher: Tensor, codes: Tensor) -> Point:
    return float((codes**2).sum(dim=1).mean() / 2), float(margin(teacher, witness(codes)))
