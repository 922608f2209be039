"""MNIST as its files hold it."""

from pathlib import Path

import numpy as np
import pytest

from certvae.datamodules import DataError, MNISTDataModule
from tests.mnist_files import write_mnist


def test_images_and_labels_are_those_of_the_files_in_their_order(tmp_path: Path) -> None:
    images, labels = write_mnist(tmp_path, 30, 12)
    arrays = MNISTDataModule(str(tmp_path)).arrays
    assert np.array_equal(arrays.images, images[:, None])
    assert np.array_equal(arrays.labels, labels)
    assert arrays.num_train == 30
    assert arrays.class_names == tuple("0123456789")


def test_missing_files_are_named_with_a_cure(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"MNIST: Dataset not found.* `data_dir`, or set `download: true`"):
        MNISTDataModule(str(tmp_path)).prepare_data()


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_a_damaged_file_is_refused(tmp_path: Path, name: str) -> None:
    write_mnist(tmp_path, 30, 12)
    path = tmp_path / "MNIST" / "raw" / name
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match="MNIST: .*Remove damaged files first"):
        MNISTDataModule(str(tmp_path)).prepare_data()


def test_fewer_labels_than_images_are_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path / "a", 30, 12)
    write_mnist(tmp_path / "b", 20, 12)
    short, place = (tmp_path / part / "MNIST" / "raw" / "train-labels-idx1-ubyte" for part in "ba")
    place.write_bytes(short.read_bytes())
    with pytest.raises(DataError, match=r"holds 20 labels for images of shape \(30, 28, 28\)"):
        MNISTDataModule(str(tmp_path / "a")).prepare_data()
