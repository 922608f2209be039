"""Jobs of the alignment and the guard; see :mod:`tests.distributed.jobs`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from certvae.callbacks import AlignmentCallback, CertificateCallback, CertificateGuard, CertificateLostError
from tests.distributed.jobs import Result, teacher, trained


def aligned(folder: Path, world: int, **arguments: Any) -> Result:
    return trained(folder, world, [AlignmentCallback(teacher(), "encoder", weight=3.0)], **arguments)


class WeightPath(Callback):
    """Keeps the guard's weight of each step."""

    def __init__(self, guard: CertificateGuard) -> None:
        self.guard = guard
        self.weights: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *arguments: Any) -> None:
        self.weights.append(self.guard.weight_now)


def guarded(folder: Path, world: int, **arguments: Any) -> Result:
    guard = CertificateGuard(target=0.3)
    path = WeightPath(guard)
    result = trained(folder, world, [CertificateCallback(teacher(), "encoder"), guard, path], **arguments)
    return {**result, "path": path.weights, "gap": guard.state_dict()["gap"]}


def lost(folder: Path, world: int, answer: Any) -> Result:
    """What becomes of a certificate that is lost at the first of three validations."""
    guard = CertificateGuard(0.2, answer)
    guard.load_state_dict({**guard.state_dict(), "reached": True})
    try:
        result = trained(folder, world, [CertificateCallback(teacher(), "encoder"), guard])
    except CertificateLostError as error:
        return {"error": str(error)}
    return {"epochs": result["epochs"]}


JOBS: dict[str, Callable[[Path, int], Any]] = {
    "aligned": aligned,
    "aligned_accumulated": partial(aligned, accumulate=2),
    "aligned_bf16": partial(aligned, precision="bf16-mixed"),
    "guarded": guarded,
    "guarded_accumulated": partial(guarded, accumulate=2),
    "guarded_bf16": partial(guarded, precision="bf16-mixed"),
    "lost_stop": partial(lost, answer="stop"),
    "lost_raise": partial(lost, answer="raise"),
    "aligned_after_the_raise": aligned,
}
