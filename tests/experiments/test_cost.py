"""The benchmark of a training step runs as it would on a GPU: rows on the device, networks compiled."""

import shutil
from pathlib import Path

import pytest
import torch

from certvae.datamodules import CIFAR100DataModule
from experiments.cost.step import BATCH, Setting, networks, ours, plain

COMPILES = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler; there is no g++")


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [None, pytest.param("default", marks=COMPILES)])
def test_both_sides_of_the_step_take_their_steps(data_dir: Path, compiled: str | None) -> None:
    data = CIFAR100DataModule(str(data_dir), batch_size=BATCH, rows_on_device=True)
    setting = Setting(steps=3, precision="32-true", compiled=compiled)
    assert ours(data, setting).seconds > 0
    assert plain(data, setting).seconds > 0


@COMPILES
@pytest.mark.slow
def test_compiled_networks_compute_the_same() -> None:
    images = torch.rand(BATCH, 3, 32, 32)
    (encoder, decoder), (compiled_encoder, compiled_decoder) = networks(), networks("default")
    mean = encoder(images).mean
    torch.testing.assert_close(compiled_encoder(images).mean, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(compiled_decoder(mean), decoder(mean), rtol=1e-4, atol=1e-5)
