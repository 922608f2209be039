"""The base class of the DataModules: arrays in memory, disjoint splits, conversion to floats on the device."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from pytorch_lightning.trainer.states import TrainerStatus
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from certvae.io.files import sha256_array

__all__ = ["DataError", "ImageArrays", "ImageDataModule", "RowDataset"]

Batch = tuple[Tensor, Tensor, Tensor]


class DataError(RuntimeError):
    """Data files are missing, damaged or not the official ones."""


@dataclass(frozen=True, eq=False)
class ImageArrays:
    """A whole data set in memory. Data modules of one process may share it, so do not change it in place.

    Attributes:
        images: uint8, shape ``(N, C, H, W)``; the training rows come first.
        labels: int64, shape ``(N,)``.
        num_train: number of training rows.
        class_names: name of each label.
    """

    images: np.ndarray
    labels: np.ndarray
    num_train: int
    class_names: tuple[str, ...]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all images and labels."""
        return sha256_array(self.images, self.labels)


class RowDataset(Dataset[Batch]):
    """Some rows of the arrays; a whole batch is gathered at once, without a Python loop over rows.

    Args:
        images: uint8, shape ``(N, C, H, W)``.
        labels: int64, shape ``(N,)``.
        rows: positions of this split's rows in the whole set, which are the ``index`` of the batches.
    """

    def __init__(self, images: Tensor, labels: Tensor, rows: Tensor) -> None:
        self.images, self.labels, self.rows = images, labels, rows

    def __len__(self) -> int:
        return self.rows.shape[0]

    def __getitem__(self, position: int) -> Batch:
        row = self.rows[position]
        return self.images[row], self.labels[row], row

    def __getitems__(self, positions: Sequence[int]) -> Batch:
        rows = self.rows[torch.as_tensor(positions, device=self.rows.device)]
        return self.images.index_select(0, rows), self.labels[rows], rows  # twice as fast as images[rows]


def _as_is(batch: Any) -> Any:
    """Collate function for batches that the data set has already gathered."""
    return batch


class ImageDataModule(LightningDataModule):
    """Base class that yields batches ``(images, label, index)`` from arrays in memory.

    Images are uint8 until they are on the device, then float32 in [0, 1]. ``index`` is the row's position in the
    whole set, unique over all splits. All official training rows are for training. The official test rows are
    divided with a fixed seed. One part, ``val``, is watched during training. The other, ``test``, is kept for the
    published certificate: neither training nor model selection has used it.

    For a trainer of ``lightning.pytorch``, add its base class:
    ``class Data(DigitsDataModule, lightning.pytorch.LightningDataModule): ...``.

    Args:
        batch_size: rows per training batch, at least 1.
        eval_batch_size: rows per batch of ``val`` or ``test``, at least 1. Evaluation keeps no gradients, so that large
            batches are faster.
        test_fraction: share of the held-out rows that goes to ``test``, at least 0 and below 1. The rest is ``val``.
        subset: largest number of rows per split, at least 1, drawn with ``split_seed``; for quick runs.
        split_seed: seed of the division into ``val`` and ``test``, at least 0.
        num_workers: worker processes, at least 0; 0 is fastest for arrays in memory.
        rows_on_device: whether all rows lie on the trainer's device during a run, so that no batch is copied to it.
            The order of the rows stays the same. It takes their uint8 size there, and needs ``num_workers=0``.
    """

    def __init__(
        self,
        batch_size: int = 128,
        test_fraction: float = 0.5,
        subset: int | None = None,
        split_seed: int = 0,
        num_workers: int = 0,
        eval_batch_size: int = 512,
        rows_on_device: bool = False,
    ) -> None:
        super().__init__()
        for name, size in {"batch_size": batch_size, "eval_batch_size": eval_batch_size}.items():
            if size < 1:
                raise ValueError(f"`{name}` must be at least 1, got {size}.")
        if not 0 <= test_fraction < 1:
            raise ValueError(f"`test_fraction` must be at least 0 and below 1, got {test_fraction}.")
        if subset is not None and subset < 1:
            raise ValueError(f"`subset` must be at least 1 or None, got {subset}.")
        if split_seed < 0:
            raise ValueError(f"`split_seed` must be at least 0, got {split_seed}.")
        if num_workers < 0:
            raise ValueError(f"`num_workers` must be at least 0, got {num_workers}.")
        if rows_on_device and num_workers:
            raise ValueError(
                f"`rows_on_device` needs `num_workers=0`, got {num_workers}: worker processes cannot read a device."
            )
        self.rows_on_device = rows_on_device
        self._on_device: tuple[Tensor, Tensor] | None = None
        self.batch_size, self.eval_batch_size, self.test_fraction = batch_size, eval_batch_size, test_fraction
        self.subset, self.split_seed, self.num_workers = subset, split_seed, num_workers

    @abstractmethod
    def load(self) -> ImageArrays:
        """Read the whole data set.

        Raises:
            DataError: if files are missing or damaged; the message names them and what to do.
        """

    @cached_property
    def arrays(self) -> ImageArrays:
        """The whole data set, read once."""
        return self.load()

    @cached_property
    def splits(self) -> dict[str, Tensor]:
        """Rows of ``train``, ``val`` and ``test``: pieces of one sequence and one permutation, hence disjoint."""
        arrays = self.arrays
        held_out = np.arange(arrays.num_train, len(arrays.images))
        order = np.random.default_rng(self.split_seed).permutation(held_out)
        cut = len(order) - round(self.test_fraction * len(order))
        rows = {
            "train": np.arange(arrays.num_train),
            "val": np.sort(order[:cut]),
            "test": np.sort(order[cut:]),
        }
        return {name: torch.from_numpy(self._limit(values)) for name, values in rows.items()}

    def _limit(self, rows: np.ndarray) -> np.ndarray:
        if self.subset is None or self.subset >= len(rows):
            return rows
        return np.sort(np.random.default_rng(self.split_seed).permutation(rows)[: self.subset])

    @property
    def image_shape(self) -> tuple[int, ...]:
        """``(C, H, W)``."""
        return tuple(self.arrays.images.shape[1:])

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each label."""
        return self.arrays.class_names

    @property
    def num_classes(self) -> int:
        """Number of labels."""
        return len(self.class_names)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all images and labels; the same for every subset and split."""
        return self.arrays.fingerprint

    def setup(self, stage: str) -> None:
        images, labels = self._in_memory()
        if self.rows_on_device and self.trainer is not None and self.trainer.state.status == TrainerStatus.RUNNING:
            device = self.trainer.strategy.root_device
            self._on_device = images.to(device), labels.to(device)

    def _in_memory(self) -> tuple[Tensor, Tensor]:
        """Images and labels without a copy."""
        return torch.from_numpy(self.arrays.images), torch.from_numpy(self.arrays.labels)

    def teardown(self, stage: str) -> None:
        """Let go of the rows on the device; new loaders give rows in memory. The trainer's own keep theirs."""
        self._on_device = None

    def on_exception(self, exception: BaseException) -> None:
        self.teardown("fit")

    def dataset(self, split: str) -> RowDataset:
        """The rows of ``"train"``, ``"val"`` or ``"test"``.

        Raises:
            DataError: if the split is empty.
        """
        images, labels = self._on_device or self._in_memory()
        rows = self.splits[split]
        if len(rows) == 0:
            raise DataError(
                f"the split {split!r} is empty with test_fraction={self.test_fraction}; change `test_fraction` so "
                "that some held-out rows go to it."
            )
        return RowDataset(images, labels, rows.to(images.device))

    def loader(self, split: str, shuffle: bool = False) -> DataLoader[Any]:
        """A dataloader of uint8 batches; the DataModule makes them floats on the device."""
        # A keyword, because Lightning passes `shuffle` again when it rebuilds a loader (predict, several processes).
        return DataLoader(
            self.dataset(split),
            batch_size=self.batch_size if split == "train" else self.eval_batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            collate_fn=_as_is,
        )

    def train_dataloader(self) -> DataLoader[Any]:
        return self.loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        return self.loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        return self.loader("test")

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Convert uint8 images to float32 in [0, 1] on their device."""
        images, labels, index = batch
        return images.float() / 255, labels, index
