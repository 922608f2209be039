"""What holds of every data set: each law is applied to each data set of one list."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import certvae.datamodules
from certvae.datamodules import (
    CIFAR100DataModule,
    DigitsDataModule,
    ImageDataModule,
    MNISTDataModule,
    TinyImageNetDataModule,
)
from tests.mnist_files import write_mnist

Make = Callable[..., ImageDataModule]


def on_files(make: Callable[..., ImageDataModule]) -> Any:
    """A data set whose real files are needed."""

    def made(request: pytest.FixtureRequest, **arguments: Any) -> ImageDataModule:
        return make(str(request.getfixturevalue("data_dir")), **arguments)

    return pytest.param(made, id=make.__name__, marks=pytest.mark.slow)


def without_files(make: Callable[..., ImageDataModule]) -> Any:
    """A data set that needs no files."""
    return pytest.param(lambda request, **arguments: make(**arguments), id=make.__name__)


def on_made_files(request: pytest.FixtureRequest, **arguments: Any) -> ImageDataModule:
    """MNIST in files of its format."""
    folder = request.getfixturevalue("tmp_path")
    if not (folder / "MNIST").exists():
        write_mnist(folder, 90, 40)
    return MNISTDataModule(str(folder), **arguments)


DATA_SETS = [
    without_files(DigitsDataModule),
    pytest.param(on_made_files, id="MNISTDataModule"),
    on_files(CIFAR100DataModule),
    on_files(TinyImageNetDataModule),
]
every_data_set = pytest.mark.parametrize("make", DATA_SETS)


@every_data_set
def test_the_arrays_are_rows_of_bytes_with_a_named_label_each(make: Make, request: pytest.FixtureRequest) -> None:
    arrays = make(request).arrays
    assert arrays.images.dtype == np.uint8
    assert arrays.images.ndim == 4
    assert arrays.labels.dtype == np.int64
    assert arrays.labels.shape == (len(arrays.images),)
    assert 0 < arrays.num_train < len(arrays.images)
    assert 0 <= arrays.labels.min() <= arrays.labels.max() < len(arrays.class_names)
    assert len(set(arrays.class_names)) == len(arrays.class_names)


@every_data_set
def test_each_row_is_in_one_part_and_a_second_reading_gives_the_same(
    make: Make, request: pytest.FixtureRequest
) -> None:
    one, other = make(request), make(request)
    rows = [row for part in one.splits.values() for row in part.tolist()]
    assert sorted(rows) == list(range(len(one.arrays.images)))
    assert {name: part.tolist() for name, part in other.splits.items()} == {
        name: part.tolist() for name, part in one.splits.items()
    }
    assert other.fingerprint == one.fingerprint


@every_data_set
def test_a_batch_is_images_labels_and_the_place_of_each_row(make: Make, request: pytest.FixtureRequest) -> None:
    data = make(request, batch_size=7, subset=20)
    images, labels, index = next(iter(data.train_dataloader()))
    assert tuple(images.shape) == (7, *data.image_shape)
    assert np.array_equal(images.numpy(), data.arrays.images[index.numpy()])
    assert np.array_equal(labels.numpy(), data.arrays.labels[index.numpy()])


def test_the_list_names_every_data_set_of_the_package() -> None:
    public = (getattr(certvae.datamodules, name) for name in certvae.datamodules.__all__)
    own = {item.__name__ for item in public if isinstance(item, type) and issubclass(item, ImageDataModule)}
    assert {param.id for param in DATA_SETS} == own - {"ImageDataModule"}
