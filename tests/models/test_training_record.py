"""What a training epoch records: means over rows, the first loss that was not finite, and nothing that waits."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_lightning.callbacks import ModelCheckpoint

from certvae import VAE
from certvae.callbacks import LastCheckpoint
from certvae.datamodules import DigitsDataModule
from certvae.io.checkpoints import read_checkpoint
from certvae.models.networks import MLPDecoder, MLPEncoder
from certvae.models.training_record import TrainingRecord
from certvae.models.vae import TrainingDivergedError
from tests.runs import SHAPE, small_vae, trainer

STEPS = st.lists(st.tuples(st.integers(1, 64), st.floats(-1e3, 1e3), st.floats(0, 10)), min_size=1, max_size=20)


@pytest.mark.slow
@given(steps=STEPS, aligned=st.booleans())
def test_means_are_over_rows(steps: list[tuple[int, float, float]], aligned: bool) -> None:
    record = TrainingRecord(torch.zeros(1, dtype=torch.float64))
    for number, (rows, loss, alignment) in enumerate(steps):
        term = torch.tensor(alignment, dtype=torch.float64) if aligned else None
        record.add(number, rows, torch.tensor(loss, dtype=torch.float64), term)
    rows, loss, aligned_rows, alignment = record.sums.tolist()
    assert rows == sum(step[0] for step in steps)
    assert loss == pytest.approx(sum(step[0] * step[1] for step in steps), abs=1e-9)
    assert aligned_rows == (rows if aligned else 0)
    assert alignment == pytest.approx(sum(step[0] * step[2] for step in steps) if aligned else 0, abs=1e-9)
    assert math.isinf(record.fault[0])


@pytest.mark.slow
@given(losses=st.lists(st.sampled_from([1.0, -2.0, math.nan, math.inf, -math.inf]), min_size=1, max_size=12))
def test_the_first_loss_that_is_not_finite_is_kept_with_its_batch(losses: list[float]) -> None:
    record = TrainingRecord(torch.zeros(1))
    for number, loss in enumerate(losses):
        record.add(number, 4, torch.tensor(loss))
    faults = [(number, loss) for number, loss in enumerate(losses) if not math.isfinite(loss)]
    batch_idx, value = record.fault.tolist()
    if faults:
        assert (batch_idx, str(value)) == (faults[0][0], str(faults[0][1]))
    else:
        assert math.isinf(batch_idx)


class DivergesAt(VAE):
    """Gives a loss that is not finite at a step of the second epoch."""

    at = 2

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        if self.current_epoch == 1 and batch_idx == self.at:
            batch = (batch[0] * math.nan, *batch[1:])
        return super().training_step(batch, batch_idx)


def keep_each_epoch(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, filename="{epoch}-{step}", save_top_k=-1)


SAVED: dict[str, tuple[Callable[[Path], ModelCheckpoint], dict[str, Any]]] = {
    "last": (LastCheckpoint, {}),
    "after each epoch": (keep_each_epoch, {}),
    "after each validation": (
        lambda folder: ModelCheckpoint(folder, save_top_k=-1, save_on_train_epoch_end=False),
        {"val_check_interval": 0.25},
    ),
    "every 3 steps": (lambda folder: ModelCheckpoint(folder, save_top_k=-1, every_n_train_steps=3), {}),
    "on an exception": (
        lambda folder: ModelCheckpoint(folder, filename="{epoch}-{step}", save_top_k=-1, save_on_exception=True),
        {},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SAVED)
@pytest.mark.parametrize("at", [2, 19])
def test_no_checkpoint_has_weights_from_after_a_loss_that_was_not_finite(tmp_path: Path, name: str, at: int) -> None:
    """Whenever checkpoints are saved; 19 is the last batch but one of an epoch, behind its last validation within."""
    make, options = SAVED[name]
    model = DivergesAt(MLPEncoder(SHAPE, 4, 16, 1), MLPDecoder(SHAPE, 4, 16, 1))
    model.at = at
    runner = trainer(tmp_path, max_epochs=3, enable_checkpointing=True, callbacks=[make(tmp_path)], **options)
    with pytest.raises(TrainingDivergedError, match=f"the loss is nan at epoch 1, batch {at}"):
        runner.fit(model, datamodule=DigitsDataModule(batch_size=54))
    paths = list(tmp_path.glob("*.ckpt"))
    assert paths
    for path in paths:
        saved = read_checkpoint(path)["state_dict"]
        assert all(bool(value.isfinite().all()) for value in saved.values()), path


def test_an_infinite_loss_is_named_as_such(tmp_path: Path) -> None:
    """Here from the first step on: 1 divided by the variance is not a float32."""
    with pytest.raises(TrainingDivergedError, match="the loss is inf at epoch 0, batch 0"):
        trainer(tmp_path).fit(small_vae(observation_std=1e-18), datamodule=DigitsDataModule())
