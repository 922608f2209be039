"""Jobs of the alignment and the guard; see :mod:`tests.distributed.jobs`."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DistributedSampler

from certvae import VAE, RawHead
from certvae.callbacks import (
    AlignmentCallback,
    CertificateCallback,
    CertificateGuard,
    CertificateLostError,
    DecoderCheck,
    InformationCallback,
    PrefitCallback,
)
from certvae.models.networks import MLPDecoder, MLPEncoder
from certvae.models.vae import TrainingDivergedError
from tests.distributed.jobs import Result, WithAdam, spread, teacher, trained
from tests.distributed.sets import rank
from tests.plain_vae import plain_loader
from tests.runs import SHAPE


def aligned(folder: Path, world: int, **arguments: Any) -> Result:
    return trained(folder, world, [AlignmentCallback(teacher(), "encoder", weight=3.0)], **arguments)


def headed(folder: Path, world: int) -> Result:
    """A head that an alignment trains beside the module, and its certificate."""
    torch.manual_seed(0)
    head = RawHead(teacher().num_components, 6, hidden=8).double()
    certificate = CertificateCallback(teacher(), "encoder", witness=head)
    alignment = AlignmentCallback(teacher(), "encoder", weight=3.0, witness=head, witness_learning_rate=0.05)
    result = trained(folder, world, [alignment, certificate])
    assert certificate.certificate is not None
    weights = {f"head.{name}": value.flatten().tolist() for name, value in head.state_dict().items()}
    return {"weights": result["weights"] | weights, "margin": certificate.certificate.margin}


def prefitted(folder: Path, world: int) -> Result:
    """Weights and margins after the code was fitted, and an epoch of the run."""
    prefit = PrefitCallback(teacher(), "encoder", epochs=3, learning_rate=0.01)
    result = trained(folder, world, [prefit], max_epochs=1)
    return {"weights": result["weights"], "margins": [prefit.margin_before, prefit.margin_after]}


class WeightPath(Callback):
    """Keeps the guard's weight of each step."""

    def __init__(self, guard: CertificateGuard) -> None:
        self.guard = guard
        self.weights: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *arguments: Any) -> None:
        self.weights.append(self.guard.weight_now)


def guarded(folder: Path, world: int, guard_path: Any = "mean", **arguments: Any) -> Result:
    guard = CertificateGuard(target=0.3, path=guard_path)
    path = WeightPath(guard)
    result = trained(folder, world, [CertificateCallback(teacher(), "encoder"), guard, path], **arguments)
    return {**result, "path": path.weights, "gap": guard.state_dict()["gap"]}


class Priced(WithAdam):
    """Pays for its rate, and decodes the mean, so that no process draws numbers; its step returns the loss."""

    beta = 4.0

    def step(self, batch: Any) -> Tensor:
        images = self.images(batch)
        mean, log_variance = self.encoder(images)
        rate = (mean**2 + log_variance.exp() - log_variance - 1).sum(dim=1) / 2
        return (self.decoder(mean) - images).square().mean() + self.beta * 1e-3 * rate.mean()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return self.step(batch)


def bracketed(folder: Path, world: int) -> Result:
    """The guard of the bracket and the decoder check in one run."""
    torch.manual_seed(0)
    information, check = InformationCallback("encoder"), DecoderCheck("encoder", batches=3)
    guard = CertificateGuard(1.0, on="bracket", kl_weight="beta")
    path, model = WeightPath(guard), Priced()
    result = trained(folder, world, [information, guard, path, check], model=model)
    assert information.bracket is not None
    assert check.losses is not None
    found = {"bracket": information.bracket.to_dict(), "gap": guard.state_dict()["gap"], "beta": model.beta}
    return {**result, **found, "path": path.weights, "decoder": check.losses._asdict(), "ignored": check.losses.ignored}


def lost(folder: Path, world: int, answer: Any) -> Result:
    """What becomes of a certificate that is lost at the first of three validations."""
    guard = CertificateGuard(0.2, answer, path="mean")
    guard.load_state_dict({**guard.state_dict(), "reached": True})
    try:
        result = trained(folder, world, [CertificateCallback(teacher(), "encoder"), guard])
    except CertificateLostError as error:
        return {"error": str(error)}
    return {"epochs": result["epochs"]}


class OwnVAE(VAE):
    """Decodes the mean, so that no process draws numbers; its loss is NaN on one process if it is told so."""

    diverges = False

    def distortion(self, images: Tensor, decoded: Tensor) -> Tensor:
        return super().distortion(images, self.decode(self(images).mean))

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        last = self.global_rank == self.trainer.world_size - 1
        if self.diverges and last and self.current_epoch == 1 and batch_idx == 1:
            batch = (batch[0] * math.nan, *batch[1:])
        return super().training_step(batch, batch_idx)


def own_vae(folder: Path, world: int, diverges: bool) -> Result:
    """Means of the losses of the last epoch, or the error of a loss that is not finite."""
    torch.manual_seed(0)
    networks = MLPEncoder(SHAPE, 6, 32, 1), MLPDecoder(SHAPE, 6, 32, 1)
    model = OwnVAE(*networks, teacher(), alignment_weight=2.0, observation_std=0.5).double()
    model.diverges = diverges
    run = spread(folder, world, max_epochs=3)
    sampler: Any = DistributedSampler(cast(Any, range(96)), world, rank(), shuffle=False)
    try:
        run.fit(model, plain_loader(96, 32 // world, sampler=sampler), plain_loader(96, 32 // world))
    except TrainingDivergedError as error:
        return {"error": str(error)}
    return {name: float(run.callback_metrics[name]) for name in ("train/loss", "train/alignment_loss")}


JOBS: dict[str, Callable[[Path, int], Any]] = {
    "aligned": aligned,
    "aligned_accumulated": partial(aligned, accumulate=2),
    "aligned_bf16": partial(aligned, precision="bf16-mixed"),
    "guarded": guarded,
    "guarded_draws": partial(guarded, guard_path="draw"),
    "guarded_accumulated": partial(guarded, accumulate=2),
    "guarded_bf16": partial(guarded, precision="bf16-mixed"),
    "bracketed": bracketed,
    "headed": headed,
    "prefitted": prefitted,
    "lost_stop": partial(lost, answer="stop"),
    "lost_raise": partial(lost, answer="raise"),
    "diverged": partial(own_vae, diverges=True),
    "own_vae": partial(own_vae, diverges=False),
    "aligned_after_the_raise": aligned,
}
