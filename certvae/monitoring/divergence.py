"""Finds codes that are not finite, and warns or ends the run."""

from typing import Literal

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from pytorch_lightning import Trainer
from torch import Tensor

from certvae.theory.arguments import MAX_NATS

__all__ = ["OnDivergence", "answer_divergence", "check_on_divergence", "find_fault", "shared_fault"]

OnDivergence = Literal["warn", "raise"]


def check_on_divergence(value: OnDivergence) -> OnDivergence:
    """Return ``value`` if it is ``"warn"`` or ``"raise"``.

    Raises:
        ValueError: if ``value`` is neither ``"warn"`` nor ``"raise"``.
    """
    if value not in ("warn", "raise"):
        raise ValueError(f"`on_divergence` must be 'warn' or 'raise', got {value!r}.")
    return value


def find_fault(positions: Tensor, **values: Tensor | None) -> str:
    """A text that names the first value that is not finite and its row; empty if all are finite.

    Args:
        positions: positions of the rows in their data set, shape ``(B,)``.
        values: tensors by name, each of shape ``(B, ...)``.
    """
    for name, rows in values.items():
        if rows is None or not rows.numel():
            continue
        size = rows.abs().reshape(len(rows), -1).amax(dim=1)
        broken = ~(size <= MAX_NATS) if name == "rate" else ~size.isfinite()
        if bool(broken.any()):
            row = int(positions[broken.cpu()][0])
            return f"the {name.replace('_', '-')} of row {row} is {size[broken][0]:.3g}, not a finite number"
    return ""


def shared_fault(trainer: Trainer, fault: str, device: torch.device) -> str:
    """The fault of the first process with a fault, on all processes; collectives that every rank must reach.

    Args:
        trainer: the trainer of the processes.
        fault: fault of this process; empty if there is none.
        device: device of the collectives.
    """
    found = trainer.strategy.all_gather(torch.tensor(int(bool(fault)), device=device)).flatten()
    return trainer.strategy.broadcast(fault, src=int(found.argmax())) if bool(found.any()) else ""


def answer_divergence(trainer: Trainer, fault: str, lacking: str, on_divergence: OnDivergence) -> None:
    """Warn, or end the run.

    Args:
        trainer: the trainer, for the epoch.
        fault: text from :func:`find_fault`.
        lacking: a sentence that states which result this epoch does not have.
        on_divergence: ``"warn"`` or ``"raise"``.

    Raises:
        ValueError: if ``on_divergence`` is ``"raise"``.
    """
    said = f"epoch {trainer.current_epoch}: {fault}: the model has diverged"
    if on_divergence == "raise":
        raise ValueError(f"{said}, and `on_divergence` is 'raise'.")
    rank_zero_warn(f"{said}. {lacking}; the run goes on.")
