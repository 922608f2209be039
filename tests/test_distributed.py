"""Two processes report what one process reports."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer

from certvae import Certificate, TeacherSearch, load_teacher
from certvae.callbacks import CertificateCallback
from certvae.datamodules import DigitsDataModule
from tests.runs import digits_teacher, small_vae, trainer


def spread(folder: Path, devices: int, **arguments: Any) -> Trainer:
    return trainer(folder, devices=devices, strategy="ddp_spawn" if devices > 1 else "auto", **arguments)


def certificate(folder: Path, devices: int, rows: int) -> Certificate:
    callback = CertificateCallback(teacher=digits_teacher(), save_dir=folder, channel_samples=2)
    data = DigitsDataModule(batch_size=16, subset=rows)
    spread(folder, devices, callbacks=[callback]).validate(small_vae(digits_teacher()), datamodule=data, verbose=False)
    return Certificate.load(folder / "certificate_val.json")


@pytest.mark.parametrize("rows", [101, 7])
def test_padded_rows_are_not_counted_and_every_field_agrees(tmp_path: Path, rows: int) -> None:
    """Neither count is a multiple of two, so the sampler pads; to 1e-6, the rounding of float32 networks."""
    one, two = certificate(tmp_path / "one", 1, rows), certificate(tmp_path / "two", 2, rows)
    assert two.num_samples == one.num_samples == rows
    left, right = one.to_dict(), two.to_dict()
    for name, value in left.items():
        if isinstance(value, float):
            assert right[name] == pytest.approx(value, abs=1e-6), name
    assert left["status"] == right["status"]


def test_the_search_finds_the_same_teacher(tmp_path: Path) -> None:
    """101 rows are no multiple of two processes: the row that the sampler repeats is not counted."""
    teachers = []
    for devices in (1, 2):
        folder = tmp_path / str(devices)
        module = TeacherSearch(
            (4,), temperatures=(3.0,), initialisations=1, pca_dim=6, em_iterations=4, seed=0, output_dir=str(folder)
        )
        data = DigitsDataModule(batch_size=100, subset=101)
        spread(folder, devices, max_epochs=-1).fit(module, datamodule=data)
        teachers.append(load_teacher(folder / "teacher.safetensors"))
    for name, value in teachers[0].tensors().items():
        assert torch.allclose(value, teachers[1].tensors()[name], atol=1e-9), name
