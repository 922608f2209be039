"""The callback that says how much a code carries about its input, without a teacher."""

import math
import re
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from pytorch_lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

from certvae.io.files import append_json
from certvae.monitoring.code_checks import check_log_variance
from certvae.monitoring.code_sample import CodeSample
from certvae.monitoring.divergence import OnDivergence
from certvae.monitoring.watching import CheckedLatents, RowsCallback
from certvae.reading.captured import Captured, joined
from certvae.reading.latents import LatentCapture, LatentSource
from certvae.theory.arguments import float64_device
from certvae.theory.bracket import BLOCK, InformationBracket, information_bracket

__all__ = ["InformationCallback"]

LOGGED = ("lower", "upper", "lower_estimate", "upper_estimate", "rate", "cap")


class InformationCallback(RowsCallback, CheckedLatents):
    """Log between which bounds the information of a code about its input lies, on each validation epoch.

    It needs no teacher. Logs, in nats: ``information/lower`` and ``information/upper``, which hold with
    ``confidence`` each; ``information/lower_estimate`` and ``information/upper_estimate``, their estimates;
    ``information/rate``; and ``information/cap``, the most that the lower side can show. An upper side that is
    infinite is not logged. See :func:`certvae.information_bracket` for what is proved. Each epoch's statement holds
    on its own: over many epochs some will fail.

    Groups of latents, ``latents={"top": ..., "bottom": ...}``, get a bracket each, as ``information/top/lower``, and
    one for all together, as ``information/lower``. The last is valid for groups that are independent given the input;
    see docs/information.md for levels whose posterior depends on a draw of another level.

    In training it checks on the first batches that ``latents`` names the code
    (:class:`certvae.monitoring.code_checks.CodeChecks`), and warns once if it does not.

    One line is printed when the reading changes: by 10 % of a bound, or in whether the code carries anything at all.
    No second forward pass, no random state touched; the sample of rows, and so every number, is the same on any number
    of processes.

    Args:
        latents: where the code is; see :class:`certvae.callbacks.CertificateCallback`. A code that is only a mean, or
            one that ``Latents(path, deterministic=True)`` names, gives a warning, and no numbers.
        block: most rows that are compared with each other, from 3. Cost grows with it, and so does the cap.
        rows: most rows measured, from 2; a hash of their places picks them.
        confidence: of each side.
        dataloader: which of several validation dataloaders is measured: its position or its name. Or a dataloader of
            validation rows, for a module without a ``validation_step``; see
            :class:`certvae.callbacks.CertificateCallback`.
        name: first part of the logged keys; letters, digits, '_', '-' or '.'.
        save_dir: folder for ``{name}_val.jsonl``, one line for each validation of a run; None writes nothing.
        on_divergence: what happens at codes that are not finite: ``"warn"`` gives no numbers for this epoch and one
            warning that names the row; ``"raise"`` ends the run with a ValueError.
        seed: of the choice of rows and of the draws.

    Attributes:
        bracket: of the latest validation, the same on all processes; None before, and for a code that is only a mean.
        brackets: of each group that has one; empty without groups.

    Raises:
        ValueError: if ``block`` is below 3, ``rows`` is below 2, ``confidence`` is not in (0, 1), or ``name`` has other
            characters.

    Example:
        >>> from certvae.callbacks import InformationCallback
        >>> measure = InformationCallback("encoder:chunk", save_dir="runs/vae")
    """

    def __init__(
        self,
        latents: LatentSource | None = None,
        block: int = BLOCK,
        rows: int = 4096,
        confidence: float = 0.95,
        dataloader: int | str | DataLoader[Any] = 0,
        name: str = "information",
        save_dir: str | Path | None = None,
        on_divergence: OnDivergence = "warn",
        seed: int = 0,
    ) -> None:
        super().__init__(LatentCapture(latents), dataloader, on_divergence)
        if block < 3:
            raise ValueError(f"`block` must be at least 3 rows, got {block}.")
        if rows < 2:
            raise ValueError(f"`rows` must be at least 2, got {rows}.")
        if not 0 < confidence < 1:
            raise ValueError(f"`confidence` must lie between 0 and 1, got {confidence}.")
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
            raise ValueError(f"`name` must be letters, digits, '_', '-' or '.', got {name!r}.")
        self.block, self.rows, self.confidence, self.seed = block, rows, confidence, seed
        self.name, self.save_dir = name, save_dir
        self.bracket: InformationBracket | None = None
        self.brackets: dict[str, InformationBracket] = {}
        self._said: dict[str, InformationBracket] = {}
        self._warned, self._first_batch = False, True
        self._sample = self._fresh_sample()
        self._counted = 0

    @property
    def state_key(self) -> str:
        return self._generate_state_key(name=self.name)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage in ("fit", "validate"):
            self._check(self.capture.source)
            self._first_batch = True

    def _fresh_sample(self) -> CodeSample:
        return CodeSample(self.rows, self.seed, max(1, len(self.capture.names)))

    def _start(self) -> None:
        self._sample, self._counted = self._fresh_sample(), 0

    def _read(self, pl_module: LightningModule, batch: Any, outputs: Any) -> None:
        codes = list(self.capture.read_groups(pl_module, batch, outputs).values())
        positions, weights = self._next(len(codes[0].mean), batch)
        self._counted += int((weights > 0).sum())
        if self._faulty(codes, positions):
            return
        self._sample.add(codes, positions, weights > 0)
        if self._first_batch:
            self._first_batch = False
            for code in [] if self._checks.sound else codes:
                check_log_variance(code.log_variance)

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what all processes' rows give; collectives that every rank must reach.

        Raises:
            ValueError: if there was no row, or only one, or codes are not finite and ``on_divergence`` is ``"raise"``.
        """
        if self._positions is None:
            return
        self.capture.listen(False)
        device = float64_device(pl_module.device)
        counted, missing = self._counts(trainer, device)
        if counted == 0:
            raise ValueError("the dataloader that is measured gave no row; choose another by `dataloader`.")
        self.bracket, self.brackets = None, {}
        if self._diverged(trainer, device):
            return
        names = self.capture.names or [""]
        codes = dict(zip(names, self._sample.gather(trainer, device), strict=True))
        measured = {name: code.captured for name, code in codes.items() if code.log_variance is not None}
        if len(measured) < len(codes):
            self._warn([name for name in codes if name and name not in measured])
        try:
            self.bracket = self._bracket(joined(measured)) if len(measured) == len(codes) else None
            self.brackets = {name: self._bracket(code) for name, code in measured.items() if name}
        except ValueError as error:  # such as a log-variance of 600: it must not end the run that is watched
            self.bracket, self.brackets = None, {}
            rank_zero_warn(f"epoch {trainer.current_epoch}: {error}. No information is measured; the run goes on.")
            return
        shown = self.brackets if self.bracket is None else {"": self.bracket, **self.brackets}
        for name, bracket in shown.items():
            self._publish(trainer, pl_module, name, bracket, missing, device)
        if shown:
            self._record(trainer, missing)

    def _bracket(self, code: Captured) -> InformationBracket:
        mean, log_variance, rate = code
        return information_bracket(
            mean, log_variance, rate=rate, confidence=self.confidence, block=self.block, seed=self.seed
        )

    def _warn(self, without: list[str]) -> None:
        """Say once what has no bracket, and why."""
        if self._warned:
            return
        self._warned = True
        of = f" of the group {', '.join(map(repr, without))} and of all together" if without else ""
        measures = f"{type(self).__name__} measures nothing{of}: the code is"
        if self.capture.deterministic:
            rank_zero_warn(
                f"{measures} deterministic. No noise comes between it and the decoder, so there is no channel, and the "
                "information of a continuous code without noise is not finite. What can be read from it, "
                "CertificateCallback says by its fitted reader."
            )
        else:
            rank_zero_warn(
                f"{measures} only a mean, without a log-variance, and a code without noise has no rate. Name both: "
                "latents='encoder:mu,logvar'. If the decoder receives the mean itself, say so: "
                "Latents('encoder', deterministic=True)."
            )

    def _counts(self, trainer: Trainer, device: torch.device) -> tuple[int, bool]:
        """Rows that count, and whether some are missing, of all processes; a collective."""
        assert self._attendance is not None
        seen = torch.tensor([self._counted, self._attendance.missing], device=device)
        table = trainer.strategy.all_gather(seen).view(-1, 2)
        return int(table[:, 0].sum()), bool(table[:, 1].any())

    def _publish(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        group: str,
        bracket: InformationBracket,
        missing: bool,
        device: torch.device,
    ) -> None:
        prefix = f"{self.name}/{group}" if group else self.name
        for key in LOGGED:
            value = getattr(bracket, key)
            if value is not None and math.isfinite(value):
                tensor = torch.tensor(value, dtype=torch.float64, device=device)
                pl_module.log(f"{prefix}/{key}", tensor, on_step=False, on_epoch=True, sync_dist=True)
        if group not in self._said or _differ(bracket, self._said[group]):
            self._said[group] = bracket
            name = "" if prefix == "information" else f"{prefix.removeprefix('information/')}: "
            partial = "; a part of the validation set is missing" if missing else ""
            pl_module.print(f"epoch {trainer.current_epoch}: {name}{bracket.line()}{partial}")

    def _record(self, trainer: Trainer, missing: bool) -> None:
        """Write a line of the history: the bracket of all together, and under ``"groups"`` each group's."""
        if self.save_dir is None or not trainer.is_global_zero:
            return
        record: dict[str, Any] = {
            "epoch": trainer.current_epoch,
            "global_step": trainer.global_step,
            "partial": missing,
        }
        record |= {} if self.bracket is None else self.bracket.to_dict()
        if self.capture.names:
            record["groups"] = {name: bracket.to_dict() for name, bracket in self.brackets.items()}
        append_json(Path(self.save_dir) / f"{self.name}_val.jsonl", record)


def _differ(new: InformationBracket, old: InformationBracket) -> bool:
    """Whether the reading changed: a kind of line, or a bound by a tenth."""
    if (new.lower == 0, new.at_cap) != (old.lower == 0, old.at_cap):
        return True
    pairs = ((new.lower, old.lower), (new.upper, old.upper))
    return any(not math.isclose(one, other, rel_tol=0.1, abs_tol=1e-3) for one, other in pairs)
