r"""Permutation test of 'the witness is independent of the input'.

Permuting the witness rows does not change the teacher information. So the margins of two pairings differ only in the
mean of :math:`T_i \cdot \log S_{\pi(i)}`, and only this mean is computed.
"""

from typing import Any

import torch
from torch import Tensor

from certvae.theory.arguments import as_whole_number
from certvae.theory.information import as_pair

__all__ = ["permutation_p_value"]

_ROUNDING = 1e-12  # relative difference of two float64 sums below which they are a tie


def permutation_p_value(
    teacher_probs: Any,
    witness_logits: Any,
    permutations: int = 999,
    generator: torch.Generator | None = None,
) -> float:
    r"""Exact p-value of the margin under random pairings of teacher rows and witness rows.

    .. math::
        p = \frac{1 + \#\{b : m(\pi_b) \ge m(id)\}}{1 + B}, \qquad
        m(\pi) = \frac1N \sum_i \sum_k T_{ik} \log S_{\pi(i) k},

    with B permutations drawn independently and uniformly. Means that differ only by rounding count as ties, so a
    constant witness gets exactly 1.

    **Validity.** Assume that the witness rows are exchangeable given the teacher rows. This holds for independent rows
    and a witness that is independent of the teacher. Then the observed pairing and the B drawn ones are exchangeable,
    and :math:`P(p \le \alpha) \le \alpha` for every :math:`\alpha`, N, B and distribution. The observed pairing is
    counted too; without the two ones in the formula, p could be 0. The witness must not have been fitted on these rows.
    The smallest possible value is ``1 / (1 + B)``.

    A small p-value shows that the witness depends on the input. It does not show that the margin is positive: a
    dependent witness can be too badly calibrated to beat the best constant student.

    Source: Phipson and Smyth, 2010, *Permutation p-values should never be zero*,
    https://doi.org/10.2202/1544-6115.1585; Lehmann and Romano, 2005, *Testing Statistical Hypotheses*, section 15.2.

    Args:
        teacher_probs: teacher probabilities, shape ``(N, K)``.
        witness_logits: unnormalized log-probabilities of the witness, shape ``(N, K)``.
        permutations: B, at least 1. Time grows as ``B * N * K``, memory as ``N * K``.
        generator: CPU generator of the permutations; default: the global random state.

    Returns:
        The p-value, a multiple of ``1 / (1 + B)`` in ``(0, 1]``.

    Raises:
        TypeError: if an array does not hold real numbers, ``permutations`` is not a whole number, or ``generator`` is
            not a CPU ``torch.Generator``.
        ValueError: if ``teacher_probs`` are not probabilities, logits are not finite, shapes differ, ``permutations``
            is below 1, or there is no row.
    """
    as_whole_number(permutations, "permutations", 1)
    if generator is not None and not (isinstance(generator, torch.Generator) and generator.device.type == "cpu"):
        raise TypeError(f"`generator` must be a torch.Generator on the CPU or None, got {generator!r}.")
    teacher, log_witness = as_pair(teacher_probs, witness_logits, may_be_empty=False)
    seen = _score(teacher, log_witness)
    threshold = seen - _ROUNDING * seen.abs()  # every term has one sign, so the sum measures the rounding
    at_least = 0
    for _ in range(permutations):
        order = torch.randperm(len(teacher), generator=generator).to(teacher.device)
        at_least += int(_score(teacher, log_witness.index_select(0, order)) >= threshold)
    return (1 + at_least) / (1 + permutations)


def _score(teacher: Tensor, log_witness: Tensor) -> Tensor:
    return torch.dot(teacher.flatten(), log_witness.flatten())
