"""A callback that measures the certificate of a VAE at each validation epoch."""

import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from certvae.certificate.certificate import Certificate
from certvae.certificate.diagnosis import NOTHING, Diagnosis, grows
from certvae.certificate.history import append_history
from certvae.certificate.ledger import LookLedger
from certvae.certificate.settings import CertificateSettings
from certvae.certificate.status import Status
from certvae.monitoring.batch_reader import BatchReader, choose_loader
from certvae.monitoring.divergence import OnDivergence, answer_divergence, check_on_divergence
from certvae.monitoring.evaluation import Evaluation
from certvae.monitoring.kept_run import keep_run
from certvae.monitoring.loggers import LOGGED, CertificateLog
from certvae.monitoring.own_rows import (
    evaluate_rows,
    number_of_batches,
    own_batches,
    runner,
    validates_now,
    warn_if_never_validated,
)
from certvae.monitoring.run_facts import flat, hyper_parameters, run_facts
from certvae.monitoring.watching import CheckedLatents, find_named
from certvae.reading.latents import LatentSource
from certvae.teachers import Teacher

__all__ = ["LOGGED", "CertificateCallback"]

FIRST_EPOCH = "train on, this is the first epoch; if it stays so: "
GROWING = "train on, the code carries more than at the look before; if that ends: "
EARLY = ("collapsed", "narrow channel", "another target")  # causes that more training may take away
GUARDED = "train on, the run's guard is at work; if it stays so, lower the KL weight (half of it, then half again)."


class CertificateCallback(CheckedLatents):
    """Measure the raw-witness certificate at each validation epoch, for any LightningModule with a latent code.

    The verdict states whether the witness can predict the teacher's outputs from the code. The *reading* states whether
    the code carries any information: ``ALIGNED``, ``INFORMATIVE``, ``COLLAPSED`` or ``UNDECIDED``
    (:class:`certvae.Reading`). The reading follows from the information bracket (:func:`certvae.information_bracket`),
    which needs no teacher, and from a reader fitted to the code.

    Logs ``certificate/{teacher_information, alignment_loss, margin, margin_lower, channel_margin, rate,
    witness_information, information_lower, information_upper, fitted_margin}`` in nats and ``certificate/{certified,
    informative, collapsed}`` (1 or 0) at the end of each validation epoch, and the same under ``test_certificate/`` for
    ``Trainer.test``. A higher margin is better. When status or reading change, it prints a line with the cause and what
    to do (:meth:`certvae.Certificate.diagnose`). Lightning's progress bar shows the margin. Some loggers receive more,
    see :mod:`certvae.monitoring.loggers`. The run itself does not change: there is no second forward pass, and random
    states stay the same.

    Also logs ``diagnostics/escape_force``, or ``diagnostics/<name>/escape_force`` under another ``name``: the mean
    gradient norm of the alignment term at a mean code, in nats per unit of the code (:mod:`certvae.theory.escape`). It
    is logged only for a witness with a closed-form gradient.

    Args:
        teacher: a teacher, the path of its file, or the name of a shipped teacher, such as ``"cifar100"``; default: the
            module's attribute ``teacher``.
        latents: where the code is; default: ``outputs["posterior"]`` of the module's step. Give a dotted submodule
            path, optionally followed by ``":chunk"`` or the name of a part; a hook reads its output, which is a mean, a
            ``(mean, log_variance)`` pair or a distribution. Or give a :class:`certvae.callbacks.Latents`, which also
            handles spatial codes and several calls, or a function ``(pl_module, batch) -> ...``.
        images: where the teacher's input is in the batch: a position, a key, an attribute or a function of the batch.
        witness: a module from the code alone to logits ``(B, K)``; default: the module's attribute
            ``witness``, else the teacher's simplex witness.
        witness_scale: scale of the simplex witness.
        safety_margin: nats by which the lower bound must exceed the threshold.
        confidence: probability with which the lower bound holds.
        method: name of the bound, see :mod:`certvae.theory.bounds`; default as in
            :class:`certvae.CertificateSettings`.
        teacher_floor: every teacher probability is at least ``teacher_floor / K``, which is checked; default: the floor
            that the teacher guarantees.
        witness_floor: share of the uniform distribution mixed into the witness; default: as the bound needs.
        channel_samples: draws of the latent per row for the channel margin; 0 leaves it out. The margins of the draws
            are averaged: each draw is a code that the decoder could receive. This average stays below the rate; the
            margin of an averaged witness may not.
        spending: whether to share the error probability among looks at the same rows
            (:func:`certvae.theory.bounds.spending`). 'Certified at some epoch' then holds with ``confidence`` over all
            recorded looks, if the rows have not influenced the model, for example through a guard. Looks of ``fit``,
            ``validate`` and ``test`` are recorded in ``<name>_looks.json`` in ``save_dir``; later callbacks and
            processes with this folder continue the record. Without ``save_dir``, the record is in this callback and its
            checkpoints. Looks by a copy of the run elsewhere are not counted.
        dataloader: position or name of the measured dataloader among several validation (or test) dataloaders. Or a
            dataloader of validation rows, for a module without a ``validation_step``: the callback then runs the module
            itself in eval mode, with its ``predict_step`` or else its ``forward`` on the first entry of a batch. It
            does so after the epochs at which the trainer would validate.
        name: prefix of the logged keys, the files and the state in checkpoints; several of these callbacks in one run
            need different names.
        save_dir: folder for the latest ``certificate_val.json`` and ``certificate_test.json``, and for
            ``certificates_val.jsonl`` with one line per validation of a fit; default: nothing is written.
        check_encoder: whether to encode some rows of the first batch again, alone and in another order, to detect codes
            that depend on other rows of the batch. It costs one more forward pass of that batch.
        information_rows: largest number of rows for the information bracket and the fitted reader, selected by a hash
            of their positions. 0 computes neither; a code without a certificate then has the reading ``UNDECIDED``.
        on_divergence: action if codes or rates are not finite: ``"warn"`` gives no certificate for this epoch and one
            warning that names the row; ``"raise"`` ends the run with a ValueError.
        seed: seed of the draws. A row's random numbers do not depend on its process.

    Attributes:
        certificate: certificate of the latest validation; None before, and after a validation with codes that are not
            finite.
        looks: number of validations measured so far, including ``Trainer.validate``; kept in checkpoints.
        reader: source of codes, inputs, teacher and witness.

    Raises:
        ValueError: if ``channel_samples`` or ``information_rows`` is below 0, ``name`` has other characters than
            letters, digits, '_', '-' and '.', a setting is not valid for :class:`certvae.CertificateSettings`, or there
            is no teacher.

    Example:
        >>> from certvae.callbacks import CertificateCallback
        >>> watch = CertificateCallback("teacher.safetensors", latents="encoder:chunk", save_dir="runs/vae")

        ``Trainer(callbacks=[watch]).fit(model, data)`` prints the verdict; ``watch.certificate`` is the latest
        certificate.
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
        method: str | None = None,
        teacher_floor: float | None = None,
        witness_floor: float | None = None,
        channel_samples: int = 1,
        spending: bool = False,
        dataloader: int | str | DataLoader[Any] = 0,
        name: str = "certificate",
        save_dir: str | Path | None = None,
        check_encoder: bool = False,
        information_rows: int = 4096,
        on_divergence: OnDivergence = "warn",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if channel_samples < 0:
            raise ValueError(f"`channel_samples` must be at least 0, got {channel_samples}.")
        if information_rows < 0:
            raise ValueError(f"`information_rows` must be at least 0, got {information_rows}.")
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
            raise ValueError(f"`name` must be letters, digits, '_', '-' or '.', got {name!r}.")
        self._given: dict[str, Any] = {
            "safety_margin": safety_margin,
            "confidence": confidence,
            "method": method,
            "teacher_floor": teacher_floor,
            "witness_floor": witness_floor,
        }
        CertificateSettings.for_teacher(0.5, **self._given)  # the teacher's floor is known only in `setup`
        self.channel_samples, self.spending, self.seed = channel_samples, spending, seed
        self.check_encoder, self.information_rows = check_encoder, information_rows
        self.on_divergence = check_on_divergence(on_divergence)
        self.dataloader, self.name, self.save_dir = dataloader, name, save_dir
        self.own_rows = None if isinstance(dataloader, int | str) else dataloader
        self.reader = BatchReader(teacher, latents, images, witness, witness_scale)
        self._never, self._growing = False, False
        self.certificate: Certificate | None = None
        self.looks = 0
        self._said: Certificate | None = None
        self._evaluation: Evaluation | None = None
        self._loader_position = 0
        self._run_log = CertificateLog(name, safety_margin)
        self._ledger = LookLedger(None if save_dir is None else Path(save_dir) / f"{name}_looks.json")

    @classmethod
    def find(cls, trainer: Trainer, name: str, asking: Callback) -> "CertificateCallback":
        """The certificate callback of a run, for callbacks that depend on it.

        Raises:
            ValueError: if no such callback has this name.
        """
        add = "CertificateCallback(teacher=..., latents=...)"
        return find_named(trainer, cls, name, type(asking).__name__, add)

    @property
    def first_certified_epoch(self) -> int | None:
        """First epoch of a fit with status ``CERTIFIED``."""
        return self._run_log.curve.first_certified_epoch

    @property
    def best_margin(self) -> float | None:
        """Margin in nats of the fit's validation with the highest lower bound, over complete validation sets."""
        best = self._run_log.curve.best
        return None if best is None else best.margin

    @property
    def state_key(self) -> str:
        return self._generate_state_key(name=self.name)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Load teacher and witness.

        Raises:
            ValueError: if there is no teacher, it does not fit the data, its floor does not permit the method, or
                another callback of this run has the same name.
        """
        if stage == "predict":
            return
        others = [item for item in trainer.callbacks if isinstance(item, CertificateCallback)]  # type: ignore[attr-defined]
        if [item.name for item in others].count(self.name) > 1:
            raise ValueError(f"`name` must differ among the CertificateCallbacks of a run, got {self.name!r} twice.")
        self.reader.setup(trainer, pl_module)
        self._check(self.reader.capture.source)
        chosen = asdict(self.settings())
        names = ("channel_samples", "spending", "seed")
        settings = chosen | {key: getattr(self, key) for key in names}
        self._run_log.start(trainer, pl_module, self.reader.teacher, settings)
        if self.save_dir is not None and trainer.is_global_zero:
            made = {**hyper_parameters(pl_module), "run": run_facts(trainer, pl_module), self.name: settings}
            keep_run(Path(self.save_dir), self.name, self.reader.teacher, flat(made))

    def settings(self) -> CertificateSettings:
        """Settings of the verdict for the teacher; available after :meth:`setup`."""
        return CertificateSettings.for_teacher(self.reader.teacher.card.floor, **self._given)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a run without validation rows, which has nothing to certify.

        Raises:
            ValueError: if the validation set is empty or missing, or has no such dataloader.
        """
        self._never = warn_if_never_validated(trainer)
        if self.own_rows is not None:
            return
        if trainer.enable_validation and trainer.val_dataloaders is None:
            # Lightning creates these loaders before training only if the first epoch ends with a validation.
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.setup_data()
            trainer.training = True
        counts = trainer.num_val_batches if trainer.enable_validation else []
        if sum(counts):
            position, _ = choose_loader(trainer.val_dataloaders, self.dataloader)  # type: ignore[arg-type]
            counts = [counts[position]]
        # A process that skips validation would miss the collectives at its end.
        if trainer.strategy.reduce_boolean_decision(not sum(counts), all=False):
            raise ValueError(
                "CertificateCallback measures on validation rows, but the validation set is empty or missing on at "
                "least one process. Give a `val_dataloader` with rows, a `validation_step`, and `limit_val_batches` "
                "above 0; or give the rows to the callback, which then needs no `validation_step`: "
                "CertificateCallback(..., dataloader=DataLoader(rows, 256))."
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run the module over the callback's own dataloader, if it has one."""
        rows = self.own_rows
        if rows is None or not validates_now(trainer):
            return
        self.looks += 1
        limit = number_of_batches(trainer, rows)
        evaluation = self._evaluate(trainer, pl_module, rows, limit)
        run = runner(pl_module, self.reader.capture.source)
        evaluate_rows(evaluation, pl_module, own_batches(trainer, rows, limit), run)
        certificate = self._finish(trainer, pl_module, "val")
        if certificate is not None:
            self._run_log.add(trainer, certificate)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.own_rows is not None:
            return
        self.looks += not trainer.sanity_checking
        self._start(trainer, pl_module, trainer.val_dataloaders, trainer.num_val_batches)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(trainer, pl_module, trainer.test_dataloaders, trainer.num_test_batches)

    def _start(self, trainer: Trainer, pl_module: LightningModule, loaders: Any, counts: Any) -> None:
        which = self.dataloader if isinstance(self.dataloader, int | str) else 0
        self._loader_position, loader = choose_loader(loaders, which)
        self._evaluate(trainer, pl_module, loader, counts[self._loader_position])

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule, loader: Any, batches: float) -> Evaluation:
        self._evaluation = Evaluation(
            self.reader,
            self.settings(),
            trainer,
            pl_module,
            loader,
            batches,
            self.channel_samples,
            self.seed,
            self.check_encoder,
            self.information_rows,
        )
        self._evaluation.check_scale = not self._checks.sound
        return self._evaluation

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._is_idle(trainer):
            return
        assert self._evaluation is not None
        if dataloader_idx == self._loader_position:
            self._evaluation.begin()
        else:
            self.reader.capture.listen(False)

    on_test_batch_start = on_validation_batch_start

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._is_idle(trainer):
            return
        # Rows of the sanity check are not counted; they reveal a wrong argument before the first epoch.
        assert self._evaluation is not None
        if dataloader_idx == self._loader_position:
            self._evaluation.update(pl_module, batch, outputs)

    on_test_batch_end = on_validation_batch_end

    def _is_idle(self, trainer: Trainer) -> bool:
        """Whether to ignore the trainer's rows, because the callback has its own."""
        return self.own_rows is not None and not trainer.testing

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_idle(trainer):
            return
        if trainer.sanity_checking:
            self.reader.capture.listen(False)
            return
        certificate = self._finish(trainer, pl_module, "val")
        if certificate is None:
            return
        if trainer.state.fn != "fit":
            self._run_log.finish(trainer, certificate, "val")
            return
        self._run_log.add(trainer, certificate)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.certificate is not None:
            self._run_log.finish(trainer, self.certificate, "val")
            if self.certificate is not self._said:
                self._say(trainer, pl_module, self.certificate, "at the end", "val")
        elif self.looks == 0 and not self._never:
            rank_zero_warn("No validation ran in this fit, so nothing was certified: see `check_val_every_n_epoch`.")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        certificate = self._finish(trainer, pl_module, "test")
        if certificate is not None:
            self._run_log.finish(trainer, certificate, "test")

    def _finish(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> Certificate | None:
        assert self._evaluation is not None
        ledger = self._ledger if self.spending else None
        certificate = self._evaluation.finish(trainer, ledger, self.looks if stage == "val" else 1)
        if certificate is None:
            self.certificate, lacking = None, "There is no certificate for this epoch"
            answer_divergence(trainer, self._evaluation.fault, lacking, self.on_divergence)
            return None
        certificate.provenance |= self._provenance(trainer, stage)
        self._growing = stage == "val" and grows(self.certificate, certificate)
        self._log(pl_module, certificate, stage, self._evaluation.device)
        self._announce(trainer, pl_module, certificate, stage)
        if self.save_dir is not None and trainer.is_global_zero:
            certificate.save(Path(self.save_dir) / f"{self.name}_{stage}.json")
            if trainer.state.fn == "fit":
                append_history(Path(self.save_dir) / f"{self.name}s_val.jsonl", certificate)
        self.certificate = certificate
        return certificate

    def _log(self, pl_module: LightningModule, certificate: Certificate, stage: str, device: torch.device) -> None:
        prefix = self.name if stage == "val" else f"test_{self.name}"
        for name in LOGGED:
            value = getattr(certificate, name)
            if value is not None:
                tensor = torch.tensor(float(value), dtype=torch.float64, device=device)
                pl_module.log(f"{prefix}/{name}", tensor, prog_bar=name == "margin", sync_dist=True)
        if certificate.escape_force is not None:
            own = "" if self.name == "certificate" else f"{self.name}/"
            force = torch.tensor(certificate.escape_force, dtype=torch.float64, device=device)
            pl_module.log(f"{'test_' if stage == 'test' else ''}diagnostics/{own}escape_force", force, sync_dist=True)

    def _announce(self, trainer: Trainer, pl_module: LightningModule, certificate: Certificate, stage: str) -> None:
        said = self._said
        if said is None or (said.status, said.reading) != (certificate.status, certificate.reading):
            first = trainer.state.fn == "fit" and trainer.current_epoch == 0 and trainer.max_epochs != 1
            self._say(trainer, pl_module, certificate, f"epoch {trainer.current_epoch}", stage, first)

    def _say(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        certificate: Certificate,
        when: str,
        stage: str,
        first: bool = False,
    ) -> None:
        name = "" if self.name == "certificate" else f"{self.name}: "
        diagnosis, self._said = certificate.diagnose(), certificate
        pl_module.print(f"{when}: {name}{certificate.line(f'{stage} ')}")
        pl_module.print(f"  {diagnosis.finding}\n  To do: {self._cure(trainer, certificate, diagnosis, first)}")

    def _cure(self, trainer: Trainer, certificate: Certificate, diagnosis: Diagnosis, first: bool) -> str:
        """What to do, as far as the run does not do it already."""
        training_may_help = certificate.status in (Status.CERTIFIED, Status.NOT_CERTIFIED) and diagnosis.cure != NOTHING
        if not training_may_help or trainer.state.fn != "fit":
            return diagnosis.cure
        guarded = any(getattr(item, "rescues", False) for item in trainer.callbacks)  # type: ignore[attr-defined]
        if guarded and "CertificateGuard" in diagnosis.cure:
            return GUARDED
        if first:
            return FIRST_EPOCH + diagnosis.cure
        return (GROWING if self._growing and diagnosis.cause in EARLY else "") + diagnosis.cure

    def _provenance(self, trainer: Trainer, stage: str) -> dict[str, Any]:
        teacher = self.reader.teacher
        return {
            "stage": stage,
            "epoch": trainer.current_epoch,
            "global_step": trainer.global_step,
            "look": self.looks if stage == "val" else None,
            "teacher": {
                "kind": teacher.kind,
                "seed": teacher.card.seed,
                "information_train": teacher.card.information_train,
            },
            "witness_scale": self.reader.scale,
            "channel_samples": self.channel_samples,
            "torch": torch.__version__,
            **teacher.card.naming(),
        }

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        self.reader.capture.detach()

    def state_dict(self) -> dict[str, Any]:
        return {"looks": self.looks, "curve": self._run_log.curve.state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.looks = max(self.looks, state_dict["looks"])  # looks already taken still count
        self._run_log.curve.restore(state_dict.get("curve", []))
