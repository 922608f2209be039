"""Calls a part of a module again without updating batch norm statistics."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

__all__ = ["kept_statistics"]


@contextmanager
def kept_statistics(module: nn.Module) -> Iterator[None]:
    """Context in which batch norms do not update their running means and variances.

    In training mode a batch norm still uses the statistics of the batch, so the same rows get the same code as in the
    step. Buffers are not restored afterwards, because writing them in place would break the backward pass.
    """
    batch_norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
    others = {part: part.momentum for part in module.modules() if isinstance(part, _InstanceNorm)}
    for norm in batch_norms:
        norm.track_running_stats = not norm.training
    for other in others:
        other.momentum = 0.0
    try:
        yield
    finally:
        for norm in batch_norms:
            norm.track_running_stats = True
        for other, momentum in others.items():
            other.momentum = momentum
