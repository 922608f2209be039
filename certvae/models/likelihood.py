"""The Gaussian likelihood with the variance that is optimal for the batch."""

import torch
from torch import Tensor
from torch.nn.functional import softplus

__all__ = ["optimal_distortion", "optimal_log_std"]

SMALLEST_LOG_STD = -6.0  # from Rybkin et al.; without a limit, a perfect reconstruction would have infinite likelihood


def optimal_log_std(squared_error: Tensor, num_values: int) -> Tensor:
    r"""Logarithm of the maximum-likelihood standard deviation, :math:`\hat s^2 = E |x - \hat x|^2 / D`.

    It is softly clipped from below, :math:`-6 + softplus(\log \hat s + 6)`. Source of both: sigma-VAE, Rybkin et al.,
    2021, https://arxiv.org/abs/2006.13202, section 4.1 and the authors' code.

    Args:
        squared_error: squared error of each row, summed over its values, shape ``(B,)``.
        num_values: D, the number of values per row.

    Returns:
        A scalar.
    """
    mean = squared_error.mean() / num_values
    log_std = 0.5 * mean.clamp(min=torch.finfo(mean.dtype).tiny).log()
    return SMALLEST_LOG_STD + softplus(log_std - SMALLEST_LOG_STD)


def optimal_distortion(squared_error: Tensor, num_values: int) -> Tensor:
    r"""Negative log-likelihood of each row at the batch's optimal variance, in nats.

    .. math:: |x - \hat x|^2 / 2 \hat s^2 + D \log \hat s

    up to the constant :math:`\tfrac D2 \log 2 \pi`. Each process uses the variance of its own rows. Arguments as for
    :func:`optimal_log_std`.

    Returns:
        Nats, shape ``(B,)``; may be negative.
    """
    log_std = optimal_log_std(squared_error, num_values)
    return squared_error / 2 * (-2 * log_std).exp() + num_values * log_std
