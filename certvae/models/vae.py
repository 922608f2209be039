"""A variational autoencoder whose code can be aligned to a fixed teacher."""

import math
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from certvae.io.checkpoints import load_weights
from certvae.models.likelihood import optimal_distortion
from certvae.models.objectives import ELBO, Objective, Terms
from certvae.models.priors import Prior, StandardNormal
from certvae.models.training_record import TrainingRecord
from certvae.reading.inputs import inputs_and_index
from certvae.teachers import Teacher, load_teacher
from certvae.theory.arguments import float64_device
from certvae.theory.information import kl_divergence
from certvae.theory.posterior import Posterior
from certvae.theory.raw_head import RawHead

__all__ = ["VAE", "AlignmentPath", "TrainingDivergedError", "VacuousTeacherError"]

AlignmentPath = Literal["mean", "sample"]
EVALUATED = ("loss", "rate", "mean_squared_error")


class TrainingDivergedError(RuntimeError):
    """The loss is not finite; raised before the next validation, checkpoint or end of the epoch."""


class VacuousTeacherError(ValueError):
    """The teacher's outputs vary too little for alignment."""


class VAE(LightningModule):
    r"""A VAE with an explicit observation scale and an optional alignment term to a teacher.

    .. math::
        E\left[\frac{|x - \hat x(z)|^2}{2 s^2} + \beta\, KL(q(z|x) \| p(z)) + w\, KL(T(\cdot|x) \| S(\cdot|z))\right]

    Losses are sums over the values of a row, in nats. Batches are ``(images, label, index)`` with images in [0, 1].
    ``validation_step`` and ``test_step`` return ``{"loss", "posterior"}``, from which
    :class:`certvae.callbacks.CertificateCallback` measures the certificate.

    Args:
        encoder: module from images to a :class:`certvae.theory.posterior.Posterior`, with an attribute ``latent_dim``.
        decoder: module from latents ``(B, latent_dim)`` to the mean of the images.
        teacher: a teacher, the path of its file, or the name of one that comes with the package; needed for alignment.
        witness: module from codes to logits; default: the teacher's simplex witness with ``witness_scale`` and
            ``witness_prior``. A :class:`certvae.RawHead` is trained by the alignment term and saved with the weights.
        witness_scale: factor of the code in the default witness.
        witness_prior: whether the witness gives the teacher's training average at the zero code, or a RawHead at its
            start.
        objective: default ``ELBO(beta=1)``.
        prior: default standard normal.
        alignment_weight: ``w``, at least 0.
        alignment_path: ``"mean"`` aligns the posterior's mean (the paper's raw witness); ``"sample"`` aligns a draw.
        observation_std: ``s``, the standard deviation of a pixel given the code; positive, or ``"optimal"``: the
            maximum-likelihood value of each batch (sigma-VAE, :mod:`certvae.models.likelihood`).
        learning_rate: of Adam.
        learning_rate_schedule: ``"constant"``, or ``"cosine"`` from ``learning_rate`` to 0 over the whole run.
        init_weights_from: a checkpoint from which only the weights are loaded, with strict keys. Unlike ``ckpt_path``
            it restores no hyper-parameter, so a rescue can turn the alignment on.

    Raises:
        ValueError: if an argument is not as above, or ``alignment_weight`` is above 0 without a teacher.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        teacher: str | Path | Teacher | None = None,
        witness: nn.Module | None = None,
        witness_scale: float = 2.0,
        witness_prior: bool = True,
        objective: Objective | None = None,
        prior: Prior | None = None,
        alignment_weight: float = 0.0,
        alignment_path: AlignmentPath = "mean",
        observation_std: float | Literal["optimal"] = 1.0,
        learning_rate: float = 1e-3,
        learning_rate_schedule: Literal["constant", "cosine"] = "constant",
        init_weights_from: str | Path | None = None,
    ) -> None:
        super().__init__()
        _check_arguments(alignment_weight, alignment_path, observation_std, learning_rate_schedule, teacher)
        self.save_hyperparameters(
            ignore=["encoder", "decoder", "teacher", "witness", "objective", "prior", "init_weights_from"]
        )
        self.encoder, self.decoder = encoder, decoder
        self.objective = objective or ELBO()
        self.prior = prior or StandardNormal()
        self.prior.bind(encoder)
        self.alignment_weight, self.alignment_path = alignment_weight, alignment_path
        self.observation_std = observation_std
        self.learning_rate, self.learning_rate_schedule = learning_rate, learning_rate_schedule
        loaded = load_teacher(teacher) if isinstance(teacher, str | Path) else teacher
        # In a list, so that no checkpoint contains the fixed teacher and no precision plugin casts it.
        self._teacher = [loaded] if loaded is not None else []
        if witness is None and loaded is not None:
            witness = loaded.witness(_latent_dim(encoder), witness_scale, witness_prior)
        if isinstance(witness, RawHead) and loaded is not None:
            average = loaded.measured_average() if witness_prior else None
            witness.bind(loaded.num_components, _latent_dim(encoder), average)
        self.witness = witness
        self._sums = torch.zeros(len(EVALUATED) + 1)
        self._start_record()
        self._progress = 0.0
        if init_weights_from is not None:
            load_weights(self, init_weights_from)

    @property
    def teacher(self) -> Teacher | None:
        """The fixed teacher, or None."""
        return self._teacher[0] if self._teacher else None

    def forward(self, images: Tensor) -> Posterior:
        """Posterior of images, in float32 or wider."""
        mean, log_variance = self.encoder(images.to(self.dtype))
        return Posterior(_widen(mean), _widen(log_variance))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.learning_rate, fused=self._may_fuse())
        if self.learning_rate_schedule == "constant":
            return optimizer
        steps = self.trainer.estimated_stepping_batches
        if not 0 < steps < math.inf:
            raise ValueError(
                "`learning_rate_schedule` 'cosine' needs to know where the run ends: give the trainer `max_epochs` or "
                "`max_steps`, or take 'constant'."
            )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _may_fuse(self) -> bool:
        """Whether fused Adam can be used; with a loss scaler, Lightning refuses to clip gradients for it."""
        scaled = self._trainer is not None and self.trainer.precision == "16-mixed"
        return not scaled and self.device.type in ("cpu", "cuda", "mps")

    def setup(self, stage: str) -> None:
        if self.teacher is not None:
            data = getattr(self.trainer, "datamodule", None)
            self.teacher.check_data(getattr(data, "image_shape", None), getattr(data, "fingerprint", None))

    def on_fit_start(self) -> None:
        self._start_record()  # an epoch resumed after a restart has no start hook
        if self.teacher is None or self.alignment_weight == 0:
            return
        self.teacher.to(float64_device(self.device))
        self.teacher.measured_average()
        information = self.teacher.card.information_train or 0.0
        if information <= 1e-6:
            raise VacuousTeacherError(
                f"the teacher is constant: its information on training rows is {information:.3g} nats (VACUOUS), so "
                "no student can beat a constant one. Search another teacher, or set `alignment_weight: 0`."
            )

    def on_train_epoch_start(self) -> None:
        self._start_record()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # An endless epoch has no fraction. Set here because the step may be called without a trainer.
        self._progress = self.current_epoch + batch_idx / self.trainer.num_training_batches

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        images, index = inputs_and_index(batch)
        posterior = self(images)
        latents = posterior.sample()
        terms = self._terms(images, posterior, latents, self.decode(latents), self._progress)
        loss, alignment = self.objective(terms).mean(), None
        if self.alignment_weight > 0:
            if batch_idx == 0 and self.teacher is not None:
                self.teacher.check_values(images)
            codes = posterior.mean if self.alignment_path == "mean" else latents
            alignment = self.alignment(images, index, codes).mean()
            loss = loss + self.alignment_weight * alignment
        self._record.add(batch_idx, images.shape[0], loss, alignment)
        return {"loss": loss, "posterior": posterior, "rate": terms.kl.sum(dim=1)}

    def on_train_epoch_end(self) -> None:
        self._check_finite()
        sums = self.trainer.strategy.reduce(self._record.sums.to(self.device), reduce_op="sum")
        for name, (rows, total) in zip(("loss", "alignment_loss"), sums.view(2, 2), strict=True):
            if rows > 0:
                self.log(f"train/{name}", total / rows)

    def on_validation_start(self) -> None:
        self._check_finite()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to write a checkpoint after a loss that was not finite.

        Raises:
            TrainingDivergedError: if a loss was not finite.
        """
        self._check_finite()

    def _check_finite(self) -> None:
        if self.trainer.state.fn != "fit":
            return
        # A collective: all processes raise, or none.
        faults = torch.as_tensor(self.all_gather(self._record.fault.to(self.device))).view(-1, 2)
        batch_idx, loss = faults[faults[:, 0].argmin()].tolist()
        if math.isfinite(batch_idx):
            raise TrainingDivergedError(
                f"the loss is {loss} at epoch {self.current_epoch}, batch {batch_idx:.0f}. The last checkpoint is "
                "from before this step. Lower `learning_rate`, or look at the data of this batch."
            )

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        return self._evaluate(batch)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        return self._evaluate(batch)

    def predict_step(self, batch: Any, batch_idx: int) -> Posterior:
        return self(inputs_and_index(batch)[0])

    def _evaluate(self, batch: Any) -> dict[str, Any]:
        images, _ = inputs_and_index(batch)
        posterior = self(images)
        latents = posterior.sample()
        decoded = self.decode(latents)
        terms = self._terms(images, posterior, latents, decoded, math.inf)
        loss, rate = self.objective(terms).mean(), terms.kl.sum(dim=1)
        means = torch.stack([torch.ones_like(loss), loss, rate.mean(), mse_loss(self.expectation(decoded), images)])
        self._sums = self._sums + images.shape[0] * means.detach().to(self._sums)
        return {"loss": loss, "posterior": posterior, "rate": rate}

    def _terms(self, images: Tensor, posterior: Posterior, latents: Tensor, decoded: Tensor, progress: float) -> Terms:
        distortion = self.distortion(images, decoded)
        return Terms(distortion, self.prior.kl(posterior, latents), posterior, latents, self.prior, progress)

    def on_validation_epoch_start(self) -> None:
        self._start_sums()

    def on_test_epoch_start(self) -> None:
        self._start_sums()

    def on_validation_epoch_end(self) -> None:
        self._log_means("val")

    def on_test_epoch_end(self) -> None:
        self._log_means("test")

    def _start_sums(self) -> None:
        self._sums = self._zeros(len(EVALUATED) + 1)

    def _start_record(self) -> None:
        self._record = TrainingRecord(self._zeros(1))

    def _zeros(self, size: int) -> Tensor:
        return _widen(torch.zeros(size, device=self.device).to(self.dtype))

    def _log_means(self, stage: str) -> None:
        # Not logged in the steps: logging there is a collective, and a process without rows takes no step.
        sums = self.trainer.strategy.reduce(self._sums, reduce_op="sum")
        for name, total in zip(EVALUATED, sums[1:], strict=True):
            self.log(f"{stage}/{name}", total / sums[0])

    def decode(self, latents: Tensor) -> Tensor:
        """What the decoder gives for latents ``(B, latent_dim)``, in float32 or wider."""
        return _widen(self.decoder(latents.to(self.dtype)))

    def expectation(self, decoded: Tensor) -> Tensor:
        """Mean of the images, given what :meth:`decode` gives: here the same. A subclass may decode logits."""
        return decoded

    def reconstruct(self, latents: Tensor) -> Tensor:
        """Mean of the images given latents ``(B, latent_dim)``, shape ``(B, *image_shape)``."""
        return self.expectation(self.decode(latents))

    def squared_error(self, images: Tensor, latents: Tensor) -> Tensor:
        r""":math:`|x - \hat x(z)|^2` of each row, summed over its values, shape ``(B,)``."""
        return _squared_error(images, self.reconstruct(latents))

    def distortion(self, images: Tensor, decoded: Tensor) -> Tensor:
        r"""Negative log-likelihood of each row in nats, up to the constant :math:`\tfrac D2 \log 2 \pi s^2`.

        The optimal standard deviation is not a constant, so then :math:`D \log s` is included. A subclass with another
        likelihood overrides this method, and :meth:`expectation` if it decodes other parameters than means.

        Args:
            images: shape ``(B, *image_shape)``.
            decoded: what :meth:`decode` gives for their latents, the same shape.

        Returns:
            Nats, shape ``(B,)``.
        """
        squared_error = _squared_error(images, decoded)
        if isinstance(self.observation_std, str):
            return optimal_distortion(squared_error, images[0].numel())
        return squared_error / (2 * self.observation_std**2)

    def alignment(self, images: Tensor, index: Tensor | None, codes: Tensor) -> Tensor:
        """Alignment loss ``KL(T || S)`` of each row in nats, shape ``(B,)``."""
        assert self.teacher is not None
        assert self.witness is not None
        targets = self.teacher(images, index).to(codes.dtype).to(codes.device)
        return kl_divergence(targets, self.witness(codes).log_softmax(dim=1))


def _widen(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _squared_error(images: Tensor, decoded: Tensor) -> Tensor:
    return mse_loss(decoded, images, reduction="none").flatten(start_dim=1).sum(dim=1)


def _latent_dim(encoder: nn.Module) -> int:
    """Size of an encoder's latent."""
    given = getattr(encoder, "latent_dim", None)
    if not isinstance(given, int):
        raise ValueError(
            f"`encoder` must have an attribute `latent_dim`, the number of coordinates of its mean, got {given!r}. Set "
            f"`self.latent_dim` in the constructor of {type(encoder).__name__}."
        )
    return given


def _check_arguments(weight: float, path: str, observation_std: float | str, schedule: str, teacher: object) -> None:
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"`alignment_weight` must be at least 0, got {weight}.")
    if path not in get_args(AlignmentPath):
        raise ValueError(f"`alignment_path` must be 'mean' or 'sample', got {path!r}.")
    if schedule not in ("constant", "cosine"):
        raise ValueError(f"`learning_rate_schedule` must be 'constant' or 'cosine', got {schedule!r}.")
    if observation_std != "optimal" and not (
        isinstance(observation_std, int | float) and math.isfinite(observation_std) and observation_std > 0
    ):
        raise ValueError(f"`observation_std` must be positive or 'optimal', got {observation_std!r}.")
    if weight > 0 and teacher is None:
        raise ValueError("`alignment_weight` above 0 needs a `teacher`; search one with certvae.TeacherSearch.")
