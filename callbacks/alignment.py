"""The callback that adds the alignment term to the training of any LightningModule."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from certvae.callbacks.certificate import CertificateCallback
from certvae.monitoring.auxiliary_gradient import AuxiliaryGradient
from certvae.monitoring.auxiliary_loss import AuxiliaryLoss
from certvae.monitoring.batch_reader import BatchReader
from certvae.monitoring.trained_witness import TrainedWitness
from certvae.reading.latents import Captured, LatentSource
from certvae.teachers import Teacher
from certvae.theory.arguments import float64_device
from certvae.theory.information import kl_divergence
from certvae.theory.posterior import Posterior

__all__ = ["NEEDS_LOG_VARIANCE", "AlignmentCallback", "check_path"]

NEEDS_LOG_VARIANCE = (
    "`path='draw'` needs the posterior's log-variance, and `latents` gave only a mean. Name both, as in "
    "latents='encoder:mu,logvar' or 'encoder.fc:chunk'; or take path='mean'."
)
KEPT = "certvae_witness"  # where a checkpoint has a trained witness
DRAWS = 1  # seed of the draws: others than the certificate's


class AlignmentCallback(Callback):
    r"""Add ``weight * E KL(T(.|x) || S(.|z))`` to the loss that a module's ``training_step`` returns.

    By default the witness is fixed, so that no parameter is added: optimizers, checkpoints and configs of the module
    stay as they are. The gradient at the code is ``scale * (S - T) U / B``
    (:meth:`certvae.SimplexWitness.alignment_gradient`), which does not vanish at a collapsed code. Source: arXiv
    2605.05813, with the witness of arXiv 2605.18224.

    A witness that the module owns, its attribute ``witness``, is trained by the module's own optimizer. With
    ``witness_learning_rate`` a given ``witness`` such as a :class:`certvae.RawHead` is trained too, by an Adam of its
    own at each step of the run's optimizer. Its weights and moments are in checkpoints under ``certvae_witness``; what
    the module has there stays as it is. Give the same object to :class:`certvae.callbacks.CertificateCallback`.

    The default path is the mean, because the raw certificate is about the mean. A certified mean does not force the
    decoder to use the code: beside wide noise the mean can be too small. ``path="draw"`` aligns one draw
    ``mean + sigma * noise`` a row, which is what the decoder receives, so that the gradient reaches the log-variance
    too. The noise is the callback's own: the run's random streams stay as they are.

    A module that optimizes by hand (``automatic_optimization = False``), such as a GAN hybrid, never returns a loss.
    There the gradient of the term is added to what reaches the code in a backward pass, once between two optimizer
    steps (:class:`certvae.monitoring.auxiliary_gradient.AuxiliaryGradient`); ``latents`` must name a submodule then.

    Logs ``certificate/alignment_train``: the alignment loss of training rows in nats, lower is better.

    Args:
        teacher: a teacher, the path of its file, or the name of one that comes with the package, such as
            ``"cifar100"``; default: the module's attribute ``teacher``. If there is none and ``latents`` is not given
            either, both, ``images`` and the witness are those of the run's
            :class:`certvae.callbacks.CertificateCallback`.
        latents: where the code is in ``training_step``; see :class:`certvae.callbacks.CertificateCallback`. Without it
            the step must return a dict with ``"posterior"``.
        images: where the teacher's input stands in the batch.
        weight: of the term, in units of the module's own loss for each nat; or a function of the epoch, such as
            :class:`certvae.models.schedules.LinearSchedule`.
        witness_scale: scale of the teacher's simplex witness; the same as that of the certificate.
        witness: another witness instead.
        path: ``"mean"`` or ``"draw"``: what is aligned.
        witness_learning_rate: with which Adam trains ``witness``; None: it is fixed.

    Raises:
        ValueError: if ``weight`` is negative, ``path`` is another, the code has no log-variance to draw with, or the
            module optimizes by hand and ``latents`` names no submodule; if ``witness_learning_rate`` is not above 0, or
            there is nothing that it could train; or, before training, if the run would train it wrongly.

    Example:
        Align a module's mean code to a teacher's file, and certify it:

        >>> from certvae.callbacks import AlignmentCallback, CertificateCallback
        >>> places = {"teacher": "teacher.safetensors", "latents": "encoder:chunk"}
        >>> callbacks = [AlignmentCallback(**places, weight=10.0), CertificateCallback(**places)]
    """

    def __init__(
        self,
        teacher: str | Path | Teacher | None = None,
        latents: LatentSource | None = None,
        images: int | str | Callable[[Any], Tensor] = 0,
        weight: float | Callable[[int], float] = 1.0,
        witness_scale: float = 2.0,
        witness: nn.Module | None = None,
        path: Literal["mean", "draw"] = "mean",
        witness_learning_rate: float | None = None,
    ) -> None:
        super().__init__()
        if not callable(weight):
            _check_weight(weight)
        self.weight, self.path = weight, check_path(path)
        self.reader: BatchReader | None = BatchReader(teacher, latents, images, witness, witness_scale)
        self._alone = (teacher, latents, images, witness, witness_scale) == (None, None, 0, None, 2.0)
        self._shared: BatchReader | None = None
        self._trained = _trained(witness, witness_learning_rate)
        self._term: AuxiliaryLoss | AuxiliaryGradient | None = None
        self._first_batch = True
        self._sums = torch.zeros(2)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find teacher and witness.

        Raises:
            ValueError: if there is no teacher or no such submodule, or the teacher does not fit the data.
        """
        if stage != "fit" or self.reader is None:
            return
        self._shared = None
        if self._alone and getattr(pl_module, "teacher", None) is None:
            others = trainer.callbacks  # type: ignore[attr-defined]
            self._shared = next((item.reader for item in others if isinstance(item, CertificateCallback)), None)
        if self._shared is None:
            self.reader.setup(trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the term in place.

        Raises:
            ValueError: if the module optimizes by hand, and ``latents`` names no submodule.
        """
        reader = self._ready_reader(trainer)
        reader.start(pl_module)
        if self._trained is not None:
            self._trained.start(trainer, pl_module)
        self._first_batch = True
        self._start_sums(pl_module)  # an epoch that goes on after a restart has no start
        if pl_module.automatic_optimization:
            self._term = AuxiliaryLoss(
                reader.capture.listen, lambda batch, outputs: self._loss(trainer, pl_module, batch, outputs)
            )
        else:
            self._term = AuxiliaryGradient(
                reader.capture.source, lambda batch, code: self._align(trainer, pl_module, batch, code)
            )
        self._term.attach(pl_module)

    def _ready_reader(self, trainer: Trainer) -> BatchReader:
        assert self.reader is not None
        return self._shared or self.reader  # one that is shared is set up by the certificate callback

    def _loss(self, trainer: Trainer, pl_module: LightningModule, batch: Any, outputs: Any) -> Tensor:
        reader = self._ready_reader(trainer)
        captured = reader.capture.read(pl_module, batch, outputs)
        reader.capture.listen(False)
        return self._align(trainer, pl_module, batch, captured)

    def _align(self, trainer: Trainer, pl_module: LightningModule, batch: Any, captured: Captured) -> Tensor:
        reader = self._ready_reader(trainer)
        codes = self._codes(trainer, reader.checked(captured, batch))
        if self._first_batch:
            self._first_batch = False
            reader.teacher.check_values(reader.inputs(batch))
        with torch.no_grad():
            probs = reader.teacher_probs(batch).to(codes.device).to(codes.dtype)
            labelled = reader.row_weights(batch)
            weights = torch.ones_like(probs[:, 0]) if labelled is None else labelled.to(probs)
        log_student = reader.witness_for(codes)(codes).log_softmax(dim=1)
        rows = weights.sum()
        alignment = (weights * kl_divergence(probs, log_student)).sum() / rows.clamp(min=1)
        self._sums = self._sums + torch.stack([rows * alignment.detach(), rows]).to(self._sums)
        return self._weight(trainer, pl_module, probs, log_student.detach(), weights) * alignment

    def _codes(self, trainer: Trainer, captured: Captured) -> Tensor:
        """What is aligned, shape ``(B, latent_dim)``."""
        mean, log_variance = captured.mean, captured.log_variance
        if self.path == "mean":
            return mean
        if log_variance is None:
            raise ValueError(NEEDS_LOG_VARIANCE)
        # A hash of the batch's number and of the place in it, counted over processes as a sampler deals rows out:
        # a resumed run draws the same, and so do several processes.
        place = torch.arange(len(mean), device=float64_device(mean.device)) * trainer.world_size + trainer.global_rank
        keys = place + (trainer.fit_loop.total_batch_idx << 32)
        return Posterior(mean, log_variance).row_draws(keys, 1, DRAWS)[0]

    def _weight(
        self, trainer: Trainer, pl_module: LightningModule, probs: Tensor, log_student: Tensor, weights: Tensor
    ) -> float | Tensor:
        weight = self.weight(trainer.current_epoch) if callable(self.weight) else self.weight
        return _check_weight(weight)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if isinstance(self._term, AuxiliaryGradient):
            self._term.stepped()
        if self._trained is not None:
            self._trained.step(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._trained is None:
            return
        if KEPT in checkpoint:
            raise ValueError("`witness_learning_rate` can be given to one AlignmentCallback of a run, got two.")
        checkpoint[KEPT] = self._trained.state()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # A run without a trained witness left none: the witness then starts here.
        if self._trained is not None and KEPT in checkpoint:
            self._trained.restore(checkpoint[KEPT])

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start_sums(pl_module)

    def _start_sums(self, pl_module: LightningModule) -> None:
        self._sums = torch.zeros(2, dtype=torch.float64, device=float64_device(pl_module.device))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._term is None:
            return
        # Once an epoch: Lightning's own sums of what a step logs take longer than the term.
        total, rows = trainer.strategy.reduce(self._sums, reduce_op="sum")
        if rows > 0:
            pl_module.log("certificate/alignment_train", total / rows)

    def _stop(self) -> None:
        if self._term is not None:
            self._term.detach()
        self._term = None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stop()
        if self.reader is not None:
            self.reader.capture.detach()


def _trained(witness: nn.Module | None, learning_rate: float | None) -> TrainedWitness | None:
    if learning_rate is None:
        return None
    if witness is None:
        raise ValueError("`witness_learning_rate` needs a `witness` to train, such as RawHead(10, 32), got None.")
    return TrainedWitness(witness, learning_rate)


def _check_weight(weight: float) -> float:
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"`weight` must be at least 0 and finite, got {weight}.")
    return weight


def check_path(path: Literal["mean", "draw"]) -> Literal["mean", "draw"]:
    """The path, if it is one.

    Raises:
        ValueError: if it is neither ``"mean"`` nor ``"draw"``.
    """
    if path not in ("mean", "draw"):
        raise ValueError(f"`path` must be 'mean' or 'draw', got {path!r}.")
    return path
