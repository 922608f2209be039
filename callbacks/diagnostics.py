"""A callback that logs the usual signs of posterior collapse, in addition to the certificate."""

from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from certvae.monitoring.divergence import OnDivergence
from certvae.monitoring.watching import RowsCallback
from certvae.reading.latents import Captured, LatentCapture, LatentSource
from certvae.theory.arguments import float64_device
from certvae.theory.contrast import aggregate_information
from certvae.theory.posterior import Posterior
from certvae.theory.row_sample import RowSample

__all__ = ["CollapseDiagnostics"]


class CollapseDiagnostics(RowsCallback):
    r"""Log active units, mutual information and rate of a code at each validation epoch.

    These are symptoms, not verdicts. A code scaled by 1e-3 has no active unit but loses no information, and a constant
    posterior can have any rate. :class:`certvae.callbacks.CertificateCallback` gives a threshold.

    Logs, at the end of each validation epoch:

    * ``diagnostics/active_units``: number of coordinates with :math:`Var_x(E[z|x])` of at least ``threshold`` (Burda
      et al., 2016, https://arxiv.org/abs/1509.00519, section 5.1), over all rows. It depends on the scale of the code.
    * ``diagnostics/mutual_information``: nats, :func:`aggregate_information` of ``block`` rows, selected by a hash of
        their positions. It saturates near the logarithm of ``block``, 6.24 nats at 512, or of the number of rows if
        there are fewer. Compare only runs with equal ``block``, and read a value near this limit as 'at least'.
    * ``diagnostics/rate``: nats, :math:`E\,KL(q(z|x) \| p)`, over all rows. Rate minus mutual information is an upper
        estimate of the divergence of the aggregate posterior from the prior, and far too large near the limit.

    A code that is only a mean has active units only. There is no second forward pass, and random states do not change.
    Sums are float64, padded rows are not counted, and results do not depend on the number of processes.

    Args:
        latents: where the code is; see :class:`certvae.callbacks.CertificateCallback`.
        block: rows in the aggregate posterior, at least 2. Cost grows with its square.
        threshold: variance from which a unit counts as active, above 0.
        dataloader: position or name of the measured dataloader among several validation dataloaders. Or a dataloader of
            validation rows, for a module without a ``validation_step``; see
            :class:`certvae.callbacks.CertificateCallback`.
        on_divergence: action if codes are not finite: ``"warn"`` gives no numbers for this epoch and one
            warning that names the row; ``"raise"`` ends the run with a ValueError.
        seed: seed of the choice of rows and of the draws.

    Raises:
        ValueError: if ``block`` is below 2, or ``threshold`` is not above 0.

    Example:
        >>> from certvae.callbacks import CollapseDiagnostics
        >>> signs = CollapseDiagnostics("encoder:chunk")
    """

    def __init__(
        self,
        latents: LatentSource | None = None,
        block: int = 512,
        threshold: float = 0.01,
        dataloader: int | str | DataLoader[Any] = 0,
        on_divergence: OnDivergence = "warn",
        seed: int = 0,
    ) -> None:
        super().__init__(LatentCapture(latents), dataloader, on_divergence)
        if block < 2:
            raise ValueError(f"`block` must be at least 2 rows, got {block}.")
        if not threshold > 0:
            raise ValueError(f"`threshold` must be above 0, got {threshold}.")
        self.block, self.threshold, self.seed = block, threshold, seed
        self._sample = RowSample(block, seed)
        self._sums: Tensor | None = None

    def _start(self) -> None:
        self._sums, self._sample = None, RowSample(self.block, self.seed)

    def _read(self, pl_module: LightningModule, batch: Any, outputs: Any) -> None:
        captured = self.capture.read(pl_module, batch, outputs)
        positions, weights = self._next(len(captured.mean), batch)
        if not self._faulty([captured], positions):
            self._add(captured, positions, weights)

    def _add(self, captured: Captured, positions: Tensor, weights: Tensor) -> None:
        device = float64_device(captured.mean.device)
        mean, log_variance, rate = (None if value is None else value.to(device).double() for value in captured)
        assert mean is not None
        row_weights, counted = weights.to(mean), weights > 0
        rates = torch.zeros_like(row_weights) if rate is None else rate
        columns = torch.cat([torch.ones_like(mean[:, :1]), rates[:, None], mean, mean**2], dim=1)
        sums = row_weights @ columns
        self._sums = sums if self._sums is None else self._sums + sums
        if log_variance is not None and bool(counted.any()):
            self._sample.add(torch.cat([mean, log_variance], dim=1).cpu()[counted], positions[counted])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the results over the rows of all processes; collectives that every rank must reach.

        Raises:
            ValueError: if there are no rows, or codes are not finite and ``on_divergence`` is ``"raise"``.
        """
        if self._positions is None:
            return
        self.capture.listen(False)
        device = float64_device(pl_module.device)
        if self._diverged(trainer, device):
            return
        sums, sample = self._gathered(trainer, device)
        count, rate, dim = sums[0], sums[1], (len(sums) - 2) // 2
        if count == 0:
            raise ValueError("the measured dataloader gave no row; choose another with `dataloader`.")
        mean, second = (sums[2:] / count).split(dim)
        self._log(pl_module, "active_units", (second - mean**2 >= self.threshold).sum().double())
        if len(sample.rows):
            posterior = Posterior(*sample.rows.to(device).split(dim, dim=1))
            self._log(pl_module, "mutual_information", aggregate_information(posterior, self.seed))
            self._log(pl_module, "rate", rate / count)

    def _gathered(self, trainer: Trainer, device: torch.device) -> tuple[Tensor, RowSample]:
        """Sums and sample over all processes, also if some have seen no rows; collectives."""
        strategy = trainer.strategy
        seen = [0 if self._sums is None else len(self._sums), self._sample.rows.shape[1]]
        length, width = strategy.all_gather(torch.tensor(seen, device=device)).view(-1, 2).amax(dim=0).tolist()
        sums = torch.zeros(max(length, 2), dtype=torch.float64, device=device) if self._sums is None else self._sums
        sample = self._sample
        if width:
            sample = sample.gather(lambda values: strategy.all_gather(values.to(device)), width)
        return strategy.reduce(sums, reduce_op="sum"), sample

    def _log(self, pl_module: LightningModule, name: str, value: Tensor) -> None:
        pl_module.log(f"diagnostics/{name}", value, on_step=False, on_epoch=True, sync_dist=True)
