"""A callback that measures how much information a code carries about its input, without a teacher."""

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
    """Log a lower and an upper bound on the information of a code about its input at each validation epoch.

    It needs no teacher. Logs, in nats: ``information/lower`` and ``information/upper``, which hold with ``confidence``
    each; ``information/lower_estimate`` and ``information/upper_estimate``, their estimates; ``information/rate``; and
    ``information/cap``, the largest possible value of the lower side. An infinite upper side is not logged. See
    :func:`certvae.information_bracket` for the guarantee. The confidence holds for each epoch separately: over many
    epochs some bounds will fail.

    Groups of latents, ``latents={"top": ..., "bottom": ...}``, have one bracket each, logged as
    ``information/top/lower``, and one for all groups together, logged as ``information/lower``. The joint bracket is
    valid if the groups are independent given the input; docs/information.md treats levels whose posterior depends on a
    draw of another level.

    On the first training batches it checks that ``latents`` names the code
    (:class:`certvae.monitoring.code_checks.CodeChecks`), and warns once if not.

    It prints one line when the result changes: a bound by 10 %, or whether the code carries any information. There is
    no second forward pass, and random states do not change. The sample of rows, and so every number, is the same for
    any number of processes.

    Args:
        latents: where the code is; see :class:`certvae.callbacks.CertificateCallback`. A code that is only a mean, or
            ``Latents(path, deterministic=True)``, gives a warning and no numbers.
        block: largest number of rows that are compared with each other, at least 3. Cost and cap grow with it.
        rows: largest number of rows to measure, at least 2; selected by a hash of their positions.
        confidence: confidence of each side, in (0, 1).
        dataloader: position or name of the measured dataloader among several validation dataloaders. Or a dataloader of
            validation rows, for a module without a ``validation_step``; see
            :class:`certvae.callbacks.CertificateCallback`.
        name: first part of the logged keys; letters, digits, '_', '-' or '.'.
        save_dir: folder for ``{name}_val.jsonl``, with one line per validation of a run; None writes nothing.
        on_divergence: action if codes are not finite: ``"warn"`` gives no numbers for this epoch and one
            warning that names the row; ``"raise"`` ends the run with a ValueError.
        seed: seed of the choice of rows and of the draws.

    Attributes:
        bracket: bracket of the latest validation, the same on all processes; None before, and for a code that is only a
            mean.
        brackets: bracket of each group that has one; empty without groups.

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
        """Log the results over the rows of all processes; collectives that every rank must reach.

        Raises:
            ValueError: if there are fewer than two rows, or codes are not finite and ``on_divergence`` is ``"raise"``.
        """
        if self._positions is None:
            return
        self.capture.listen(False)
        device = float64_device(pl_module.device)
        counted, missing = self._counts(trainer, device)
        if counted == 0:
            raise ValueError("the measured dataloader gave no row; choose another with `dataloader`.")
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
        except ValueError as error:  # such as a log-variance of 600; it must not end the run
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
        """Warn once which codes have no bracket, and why."""
        if self._warned:
            return
        self._warned = True
        of = f" of the group {', '.join(map(repr, without))} and of all together" if without else ""
        measures = f"{type(self).__name__} measures nothing{of}: the code is"
        if self.capture.deterministic:
            rank_zero_warn(
                f"{measures} deterministic. The information of a continuous code without noise is infinite. The fitted "
                "reader of CertificateCallback measures what can be read from it."
            )
        else:
            rank_zero_warn(
                f"{measures} only a mean, without a log-variance, and a code without noise has no rate. Name both: "
                "latents='encoder:mu,logvar'. If the decoder receives the mean itself, say so: "
                "Latents('encoder', deterministic=True)."
            )

    def _counts(self, trainer: Trainer, device: torch.device) -> tuple[int, bool]:
        """Number of counted rows over all processes, and whether some are missing; a collective."""
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
        """Write a line of the history: the joint bracket and, under ``"groups"``, the bracket of each group."""
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
    """Whether the result changed: in its kind, or a bound by a tenth."""
    if (new.lower == 0, new.at_cap) != (old.lower == 0, old.at_cap):
        return True
    pairs = ((new.lower, old.lower), (new.upper, old.upper))
    return any(not math.isclose(one, other, rel_tol=0.1, abs_tol=1e-3) for one, other in pairs)
