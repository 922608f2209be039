"""A callback that adds the alignment term to the training of any LightningModule."""

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
    "latents='encoder:mu,logvar' or 'encoder.fc:chunk'; or use path='mean'."
)
KEPT = "certvae_witness"  # checkpoint key of a trained witness
DRAWS = 1  # seed of the draws, different from the certificate's


class AlignmentCallback(Callback):
    r"""Add ``weight * E KL(T(.|x) || S(.|z))`` to the loss that a module's ``training_step`` returns.

    By default the witness is fixed and no parameter is added: optimizers, checkpoints and configs of the module do not
    change. The gradient at the code is ``scale * (S - T) U / B`` (:meth:`certvae.SimplexWitness.alignment_gradient`),
    which does not vanish at a collapsed code. Sources: arXiv 2605.05813; the witness is that of arXiv 2605.18224.

    A witness that the module owns (attribute ``witness``) is trained by the module's optimizer. With
    ``witness_learning_rate``, a given ``witness`` such as a :class:`certvae.RawHead` is trained too, by a separate Adam
    at each step of the run's optimizer. Checkpoints store its weights and moments under ``certvae_witness``; the
    module's own keys do not change. Give the same object to :class:`certvae.callbacks.CertificateCallback`.

    The default path is the mean, because the raw certificate is about the mean. A certified mean does not force the
    decoder to use the code: the mean can be small relative to the noise. ``path="draw"`` aligns one draw ``mean + sigma
    * noise`` per row, which is what the decoder receives. The gradient then reaches the log-variance too. The callback
    has its own noise: the run's random streams do not change.

    A module with manual optimization (``automatic_optimization = False``), such as a GAN hybrid, returns no loss. For
    it, the gradient of the term is added at the code in a backward pass, once between two optimizer steps
    (:class:`certvae.monitoring.auxiliary_gradient.AuxiliaryGradient`). ``latents`` must then name a submodule.

    Logs ``certificate/alignment_train``: the alignment loss on training rows in nats, lower is better.

    Args:
        teacher: a teacher, the path of its file, or the name of a shipped teacher, such as ``"cifar100"``; default: the
            module's attribute ``teacher``. If there is none and ``latents`` is not given either, teacher, ``latents``,
            ``images`` and witness are those of the run's only :class:`certvae.callbacks.CertificateCallback`.
        latents: where the code is in ``training_step``; see :class:`certvae.callbacks.CertificateCallback`. Without it
            the step must return a dict with ``"posterior"``.
        images: where the teacher's input is in the batch.
        weight: weight of the term, in units of the module's loss per nat; or a function of the epoch, such as
            :class:`certvae.models.schedules.LinearSchedule`.
        witness_scale: scale of the teacher's simplex witness; give the same value as to the certificate callback.
        witness: another witness, a module from codes to logits.
        path: the code to align, ``"mean"`` or ``"draw"``.
        witness_learning_rate: learning rate of Adam for ``witness``, above 0; None: the witness is fixed.

    Raises:
        ValueError: if ``weight`` is negative; ``path`` is another word; the code has no log-variance for draws; the
            module uses manual optimization and ``latents`` names no submodule; ``witness_learning_rate`` is not above
            0, or there is no witness to train; or, before training, if the run would train it wrongly.

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
        """Load teacher and witness.

        Raises:
            ValueError: if there is no teacher, several certificate callbacks could give theirs, the submodule does not
                exist, or the teacher does not fit the data.
        """
        if stage != "fit" or self.reader is None:
            return
        self._shared = None
        if self._alone and getattr(pl_module, "teacher", None) is None:
            others = [item for item in trainer.callbacks if isinstance(item, CertificateCallback)]  # type: ignore[attr-defined]
            if len(others) > 1:
                names = ", ".join(repr(item.name) for item in others)
                raise ValueError(
                    f"AlignmentCallback has no `teacher`, and the run has several CertificateCallbacks, {names}: give "
                    "it the `teacher` and `latents` of the one to align."
                )
            self._shared = others[0].reader if others else None
        if self._shared is None:
            self.reader.setup(trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the term to the module's training step.

        Raises:
            ValueError: if the module uses manual optimization and ``latents`` names no submodule.
        """
        reader = self._ready_reader(trainer)
        reader.start(pl_module)
        if self._trained is not None:
            self._trained.start(trainer, pl_module)
        self._first_batch = True
        self._start_sums(pl_module)  # an epoch resumed after a restart has no start hook
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
        """The codes to align, shape ``(B, latent_dim)``."""
        mean, log_variance = captured.mean, captured.log_variance
        if self.path == "mean":
            return mean
        if log_variance is None:
            raise ValueError(NEEDS_LOG_VARIANCE)
        # The noise is a hash of the batch number and of the row's position in it, counted over processes. So a resumed
        # run draws the same noise, and so do several processes.
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
        # A checkpoint of a run without a trained witness has none: the witness then starts from its initial weights.
        if self._trained is not None and KEPT in checkpoint:
            self._trained.restore(checkpoint[KEPT])

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start_sums(pl_module)

    def _start_sums(self, pl_module: LightningModule) -> None:
        self._sums = torch.zeros(2, dtype=torch.float64, device=float64_device(pl_module.device))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._term is None:
            return
        # Once per epoch: Lightning's reduction of values logged at each step takes longer than the term.
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
    """Return ``path`` if it is ``"mean"`` or ``"draw"``.

    Raises:
        ValueError: if ``path`` is neither ``"mean"`` nor ``"draw"``.
    """
    if path not in ("mean", "draw"):
        raise ValueError(f"`path` must be 'mean' or 'draw', got {path!r}.")
    return path
