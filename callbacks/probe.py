"""A callback that measures what an affine probe can predict from the code, next to the raw witness."""

from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.seed import isolate_rng

from certvae.callbacks.certificate import CertificateCallback
from certvae.monitoring.affine_probe import AffineProbe
from certvae.monitoring.batch_reader import BatchReader, choose_loader
from certvae.monitoring.evaluation import Evaluation

__all__ = ["ProbeCallback"]

LOGGED = ("alignment_loss", "margin", "margin_lower")


class ProbeCallback(Callback):
    r"""Fit an affine probe on codes of training rows and score it on validation rows; it certifies nothing.

    The probe is :class:`certvae.monitoring.affine_probe.AffineProbe`, a multinomial logistic regression from the
    posterior's mean to the teacher's components, with one step per training batch. On validation rows that were not
    used to train or select the model, the probe is a fixed witness. So its margin ``I_T - E KL(T || probe(z))`` is, in
    the population, a lower bound on the information of the code about the input (Barber and Agakov, 2003), like the raw
    witness's margin.

    The certificate does not use the probe: the raw witness needs no training. The raw witness tests whether the code
    gives the teacher's outputs in fixed coordinates. The probe tests whether any affine map gives them. A VAE that
    reconstructs well but was not aligned often has a probe margin far above 0 and a raw margin below 0: it is
    informative, but not aligned. If both are at or below 0, nothing is shown; read the rate.

    It needs a :class:`certvae.callbacks.CertificateCallback` in the same run, and uses its teacher, latents, images,
    dataloader and the method and confidence of its bound. Gradients never reach the model: the run is bit-identical
    with and without the probe. The code is that of the training step, from a hook or from ``outputs["posterior"]``.
    Only if ``latents`` is a function is it called once more per training batch, with the module in eval mode. The
    teacher runs on each training batch; a table of targets makes this cheap. With several processes, gradients are
    summed, so all have the same probe. Checkpoints keep the probe and its optimizer as this callback's state, not the
    module's.

    Logs ``probe/alignment_loss`` (nats, lower is better), ``probe/margin`` and ``probe/margin_lower`` (nats, higher is
    better; the bound is that of a single look) at the end of each validation epoch. A validation before any training
    batch and without a checkpoint logs none of these and warns.

    Args:
        certificate: ``name`` of the certificate callback.
        learning_rate: learning rate of the probe's Adam, above 0.
        name: prefix of the logged keys and the state in checkpoints; several probes in a run need different names.

    Attributes:
        figures: values logged by the latest validation, by name without ``probe/``; empty before, and after a
            validation with codes that are not finite.

    Raises:
        ValueError: if ``learning_rate`` is not above 0, or no certificate callback has this name.

    Example:
        >>> from certvae.callbacks import CertificateCallback, ProbeCallback
        >>> callbacks = [CertificateCallback("teacher.safetensors", latents="encoder:chunk"), ProbeCallback()]
    """

    def __init__(self, certificate: str = "certificate", learning_rate: float = 0.05, name: str = "probe") -> None:
        super().__init__()
        self.certificate, self.name, self.learning_rate = certificate, name, learning_rate
        self.figures: dict[str, float] = {}
        self._probe = AffineProbe(learning_rate)
        self._loaded: dict[str, Any] = {}
        self._watched: CertificateCallback | None = None
        self._reader: BatchReader | None = None
        self._evaluation: Evaluation | None = None
        self._loader_position = 0
        self._device = torch.device("cpu")

    @property
    def state_key(self) -> str:
        return self._generate_state_key(name=self.name)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the certificate callback, and register a hook at the same submodule.

        Raises:
            ValueError: if no such callback has this name, or its teacher or latents do not exist.
        """
        if stage not in ("fit", "validate"):
            return
        self._watched = CertificateCallback.find(trainer, self.certificate, self)
        if self._watched.own_rows is not None:
            raise ValueError(
                "ProbeCallback scores on the rows of the trainer's validation, but its CertificateCallback has its own "
                "`dataloader`. Give these rows to the trainer, with a `validation_step`, or remove ProbeCallback."
            )
        given = self._watched.reader
        self._reader = BatchReader(given.given_teacher, given.capture.source, given.images, self._probe)
        self._reader.setup(trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._move(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            self._move(pl_module)

    def _move(self, pl_module: LightningModule) -> None:
        assert self._reader is not None
        self._device = self._reader.start(pl_module)
        self._probe.load(self._loaded or self._probe.state(), self._device)
        self._loaded = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        assert self._reader is not None
        self._reader.capture.listen()

    @torch.no_grad()
    @isolate_rng()  # a function given as `latents` or `images` may draw; the run must not depend on it
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        reader = self._reader
        assert reader is not None
        if batch is None or (pl_module.automatic_optimization and (outputs or {}).get("loss") is None):
            reader.capture.listen(False)
            return  # the module skips this batch
        codes = reader.code(pl_module, batch, outputs).mean.detach().to(self._device)
        reader.capture.listen(False)
        probs, weights = reader.teacher_probs(batch), reader.row_weights(batch)
        if weights is not None:
            codes, probs = codes[weights.to(codes.device) > 0], probs[weights.to(probs.device) > 0]
        self._probe.fit(codes, probs, lambda sums: trainer.strategy.reduce(sums, reduce_op="sum"))

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        assert self._reader is not None
        assert self._watched is not None
        self._evaluation = None
        if self._probe.steps == 0:
            rank_zero_warn(
                "ProbeCallback has no probe to score: it is fitted on training batches, and none came before this "
                "validation. No probe/margin is logged; give the `ckpt_path` of a run that had this callback."
            )
            return
        watched, loaders = self._watched, trainer.val_dataloaders
        self._loader_position, loader = choose_loader(loaders, watched.dataloader)  # type: ignore[arg-type]
        batches = trainer.num_val_batches[self._loader_position]
        self._evaluation = Evaluation(self._reader, watched.settings(), trainer, pl_module, loader, batches)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._evaluation is not None:
            if dataloader_idx == self._loader_position:
                self._evaluation.begin()
            else:
                self._evaluation.reader.capture.listen(False)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._evaluation is not None and dataloader_idx == self._loader_position:
            self._evaluation.update(pl_module, batch, outputs)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._evaluation is None:
            return
        self.figures, scored = {}, self._evaluation.finish(trainer)
        self._evaluation = None
        if scored is None:
            return  # the model has diverged; the certificate callback reports it
        self.figures = {name: getattr(scored, name) for name in LOGGED}  # no status, because a probe certifies nothing
        for name, figure in self.figures.items():
            value = torch.tensor(figure, dtype=torch.float64, device=self._device)
            pl_module.log(f"{self.name}/{name}", value, on_step=False, on_epoch=True, sync_dist=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._evaluation = None
        if self._reader is not None:
            self._reader.capture.detach()

    def state_dict(self) -> dict[str, Any]:
        return self._loaded or self._probe.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict
