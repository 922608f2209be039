"""Batches of every shape, streams and worker processes give the certificate of the rows that were seen."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from pytorch_lightning import LightningDataModule, LightningModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from certvae import Status
from certvae.callbacks import CertificateCallback
from tests.plain_vae import UserVAE, expected, fit, images, measured, plain_loader, watch
from tests.runs import digits_teacher, trainer


class Fields(NamedTuple):
    pixels: Tensor
    label: Tensor


@dataclass
class Record:
    pixels: Tensor
    label: Tensor


class Shaped(Dataset[Any]):
    """The digits, one row each as a dict, a dataclass or a NamedTuple."""

    def __init__(self, kind: Any) -> None:
        self.kind, self.images = kind, images()

    def __len__(self) -> int:
        return 90

    def __getitem__(self, row: int) -> Any:
        return self.kind(pixels=self.images[row], label=torch.tensor(row))


def as_record(rows: list[Any]) -> Record:
    return Record(torch.stack([row.pixels for row in rows]), torch.stack([row.label for row in rows]))


class ShapedData(LightningDataModule):
    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.kind = kind

    def train_dataloader(self) -> Any:
        collate = as_record if self.kind is Record else None
        return DataLoader(Shaped(self.kind), batch_size=32, collate_fn=collate)

    val_dataloader = test_dataloader = train_dataloader


class ShapedVAE(UserVAE):
    def step(self, batch: Any) -> Tensor:
        return super().step([batch["pixels"] if isinstance(batch, dict) else batch.pixels])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [dict, Fields, Record])
def test_batches_with_names(tmp_path: Path, kind: Any) -> None:
    callback = watch(images="pixels")
    model, runner = ShapedVAE(), trainer(tmp_path, callbacks=[callback])
    runner.fit(model, datamodule=ShapedData(kind))
    assert measured(callback).margin == pytest.approx(expected(model).margin, abs=1e-5)
    runner.test(model, datamodule=ShapedData(kind), verbose=False)
    assert measured(callback).margin == pytest.approx(expected(model).margin, abs=1e-5)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from ((image, torch.tensor(0)) for image in images())


@pytest.mark.slow
def test_a_stream_without_length_is_seen_to_its_end(tmp_path: Path) -> None:
    for limit, status in ((1.0, Status.NOT_CERTIFIED), (2, Status.PARTIAL)):
        callback = watch()
        fit(tmp_path, callback, loaders=DataLoader(Stream(), batch_size=32), limit_val_batches=limit)
        assert measured(callback).status is status


@pytest.mark.slow
@pytest.mark.parametrize("returned", [None, {"loss": torch.tensor(0.0)}, torch.tensor(0.0), {"posterior": "of theirs"}])
def test_what_the_step_returns_does_not_matter_to_a_hook(tmp_path: Path, returned: Any) -> None:
    class Returning(UserVAE):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            super().validation_step(batch, batch_idx)
            return returned

    model, callback = Returning(), watch()
    trainer(tmp_path, callbacks=[callback]).fit(model, plain_loader(), plain_loader())
    assert measured(callback).margin == pytest.approx(expected(model).margin, abs=1e-5)


@pytest.mark.slow
def test_a_dataloader_made_anew_is_the_one_that_is_measured(tmp_path: Path) -> None:
    class Growing(UserVAE):
        def val_dataloader(self) -> Any:
            return plain_loader(20 * (self.current_epoch + 1))

    class Counting(CertificateCallback):
        def on_validation_end(self, trainer: Any, pl_module: LightningModule) -> None:
            rows.append(measured(self).num_samples)

    rows: list[int] = []
    callback = Counting(digits_teacher(), "encoder")
    runner = trainer(tmp_path, max_epochs=3, reload_dataloaders_every_n_epochs=1, callbacks=[callback])
    runner.fit(Growing(), plain_loader())
    assert rows == [20, 40, 60]


@pytest.mark.slow
def test_worker_processes_that_stay_give_the_same_numbers(tmp_path: Path) -> None:
    callback, loader = watch(), plain_loader(num_workers=2, persistent_workers=True)
    _, model = fit(tmp_path, callback, loaders=loader, max_epochs=2)
    assert measured(callback).margin == pytest.approx(expected(model).margin, abs=1e-5)
