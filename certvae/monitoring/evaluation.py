"""One pass over validation rows that ends in a certificate; what a callback does between two epoch hooks."""

import math
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn

from certvae.certificate.certificate import Certificate
from certvae.certificate.leaks import check_repeatability, check_witness
from certvae.certificate.metric import CertificateMetric
from certvae.certificate.verdict import certificate_from_sums
from certvae.monitoring.batch_reader import BatchReader
from certvae.reading.latents import Captured
from certvae.reading.rows import RowPositions, is_truncated
from certvae.teachers import Teacher
from certvae.theory.bounds import RIGOROUS
from certvae.theory.information import kl_divergence
from certvae.theory.posterior import Posterior
from certvae.theory.sums import CertificateSums

__all__ = ["Evaluation", "new_metric"]

DRIFT = 0.1  # nats between the teacher's recorded and its observed average: other inputs than it was made for


def new_metric(
    teacher: Teacher, safety_margin: float, confidence: float, method: str, look: int | None = None
) -> CertificateMetric:
    """The metric of a certificate for this teacher.

    Raises:
        ValueError: if a setting is out of its range, or the method needs a floor that the teacher does not promise.
    """
    floor = teacher.card.floor if method in RIGOROUS else 0.0
    return CertificateMetric(teacher.num_components, safety_margin, confidence, method, floor, look=look)


class Evaluation:
    """Adds up the rows of one dataloader.

    Args:
        reader: where codes, inputs, teacher and witness come from.
        metric: an empty metric.
        trainer: knows the rank.
        pl_module: knows the device.
        loader: the dataloader that is measured.
        batches: how many of its batches the trainer takes.
        channel_samples: draws of the latent for each row.
        seed: of the draws.
    """

    def __init__(
        self,
        reader: BatchReader,
        metric: CertificateMetric,
        trainer: Trainer,
        pl_module: LightningModule,
        loader: Any,
        batches: float,
        channel_samples: int,
        seed: int,
    ) -> None:
        self.reader, self.channel_samples, self.seed = reader, channel_samples, seed
        self.metric = metric.to(reader.start(pl_module))
        self.metric.partial = is_truncated(batches, loader)
        self._positions = RowPositions(loader, trainer)
        self._first_batch = True
        reader.capture.listen()

    @torch.no_grad()
    @isolate_rng()  # a function given as `latents`, or a witness, may draw numbers: the run must not depend on it
    def update(self, pl_module: LightningModule, batch: Any, outputs: Any) -> None:
        """Add the rows of a batch."""
        captured = self.reader.code(pl_module, batch, outputs).checked()
        witness, inputs = self.reader.witness_for(captured.mean), self.reader.inputs(batch)
        if self._first_batch:
            self._first_batch = False
            self.reader.teacher.check_values(inputs)
            self.metric.leaks = check_witness(witness, captured.mean)
            _check_log_variance(captured.log_variance)
            self._first_answers = captured.mean, witness(captured.mean)
        elif not self.metric.leaks:
            self.metric.leaks = check_repeatability(witness, *self._first_answers)
        positions, weights = self._positions.next(inputs.shape[0])
        self.metric.update(
            self.reader.teacher_probs(batch),
            witness(captured.mean),
            weights,
            channel_logits=self._channel_logits(witness, captured, positions),
            rate=captured.rate,
        )

    def _channel_logits(self, witness: nn.Module, captured: Captured, positions: Tensor) -> Tensor | None:
        if captured.log_variance is None or self.channel_samples == 0:
            return None
        posterior = Posterior(captured.mean, captured.log_variance)
        return torch.stack([witness(draw) for draw in posterior.row_draws(positions, self.channel_samples, self.seed)])

    def finish(self, trainer: Trainer) -> Certificate:
        """The certificate of all processes' rows; collectives that every rank must reach.

        Raises:
            ValueError: if there was no row.
        """
        self.reader.capture.listen(False)
        # What any rank finds counts for all.
        partial = trainer.strategy.reduce_boolean_decision(self.metric.partial, all=False)
        if trainer.strategy.reduce_boolean_decision(bool(self.metric.leaks), all=False) and not self.metric.leaks:
            self.metric.leaks = ["found on another process"]
        with self.metric.sync_context():
            sums = self.metric.sums()
        if sums.num_rows == 0:
            raise ValueError(
                "the dataloader that is measured gave no row: it is empty, or one of a CombinedLoader whose mode is "
                "not 'sequential', so that batches come as one. Choose another by `dataloader`."
            )
        certificate = certificate_from_sums(sums, self.metric.settings, partial=partial, leaks=self.metric.leaks)
        certificate.provenance["teacher_drift"] = self._teacher_drift(sums)
        return certificate

    def _teacher_drift(self, sums: CertificateSums) -> float | None:
        """``KL(observed || recorded)`` of the teacher's average in nats, and a warning where it is large."""
        recorded = self.reader.teacher.average
        if recorded is None:
            return None
        observed = sums.teacher_mean.cpu()
        drift = float(kl_divergence(observed[None], recorded.cpu()[None].log())[0])
        if drift > DRIFT + 2 * sums.num_components / sums.num_rows:
            rank_zero_warn(
                f"The teacher's average over these rows is {drift:.2f} nats from the one in its file: its inputs here "
                "are probably not scaled, ordered or drawn as those that it was made from. See that `images` gives "
                "what the teacher was searched on. The certificate is about the teacher on the inputs that it got."
            )
        return drift if math.isfinite(drift) else None


def _check_log_variance(log_variance: Tensor | None) -> None:
    # A collapsed posterior is as wide as the prior, and its log-variances lie around 0.
    if log_variance is not None and bool((log_variance > 0).all()) and float(log_variance.mean()) > 0.1:
        rank_zero_warn(
            "Every log-variance that `latents` gave is positive: a posterior wider than N(0, 1) everywhere. Is it a "
            "standard deviation? Give (mean, log_variance), such as (mean, 2 * std.log()): the margin does not depend "
            "on it, but rate and channel margin do."
        )
