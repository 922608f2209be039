"""Lagging inference takes its inner steps, moves one part at a time, and ends."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from certvae import VAE
from certvae.callbacks import CollapseDiagnostics, LastCheckpoint
from certvae.callbacks.lagging import LaggingInference
from certvae.datamodules import DigitsDataModule
from tests.runs import small_vae, trainer

pytestmark = pytest.mark.slow


class Moved(Callback):
    """Which parts each optimizer step has moved: ``e``, ``d``, ``ed``."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self._before: dict[str, Tensor] = {}
        self._step = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._before = {name: value.clone() for name, value in pl_module.state_dict().items()}
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step > self._step:
            after = pl_module.state_dict().items()
            moved = {name[0] for name, value in after if not torch.equal(value, self._before[name])}
            self.steps.append("".join(sorted(moved, reverse=True)))

    @property
    def inner(self) -> list[int]:
        """Encoder steps before each decoder step, of the inner loops that ended."""
        loops = "".join(self.steps).split("d")[:-1]
        return [len(loop) for loop in loops]


class Logs(Callback):
    """Logs given values as the mutual information of each validation."""

    def __init__(self, *values: float) -> None:
        self.values = values

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            pl_module.log("diagnostics/mutual_information", self.values[trainer.current_epoch])


def fit(folder: Path, lagging: LaggingInference, *values: float, **options: Any) -> tuple[Trainer, VAE, Moved]:
    model, moved = small_vae(), Moved()
    runner = trainer(folder, max_epochs=len(values), callbacks=[Logs(*values), lagging, moved], **options)
    runner.fit(model, datamodule=DigitsDataModule(batch_size=64))
    return runner, model, moved


def test_the_encoder_takes_its_inner_steps_alone_before_each_decoder_step(tmp_path: Path) -> None:
    runner, model, moved = fit(tmp_path, LaggingInference(inner_steps=3, check_every=100), 1.0, 2.0)
    assert moved.steps == (["e", "e", "e", "d"] * 10)[:38]
    optimizer = runner.optimizers[0]
    assert {int(optimizer.state[value]["step"]) for value in model.encoder.parameters()} == {29}
    assert {int(optimizer.state[value]["step"]) for value in model.decoder.parameters()} == {9}
    assert runner.callback_metrics["lagging/encoder_steps"] + runner.callback_metrics["lagging/decoder_steps"] == 19


def test_an_inner_loop_ends_at_a_look_that_finds_no_lower_loss(tmp_path: Path) -> None:
    *_, moved = fit(tmp_path, LaggingInference(inner_steps=100, check_every=2), *range(8))
    assert set(moved.steps) == {"e", "d"}
    assert len(moved.inner) > 3
    assert all(4 <= steps <= 100 and steps % 2 == 0 for steps in moved.inner)
    assert len(set(moved.inner)) > 1


def test_both_are_trained_together_once_the_information_was_below_its_best_often_enough(tmp_path: Path) -> None:
    lagging = LaggingInference(inner_steps=3, patience=2)
    runner, _, moved = fit(tmp_path, lagging, 1.0, 0.5, 2.0, 1.5, 3.0)
    assert not lagging.aggressive
    assert set(moved.steps[:76]) == {"e", "d"}
    assert set(moved.steps[76:]) == {"ed"}
    assert runner.callback_metrics["lagging/encoder_steps"] == runner.callback_metrics["lagging/decoder_steps"] == 0


def test_with_gradient_accumulation_the_optimizers_steps_count(tmp_path: Path) -> None:
    lagging = LaggingInference(inner_steps=2, check_every=100)
    *_, moved = fit(tmp_path, lagging, 1.0, accumulate_grad_batches=4)
    assert moved.steps == ["e", "e", "d", "e", "e"]


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    def run(folder: Path, epochs: int) -> dict[str, Tensor]:
        model, lagging = small_vae(), LaggingInference(inner_steps=5, check_every=2, patience=1)
        callbacks: list[Callback] = [CollapseDiagnostics(), lagging, LastCheckpoint(folder)]
        torch.manual_seed(1)
        runner = trainer(folder, max_epochs=epochs, callbacks=callbacks, enable_checkpointing=True)
        runner.fit(model, datamodule=DigitsDataModule(batch_size=64), ckpt_path="last")
        return model.state_dict() | {"lagging": torch.tensor([float(value) for value in lagging.state_dict().values()])}

    whole = run(tmp_path / "whole", 4)
    for epochs in (1, 2, 4):
        parts = run(tmp_path / "parts", epochs)
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


class ByHand(VAE):
    @property  # type: ignore[misc]
    def automatic_optimization(self) -> bool:
        return False


def test_a_module_that_optimizes_by_hand_is_refused(tmp_path: Path) -> None:
    plain, runner = small_vae(), trainer(tmp_path, callbacks=[LaggingInference()])
    with pytest.raises(ValueError, match="ByHand sets `automatic_optimization = False`"):
        runner.fit(ByHand(plain.encoder, plain.decoder), datamodule=DigitsDataModule())


def test_without_the_monitored_value_it_says_what_to_add(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`monitor='diagnostics/mutual_information'` is not logged .*'val/loss'"):
        trainer(tmp_path, callbacks=[LaggingInference()]).fit(small_vae(), datamodule=DigitsDataModule())


@pytest.mark.parametrize("name", ["inner_steps", "check_every", "patience"])
def test_bad_arguments_are_refused(name: str) -> None:
    arguments: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0"):
        LaggingInference(**arguments)
