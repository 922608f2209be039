"""One pass over rows that ends in a certificate; what a callback does between two epoch hooks."""

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
from certvae.certificate.settings import CertificateSettings
from certvae.certificate.verdict import judge
from certvae.monitoring.batch_reader import BatchReader
from certvae.reading.latents import Captured
from certvae.reading.rows import RowPositions, is_truncated
from certvae.theory.information import kl_divergence
from certvae.theory.posterior import Posterior

__all__ = ["Evaluation"]

DRIFT = 0.1  # nats between the teacher's recorded and its observed average: other inputs than it was made for


class Evaluation:
    """Reads the rows of one dataloader, and makes their certificate.

    Args:
        reader: where codes, inputs, teacher and witness come from.
        settings: how numbers become a verdict.
        trainer: knows the rank.
        pl_module: knows the device.
        loader: the dataloader that is measured.
        batches: how many of its batches the trainer takes.
        channel_samples: draws of the latent for each row.
        seed: of the draws.

    Raises:
        ValueError: if the settings need a floor that the teacher does not promise.
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
    ) -> None:
        self.reader, self.channel_samples, self.seed = reader, channel_samples, seed
        self.device = reader.start(pl_module)
        self.metric = CertificateMetric(reader.teacher.num_components, settings).to(self.device)
        self._partial, self._leaks = is_truncated(batches, loader), list[str]()
        self._positions = RowPositions(loader, trainer)
        self._first_answers: tuple[Tensor, Tensor] | None = None
        reader.capture.listen()

    @torch.no_grad()
    @isolate_rng()  # a function given as `latents`, or a witness, may draw numbers: the run must not depend on it
    def update(self, pl_module: LightningModule, batch: Any, outputs: Any) -> None:
        """Add the rows of a batch."""
        captured = self.reader.code(pl_module, batch, outputs).checked()
        witness, inputs = self.reader.witness_for(captured.mean), self.reader.inputs(batch)
        answers = witness(captured.mean)
        self._check(witness, inputs, captured, answers)
        positions, weights = self._positions.next(inputs.shape[0])
        self.metric.update(
            self.reader.teacher_probs(batch),
            answers,
            weights,
            channel_logits=self._channel_logits(witness, captured, positions),
            rate=captured.rate,
            positions=positions,
        )

    def _check(self, witness: nn.Module, inputs: Tensor, captured: Captured, answers: Tensor) -> None:
        if self._first_answers is None:
            self.reader.teacher.check_values(inputs)
            self._leaks = check_witness(witness, captured.mean)
            _check_log_variance(captured.log_variance)
            self._first_answers = captured.mean, answers
        elif not self._leaks:
            self._leaks = check_repeatability(witness, *self._first_answers)

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
        drift = self._teacher_drift(trainer)
        # What any rank finds counts for all.
        partial = trainer.strategy.reduce_boolean_decision(self._partial, all=False)
        if trainer.strategy.reduce_boolean_decision(bool(self._leaks), all=False) and not self._leaks:
            self._leaks = ["found on another process"]
        certificate = judge(self.metric.compute(), partial=partial, leaks=self._leaks)
        certificate.provenance["teacher_drift"] = drift
        return certificate

    def _teacher_drift(self, trainer: Trainer) -> float | None:
        """``KL(observed || recorded)`` of the teacher's average in nats, and a warning where it is large."""
        components = self.metric.num_components
        totals = trainer.strategy.reduce(self.metric.sums().moments[0, : components + 1], reduce_op="sum").cpu()
        if totals[0] == 0:
            raise ValueError(
                "the dataloader that is measured gave no row: it is empty, or one of a CombinedLoader whose mode is "
                "not 'sequential', so that batches come as one. Choose another by `dataloader`."
            )
        recorded = self.reader.teacher.average
        if recorded is None:
            return None
        drift = float(kl_divergence(totals[None, 1:] / totals[0], recorded.cpu()[None].log())[0])
        if drift > DRIFT + 2 * components / float(totals[0]):
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
