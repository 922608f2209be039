"""Spending an error probability over many looks at the same run."""

import math

from certvae.theory.arguments import as_number, as_whole_number

__all__ = ["spending"]


def spending(alpha: float, look: int) -> float:
    r"""Error probability that look ``t`` may spend, :math:`\alpha_t = 6 \alpha / (\pi^2 t^2)`.

    Validating every epoch is repeated testing. The shares add up to at most :math:`\alpha` over any number of looks. So
    by the union bound all lower bounds hold with probability at least :math:`1 - \alpha`, and with them every verdict
    'certified'. The looks need not be independent. But the rows of a look must not have influenced the model, teacher
    or witness: not by training, not through a guard or a learning-rate schedule that reads a validation metric, not
    through a search that compared candidates on them. Stopping early and picking a checkpoint are allowed. Source:
    Basel's series; Robbins, 1970, for such mixtures.

    Args:
        alpha: error probability of the whole run, in (0, 1).
        look: number of the look, from 1.

    Raises:
        TypeError: if ``alpha`` is not a number, or ``look`` is not a whole number.

        ValueError: if ``alpha`` is not in (0, 1), or ``look`` is below 1.
    """
    if not 0 < as_number(alpha, "alpha") < 1:
        raise ValueError(f"`alpha` must be between 0 and 1, got {alpha}.")
    as_whole_number(look, "look", 1)
    return 6 * float(alpha) / (math.pi * look) ** 2
