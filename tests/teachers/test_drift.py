"""A teacher that is asked about other inputs than it was made from is reported, of whatever kind it is."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from certvae import Certificate
from certvae.callbacks import CertificateCallback
from certvae.datamodules import DigitsDataModule
from certvae.teachers import LabelTeacher, NetworkTeacher, TargetTable, Teacher, TeacherCard
from tests.plain_vae import UserVAE, measured
from tests.runs import digits_teacher, trainer

pytestmark = pytest.mark.slow

ROWS = 600
DATA = DigitsDataModule().arrays
PIXELS, LABELS = torch.from_numpy(DATA.images[:ROWS]).float() / 255, torch.from_numpy(DATA.labels[:ROWS]).long()
Case = tuple[Teacher, Any, Callable[[Tensor, Tensor], tuple[Tensor, ...]]]


def mixture() -> Case:
    """Without a recorded value range, as of vectors; asked about standardized inputs."""
    teacher = digits_teacher()
    object.__setattr__(teacher.card, "value_range", None)
    return teacher.measure([PIXELS]), 0, lambda x, y: ((x - 0.3) / 0.1, y)


def network() -> Case:
    """Asked about inverted images."""
    torch.manual_seed(0)
    teacher = NetworkTeacher(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4)), 4, temperature=0.1)
    return teacher.measure([PIXELS]), 0, lambda x, y: (1 - x, y)


def table() -> Case:
    """Made over rows sorted by their class, asked about the first of them."""
    order = LABELS.argsort()
    everything = [(PIXELS[order], LABELS[order], torch.arange(ROWS))]
    teacher = TargetTable.from_teacher(LabelTeacher(10).measure([LABELS]), [everything], images=1)
    return teacher, 0, lambda x, y: (x[:100], y[:100], torch.arange(100))


def labels() -> Case:
    return LabelTeacher(10).measure([LABELS]), 1, lambda x, y: (x[y < 5], y[y < 5])


def drift(folder: Path, teacher: Teacher, where: Any, *columns: Tensor) -> float:
    loader = DataLoader(TensorDataset(*columns), batch_size=100)
    witness = torch.nn.Linear(6, teacher.num_components)
    callback = CertificateCallback(teacher, "encoder", images=where, witness=witness)
    trainer(folder, callbacks=[callback]).validate(UserVAE(), loader, verbose=False)
    return float(measured(callback).provenance["teacher_drift"])


@pytest.mark.parametrize("case", [mixture, network, table, labels])
def test_other_inputs_are_reported_and_the_same_are_not(tmp_path: Path, case: Callable[[], Case]) -> None:
    teacher, where, other = case()
    with pytest.warns(UserWarning, match="nats from the one in its file"):
        assert drift(tmp_path, teacher, where, *other(PIXELS, LABELS)) > 0.1
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*from the one in its file.*")
        order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0))
        assert drift(tmp_path, teacher, where, PIXELS[order], LABELS[order], LABELS.argsort().argsort()[order]) < 0.02


def test_a_class_that_the_teacher_has_never_seen_is_an_endless_drift_and_still_a_file(tmp_path: Path) -> None:
    """A teacher without a floor whose recorded average excludes what it answers here."""
    few = LABELS.clamp(max=4)
    teacher = TargetTable(TeacherCard(5), torch.eye(5)[LABELS.clamp(max=4)], torch.eye(5)[0])
    loader = DataLoader(TensorDataset(PIXELS, few, torch.arange(ROWS)), batch_size=100)
    callback = CertificateCallback(teacher, "encoder", witness=torch.nn.Linear(6, 5), save_dir=tmp_path)
    with pytest.warns(UserWarning, match="inf nats from the one in its file"):
        trainer(tmp_path, callbacks=[callback]).validate(UserVAE(), loader, verbose=False)
    assert Certificate.load(tmp_path / "certificate_val.json").provenance["teacher_drift"] is None
