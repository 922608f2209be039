"""The callback that measures the certificate of a VAE on every validation epoch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from certvae.bounds import RIGOROUS
from certvae.callbacks.capture import Captured, LatentCapture, LatentSource
from certvae.callbacks.history import append_history
from certvae.certificate import Certificate, Status
from certvae.leaks import check_witness
from certvae.metric import CertificateMetric
from certvae.posterior import Posterior
from certvae.rows import RowPositions, first_loader, is_cut_short
from certvae.teachers import Teacher, load_teacher
from certvae.teachers.base import index_of
from certvae.verdict import CertificateSettings
from certvae.witness import SimplexWitness, own_witness

__all__ = ["LOGGED", "CertificateCallback"]

LOGGED = (
    "teacher_information",
    "alignment_loss",
    "margin",
    "margin_lower",
    "channel_margin",
    "rate",
    "witness_information",
    "certified",
)


class CertificateCallback(Callback):
    """Measure the raw-witness certificate on each validation epoch, for any LightningModule with a latent code.

    Logs ``certificate/{teacher_information, alignment_loss, margin, margin_lower, channel_margin, rate,
    witness_information}`` in nats and ``certificate/certified`` (1 or 0) at the end of each validation epoch, and the
    same under ``test_certificate/`` for ``Trainer.test``. A higher margin is better. Prints one line when the status
    changes. The run itself is not changed: no second forward pass, no random state touched.

    Args:
        teacher: a teacher or the path of its file; default: the module's attribute ``teacher``.
        latents: where the code is; default: ``outputs["posterior"]`` of the module's step. A dotted submodule path
            (its output is caught by a hook: a mean, a ``(mean, log_variance)`` pair or a distribution), or a function
            ``(pl_module, batch) -> ...``.
        images: where the input stands in the batch: a position or a key, or a function of the batch.
        witness: a module from the code, and nothing else, to logits ``(B, K)``; default: the module's attribute
            ``witness``, else the teacher's simplex witness.
        witness_scale: scale of that simplex witness.
        safety_margin: nats by which the lower bound must exceed the threshold.
        confidence: probability with which the lower bound holds.
        method: the bound; see :mod:`certvae.bounds`.
        channel_samples: draws of the latent for each row, for the channel margin; 0 leaves it out. The margins of the
            draws are averaged: each draw is a code that the decoder could have received, and the average of their
            margins stays below the rate, which the margin of an averaged witness need not.
        spending: share the error probability among all looks (:func:`certvae.bounds.spending`): 'certified at some
            epoch' then holds with ``confidence`` over the whole run, however long.
        save_dir: folder for ``certificate_val.json`` and ``certificate_test.json``, the latest ones, and
            ``certificates_val.jsonl``, one line an epoch; default: nothing is written.
        seed: of the draws. Each row has its own random numbers, whatever process it is on.

    Attributes:
        certificate: the latest certificate.
        first_certified_epoch: first epoch with status ``CERTIFIED``; kept in checkpoints.
        best_margin: highest margin of a complete validation set; kept in checkpoints.
        looks: validation epochs measured so far; kept in checkpoints.

    Raises:
        ValueError: if an argument is out of its range, or there is no teacher.
    """

    def __init__(
        self,
        teacher: str | Path | Teacher | None = None,
        latents: LatentSource | None = None,
        images: int | str | Callable[[Any], Tensor] = 0,
        witness: nn.Module | None = None,
        witness_scale: float = 2.0,
        safety_margin: float = 0.05,
        confidence: float = 0.95,
        method: str = "normal",
        channel_samples: int = 1,
        spending: bool = False,
        save_dir: str | Path | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if channel_samples < 0:
            raise ValueError(f"`channel_samples` must be at least 0, got {channel_samples}.")
        self.teacher, self.latents, self.images = teacher, latents, images
        self.witness, self.witness_scale = witness, witness_scale
        self.safety_margin, self.confidence, self.method = safety_margin, confidence, method
        self.channel_samples, self.save_dir, self.seed = channel_samples, save_dir, seed
        self.spending = spending
        # The teacher's floor, which the rigorous methods need, is known in `setup` only.
        CertificateSettings(safety_margin, confidence, method, teacher_floor=0.5)
        self.certificate: Certificate | None = None
        self.first_certified_epoch: int | None = None
        self.best_margin: float | None = None
        self.looks = 0
        self._capture = LatentCapture(latents)
        self._teacher: Teacher | None = None
        self._witness: nn.Module | None = None
        self._metric: CertificateMetric | None = None
        self._positions: RowPositions | None = None
        self._first_batch = True

    @property
    def state_key(self) -> str:  # noqa: D102
        teacher = str(self.teacher) if isinstance(self.teacher, str | Path) else type(self.teacher).__name__
        return f"{type(self).__qualname__}(teacher={teacher!r}, latents={_name(self.latents)!r})"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find teacher and witness.

        Raises:
            ValueError: if there is no teacher, or it does not fit the data.
        """
        given = self.teacher if self.teacher is not None else getattr(pl_module, "teacher", None)
        if given is None:
            raise ValueError("`teacher` must be a teacher or the path of its file: the module has no `teacher`.")
        self._teacher = load_teacher(given) if isinstance(given, str | Path) else given
        data = getattr(trainer, "datamodule", None)
        self._teacher.check_data(getattr(data, "image_shape", None), getattr(data, "fingerprint", None))
        self._witness = self.witness or own_witness(pl_module, self._teacher.num_components)
        self._new_metric()  # rejects settings that the teacher's floor does not allow, before the first epoch

    def _new_metric(self, look: int | None = None) -> CertificateMetric:
        assert self._teacher is not None
        card = self._teacher.card
        floor = card.floor if self.method in RIGOROUS else 0.0
        return CertificateMetric(
            card.num_components, self.safety_margin, self.confidence, self.method, floor, look=look
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a run without validation rows: there would be nothing to certify.

        Raises:
            ValueError: if the validation set is empty or missing.
        """
        if not trainer.enable_validation or sum(trainer.num_val_batches) == 0:
            raise ValueError(
                "CertificateCallback measures on validation rows, but the validation set is empty or missing. Give a "
                "`val_dataloader` with rows, and a `validation_step`."
            )

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        if not trainer.sanity_checking:
            self.looks += 1
            look = self.looks if self.spending else None
            self._start(trainer, pl_module, trainer.val_dataloaders, trainer.num_val_batches, look)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._start(trainer, pl_module, trainer.test_dataloaders, trainer.num_test_batches)

    def _start(
        self, trainer: Trainer, pl_module: LightningModule, loaders: Any, counts: Any, look: int | None = None
    ) -> None:
        assert self._teacher is not None
        loader = first_loader(loaders)
        # MPS has no float64, so the sums stay on the CPU there.
        device = torch.device("cpu") if pl_module.device.type == "mps" else pl_module.device
        self._metric = self._new_metric(look).to(device)
        self._metric.partial = is_cut_short(counts[0], loader)
        self._teacher.to(device)
        if self.witness is not None:
            self.witness.to(pl_module.device).eval()
        self._positions = RowPositions(loader, trainer)
        self._first_batch = True
        self._capture.attach(pl_module)

    def on_validation_batch_end(  # noqa: D102
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not trainer.sanity_checking and dataloader_idx == 0:
            self._update(pl_module, outputs, batch)

    def on_test_batch_end(  # noqa: D102
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if dataloader_idx == 0:
            self._update(pl_module, outputs, batch)

    @torch.no_grad()
    def _update(self, pl_module: LightningModule, outputs: Any, batch: Any) -> None:
        assert self._teacher is not None
        assert self._metric is not None
        assert self._positions is not None
        captured = self._capture.read(pl_module, batch, outputs)
        images = self._images(batch)
        if images.shape[0] != captured.mean.shape[0]:
            raise ValueError(f"`latents` gave {captured.mean.shape[0]} rows for a batch of {images.shape[0]} inputs.")
        witness = self._witness_for(captured.mean)
        if self._first_batch:
            self._first_batch = False
            self._teacher.check_values(images)
            self._metric.leaks = check_witness(witness, captured.mean)
        positions, weights = self._positions.next(images.shape[0])
        self._metric.update(
            self._teacher(images, index_of(batch)),
            witness(captured.mean),
            weights,
            channel_logits=self._channel_logits(witness, captured, positions),
            rate=captured.rate,
        )

    def _images(self, batch: Any) -> Tensor:
        if callable(self.images):
            return self.images(batch)
        try:
            return batch if isinstance(batch, Tensor) else batch[self.images]
        except (KeyError, IndexError, TypeError):
            keys = list(batch) if isinstance(batch, dict) else type(batch).__name__
            raise ValueError(f"`images={self.images!r}` is not in the batch, which has {keys}.") from None

    def _witness_for(self, codes: Tensor) -> nn.Module:
        assert self._teacher is not None
        if self._witness is None:
            self._witness = self._teacher.witness(codes.shape[1], self.witness_scale)
        return self._witness

    def _channel_logits(self, witness: nn.Module, captured: Captured, positions: Tensor) -> Tensor | None:
        if captured.log_variance is None or self.channel_samples == 0:
            return None
        posterior = Posterior(captured.mean, captured.log_variance)
        return torch.stack([witness(draw) for draw in posterior.row_draws(positions, self.channel_samples, self.seed)])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        if trainer.sanity_checking:
            return
        certificate = self._finish(trainer, pl_module, "val")
        if certificate.certified and self.first_certified_epoch is None:
            self.first_certified_epoch = trainer.current_epoch
        complete = certificate.status is not Status.PARTIAL
        if complete and (self.best_margin is None or certificate.margin > self.best_margin):
            self.best_margin = certificate.margin

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._finish(trainer, pl_module, "test")

    def _finish(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> Certificate:
        assert self._metric is not None
        self._capture.detach()
        # Leak findings of any rank count for all; both lines are collectives that every rank must reach.
        if trainer.strategy.reduce_boolean_decision(bool(self._metric.leaks), all=False) and not self._metric.leaks:
            self._metric.leaks = ["found on another process"]
        certificate = self._metric.compute()
        certificate.provenance = self._provenance(trainer, stage)
        prefix = "certificate" if stage == "val" else "test_certificate"
        for name in LOGGED:
            value = getattr(certificate, name)
            if value is not None:
                tensor = torch.tensor(float(value), dtype=torch.float64, device=self._metric.packed.device)
                pl_module.log(f"{prefix}/{name}", tensor, on_step=False, on_epoch=True, sync_dist=True)
        self._announce(trainer, pl_module, certificate, stage)
        if self.save_dir is not None and trainer.is_global_zero:
            certificate.save(Path(self.save_dir) / f"certificate_{stage}.json")
            append_history(Path(self.save_dir) / f"certificates_{stage}.jsonl", certificate)
        self.certificate = certificate
        return certificate

    def _announce(self, trainer: Trainer, pl_module: LightningModule, certificate: Certificate, stage: str) -> None:
        previous = self.certificate.status if self.certificate is not None else None
        if certificate.status is not previous:
            pl_module.print(
                f"epoch {trainer.current_epoch}: {certificate.status} ({stage} margin {certificate.margin:.3f} nats, "
                f"at least {certificate.margin_lower:.3f}; teacher information {certificate.teacher_information:.3f})"
            )

    def _provenance(self, trainer: Trainer, stage: str) -> dict[str, Any]:
        assert self._teacher is not None
        witness = self._witness
        return {
            "stage": stage,
            "epoch": trainer.current_epoch,
            "global_step": trainer.global_step,
            "teacher": {"kind": self._teacher.kind, "seed": self._teacher.card.seed},
            "witness_scale": witness.scale if isinstance(witness, SimplexWitness) else None,
            "channel_samples": self.channel_samples,
            "torch": torch.__version__,
        }

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: D102
        self._capture.detach()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: D102
        self._capture.detach()

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {
            "first_certified_epoch": self.first_certified_epoch,
            "best_margin": self.best_margin,
            "looks": self.looks,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # noqa: D102
        self.first_certified_epoch = state_dict["first_certified_epoch"]
        self.best_margin = state_dict["best_margin"]
        self.looks = state_dict["looks"]


def _name(source: LatentSource | None) -> str:
    return source if isinstance(source, str) else getattr(source, "__qualname__", str(source))
