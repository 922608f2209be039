"""CIFAR-100 from the official files, checked by their md5."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from torchvision.datasets import CIFAR100
from torchvision.datasets.utils import check_md5, download_and_extract_archive

from certvae.datamodules.arrays import DataError, ImageArrays, ImageDataModule

__all__ = ["CIFAR100DataModule"]

FILE_LIMIT = 2**28  # bytes; the official files have at most 155 million, so what is larger need not be digested


class CIFAR100DataModule(ImageDataModule):
    """CIFAR-100 (Krizhevsky, 2009): 50,000 training and 10,000 held-out images of ``(3, 32, 32)``, 100 labels.

    Args:
        data_dir: folder that holds ``cifar-100-python/{train,test,meta}``.
        download: fetch the official archive if the files are not there.
        kwargs: as for :class:`certvae.datamodules.ImageDataModule`.
    """

    def __init__(self, data_dir: str = "data", download: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.data_dir, self.download = os.path.expanduser(data_dir), download

    def prepare_data(self) -> None:
        """Download where asked for, and check the files.

        Nothing is unpacked but the official archive, and only once it has its md5.

        Raises:
            DataError: naming a missing or damaged file, or a link through which a download would write elsewhere.
        """
        if self.download and self._problems():
            self._check_targets()
            try:
                # CIFAR100(download=True) would not look at meta before it decides that nothing is to be fetched.
                download_and_extract_archive(
                    CIFAR100.url, self.data_dir, filename=CIFAR100.filename, md5=CIFAR100.tgz_md5
                )
            except (OSError, RuntimeError) as error:
                raise DataError(f"CIFAR-100 could not be downloaded ({error}). {self._how_to_fix()}") from None
        faults = self._problems()
        if faults:
            raise DataError(f"CIFAR-100: {'; '.join(faults)}. {self._how_to_fix()}")

    def load(self) -> ImageArrays:
        # torchvision unpickles these files; the digests checked here make sure that they are the official ones.
        self.prepare_data()
        parts = [CIFAR100(self.data_dir, train=train) for train in (True, False)]
        images = np.concatenate([part.data for part in parts]).transpose(0, 3, 1, 2)
        labels = np.concatenate([np.asarray(part.targets, dtype=np.int64) for part in parts])
        return ImageArrays(np.ascontiguousarray(images), labels, len(parts[0].data), tuple(parts[0].classes))

    def _check_targets(self) -> None:
        folder = Path(self.data_dir) / CIFAR100.base_folder
        archive = Path(self.data_dir) / CIFAR100.filename
        for path in (archive, folder, *folder.glob("*")):
            whole = path == archive and path.is_file() and check_md5(path, CIFAR100.tgz_md5)  # is only read
            plain = not path.is_symlink() and (path == folder or path.is_file() or not path.exists())
            if not (plain or whole):
                raise DataError(f"CIFAR-100: the download would write to {path}, which is no regular file; remove it.")

    def _problems(self) -> list[str]:
        folder = Path(self.data_dir) / CIFAR100.base_folder
        files = [*CIFAR100.train_list, *CIFAR100.test_list, [CIFAR100.meta["filename"], CIFAR100.meta["md5"]]]
        faults = []
        for name, md5 in files:
            path = folder / name
            if not path.is_file():
                faults.append(f"{path} is missing")
            elif path.stat().st_size > FILE_LIMIT or not check_md5(path, md5):
                faults.append(f"{path} ({path.stat().st_size} bytes) does not have the official md5 {md5}")
        return faults

    def _how_to_fix(self) -> str:
        return (
            "Name the folder that holds it in `data_dir`, set `download: true`, or unpack "
            f"{CIFAR100.filename} (md5 {CIFAR100.tgz_md5}) from {CIFAR100.url} so that "
            f"{Path(self.data_dir) / CIFAR100.base_folder} holds train, test and meta."
        )
