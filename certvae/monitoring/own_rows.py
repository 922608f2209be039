"""Runs a model over a callback's own rows, as in validation and without side effects."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, Protocol

import torch
from lightning_utilities.core.overrides import is_overridden
from lightning_utilities.core.rank_zero import rank_zero_warn
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

from certvae.reading.found import describe
from certvae.reading.inputs import as_floats
from certvae.reading.latents import Latents, LatentSource

__all__ = [
    "Reads",
    "Run",
    "evaluate_rows",
    "number_of_batches",
    "own_batches",
    "runner",
    "validates_now",
    "warn_if_never_validated",
]

Run = Callable[[Any, Any], Any]
CURE = (
    "Give the code by a function, latents=lambda pl_module, batch: pl_module.encoder(batch['x']), or say how a batch "
    "goes through the model: define `predict_step`, or give certvae.watch `run=lambda model, batch: model(**batch)`."
)


@contextmanager
def _in_evaluation(module: nn.Module) -> Iterator[None]:
    """Eval mode, no autograd graph and a separate random state; each submodule's mode is restored."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with isolate_rng(), torch.no_grad():
            yield
    finally:
        for part, training in modes.items():
            part.training = training


def runner(module: nn.Module, source: LatentSource | None, run: Run | None = None) -> Run:
    """The function that runs a model on a batch to compute its code.

    Args:
        module: the model.
        source: where the code is.
        run: function of the model and the batch. Default: nothing if ``source`` is a function, which is called anyway;
            else the module's ``predict_step``; else the module itself on the batch or on its first entry.
    """
    if run is not None:
        return run
    if isinstance(source, Latents) and callable(source.path):
        return lambda model, batch: None
    if hasattr(module, "predict_step") and _has_predict_step(module):
        return lambda model, batch: model.predict_step(batch, 0)
    return _forward


def _has_predict_step(module: Any) -> bool:
    # `lightning.pytorch` has a separate class.
    base = next((kind for kind in type(module).__mro__ if kind.__name__ == "LightningModule"), LightningModule)
    return is_overridden("predict_step", module, base)


def _forward(model: nn.Module, batch: Any) -> Any:
    inputs = batch[0] if isinstance(batch, tuple | list) else batch
    if not isinstance(inputs, Tensor):
        raise TypeError(f"a batch of {describe(batch)} has no first tensor to call the model with. {CURE}")
    try:
        return model(as_floats(inputs))
    except Exception as error:
        error.add_note(f"certvae called the model on the first tensor of a batch, {describe(inputs)}. {CURE}")
        raise


class Reads(Protocol):
    """An object that reads each batch: an evaluation or a callback."""

    def begin(self) -> None:
        """A batch begins."""

    def update(self, pl_module: Any, batch: Any, outputs: Any) -> None:
        """Read a batch after the model ran on it."""


def evaluate_rows(evaluation: Reads, module: nn.Module, batches: Any, run: Run) -> None:
    """Run a model over batches, and pass each batch to an evaluation."""
    with _in_evaluation(module):
        for batch in batches:
            evaluation.begin()
            evaluation.update(module, batch, run(module, batch))


def own_batches(trainer: Trainer, loader: Any, limit: float) -> Iterator[Any]:
    """Batches of a dataloader on the trainer's device.

    Raises:
        ValueError: if there are several processes and each would read all rows.
    """
    samplers = (getattr(loader, "sampler", None), getattr(getattr(loader, "batch_sampler", None), "sampler", None))
    if trainer.world_size > 1 and not any(isinstance(sampler, DistributedSampler) for sampler in samplers):
        raise ValueError(
            "with several processes, the `dataloader` of a callback needs a sampler that splits the rows among them: "
            "DataLoader(rows, sampler=DistributedSampler(rows, shuffle=False))."
        )
    for batch in islice(loader, None if limit == float("inf") else int(limit)):
        yield trainer.strategy.batch_to_device(batch)


def number_of_batches(trainer: Trainer, loader: Any) -> float:
    """Number of batches to read from a dataloader; infinity if unknown."""
    if getattr(trainer, "fast_dev_run", False):
        return int(trainer.fast_dev_run)  # type: ignore[attr-defined]
    return len(loader) if isinstance(loader, DataLoader) and hasattr(loader.sampler, "__len__") else float("inf")


def validates_now(trainer: Trainer) -> bool:
    """Whether the trainer would validate after this epoch."""
    return (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1) == 0


def warn_if_never_validated(trainer: Trainer) -> bool:
    """Warn at the start of a fit in which no validation will run; return whether it warned."""
    every, last, first = trainer.check_val_every_n_epoch, trainer.max_epochs, trainer.current_epoch
    if every is None or last is None or last < 0 or last // every > first // every:
        return False
    rank_zero_warn(
        f"No validation will run in this fit, so nothing will be certified: `check_val_every_n_epoch={every}` "
        f"comes after `max_epochs={last}`. Give Trainer(check_val_every_n_epoch={max(1, last - first)}) or less."
    )
    return True
