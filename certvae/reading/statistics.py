"""Calling a part of a module once more without moving the statistics that a batch norm keeps."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

__all__ = ["kept_statistics"]


@contextmanager
def kept_statistics(module: nn.Module) -> Iterator[None]:
    """Normalize as the mode says, and leave running means and variances as they are.

    In training mode a batch norm then still uses the statistics of the batch, so that the same rows get the same code
    as in the step. Nothing is written back afterwards: a backward pass would refuse a buffer that had been.
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
