"""The handwritten digits against scikit-learn's own."""

from collections import Counter

import numpy as np
import pytest
from sklearn.datasets import load_digits

from certvae.datamodules import DigitsDataModule


@pytest.fixture(scope="module")
def digits() -> DigitsDataModule:
    return DigitsDataModule()


def test_images_have_one_channel_of_8_x_8_bytes(digits: DigitsDataModule) -> None:
    assert digits.image_shape == (1, 8, 8)
    assert digits.arrays.images.shape == (1797, 1, 8, 8)
    assert digits.arrays.images.dtype == np.uint8


def test_images_use_the_whole_range_of_a_byte(digits: DigitsDataModule) -> None:
    assert digits.arrays.images.min() == 0
    assert digits.arrays.images.max() == 255


def test_classes_are_the_ten_digits(digits: DigitsDataModule) -> None:
    assert digits.class_names == ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
    assert digits.num_classes == 10


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_every_split_has_every_digit(digits: DigitsDataModule, split: str) -> None:
    assert set(digits.arrays.labels[digits.splits[split]]) == set(range(10))


@pytest.mark.parametrize(
    ("fraction", "sizes"),
    [(0.0, (1197, 600, 0)), (0.5, (1197, 300, 300)), (0.25, (1197, 450, 150))],
)
def test_600_rows_are_held_out_and_divided(fraction: float, sizes: tuple[int, int, int]) -> None:
    splits = DigitsDataModule(test_fraction=fraction).splits
    assert (len(splits["train"]), len(splits["val"]), len(splits["test"])) == sizes


def test_rows_are_a_permutation_of_those_of_scikit_learn(digits: DigitsDataModule) -> None:
    """Nothing is lost by the scaling: the 17 gray levels come back."""
    levels = np.round(digits.arrays.images.reshape(-1, 64) / 255 * 16).astype(int)
    original = load_digits()
    rows = Counter(zip(map(bytes, levels.astype(np.uint8)), digits.arrays.labels.tolist(), strict=True))
    expected = Counter(zip(map(bytes, original.data.astype(np.uint8)), original.target.tolist(), strict=True))
    assert rows == expected


def test_every_load_gives_the_same_rows_in_the_same_order(digits: DigitsDataModule) -> None:
    other = DigitsDataModule(split_seed=5, subset=10)
    assert np.array_equal(other.arrays.images, digits.arrays.images)
    assert other.fingerprint == digits.fingerprint


def test_a_batch_is_ready_for_a_model(digits: DigitsDataModule) -> None:
    images, labels, index = digits.on_after_batch_transfer(next(iter(digits.train_dataloader())), 0)
    assert images.shape == (128, 1, 8, 8)
    assert 0 <= images.min() < images.max() <= 1
    assert np.array_equal(labels.numpy(), digits.arrays.labels[index.numpy()])
