"""MNIST from the official files."""

import os
from typing import Any

import numpy as np
import torch
from torchvision.datasets import MNIST

from certvae.datamodules.arrays import DataError, ImageArrays, ImageDataModule

__all__ = ["MNISTDataModule"]

SHAPE = (28, 28)


class MNISTDataModule(ImageDataModule):
    """MNIST (LeCun et al., 1998): 60,000 training and 10,000 held-out images of ``(1, 28, 28)``, ten labels.

    Args:
        data_dir: folder that holds ``MNIST/raw`` with the four official files, unpacked.
        download: whether to download the official files if they are missing.
        kwargs: arguments of :class:`certvae.datamodules.ImageDataModule`.
    """

    def __init__(self, data_dir: str = "data", download: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.data_dir, self.download = os.path.expanduser(data_dir), download

    def prepare_data(self) -> None:
        """Download the files if ``download`` is true and they are missing.

        Raises:
            DataError: if a file is missing, or the download fails.
        """
        _ = self.arrays

    def load(self) -> ImageArrays:
        parts = [self._split(train) for train in (True, False)]
        images, labels = (np.concatenate([part[place].numpy() for part in parts]) for place in range(2))
        return ImageArrays(images[:, None], labels.astype(np.int64), len(parts[0][1]), tuple(map(str, range(10))))

    def _split(self, train: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and labels of the official training or test rows."""
        try:
            found = MNIST(self.data_dir, train=train, download=self.download)
        except (OSError, RuntimeError, ValueError, AssertionError) as error:
            raise DataError(f"MNIST: {' '.join(str(error).split())} {self._how_to_fix()}") from None
        images, labels = found.data, found.targets
        if images.shape[1:] != SHAPE or images.dtype != torch.uint8 or len(images) != len(labels):
            raise DataError(
                f"MNIST: {found.raw_folder} holds {len(labels)} labels for images of shape {tuple(images.shape)}, "
                f"not one for each of 28 x 28 pixels. {self._how_to_fix()}"
            )
        return images, labels

    def _how_to_fix(self) -> str:
        return (
            "Name the folder that holds MNIST/raw with the four official files in `data_dir`, or set "
            "`download: true`. Remove damaged files first."
        )
