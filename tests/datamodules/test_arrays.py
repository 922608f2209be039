"""Splits, batches and fingerprints of the DataModules, on arrays made up in memory."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from certvae.datamodules import DataError, ImageArrays, ImageDataModule

FRACTIONS = st.floats(0, 1, exclude_max=True)
SEEDS = st.integers(0, 2**32 - 1)
Batch = tuple[Tensor, Tensor, Tensor]


class MadeUpDataModule(ImageDataModule):
    """Random images of ``(3, 4, 5)``, five labels; the first ``num_train`` rows are for training."""

    def __init__(self, num_train: int = 90, held_out: int = 60, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_train, self.held_out = num_train, held_out

    def load(self) -> ImageArrays:
        rows, rng = self.num_train + self.held_out, np.random.default_rng(0)
        images = rng.integers(0, 256, (rows, 3, 4, 5), dtype=np.uint8)
        return ImageArrays(images, rng.integers(0, 5, rows), self.num_train, tuple("abcde"))


class Recorder(LightningModule):
    """Keeps the batches that each stage of a trainer gives to the model."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches: dict[str, Batch] = {}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.batches["train"] = batch
        return self.weight * batch[0].mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.batches["val"] = batch

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.batches["test"] = batch

    def predict_step(self, batch: Batch, batch_idx: int) -> None:
        self.batches["predict"] = batch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def rows_of(data: ImageDataModule) -> dict[str, list[int]]:
    """Rows of each split, in order."""
    return {name: rows.tolist() for name, rows in data.splits.items()}


@pytest.mark.slow
@given(st.integers(0, 300), st.integers(0, 300), FRACTIONS, SEEDS)
def test_splits_are_disjoint_and_cover_all_rows(train: int, held_out: int, fraction: float, seed: int) -> None:
    data = MadeUpDataModule(train, held_out, test_fraction=fraction, split_seed=seed)
    rows = rows_of(data)
    assert set(rows) == {"train", "val", "test"}
    assert sorted(rows["train"] + rows["val"] + rows["test"]) == list(range(train + held_out))
    assert rows["train"] == list(range(train))


@pytest.mark.slow
@given(st.integers(0, 300), FRACTIONS, SEEDS)
def test_test_fraction_is_the_share_of_test_among_held_out_rows(held_out: int, fraction: float, seed: int) -> None:
    data = MadeUpDataModule(10, held_out, test_fraction=fraction, split_seed=seed)
    assert abs(len(data.splits["test"]) - fraction * held_out) <= 0.5


@pytest.mark.slow
@given(FRACTIONS, SEEDS, st.none() | st.integers(1, 100))
def test_same_seed_gives_the_same_split(fraction: float, seed: int, subset: int | None) -> None:
    arguments: dict[str, Any] = {"test_fraction": fraction, "split_seed": seed, "subset": subset}
    assert rows_of(MadeUpDataModule(**arguments)) == rows_of(MadeUpDataModule(**arguments))


def test_another_seed_gives_another_split_of_the_held_out_rows() -> None:
    first, second = (rows_of(MadeUpDataModule(split_seed=seed)) for seed in (0, 1))
    assert first["train"] == second["train"]
    assert first["val"] != second["val"]


def test_split_does_not_depend_on_global_random_state() -> None:
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    first = rows_of(MadeUpDataModule())
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    assert rows_of(MadeUpDataModule()) == first


@pytest.mark.slow
@given(st.integers(1, 200), FRACTIONS, SEEDS)
def test_subset_limits_every_split_to_rows_of_the_whole_split(subset: int, fraction: float, seed: int) -> None:
    whole = rows_of(MadeUpDataModule(test_fraction=fraction, split_seed=seed))
    part = rows_of(MadeUpDataModule(test_fraction=fraction, split_seed=seed, subset=subset))
    for name, rows in whole.items():
        assert len(set(part[name])) == len(part[name]) == min(subset, len(rows))
        assert set(part[name]) <= set(rows)


def test_subset_is_drawn_from_the_whole_split() -> None:
    """Not its first rows, which may all be of one class."""
    assert max(rows_of(MadeUpDataModule(subset=20))["train"]) >= 20


@pytest.mark.parametrize("subset", [None, 17])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_images_and_labels_of_a_batch_belong_to_its_index(split: str, shuffle: bool, subset: int | None) -> None:
    data = MadeUpDataModule(batch_size=8, subset=subset)
    for images, labels, index in data.loader(split, shuffle):
        assert np.array_equal(images.numpy(), data.arrays.images[index.numpy()])
        assert np.array_equal(labels.numpy(), data.arrays.labels[index.numpy()])


@pytest.mark.slow
@given(st.integers(1, 40), st.booleans(), st.none() | st.integers(1, 40))
def test_an_epoch_gives_every_row_of_the_split_once(batch_size: int, shuffle: bool, subset: int | None) -> None:
    data = MadeUpDataModule(eval_batch_size=batch_size, subset=subset)
    batches = [index for _, _, index in data.loader("val", shuffle)]
    assert all(len(index) == batch_size for index in batches[:-1])
    assert sorted(torch.cat(batches).tolist()) == rows_of(data)["val"]


def test_training_and_evaluation_have_batch_sizes_of_their_own() -> None:
    data = MadeUpDataModule(batch_size=3, eval_batch_size=5)
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader(), data.predict_dataloader())
    assert [len(next(iter(loader))[2]) for loader in loaders] == [3, 5, 5, 5]


def test_only_the_training_loader_shuffles() -> None:
    data = MadeUpDataModule(batch_size=100)
    loaders = {
        "train": data.train_dataloader(),
        "val": data.val_dataloader(),
        "test": data.test_dataloader(),
        "predict": data.predict_dataloader(),
    }
    order = {name: torch.cat([index for _, _, index in loader]).tolist() for name, loader in loaders.items()}
    rows = rows_of(data)
    assert order["train"] != rows["train"]
    assert sorted(order["train"]) == rows["train"]
    assert order["val"] == rows["val"]
    assert order["test"] == order["predict"] == rows["test"]


def test_loader_gives_uint8_images_with_integer_labels_and_index() -> None:
    images, labels, index = next(iter(MadeUpDataModule(batch_size=8).train_dataloader()))
    assert (images.dtype, tuple(images.shape)) == (torch.uint8, (8, 3, 4, 5))
    assert (labels.dtype, tuple(labels.shape)) == (torch.int64, (8,))
    assert (index.dtype, tuple(index.shape)) == (torch.int64, (8,))


def test_worker_processes_give_the_same_batches() -> None:
    alone, workers = (MadeUpDataModule(eval_batch_size=25, num_workers=number).val_dataloader() for number in (0, 1))
    for expected, got in zip(alone, workers, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(expected, got, strict=True))


def test_one_row_is_an_image_with_its_label_and_index() -> None:
    data = MadeUpDataModule()
    image, label, index = data.dataset("test")[3]
    assert index == data.splits["test"][3]
    assert np.array_equal(image.numpy(), data.arrays.images[int(index)])
    assert label == data.arrays.labels[int(index)]


def test_transfer_turns_every_byte_into_its_share_of_255_and_leaves_the_rest() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    labels, index = torch.arange(4), torch.arange(4) + 7
    floats, same_labels, same_index = MadeUpDataModule().on_after_batch_transfer((images, labels, index), 0)
    assert floats.dtype == torch.float32
    assert floats.min() == 0
    assert floats.max() == 1
    torch.testing.assert_close(floats.double(), images.double() / 255, rtol=0, atol=1e-7)
    assert torch.equal(same_labels, labels)
    assert torch.equal(same_index, index)


@pytest.mark.parametrize("rows_on_device", [False, True])
def test_trainer_gives_the_model_floats_of_the_rows_named_by_index(rows_on_device: bool) -> None:
    data, model = MadeUpDataModule(batch_size=8, rows_on_device=rows_on_device), Recorder()
    trainer = Trainer(
        accelerator="cpu", fast_dev_run=True, logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    trainer.fit(model, data)
    trainer.test(model, data, verbose=False)
    trainer.predict(model, data)
    assert set(model.batches) == {"train", "val", "test", "predict"}
    for images, labels, index in model.batches.values():
        assert images.dtype == torch.float32
        assert np.array_equal((images * 255).round().numpy(), data.arrays.images[index.numpy()])
        assert np.array_equal(labels.numpy(), data.arrays.labels[index.numpy()])


def test_rows_on_the_device_need_one_process() -> None:
    with pytest.raises(ValueError, match="`rows_on_device` needs `num_workers=0`, got 2"):
        MadeUpDataModule(rows_on_device=True, num_workers=2)


@pytest.mark.slow
@given(st.none() | st.integers(1, 200), FRACTIONS, SEEDS)
def test_fingerprint_is_the_same_for_every_subset_and_split(subset: int | None, fraction: float, seed: int) -> None:
    data = MadeUpDataModule(subset=subset, test_fraction=fraction, split_seed=seed)
    assert data.fingerprint == MadeUpDataModule().fingerprint


@pytest.mark.slow
@given(st.data(), st.integers(1, 255))
def test_fingerprint_differs_when_one_pixel_changes(draw: st.DataObject, change: int) -> None:
    data = MadeUpDataModule()
    position = tuple(draw.draw(st.integers(0, size - 1)) for size in data.arrays.images.shape)
    data.arrays.images[position] ^= change
    assert data.fingerprint != MadeUpDataModule().fingerprint


@given(st.integers(0, 149), st.integers(1, 4))
def test_fingerprint_differs_when_one_label_changes(row: int, change: int) -> None:
    data = MadeUpDataModule()
    data.arrays.labels[row] += change
    assert data.fingerprint != MadeUpDataModule().fingerprint


def test_arrays_are_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data = MadeUpDataModule()
    arrays = data.arrays
    monkeypatch.setattr(MadeUpDataModule, "load", lambda self: pytest.fail("loaded again"))
    data.setup("fit")
    assert data.arrays is arrays
    assert len(data.dataset("train")) == 90


def test_shape_and_classes_are_those_of_the_arrays() -> None:
    data = MadeUpDataModule()
    assert data.image_shape == (3, 4, 5)
    assert data.class_names == ("a", "b", "c", "d", "e")
    assert data.num_classes == 5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("batch_size", -1),
        ("eval_batch_size", 0),
        ("test_fraction", -0.01),
        ("test_fraction", 1),
        ("test_fraction", float("nan")),
        ("subset", 0),
        ("subset", -5),
        ("split_seed", -1),
        ("num_workers", -1),
    ],
)
def test_constructor_names_a_bad_argument_and_its_value(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"`{name}` must be .*, got {value}"):
        MadeUpDataModule(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "split"),
    [({"test_fraction": 0.0}, "test"), ({"test_fraction": 0.9, "held_out": 1}, "val")],
)
def test_an_empty_split_is_refused_with_the_argument_that_mends_it(arguments: dict[str, Any], split: str) -> None:
    with pytest.raises(DataError, match=rf"'{split}' is empty with test_fraction="):
        MadeUpDataModule(**arguments).loader(split)
