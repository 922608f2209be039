r"""Bounds on the margin of a code whose encoder sees another view of the image than the teacher.

``X`` is the clean image, ``V`` its view (a random function of X), ``k ~ T(.|X)`` the teacher's component, and Z a code
made of V alone, so that :math:`k - X - V - Z`. Let :math:`\tilde T(v) = E[T(\cdot|X) | V = v]`.

**The gap, exactly.** Whatever answers ``S(.|V)`` from the view, fixed or through a code,

.. math:: margin(S) = \underbrace{I_T - C}_{I(k; V)} - E\,KL(\tilde T(V) \| S(V)), \qquad
    C = E\,KL(T(\cdot|X) \| \tilde T(V)) = I(k; X | V) \ge 0

Proof: :math:`E\,KL(T \| S)` is :math:`E \sum_k T_k (\log T_k - \log \tilde T_k)`, which is C, plus
:math:`E \sum_k T_k (\log \tilde T_k - \log S_k)`, where all but T is a function of V, so that T may be replaced by its
mean given V: it is :math:`E\,KL(\tilde T \| S)`. By the chain rule
:math:`I_T = I(k; X) = I(k; X, V) = I(k; V) + I(k; X | V)`.

So :math:`I_T - C` is the most that any encoder of views can have, and it is reached only by :math:`\tilde T`.

**The computable side.** Every fixed answer ``w(V)`` bounds the gap,
:math:`0 \le C \le G_w = E\,KL(T(X) \| w(V))`, hence

.. math:: I_T - G_w \le I(k; V) \le I_T

With the teacher's own answers on the views, :math:`w = T(\cdot|V)`, :math:`G_w` is the divergence between the
teacher's answers on the two views, and :math:`I_T - G_w` is the margin of an encoder that sends V to the closed-form
code of ``T(.|V)``. With a scale and a prior weight fitted on training rows it is usually tighter, and as valid.

**What cannot be computed.** C needs :math:`\tilde T`, and from a finite sample of continuous views, which never repeat,
only upper bounds on C follow here: :math:`G_w` says what can surely be had, never that more cannot. The bound from
above on the attainable margin is data processing, :math:`I(k; V) \le \min(I_T, I(X; V))`, where :math:`I(X; V)` has a
computable bound for Gaussian noise only (:func:`noise_information`). The margin that a *trained* encoder loses against
one trained on clean images is C plus the difference of their misfits, so :math:`G_w` does not bound it by theorem.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["covariance_of", "noise_information"]


def noise_information(covariance: Tensor, std: float) -> float:
    r"""Upper bound on the information between X and its view ``X + std * noise``, clipped or not; nats.

    .. math:: I(X; V) \le \tfrac12 \log\det(I + \Sigma / s^2)

    A Gaussian has the most entropy of all V with the same covariance, and clipping is data processing. It holds for the
    population with this covariance; with the covariance of a sample it is an estimate of it.

    Args:
        covariance: covariance of X, float64, shape ``(D, D)``.
        std: standard deviation of the noise, above 0.
    """
    return float(torch.linalg.slogdet(torch.eye(len(covariance), dtype=torch.float64) + covariance / std**2)[1]) / 2


def covariance_of(batches: Iterable[Tensor]) -> Tensor:
    """Covariance of the rows of batches ``(B, ...)``, float64, shape ``(D, D)``."""
    count, total, square = 0, torch.zeros(()), torch.zeros(())
    for batch in batches:
        rows = batch.flatten(start_dim=1).double()
        count, total, square = count + len(rows), total + rows.sum(dim=0), square + rows.T @ rows
    mean = total / count
    return square / count - mean[:, None] * mean
