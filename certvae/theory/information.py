r"""Information quantities of a teacher and a witness, as pure functions in float64.

Arguments typed ``Any`` may be arrays or tensors of any float type; they are checked and detached. :func:`entropy`,
:func:`kl_divergence` and :func:`floor_log_probabilities` expect checked tensors, and keep their dtype and graph.

Everything is in nats. Axes: N rows (data points), K components. ``T`` is the teacher, ``S`` the witness,
``Tbar`` the average teacher over the rows. The threshold of the certificate is Zhang, Peng and Zhang, 2026,
*A Testable Certificate for Constant Collapse in Teacher-Guided VAEs*, https://arxiv.org/abs/2605.05813.
"""

import math
from typing import Any

import torch
from torch import Tensor

from certvae.theory.arguments import MAX_NATS, as_float64, as_fraction, as_tensor

__all__ = [
    "alignment_loss",
    "as_logits",
    "as_pair",
    "as_probabilities",
    "best_constant_student",
    "constant_student_loss",
    "entropy",
    "floor_log_probabilities",
    "kl_divergence",
    "margin",
    "rows_of_a_block",
    "teacher_information",
    "witness_information",
    "x_log_x",
]

_HALF = (torch.float16, torch.bfloat16)
_BLOCK = 2**16  # numbers of an array


def as_probabilities(probs: Any, name: str = "teacher_probs", may_be_empty: bool = True) -> Tensor:
    """Check rows of probabilities and return them in float64, normalized to sum to one exactly.

    Args:
        probs: array or tensor of any float type, shape ``(N, K)`` with ``K >= 2``.
        name: the argument's name, for the error.
        may_be_empty: whether there may be no row.

    Returns:
        Probabilities, float64, shape ``(N, K)``.

    Raises:
        TypeError: if it is not an array of real numbers.
        ValueError: if it is not dense, the shape is not ``(N, K >= 2)``, a value is negative or NaN, or a row does
            not sum to one within 1e-4 (1e-2 for 16-bit input).
    """
    given = as_tensor(probs, name)
    values = _as_rows(given, name, may_be_empty)
    tolerance = 1e-2 if given.dtype in _HALF else 1e-4
    probabilities, sums = torch.empty_like(values), values.new_empty(len(values), 1)
    sound = torch.empty(len(values), dtype=torch.bool, device=values.device)
    size = rows_of_a_block(values)
    for block, into, total, fine in zip(
        *(each.split(size) for each in (values, probabilities, sums, sound)), strict=True
    ):
        torch.sum(block, dim=1, keepdim=True, out=total)
        torch.div(block, total, out=into)
        fine[:] = (block.amin(dim=1) >= 0) & ((total[:, 0] - 1).abs() <= tolerance)
    if not bool(sound.all()):
        row = int((~sound).nonzero()[0, 0])
        raise ValueError(
            f"`{name}` must hold non-negative rows that sum to 1, got row {row} with minimum "
            f"{values[row].min():.4g} and sum {sums[row, 0]:.4g}. Apply a softmax to logits first."
        )
    return probabilities


def as_logits(logits: Any, name: str = "witness_logits", may_be_empty: bool = True) -> Tensor:
    """Check witness logits and return log-probabilities in float64.

    Args:
        logits: unnormalized log-probabilities of any float type, shape ``(N, K)`` with ``K >= 2``.
        name: the argument's name, for the error.
        may_be_empty: whether there may be no row.

    Returns:
        Log-probabilities (log-softmax of the logits), float64, shape ``(N, K)``.

    Raises:
        TypeError: if it is not an array of real numbers.
        ValueError: if it is not dense, the shape is not ``(N, K >= 2)``, a logit is NaN or infinite, or two logits of a
            row differ by more than 1e9.
    """
    values = _as_rows(as_tensor(logits, name), name, may_be_empty)
    log_probs, least = torch.empty_like(values), values.new_empty(len(values))
    size = rows_of_a_block(values)
    for block, into, low in zip(*(each.split(size) for each in (values, log_probs, least)), strict=True):
        torch.log_softmax(block, dim=1, out=into)
        torch.amin(into, dim=1, out=low)
    faulty = ~(least >= -MAX_NATS)
    if bool(faulty.any()):
        row = int(faulty.nonzero()[0, 0])
        raise ValueError(
            f"`{name}` must be finite, got row {row} = {values[row].tolist()[:8]}. An infinite logit, or one beyond "
            f"{MAX_NATS:g}, states certainty, which no finite data supports; clip the logits."
        )
    return log_probs


def rows_of_a_block(values: Tensor) -> int:
    """How many rows to work on at a time, at least 1: as many as fit into a processor's cache; all on a GPU."""
    return max(1, _BLOCK // values.shape[1] if values.device.type == "cpu" else len(values))


def _as_rows(values: Tensor, name: str, may_be_empty: bool) -> Tensor:
    if values.ndim != 2 or values.shape[1] < 2:
        raise ValueError(
            f"`{name}` must have shape (N, K) with at least 2 components, got shape {tuple(values.shape)}."
        )
    if not values.is_floating_point():
        raise ValueError(f"`{name}` must hold floating-point values, got {values.dtype}.")
    if values.shape[0] == 0 and not may_be_empty:
        raise ValueError(f"`{name}` must hold at least one row, got none.")
    return as_float64(values)


def floor_log_probabilities(log_probs: Tensor, floor: float) -> Tensor:
    r"""Log-probabilities after mixing in the uniform distribution, so that none is below ``floor / K``.

    .. math:: \log\left((1 - \epsilon) p_k + \epsilon / K\right)

    Args:
        log_probs: log-probabilities, shape ``(..., K)``.
        floor: share of the uniform distribution, in ``[0, 1)``; 0 changes nothing.

    Returns:
        Log-probabilities in nats, shape ``(..., K)``.

    Raises:
        ValueError: if ``floor`` is not in [0, 1).
    """
    share, components = as_fraction(floor, "floor"), log_probs.shape[-1]
    if share == 0:
        return log_probs
    if share < components * torch.finfo(log_probs.dtype).tiny:  # the sum of probabilities would underflow
        least = log_probs.new_tensor(math.log(share) - math.log(components))
        return torch.logaddexp(log_probs + math.log1p(-share), least)
    return ((1 - share) * log_probs.exp() + share / components).log()


def entropy(probs: Tensor) -> Tensor:
    r"""Shannon entropy :math:`-\sum_k p_k \log p_k` in nats over the last axis, with :math:`0 \log 0 = 0`."""
    return -x_log_x(probs).sum(dim=-1)


def x_log_x(probs: Tensor) -> Tensor:
    r""":math:`p \log p` of each number, 0 at 0; faster than ``xlogy``, whose logarithm is not vectorized."""
    return probs * probs.clamp(min=torch.finfo(probs.dtype).tiny).log()


def kl_divergence(probs: Tensor, log_student: Tensor) -> Tensor:
    r""":math:`KL(p \| s) = \sum_k p_k (\log p_k - \log s_k)` in nats over the last axis.

    Args:
        probs: probabilities, shape ``(..., K)``.
        log_student: log-probabilities, broadcastable to ``probs``.

    Returns:
        The divergence of each row, shape ``(...)``; zero probabilities contribute zero.
    """
    cross = torch.where(probs > 0, probs * log_student, torch.zeros_like(probs)).sum(dim=-1)
    return -entropy(probs) - cross


def best_constant_student(teacher_probs: Any) -> Tensor:
    r"""The constant distribution with the least alignment cost: the average teacher.

    .. math:: \bar T = \frac1N \sum_i T(\cdot|x_i) = \arg\min_q \frac1N \sum_i KL(T(\cdot|x_i) \| q)

    Source: arXiv 2605.05813 (the constant-student threshold); a Bregman centroid, Banerjee et al., 2005.

    Args:
        teacher_probs: shape ``(N, K)``.

    Returns:
        Probabilities, float64, shape ``(K,)``.
    """
    return as_probabilities(teacher_probs, may_be_empty=False).mean(dim=0)


def teacher_information(teacher_probs: Any) -> Tensor:
    r"""Mutual information of the data point and the teacher's component; the certificate's threshold.

    .. math:: I_T = H(\bar T) - \frac1N \sum_i H(T(\cdot|x_i)) = \frac1N \sum_i KL(T(\cdot|x_i) \| \bar T)

    It is exactly the cost of the best constant student. Source: arXiv 2605.05813.

    Args:
        teacher_probs: shape ``(N, K)``.

    Returns:
        Scalar in nats, between 0 and ``log K``.
    """
    return _spread(as_probabilities(teacher_probs, may_be_empty=False))


def _spread(probs: Tensor) -> Tensor:
    """``H(mean) - mean H`` in nats, at least 0 by concavity; a negative value from rounding becomes 0."""
    return (entropy(probs.mean(dim=0)) - entropy(probs).mean()).clamp(min=0)


def constant_student_loss(teacher_probs: Any, student: Any) -> Tensor:
    r"""Alignment loss in nats of a student that answers ``student`` for every input.

    .. math:: \frac1N \sum_i KL(T(\cdot|x_i) \| q) = I_T + KL(\bar T \| q) \ge I_T

    Args:
        teacher_probs: shape ``(N, K)``.
        student: probabilities of the constant answer, shape ``(K,)``.

    Returns:
        Scalar in nats; infinite if the student gives zero to a component that the teacher uses.
    """
    probs = as_probabilities(teacher_probs, may_be_empty=False)
    constant = as_probabilities(as_tensor(student, "student")[None], "student")[0]
    if constant.shape != probs.shape[1:]:
        raise ValueError(f"`student` must have shape ({probs.shape[1]},), got {tuple(constant.shape)}.")
    return kl_divergence(probs, constant.log()).mean()


def alignment_loss(teacher_probs: Any, witness_logits: Any) -> Tensor:
    r"""Mean KL divergence from the witness to the teacher, in nats.

    .. math:: A = \frac1N \sum_i KL(T(\cdot|x_i) \| S(\cdot|z_i))

    Args:
        teacher_probs: shape ``(N, K)``.
        witness_logits: unnormalized log-probabilities of the witness, shape ``(N, K)``.

    Returns:
        Scalar in nats, at least 0.
    """
    probs, log_witness = as_pair(teacher_probs, witness_logits, may_be_empty=False)
    return kl_divergence(probs, log_witness).mean()


def margin(teacher_probs: Any, witness_logits: Any) -> Tensor:
    r"""Raw-witness margin: by how many nats the witness beats the best constant student.

    .. math:: M = I_T - A = \frac1N \sum_i \sum_k T_{ik} (\log S_{ik} - \log \bar T_k) \le I(X; z)

    Positive means that the witness is not constant. It is the Barber-Agakov lower bound on the information
    between the component and the code. Source: arXiv 2605.05813; Barber and Agakov, 2003.

    Args:
        teacher_probs: shape ``(N, K)``.
        witness_logits: unnormalized log-probabilities of the witness, shape ``(N, K)``.

    Returns:
        Scalar in nats, at most the teacher information.
    """
    return teacher_information(teacher_probs) - alignment_loss(teacher_probs, witness_logits)


def witness_information(witness_logits: Any) -> Tensor:
    r"""Information of the data point in the witness, :math:`H(\bar S) - \frac1N \sum_i H(S(\cdot|z_i))`.

    Near zero in the constant-student regime.

    Args:
        witness_logits: unnormalized log-probabilities of the witness, shape ``(N, K)``.

    Returns:
        Scalar in nats, between 0 and ``log K``.
    """
    return _spread(as_logits(witness_logits, may_be_empty=False).exp())


def as_pair(teacher_probs: Any, witness_logits: Any, may_be_empty: bool = True) -> tuple[Tensor, Tensor]:
    """Check teacher and witness together; returns probabilities and log-probabilities, both float64 ``(N, K)``.

    Raises:
        TypeError: if either is not an array of real numbers.
        ValueError: if ``teacher_probs`` are not probabilities, ``witness_logits`` are not finite, or shapes differ.
    """
    probs = as_probabilities(teacher_probs, may_be_empty=may_be_empty)
    log_witness = as_logits(witness_logits).to(probs.device)
    if probs.shape != log_witness.shape:
        raise ValueError(
            "`teacher_probs` and `witness_logits` must have the same shape (N, K), got "
            f"{tuple(probs.shape)} and {tuple(log_witness.shape)}."
        )
    return probs, log_witness
