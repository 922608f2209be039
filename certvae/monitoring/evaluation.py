"""One pass over the rows of an epoch that computes a certificate."""

import math
from dataclasses import replace
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn

from certvae.certificate.certificate import Certificate
from certvae.certificate.leaks import WitnessAudit, check_encoder
from certvae.certificate.ledger import LookLedger, name_rows
from certvae.certificate.metric import CertificateMetric
from certvae.certificate.settings import CertificateSettings
from certvae.certificate.verdict import judge
from certvae.monitoring.batch_reader import BatchReader
from certvae.monitoring.code_checks import check_log_variance
from certvae.monitoring.code_sample import CodeSample
from certvae.monitoring.divergence import find_fault, shared_fault
from certvae.reading.inputs import index_of
from certvae.reading.latents import Captured
from certvae.reading.rows import Attendance, RowPositions
from certvae.reading.streams import FAULTS, CountedRows
from certvae.theory.escape import escape_force_sums, has_escape_force
from certvae.theory.information import kl_divergence
from certvae.theory.posterior import Posterior

__all__ = ["Evaluation"]

DRIFT = 0.1  # nats; a larger drift of the teacher's average means that its inputs differ from those it was made for


class Evaluation:
    """Reads the rows of one dataloader and computes their certificate.

    Args:
        reader: source of codes, inputs, teacher and witness.
        settings: settings of the verdict.
        trainer: the trainer, for the rank.
        pl_module: the module, for the device.
        loader: the measured dataloader.
        batches: number of its batches that the trainer runs.
        channel_samples: draws of the latent per row.
        seed: seed of the draws.
        check_encoder: whether some rows of the first batch are encoded again, alone and in another order.
        information_rows: largest number of rows for the information bracket and the fitted reader; 0 computes neither.

    Attributes:
        check_scale: whether log-variances are looked at that may be standard deviations.
        fault: the first value that was not finite; empty if all were.

    Raises:
        ValueError: if the settings need a floor that the teacher does not guarantee.
    """

    def __init__(
        self,
        reader: BatchReader,
        settings: CertificateSettings,
        trainer: Trainer,
        pl_module: LightningModule,
        loader: Any,
        batches: float,
        channel_samples: int = 0,
        seed: int = 0,
        check_encoder: bool = False,
        information_rows: int = 0,
    ) -> None:
        self.reader, self.channel_samples, self.seed = reader, channel_samples, seed
        self.device = reader.start(pl_module)
        self.metric = CertificateMetric(reader.teacher.num_components, settings).to(self.device)
        self._attendance, self._audit = Attendance(loader, batches), WitnessAudit()
        self._positions, self._counted = RowPositions(loader, trainer), CountedRows()
        self._check_encoder, self._first_batch = check_encoder, True
        self.check_scale = True
        self._last_witness: nn.Module | None = None
        self._sample = CodeSample(information_rows, seed) if information_rows else None
        self._deterministic = False
        self._force = torch.zeros(2, dtype=torch.float64, device=self.device)  # weighted sum over rows, and weight
        self.fault = ""
        reader.capture.listen()

    def begin(self) -> None:
        """A batch begins."""
        self._attendance.begin()
        self.reader.capture.listen()

    @torch.no_grad()
    @isolate_rng()  # a function given as `latents`, or a witness, may draw numbers; the run must not depend on them
    def update(self, pl_module: LightningModule, batch: Any, outputs: Any) -> None:
        """Add the rows of a batch."""
        captured = self.reader.code(pl_module, batch, outputs)
        witness, inputs = self.reader.witness_for(captured.mean), self.reader.inputs(batch)
        first, self._first_batch = self._first_batch, False
        if first:
            self.reader.teacher.check_values(inputs)
        index = index_of(batch)
        positions, weights = self._positions.next(inputs.shape[0], index)
        if not self._positions.dealt:
            self._counted.add(inputs, index)
        labelled = self.reader.row_weights(batch)
        weights = weights if labelled is None else weights * labelled.to(weights)
        self._attendance.end(inputs.shape[0])
        answers, probs = witness(captured.mean), self.reader.teacher_probs(batch)
        mean, log_variance, rate = captured
        self.fault = self.fault or find_fault(
            positions, mean=mean, log_variance=log_variance, rate=rate, witness=answers
        )
        if self.fault:
            return
        if first:
            self._check_first(pl_module, batch, captured)
        self.metric.update(
            probs,
            answers,
            weights,
            channel_logits=self._channel_logits(witness, captured, positions),
            rate=captured.rate,
            positions=positions,
        )
        if self._sample is not None:
            self._sample.add([captured], positions, weights > 0, probs)
        self._deterministic = captured.deterministic
        self._add_force(captured.mean, probs, weights)
        self._audit.add(witness, captured.mean, answers, positions)
        self._last_witness = witness

    def _add_force(self, mean: Tensor, probs: Tensor, weights: Tensor) -> None:
        witness = self.reader.witness  # not the widened witness: the closed form handles precision itself
        if witness is not None and has_escape_force(witness):
            self._force += escape_force_sums(witness, mean, probs, weights).to(self._force)

    def _check_first(self, pl_module: LightningModule, batch: Any, captured: Captured) -> None:
        if self.check_scale:
            check_log_variance(captured.log_variance)
        if self._check_encoder:
            self._audit.findings += check_encoder(
                captured.mean, lambda rows: self.reader.code_again(pl_module, batch, rows).mean
            )

    def _channel_logits(self, witness: nn.Module, captured: Captured, positions: Tensor) -> Tensor | None:
        if captured.log_variance is None or self.channel_samples == 0:
            return None
        posterior = Posterior(captured.mean, captured.log_variance)
        return torch.stack([witness(draw) for draw in posterior.row_draws(positions, self.channel_samples, self.seed)])

    def finish(self, trainer: Trainer, ledger: LookLedger | None = None, looks: int = 1) -> Certificate | None:
        """The certificate of the rows of all processes; collectives that every rank must reach.

        A diverged model has no certificate; :attr:`fault` then names the row.

        Args:
            trainer: the trainer of the processes.
            ledger: record of looks, if the error probability is shared among looks.
            looks: number of looks at these rows known from other records, including this one.

        Raises:
            ValueError: if there were no rows.
        """
        self.reader.capture.listen(False)
        self.fault = shared_fault(trainer, self.fault, self.device)
        if self.fault:
            return None
        count, average, score = self._averages(trainer)
        drift, counts = self._teacher_drift(count, average), self._attendance.counts().to(self.device)
        if ledger is not None:
            # A fit that was killed and resumed repeats its look; a new validation is a new look.
            seen = name_rows(count, score) if trainer.state.fn == "fit" else ""
            look = ledger.take(name_rows(count, average), looks, seen) if trainer.is_global_zero else 0
            self.metric.settings = replace(self.metric.settings, look=int(trainer.strategy.broadcast(look)))
        leaks = self._finish_audit()
        if trainer.strategy.reduce_boolean_decision(not self._positions.dealt, all=False):
            twice = self._counted.gather(trainer, self.device)
            leaks = [*leaks, *([twice] if twice else [])]
        # A leak on any rank counts for all ranks.
        partial = trainer.strategy.reduce_boolean_decision(self._attendance.missing, all=False)
        if trainer.strategy.reduce_boolean_decision(bool(leaks), all=False) and not leaks:
            leaks = ["found on another process"]
        counts = trainer.strategy.reduce(counts, reduce_op="sum")
        certificate = self._with_information(self._with_force(self.metric.compute(), trainer), trainer)
        certificate.provenance |= {"teacher_drift": drift, **(_attendance(counts) if partial else {})}
        if certificate.provenance.get("missing"):
            rank_zero_warn(f"Rows are missing: {'; '.join(certificate.provenance['missing'])}.")
        return judge(certificate, partial=partial, leaks=leaks)

    def _with_force(self, certificate: Certificate, trainer: Trainer) -> Certificate:
        """Add the mean escape force over the rows of all processes; a collective."""
        total, weight = trainer.strategy.reduce(self._force.clone(), reduce_op="sum").tolist()
        return replace(certificate, escape_force=total / weight if weight else None)

    def _with_information(self, certificate: Certificate, trainer: Trainer) -> Certificate:
        """Add the information bracket and the fitted margin of the sampled rows."""
        deterministic = trainer.strategy.reduce_boolean_decision(self._deterministic, all=False)
        provenance = certificate.provenance | ({"deterministic": True} if deterministic else {})
        found = [] if self._sample is None else self._sample.gather(trainer, self.device)
        if not found or len(found[0].mean) < 2:
            return replace(certificate, provenance=provenance)
        codes = found[0]
        try:
            # If the error probability is shared among looks, the reading spends as much of it as the verdict.
            spent = replace(self.metric.settings, look=None, confidence=1 - self.metric.settings.alpha)
            information = codes.bracket(spent.confidence, seed=self.seed)
            fitted = codes.fitted(spent, self.seed)
        except ValueError as error:  # such as a log-variance of 600; it must not end the run
            rank_zero_warn(f"No information bracket is measured in epoch {trainer.current_epoch}: {error}")
            return replace(certificate, provenance=provenance)
        return replace(certificate, provenance=provenance, information=information, fitted=fitted)

    @isolate_rng()
    def _finish_audit(self) -> list[str]:
        return self._audit.findings if self._last_witness is None else self._audit.finish(self._last_witness)

    def _averages(self, trainer: Trainer) -> tuple[float, Tensor, Tensor]:
        """Rows of all processes, and averages over them: of the teacher, shape ``(K,)``, and of the score."""
        components = self.metric.num_components
        own = self.metric.sums().moments[0, : components + 3].clone()  # the sums are reduced in place
        totals = trainer.strategy.reduce(own, reduce_op="sum").cpu()
        if totals[0] == 0:
            raise ValueError(
                "the measured dataloader gave no row. Either it is empty, or no row has a label, or it is part of a "
                "CombinedLoader whose mode is not 'sequential'. Choose another with `dataloader`."
            )
        return float(totals[0]), totals[1 : components + 1] / totals[0], totals[-1:] / totals[0]

    def _teacher_drift(self, count: float, average: Tensor) -> float | None:
        """``KL(observed || recorded)`` of the teacher's average in nats; warns if it is large."""
        recorded = self.reader.teacher.average
        if recorded is None:
            return None
        drift = float(kl_divergence(average[None], recorded.cpu()[None].log())[0])
        if drift > DRIFT + 2 * self.metric.num_components / count:
            rank_zero_warn(
                f"The teacher's average over these rows is {drift:.2f} nats from the one in its file: its inputs here "
                "probably differ in scale, order or distribution from those that it was made from. Check that `images` "
                "gives these inputs. The certificate applies to the teacher on the inputs that it received."
            )
        return drift if math.isfinite(drift) else None


def _attendance(counts: Tensor) -> dict[str, Any]:
    names, numbers = ("batches_seen", "rows_seen", "batches_planned", "rows_planned"), counts.tolist()
    missing = [FAULTS[name] for name, count in zip(FAULTS, numbers[4:], strict=True) if count]
    seen = {name: int(n) if math.isfinite(n) else None for name, n in zip(names, numbers[:4], strict=True)}
    return seen | ({"missing": missing} if missing else {})
