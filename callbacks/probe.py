"""The callback that shows, beside the raw witness, what an affine probe reads from the same code."""

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
    r"""Fit an affine probe on the codes of training rows, and score it on validation rows; nothing is certified.

    The probe is :class:`certvae.monitoring.affine_probe.AffineProbe`, a multinomial logistic regression from the
    posterior's mean to the teacher's components, one step for each training batch. At the rows of a validation, if
    these rows neither trained nor chose the model, it is a fixed witness, so its margin ``I_T - E KL(T || probe(z))``
    is, in the population, a lower bound on what the code carries about the input (Barber and Agakov, 2003), as the
    raw witness's is.

    The certificate does not use the probe: the raw witness needs no training. The raw witness tests whether the code
    gives the teacher's answer in fixed coordinates. The probe tests whether any affine map finds it. A VAE that
    reconstructs and was not aligned often has a probe margin far above 0 and a raw margin below 0: it is informative,
    and not aligned. If both are at or below 0, nothing is shown; read the rate.

    It needs a :class:`certvae.callbacks.CertificateCallback` in the same run, from which it takes teacher, latents,
    images, dataloader and the method and confidence of the bound. Gradients never reach the model: the run is the
    same bits with and without it. The code is that of the training step, by a hook or from ``outputs["posterior"]``;
    only where ``latents`` is a function is it called once more for each training batch, with the module in eval mode.
    The teacher is asked about each training batch, which a table of targets makes cheap. On several processes gradients
    are added up, so that all hold the same probe. The probe and its optimizer are kept in checkpoints as this
    callback's state, not the module's.

    Logs ``probe/alignment_loss`` (nats, lower is better), ``probe/margin`` and ``probe/margin_lower`` (nats, higher is
    better; the bound is that of a single look) at the end of each validation epoch. A validation without a probe,
    before any training batch and without a checkpoint, logs none of them and warns.

    Args:
        certificate: ``name`` of the certificate callback.
        learning_rate: of the probe's Adam, above 0.
        name: of the logged keys and the state in checkpoints; several probes in a run need a different one each.

    Attributes:
        figures: what the latest validation logged, by name without ``probe/``; empty before, and after one whose codes
            were not finite.

    Raises:
        ValueError: if ``learning_rate`` is not above 0, or there is no such certificate callback.

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
        """Find the certificate callback, and put a hook of our own where it has its.

        Raises:
            ValueError: if there is none of this name, or its teacher or latents are not there.
        """
        if stage not in ("fit", "validate"):
            return
        self._watched = CertificateCallback.find(trainer, self.certificate, self)
        if self._watched.own_rows is not None:
            raise ValueError(
                "ProbeCallback scores on the rows that the trainer validates on, and its CertificateCallback has a "
                "`dataloader` of its own. Give the rows to the trainer, with a `validation_step`, or leave it out."
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
    @isolate_rng()  # a function given as `latents` or `images` may draw numbers: the run must not depend on it
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
            return  # the model has diverged, as the certificate callback says
        self.figures = {name: getattr(scored, name) for name in LOGGED}  # no status: a probe certifies nothing
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
