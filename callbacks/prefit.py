"""A callback that fits the encoder's mean to a closed-form code before the run's training begins."""

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from certvae.io.random_state import kept_random_state
from certvae.monitoring.batch_reader import BatchReader
from certvae.monitoring.kept_state import kept_module_state, silent
from certvae.monitoring.wrapped_step import own_step
from certvae.reading.latents import LatentSource
from certvae.teachers import Teacher
from certvae.theory.information import entropy
from certvae.theory.witness import SimplexWitness

__all__ = ["PrefitCallback"]

SHARDED = (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)


class PrefitCallback(Callback):
    r"""Fit the encoder's mean to :math:`\alpha\, \mu^*(T(x))` before the run's training begins.

    :math:`\mu^*(T)` is the code at which the simplex witness gives exactly the teacher's probabilities
    (:meth:`certvae.SimplexWitness.inverse`). :math:`\alpha` scales it along the path of margin against energy: the
    margin is concave in :math:`\alpha`, at most the teacher information, and equal to it at 1. Only the coordinates
    that the witness reads are fitted. The run trains the other coordinates, the log-variance and the decoder. A
    separate Adam minimizes :math:`E\,|\mu(x) - \alpha \mu^*|^2` and is discarded afterwards. Source of the idea: arXiv
    2605.18224; this form of it is ours.

    It works with any module with automatic optimization: its ``training_step`` computes the code, and its loss is not
    used. Epochs, steps, optimizers, schedules and random streams of the run start as without this callback. With
    several processes, gradients are averaged. A resumed run is not fitted again.

    The margins are those of the simplex witness on the mean codes of training rows, in train mode. A module with
    another ``witness``, such as a :class:`certvae.RawHead`, is fitted to the code of the teacher's simplex witness.

    Logs in the first epoch ``prefit/margin_before`` and ``prefit/margin_after`` in nats, higher is better, and
    ``prefit/epochs``.

    Args:
        teacher: a teacher, the path of its file, or the name of a shipped teacher, such as ``"cifar100"``; default: the
            module's attribute ``teacher``.
        latents: where the code is in ``training_step``; see :class:`certvae.callbacks.CertificateCallback`.
        images: where the teacher's input is in the batch.
        alpha: position on the path, above 0 and at most 1.
        epochs: largest number of passes over the training rows, at least 1.
        until_margin: margin in nats at which the fit ends before ``epochs``; None: never.
        learning_rate: of Adam, above 0.
        witness_scale: scale of the teacher's simplex witness, if the module has no simplex witness.

    Attributes:
        margin_before: margin before the fit in nats; None before it ran.
        margin_after: margin after the fit in nats; None before it ran.
        epochs_run: number of passes; kept in checkpoints, like the margins.

    Raises:
        ValueError: if ``alpha`` is not in (0, 1], ``epochs`` is below 1, ``learning_rate`` is not above 0, the module
            uses manual optimization, its parameters are sharded over processes, or there are several training
            dataloaders.

    Example:
        >>> from certvae.callbacks import PrefitCallback
        >>> first = PrefitCallback("teacher.safetensors", latents="encoder:chunk", epochs=2)
    """

    def __init__(
        self,
        teacher: str | Path | Teacher | None = None,
        latents: LatentSource | None = None,
        images: int | str | Callable[[Any], Tensor] = 0,
        alpha: float = 1.0,
        epochs: int = 1,
        until_margin: float | None = None,
        learning_rate: float = 1e-3,
        witness_scale: float = 2.0,
    ) -> None:
        super().__init__()
        if not 0 < alpha <= 1:
            raise ValueError(f"`alpha` must be above 0 and at most 1, got {alpha}.")
        if epochs < 1:
            raise ValueError(f"`epochs` must be at least 1, got {epochs}.")
        if not learning_rate > 0:
            raise ValueError(f"`learning_rate` must be above 0, got {learning_rate}.")
        self.alpha, self.epochs, self.until_margin, self.learning_rate = alpha, epochs, until_margin, learning_rate
        self.reader = BatchReader(teacher, latents, images, None, witness_scale)
        self.margin_before: float | None = None
        self.margin_after: float | None = None
        self.epochs_run = 0
        self._witness: SimplexWitness | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Load the teacher.

        Raises:
            ValueError: if there is no teacher, it does not fit the data, or the module uses manual optimization.
        """
        if stage != "fit":
            return
        if not pl_module.automatic_optimization:
            raise ValueError(
                f"{type(pl_module).__name__} sets `automatic_optimization = False`: its `training_step` would take "
                "steps of its own while the code is fitted. Use automatic optimization, or fit the code there."
            )
        self.reader.setup(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fit the code, unless an interrupted run has already fitted it.

        Raises:
            ValueError: if parameters are sharded, there are several training dataloaders, or the teacher cannot give
                the margin at ``alpha``.
        """
        if self.margin_after is not None:
            return
        _check_run(trainer)
        self.reader.start(pl_module)
        with silent(trainer, pl_module), kept_random_state(), _kept_but_norms(pl_module):
            self._fit(trainer, pl_module)
        pl_module.zero_grad()
        for name in ("margin_before", "margin_after"):
            pl_module.log(f"prefit/{name}", getattr(self, name))
        pl_module.log("prefit/epochs", float(self.epochs_run))
        rank_zero_info(
            f"Prefit: {self.epochs_run} epochs, margin on training rows {self.margin_before:.3f} nats before, "
            f"{self.margin_after:.3f} after."
        )

    def _fit(self, trainer: Trainer, pl_module: LightningModule) -> None:
        parameters = [value for value in pl_module.parameters() if value.requires_grad]
        optimizer = torch.optim.Adam(parameters, lr=self.learning_rate)
        self.margin_before = self._pass(trainer, pl_module)
        reached = -math.inf
        while self.epochs_run < self.epochs and (self.until_margin is None or reached < self.until_margin):
            reached = self._pass(trainer, pl_module, optimizer)
            self.epochs_run += 1
        self.margin_after = self._pass(trainer, pl_module)

    def _pass(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer | None = None
    ) -> float:
        """One pass over the training rows, with steps if there is an optimizer; returns the pass's margin in nats."""
        sums = torch.zeros(1, dtype=torch.float64)
        for batch_idx, batch in enumerate(_batches(trainer, pl_module)):
            with torch.set_grad_enabled(optimizer is not None):
                codes = self._codes(trainer, pl_module, batch, batch_idx)
                probs = self.reader.teacher_probs(batch).detach()
                if optimizer is not None:
                    self._step(trainer, optimizer, codes, probs)
            sums = sums + self._sums(codes.detach(), probs).cpu()
        rows, score, *mean = trainer.strategy.reduce(sums.to(pl_module.device), reduce_op="sum").cpu()
        return float(score / rows + entropy(torch.stack(mean) / rows))

    def _codes(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> Tensor:
        step = own_step(pl_module)
        takes_index = len(inspect.signature(step).parameters) > 1
        self.reader.capture.listen()
        with trainer.precision_plugin.train_step_context():
            outputs = step(batch, batch_idx) if takes_index else step(batch)
        codes = self.reader.code(pl_module, batch, outputs).mean
        self.reader.capture.listen(False)
        return codes

    def _step(self, trainer: Trainer, optimizer: torch.optim.Optimizer, codes: Tensor, probs: Tensor) -> None:
        witness = self._simplex(codes)
        read = witness.num_components - 1
        target = self.alpha * witness.inverse(probs)[:, :read].to(codes.dtype).to(codes.device)
        loss = (codes[:, :read] - target).square().sum(dim=1).mean()
        parameters = optimizer.param_groups[0]["params"]
        # Not `backward`: a distributed wrapper would wait for gradients of the whole module.
        for value, gradient in zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
            several = gradient is not None and trainer.world_size > 1
            value.grad = trainer.strategy.reduce(gradient, reduce_op="mean") if several else gradient
        optimizer.step()

    def _sums(self, codes: Tensor, probs: Tensor) -> Tensor:
        """Number of rows, sum of scores and sums of the teacher's probabilities, float64, shape ``(2 + K,)``."""
        log_student = self._simplex(codes)(codes).double().log_softmax(dim=1).to(probs.device)
        score = (probs.double() * log_student).sum()
        return torch.cat([torch.stack([score.new_tensor(len(codes)), score]), probs.double().sum(dim=0)])

    def _simplex(self, codes: Tensor) -> SimplexWitness:
        if self._witness is None:
            own = self.reader.witness
            simplex = own if isinstance(own, SimplexWitness) else None
            self._witness = simplex or self.reader.teacher.witness(codes.shape[1], self.reader.witness_scale)
        return self._witness

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.reader.capture.detach()

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update({name: state_dict[name] for name in _STATE})


_STATE = ("margin_before", "margin_after", "epochs_run")


def _check_run(trainer: Trainer) -> None:
    if isinstance(trainer.strategy, SHARDED):
        raise ValueError(
            f"PrefitCallback averages the gradients of whole parameters, and {type(trainer.strategy).__name__} shards "
            "them. Fit the code on one process or with DDP, and start from its checkpoint."
        )
    if isinstance(trainer.train_dataloader, list | tuple | dict):
        raise ValueError("PrefitCallback reads one training dataloader, got several; give one.")


def _batches(trainer: Trainer, pl_module: LightningModule) -> Iterator[Any]:
    """An epoch's training batches on the device, prepared as for the run's own steps."""
    most, data = trainer.num_training_batches, getattr(trainer, "datamodule", None)
    loader: Any = trainer.train_dataloader
    for batch in islice(loader, None if math.isinf(most) else int(most)):
        hooks = data if data is not None and is_overridden("on_before_batch_transfer", data) else pl_module
        batch = hooks.on_before_batch_transfer(trainer.precision_plugin.convert_input(batch), 0)
        yield trainer.strategy.batch_to_device(batch, dataloader_idx=0)


@contextmanager
def _kept_but_norms(module: nn.Module) -> Iterator[None]:
    """Restore attributes and buffers on exit, except batch-norm statistics, which belong to the weights."""
    norms = [buffer for part in module.modules() if isinstance(part, _NormBase) for buffer in part.buffers()]
    with kept_module_state(module):
        yield
        moved = [buffer.clone() for buffer in norms]
    for buffer, value in zip(norms, moved, strict=True):
        buffer.copy_(value)
