"""A callback that detects a decoder that ignores its code."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from lightning_utilities.core.rank_zero import rank_zero_warn
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.signature_utils import is_param_in_hook_signature
from scipy.stats import t as student
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from certvae.io.random_state import kept_random_state, random_state, set_random_state
from certvae.monitoring.batch_reader import choose_loader
from certvae.monitoring.divergence import (
    OnDivergence,
    answer_divergence,
    check_on_divergence,
    find_fault,
    shared_fault,
)
from certvae.monitoring.kept_state import kept_module_state, silent
from certvae.reading.latents import LatentCapture, Latents, as_latents
from certvae.reading.replacement import Change, other_rows, replace_code, standard_normal
from certvae.theory.arguments import float64_device

__all__ = ["DecoderCheck", "DecoderLosses"]


class DecoderLosses(NamedTuple):
    """Losses of the module's step, means over rows, in the unit of the step.

    Attributes:
        own: loss with each row's own code.
        shuffled: loss with the code of another row of the batch.
        prior: loss with a draw from N(0, 1); NaN for a code that is only a mean.
        error: standard error of ``shuffled - own`` over batches; NaN for fewer than two.
        needed: threshold for ``shuffled - own`` above which the code counts as used.
        rows: number of rows.
    """

    own: float
    shuffled: float
    prior: float
    error: float
    needed: float
    rows: int

    @property
    def ignored(self) -> bool | None:
        """Whether ``shuffled - own`` is at most ``needed``; None: unknown."""
        known = all(map(math.isfinite, (self.own, self.shuffled, self.needed)))
        return self.shuffled - self.own <= self.needed if known else None


class DecoderCheck(Callback):
    """Test at each validation whether the decoder uses the code, with the loss of the module's own step.

    A decoder can ignore a code that carries information and is certified: a strong autoregressive decoder needs no
    code. For the first batches, the callback runs the module's ``validation_step`` (or, if it returns no loss, its
    ``training_step`` in eval mode) three more times with the same random numbers: with each row's own code, with the
    code of another row of the batch, and with mean 0 and log-variance 0, from which the step draws. A hook on the
    submodule that ``latents`` names replaces the code. The prior loss includes the step's KL term, which is 0 here; a
    step that decodes the mean decodes 0.

    Logs ``decoder/own``, ``decoder/shuffled`` and ``decoder/prior``: the losses in the step's own unit (nats where the
    loss is in nats), means over the rows of all processes, where the step's loss is a mean over rows. Prints a line
    when the decoder begins to ignore the code, and when it uses the code again. The code counts as used if ``shuffled -
    own`` is above two thresholds: Student's 95 % quantile times the standard error over at least two batches, and
    ``share`` times ``own``. Because the random numbers are the same, differences of thousandths of a nat are detected.

    The run does not change: everything that these calls log and print is dropped; random streams, buffers, metrics and
    plain attributes of the module are restored; batch norm is in eval mode. One exception: other objects that a step
    mutates (not tensors, lists, dicts, sets or submodules) keep the changes of three more steps.

    Args:
        latents: the submodule that returns the code, as for :class:`certvae.callbacks.CertificateCallback`. A function
            or the step's ``"posterior"`` is not possible here.
        batches: largest number of batches per process, at least 2; they are kept until the end of the validation.
        dataloader: position or name of the dataloader to use among several validation dataloaders.
        name: first part of the logged keys.
        seed: seed of the choice of other rows.
        share: smallest increase of the loss with another row's code, as a share of the loss, at least 0.
        on_divergence: action if codes are not finite: ``"warn"`` gives no losses for this epoch and one
            warning that names the row; ``"raise"`` ends the run with a ValueError.

    Attributes:
        losses: losses of the latest validation, the same on all processes; None before, and after a validation with
            codes that are not finite.

    Raises:
        TypeError: if ``latents`` is not the name of a submodule, or its output cannot be replaced by a code.
        ValueError: if ``batches`` is below 2, ``share`` is negative, the submodule does not exist, no step returns a
            loss, or the submodule is called several times in a step and ``latents`` does not select a call.

    Example:
        >>> from certvae.callbacks import DecoderCheck
        >>> check = DecoderCheck("encoder:chunk", batches=10)
    """

    def __init__(
        self,
        latents: str | Latents,
        batches: int = 4,
        dataloader: int | str = 0,
        name: str = "decoder",
        seed: int = 0,
        share: float = 0.002,
        on_divergence: OnDivergence = "warn",
    ) -> None:
        super().__init__()
        named = as_latents(latents)
        if named is None or callable(named.path) or named.scale_path:
            raise TypeError(
                "`latents` must name a submodule, such as 'encoder' or Latents('encoder', calls='last'): only a "
                f"submodule's output can be replaced; got {type(latents).__name__}."
            )
        if batches < 2:
            raise ValueError(f"`batches` must be at least 2, for a standard error, got {batches}.")
        if not share >= 0:
            raise ValueError(f"`share` must be at least 0, got {share}.")
        self.batches, self.dataloader, self.name, self.seed, self.share = batches, dataloader, name, seed, share
        self.on_divergence = check_on_divergence(on_divergence)
        self.capture = LatentCapture(latents)
        self.losses: DecoderLosses | None = None
        self._said: bool | None = False  # the first line is printed only if the code is ignored
        self._handle: RemovableHandle | None = None
        self._change: Change | None = None
        self._calls, self._chosen, self._loader_position = 0, 0, 0
        self._kept: list[tuple[int, Any]] = []
        self._warned, self._fault = False, ""

    @property
    def state_key(self) -> str:
        return self._generate_state_key(name=self.name)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Register the hooks.

        Raises:
            ValueError: if no submodule has this name.
        """
        if stage not in ("fit", "validate"):
            return
        self._detach()
        self.capture.attach(pl_module)  # before the replacing hook, so that it reads the original code
        self._handle = pl_module.get_submodule(str(self._source.path)).register_forward_hook(self._hook)

    @property
    def _source(self) -> Latents:
        assert isinstance(self.capture.source, Latents)
        return self.capture.source

    def _hook(self, module: torch.nn.Module, inputs: Any, output: Any) -> Any:
        call, self._calls = self._calls, self._calls + 1
        if self._change is None or call != self._chosen:
            return None
        return replace_code(output, self._source.part, self._change)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._kept, self._fault = [], ""
        self._loader_position, _ = choose_loader(trainer.val_dataloaders, self.dataloader)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.sanity_checking or dataloader_idx != self._loader_position or len(self._kept) >= self.batches:
            return
        # Cloned, because the step may change its batch in place. It runs at the end, when no other callback reads
        # codes.
        self._kept.append((batch_idx, apply_to_collection(batch, Tensor, torch.clone)))

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run the steps again and log; collectives that every rank must reach.

        Raises:
            ValueError: if no step returns a loss, the code has another number of rows than the batch, or codes are not
                finite and ``on_divergence`` is ``"raise"``.
        """
        if trainer.sanity_checking:
            return
        with silent(trainer, pl_module), kept_random_state():
            found = [self._ask(trainer, pl_module, *batch) for batch in self._kept]
        self._kept, self.losses = [], None
        if fault := shared_fault(trainer, self._fault, float64_device(pl_module.device)):
            answer_divergence(trainer, fault, "DecoderCheck has no losses for this epoch", self.on_divergence)
            return
        self.losses = losses = self._gathered(trainer, pl_module, [line for line in found if line is not None])
        if losses is None:
            self._warn("every batch has a single row, so no codes can be exchanged")
            return
        for key in ("own", "shuffled", "prior"):
            if math.isfinite(value := getattr(losses, key)):
                pl_module.log(f"{self.name}/{key}", value, on_step=False, on_epoch=True, sync_dist=True, batch_size=1)
        self._say(trainer, pl_module, losses)

    def _ask(self, trainer: Trainer, pl_module: LightningModule, batch_idx: int, batch: Any) -> list[float] | None:
        """Number of rows and the three losses of a batch; None for a single row."""
        state, self._change = random_state(pl_module.device), None
        self.capture.listen()
        own = self._loss(trainer, pl_module, batch_idx, batch)
        self._chosen = 0 if self._source.calls != "last" else max(0, self._calls - 1)
        captured = self.capture.read(pl_module, batch, None)
        self.capture.listen(False)
        if (rows := len(captured.mean)) < 2:
            return None
        fault = find_fault(torch.arange(rows), mean=captured.mean, log_variance=captured.log_variance)
        self._fault = self._fault or (fault and f"in batch {batch_idx} {fault}")
        if self._fault:
            return None
        losses = [float(rows), own]
        for change in (other_rows(_derangement(rows, self.seed + batch_idx)), standard_normal):
            set_random_state(state, pl_module.device)
            with self._changing(change):
                losses.append(self._loss(trainer, pl_module, batch_idx, batch))
        return losses if captured.log_variance is not None else [*losses[:3], math.nan]

    @contextmanager
    def _changing(self, change: Change) -> Iterator[None]:
        self._change = change
        try:
            yield
        finally:
            self._change = None

    def _loss(self, trainer: Trainer, pl_module: LightningModule, batch_idx: int, batch: Any) -> float:
        batch = apply_to_collection(batch, Tensor, torch.clone)
        more = [self._loader_position] if len(trainer.num_val_batches) > 1 else []
        with kept_module_state(pl_module):
            self._calls = 0
            arguments = [batch, batch_idx] if _takes_index(pl_module.validation_step) else [batch]
            outputs = trainer.strategy.validation_step(*arguments, *more)
            if (loss := _loss_of(outputs)) is None:
                loss = self._training_loss(trainer, pl_module, batch_idx, batch)
        return loss

    def _training_loss(self, trainer: Trainer, pl_module: LightningModule, batch_idx: int, batch: Any) -> float:
        """The loss of the training step, if the validation step returns none."""
        self.capture.listen(self._change is None)
        self._calls = 0
        arguments = [batch, batch_idx] if _takes_index(pl_module.training_step) else [batch]
        with trainer.precision_plugin.val_step_context():
            loss = _loss_of(pl_module.training_step(*arguments))
        if loss is None:
            raise ValueError(
                f"DecoderCheck needs a loss, and neither `validation_step` nor `training_step` of "
                f"{type(pl_module).__name__} returns one. Return the loss, or a dict with 'loss', from either."
            )
        return loss

    def _gathered(self, trainer: Trainer, pl_module: LightningModule, lines: list[list[float]]) -> DecoderLosses | None:
        """Means and standard error over the batches of all processes; collectives."""
        device = float64_device(pl_module.device)
        table = torch.zeros(self.batches, 4, dtype=torch.float64, device=device)
        if lines:
            table[: len(lines)] = torch.tensor(lines, dtype=torch.float64, device=device)
        table = torch.as_tensor(trainer.strategy.all_gather(table)).view(-1, 4)
        table = table[table[:, 0] > 0].cpu()
        return _summary(table, self.share) if len(table) else None

    def _say(self, trainer: Trainer, pl_module: LightningModule, losses: DecoderLosses) -> None:
        ignored = losses.ignored
        if ignored is None:
            self._warn("it takes two batches with finite losses to tell a difference from chance")
            return
        if ignored is not self._said:
            prior = f", {losses.prior:.2f} with a draw of the prior" if math.isfinite(losses.prior) else ""
            pl_module.print(
                f"epoch {trainer.current_epoch}: the decoder {'ignores' if ignored else 'uses'} the code: its loss is "
                f"{losses.own:.2f} with each row's own code, {losses.shuffled:.2f} with another row's{prior} "
                f"(standard error of the difference {losses.error:.2g}, {losses.rows:,} rows)"
            )
        self._said = ignored

    def _warn(self, reason: str) -> None:
        if not self._warned:
            rank_zero_warn(f"DecoderCheck has no result: {reason}. Smaller batches of at least two rows help.")
        self._warned = True

    def _detach(self) -> None:
        self.capture.detach()
        if self._handle is not None:
            self._handle.remove()
        self._handle, self._change, self._kept = None, None, []

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._detach()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._detach()


def _summary(table: Tensor, share: float) -> DecoderLosses:
    """Losses from rows and three losses of each batch, float64, shape ``(batches, 4)``."""
    rows, losses = table[:, 0], table[:, 1:]
    own, shuffled, prior = ((rows[:, None] * losses).sum(dim=0) / rows.sum()).tolist()
    if (count := len(rows)) == 1:
        return DecoderLosses(own, shuffled, prior, math.nan, math.nan, int(rows.sum()))
    residuals = rows / rows.sum() * (losses[:, 1] - losses[:, 0] - (shuffled - own))
    error = math.sqrt(count / (count - 1) * float(residuals.square().sum()))
    needed = max(float(student.ppf(0.95, count - 1)) * error, share * abs(own))
    return DecoderLosses(own, shuffled, prior, error, needed, int(rows.sum()))


def _derangement(rows: int, seed: int) -> Tensor:
    """A permutation without fixed points: one random cycle through all rows, int64, shape ``(rows,)``."""
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    return torch.empty_like(order).scatter_(0, order, order.roll(1))


def _takes_index(step: Any) -> bool:
    return is_param_in_hook_signature(step, "batch_idx", min_args=2)


def _loss_of(outputs: Any) -> float | None:
    loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
    return float(loss) if isinstance(loss, Tensor) and loss.numel() == 1 else None
