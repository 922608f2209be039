"""A teacher searched on somebody's table of numbers: vectors of any scale, in batches of any shape."""

import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from certvae import TeacherSearch, load_teacher
from certvae.callbacks import CertificateCallback
from certvae.teachers.search.module import TeacherSearchError
from tests.plain_vae import UserVAE, measured
from tests.runs import trainer
from tests.teachers.test_laws import streams

pytestmark = pytest.mark.slow

GENES, ROWS, TRAIN = 64, 500, 400


def standardized() -> Tensor:
    """Four clusters, each column with mean 0 and deviation 1, shape ``(ROWS, GENES)``."""
    generator = torch.Generator().manual_seed(0)
    centers = 1.5 * torch.randn(4, GENES, generator=generator)
    rows = centers[torch.arange(ROWS) % 4] + torch.randn(ROWS, GENES, generator=generator)
    return (rows - rows.mean(dim=0)) / rows.std(dim=0)


def counts() -> Tensor:
    """Whole numbers as floats, shape ``(ROWS, GENES)``; integers could be tokens, which a search refuses."""
    return torch.poisson((1 + standardized() / 3).exp(), generator=torch.Generator().manual_seed(1))


def log_normalized() -> Tensor:
    rows = counts().double()
    return (1e4 * rows / rows.sum(dim=1, keepdim=True)).log1p().float()


def min_max() -> Tensor:
    """Columns that the training rows fill from 0 to 1, and others leave."""
    rows = standardized()
    low, high = rows[:TRAIN].amin(dim=0), rows[:TRAIN].amax(dim=0)
    return (rows - low) / (high - low)


def search(folder: Path, train: Any = None, val: Any = None, datamodule: Any = None, **arguments: Any) -> TeacherSearch:
    settings: dict[str, Any] = {"components": (4,), "temperatures": (1.0, 8.0), "initializations": 1, "pca_dim": 8}
    settings |= {"pca_passes": 2, "em_iterations": 8, "seed": 0, "output_dir": str(folder)}
    module = TeacherSearch(**settings, **arguments)
    trainer(folder, max_epochs=-1).fit(module, train, val, datamodule)
    return module


def loaders(rows: Tensor, shape: Callable[[Tensor], Any]) -> list[DataLoader[Any]]:
    items = [shape(row) for row in rows]
    return [DataLoader(part, batch_size=64) for part in (items[:TRAIN], items[TRAIN:])]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shape", "images"),
    [
        (lambda row: row, 0),
        (lambda row: (row,), 0),
        (lambda row: {"genes": row, "site": 3}, "genes"),
        (lambda row: {"genes": row}, lambda batch: batch["genes"]),
        (lambda row: (row, 0, 3), 0),
    ],
    ids=["bare", "tuple", "dict", "function", "site as third entry"],
)
def test_every_shape_of_batch_gives_the_same_teacher(
    tmp_path: Path, shape: Callable[[Tensor], Any], images: Any
) -> None:
    rows = standardized()
    teacher = search(tmp_path, *loaders(rows, shape), images=images).teacher
    reference = search(tmp_path, *loaders(rows, lambda row: row)).teacher
    assert teacher is not None
    assert reference is not None
    assert teacher.card.information_held_out == pytest.approx(1.33, abs=0.02)  # four clusters: log 4 less the floor
    assert all(torch.equal(value, reference.tensors()[name]) for name, value in teacher.tensors().items())


@pytest.mark.parametrize("make", [standardized, counts, log_normalized, min_max])
def test_no_scale_of_vectors_is_taken_for_a_mistake(tmp_path: Path, make: Callable[[], Tensor]) -> None:
    """From the search to the certificate on held-out rows, which go beyond the training rows, without a warning."""
    rows = make()

    class Table(LightningDataModule):
        def train_dataloader(self) -> Any:
            return DataLoader(rows[:TRAIN], batch_size=64)  # type: ignore[arg-type]

        def val_dataloader(self) -> Any:
            return DataLoader(rows[TRAIN:], batch_size=64)  # type: ignore[arg-type]

    class TableVAE(UserVAE):
        def images(self, batch: Any) -> Tensor:
            return batch.float()

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(nats from|values|outside).*")
        search(tmp_path, datamodule=Table())
        teacher = load_teacher(tmp_path / "teacher.safetensors")
        callback = CertificateCallback(teacher, "encoder")
        trainer(tmp_path, callbacks=[callback]).validate(TableVAE(), datamodule=Table(), verbose=False)
    assert teacher.card.image_shape == (GENES,)
    assert teacher.card.value_range is None
    assert measured(callback).teacher_information > 0.5


def test_images_keep_their_range_and_vectors_of_the_same_values_do_not(tmp_path: Path) -> None:
    rows = torch.rand(ROWS, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for shape, expected in (((1, 8, 8), (0.0, 1.0)), ((64,), None)):
        teacher = search(tmp_path, *loaders(rows.view(ROWS, *shape), lambda row: row)).teacher
        assert teacher is not None
        assert teacher.card.value_range == expected


def test_a_search_without_validation_rows_ends_before_it_begins(tmp_path: Path) -> None:
    with pytest.raises(TeacherSearchError, match="needs a validation set to compare candidates on, got none"):
        search(tmp_path, DataLoader(standardized(), batch_size=64))  # type: ignore[arg-type]


def test_the_search_without_a_trainer_finds_what_it_finds_with_one(tmp_path: Path) -> None:
    options: dict[str, Any] = {"temperatures": (1.0, 8.0), "initializations": 1, "pca_dim": 8, "pca_passes": 2}
    options |= {"em_iterations": 8, "seed": 0, "output_dir": str(tmp_path)}
    rows = loaders(standardized(), lambda row: row)
    with_trainer = search(tmp_path, *rows).teacher
    assert with_trainer is not None
    for teacher in (TeacherSearch((4,), **options).search(*rows), load_teacher(tmp_path / "teacher.safetensors")):
        assert teacher.card == with_trainer.card
        assert all(torch.equal(value, with_trainer.tensors()[name]) for name, value in teacher.tensors().items())


def test_a_search_leaves_the_random_state_as_it_was(tmp_path: Path) -> None:
    """Although its loader shuffles, k-means starts at random, and the user's function draws."""

    def genes(batch: Any) -> Tensor:
        torch.rand(1), random.random(), np.random.rand()  # noqa: NPY002
        return batch[0]

    rows = [(row,) for row in standardized()]
    train: DataLoader[Any] = DataLoader(rows[:TRAIN], batch_size=64, shuffle=True)  # type: ignore[arg-type]
    options: dict[str, Any] = {"temperatures": (1.0, 8.0), "initializations": 1, "pca_dim": 8, "pca_passes": 2}
    module = TeacherSearch((4,), **options, em_iterations=2, output_dir=str(tmp_path), images=genes)
    before = streams()
    module.search(train, DataLoader(rows[TRAIN:], batch_size=64))  # type: ignore[arg-type]
    assert streams() == before
