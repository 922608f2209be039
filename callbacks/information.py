"""The callback that says how much a code carries about its input, without a teacher."""

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor

from certvae.monitoring.batch_reader import choose_loader
from certvae.reading.latents import LatentCapture, LatentSource
from certvae.reading.rows import Attendance, RowPositions
from certvae.theory.arguments import float64_device
from certvae.theory.bracket import BLOCK, InformationBracket, information_bracket
from certvae.theory.row_sample import RowSample

__all__ = ["InformationCallback"]

LOGGED = ("lower", "upper", "lower_estimate", "upper_estimate", "rate", "cap")


class InformationCallback(Callback):
    """Log between which bounds the information of a code about its input lies, on each validation epoch.

    It needs no teacher. Logs, in nats: ``information/lower`` and ``information/upper``, which hold with
    ``confidence`` each; ``information/lower_estimate`` and ``information/upper_estimate``, their estimates;
    ``information/rate``; and ``information/cap``, the most that the lower side can show. An upper side that is
    infinite is not logged. See :func:`certvae.information_bracket` for what is proved. Each epoch's statement holds
    on its own: over many epochs some will fail.

    One line is printed when the reading changes: by 10 % of a bound, or in whether the code carries anything at all.
    No second forward pass, no random state touched; the sample of rows, and so every number, is the same on any number
    of processes.

    Args:
        latents: where the code is; see :class:`certvae.callbacks.CertificateCallback`. A code that is only a mean gives
            a warning, and no numbers.
        block: most rows that are compared with each other, from 3. Cost grows with it, and so does the cap.
        rows: most rows measured, from 2; a hash of their places picks them.
        confidence: of each side.
        dataloader: which of several validation dataloaders is measured: its position or its name.
        name: first part of the logged keys; letters, digits, '_', '-' or '.'.
        save_dir: folder for ``{name}_val.jsonl``, one line for each validation of a run; None writes nothing.
        seed: of the choice of rows and of the draws.

    Attributes:
        bracket: of the latest validation, the same on all processes; None before, and for a code that is only a mean.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        latents: LatentSource | None = None,
        block: int = BLOCK,
        rows: int = 4096,
        confidence: float = 0.95,
        dataloader: int | str = 0,
        name: str = "information",
        save_dir: str | Path | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if block < 3:
            raise ValueError(f"`block` must be at least 3 rows, got {block}.")
        if rows < 2:
            raise ValueError(f"`rows` must be at least 2, got {rows}.")
        if not 0 < confidence < 1:
            raise ValueError(f"`confidence` must lie between 0 and 1, got {confidence}.")
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
            raise ValueError(f"`name` must be letters, digits, '_', '-' or '.', got {name!r}.")
        self.block, self.rows, self.confidence, self.seed = block, rows, confidence, seed
        self.dataloader, self.name, self.save_dir = dataloader, name, save_dir
        self.capture = LatentCapture(latents)
        self.bracket: InformationBracket | None = None
        self._said: InformationBracket | None = None
        self._warned = False
        self._loader_position = 0
        self._positions: RowPositions | None = None
        self._attendance: Attendance | None = None
        self._sample = RowSample(rows, seed)
        self._counted = 0

    @property
    def state_key(self) -> str:
        return self._generate_state_key(name=self.name)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the hook in place.

        Raises:
            ValueError: if there is no submodule of this name.
        """
        if stage in ("fit", "validate"):
            self.capture.attach(pl_module)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._positions = None
        if trainer.sanity_checking:
            return
        self._loader_position, loader = choose_loader(trainer.val_dataloaders, self.dataloader)
        self._positions, self._sample, self._counted = RowPositions(loader, trainer), RowSample(self.rows, self.seed), 0
        self._attendance = Attendance(loader, trainer.num_val_batches[self._loader_position])

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        measured = self._positions is not None and dataloader_idx == self._loader_position
        self.capture.listen(measured)
        if measured and self._attendance is not None:
            self._attendance.begin()

    @torch.no_grad()
    @isolate_rng()  # a function given as `latents` may draw numbers: the run must not depend on it
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._positions is None or self._attendance is None or dataloader_idx != self._loader_position:
            return
        mean, log_variance, rate = self.capture.read(pl_module, batch, outputs).checked()
        positions, weights = self._positions.next(len(mean))
        counted = weights > 0
        self._attendance.end(len(mean))
        self._counted += int(counted.sum())
        if log_variance is not None and rate is not None and bool(counted.any()):
            columns = torch.cat([rate[:, None].to(mean), mean, log_variance.to(mean)], dim=1).cpu()
            self._sample.add(columns[counted], positions[counted])

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what all processes' rows give; collectives that every rank must reach.

        Raises:
            ValueError: if there was no row, or only one.
        """
        if self._positions is None:
            return
        self.capture.listen(False)
        device = float64_device(pl_module.device)
        counted, missing, sample = self._gathered(trainer, device)
        if counted == 0:
            raise ValueError("the dataloader that is measured gave no row; choose another by `dataloader`.")
        if len(sample) == 0:
            self.bracket = None
            self._warn()
            return
        rate, mean, log_variance = sample.to(device).split([1, sample.shape[1] // 2, sample.shape[1] // 2], dim=1)
        self.bracket = information_bracket(
            mean,
            log_variance,
            rate=rate[:, 0],
            confidence=self.confidence,
            block=self.block,
            seed=self.seed,
        )
        self._publish(trainer, pl_module, self.bracket, missing, device)

    def _warn(self) -> None:
        if not self._warned:
            rank_zero_warn(
                f"{type(self).__name__} measures nothing: the code is only a mean, without a log-variance, and a code "
                "without noise has no rate. Name both: latents='encoder:mu,logvar'."
            )
        self._warned = True

    def _gathered(self, trainer: Trainer, device: torch.device) -> tuple[int, bool, Tensor]:
        """Rows that count, whether some are missing, and the sample, of all processes; collectives."""
        assert self._attendance is not None
        strategy, own = trainer.strategy, self._sample.rows
        seen = torch.tensor([self._counted, self._attendance.missing, own.shape[1]], device=device)
        table = strategy.all_gather(seen).view(-1, 3)
        width = int(table[:, 2].max())
        if width:
            own = self._sample.gather(lambda values: strategy.all_gather(values.to(device)), width).rows
        return int(table[:, 0].sum()), bool(table[:, 1].any()), own

    def _publish(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        bracket: InformationBracket,
        missing: bool,
        device: torch.device,
    ) -> None:
        for key in LOGGED:
            value = getattr(bracket, key)
            if value is not None and math.isfinite(value):
                tensor = torch.tensor(value, dtype=torch.float64, device=device)
                pl_module.log(f"{self.name}/{key}", tensor, on_step=False, on_epoch=True, sync_dist=True)
        if self._said is None or _differ(bracket, self._said):
            self._said = bracket
            name = "" if self.name == "information" else f"{self.name}: "
            partial = "; a part of the validation set is missing" if missing else ""
            pl_module.print(f"epoch {trainer.current_epoch}: {name}{bracket.line()}{partial}")
        if self.save_dir is not None and trainer.is_global_zero:
            record = {"epoch": trainer.current_epoch, "global_step": trainer.global_step, "partial": missing}
            path = Path(self.save_dir) / f"{self.name}_val.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a") as file:
                file.write(json.dumps(record | bracket.to_dict(), allow_nan=False) + "\n")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.capture.detach()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.capture.detach()


def _differ(new: InformationBracket, old: InformationBracket) -> bool:
    """Whether the reading changed: a kind of line, or a bound by a tenth."""
    if (new.lower == 0, new.at_cap) != (old.lower == 0, old.at_cap):
        return True
    pairs = ((new.lower, old.lower), (new.upper, old.upper))
    return any(not math.isclose(one, other, rel_tol=0.1, abs_tol=1e-3) for one, other in pairs)
