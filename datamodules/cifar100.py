"""CIFAR-100 from the official files, which are checked by md5."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from torchvision.datasets import CIFAR100
from torchvision.datasets.utils import check_md5, download_and_extract_archive

from certvae.datamodules.arrays import DataError, ImageArrays, ImageDataModule

__all__ = ["CIFAR100DataModule"]

FILE_LIMIT = 2**28  # bytes; the official files have at most 155 million, so larger files are rejected without hashing


class CIFAR100DataModule(ImageDataModule):
    """CIFAR-100 (Krizhevsky, 2009): 50,000 training and 10,000 held-out images of ``(3, 32, 32)``, 100 labels.

    Args:
        data_dir: folder that holds ``cifar-100-python/{train,test,meta}``.
        download: whether to download the official archive if the files are missing.
        kwargs: arguments of :class:`certvae.datamodules.ImageDataModule`.
    """

    def __init__(self, data_dir: str = "data", download: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.data_dir, self.download = os.path.expanduser(data_dir), download

    def prepare_data(self) -> None:
        """Download the files if ``download`` is true and they are missing, and check them.

        The archive is unpacked only if it has the official md5.

        Raises:
            DataError: if a file is missing or damaged, or a download would write through a link; the message names it.
        """
        if self.download and self._problems():
            self._refuse_links()
            try:
                # CIFAR100(download=True) does not check meta when it decides whether to download.
                download_and_extract_archive(
                    CIFAR100.url, self.data_dir, filename=CIFAR100.filename, md5=CIFAR100.tgz_md5
                )
            except (OSError, RuntimeError) as error:
                raise DataError(f"CIFAR-100 could not be downloaded ({error}). {self._how_to_fix()}") from None
        problems = self._problems()
        if problems:
            raise DataError(f"CIFAR-100: {'; '.join(problems)}. {self._how_to_fix()}")

    def load(self) -> ImageArrays:
        # torchvision unpickles these files, so the digests are checked first.
        self.prepare_data()
        parts = [CIFAR100(self.data_dir, train=train) for train in (True, False)]
        images = np.concatenate([part.data for part in parts]).transpose(0, 3, 1, 2)
        labels = np.concatenate([np.asarray(part.targets, dtype=np.int64) for part in parts])
        return ImageArrays(np.ascontiguousarray(images), labels, len(parts[0].data), tuple(parts[0].classes))

    def _refuse_links(self) -> None:
        """Refuse a download that would write through a link or replace something that is not a regular file."""
        folder = Path(self.data_dir) / CIFAR100.base_folder
        archive = Path(self.data_dir) / CIFAR100.filename
        for path in (archive, folder, *folder.glob("*")):
            whole = path == archive and path.is_file() and check_md5(path, CIFAR100.tgz_md5)  # then it is only read
            plain = not path.is_symlink() and (path == folder or path.is_file() or not path.exists())
            if not (plain or whole):
                raise DataError(
                    f"CIFAR-100: the download would write to {path}, which is not a regular file; remove it."
                )

    def _problems(self) -> list[str]:
        """One phrase for each file that is missing or not the official one."""
        folder = Path(self.data_dir) / CIFAR100.base_folder
        files = [*CIFAR100.train_list, *CIFAR100.test_list, [CIFAR100.meta["filename"], CIFAR100.meta["md5"]]]
        problems = []
        for name, md5 in files:
            path = folder / name
            if not path.is_file():
                problems.append(f"{path} is missing")
            elif path.stat().st_size > FILE_LIMIT or not check_md5(path, md5):
                problems.append(f"{path} ({path.stat().st_size} bytes) does not have the official md5 {md5}")
        return problems

    def _how_to_fix(self) -> str:
        return (
            "Name the folder that holds it in `data_dir`, set `download: true`, or unpack "
            f"{CIFAR100.filename} (md5 {CIFAR100.tgz_md5}) from {CIFAR100.url} so that "
            f"{Path(self.data_dir) / CIFAR100.base_folder} holds train, test and meta."
        )
