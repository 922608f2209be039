"""CIFAR-100 from the official files, which are checked by md5 and read once in a process."""

import hashlib
import os
import pickle
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torchvision.datasets import CIFAR100
from torchvision.datasets.utils import calculate_md5, check_md5, download_and_extract_archive

from certvae.datamodules.arrays import DataError, ImageArrays, ImageDataModule

__all__ = ["CIFAR100DataModule"]

FILE_LIMIT = 2**28  # bytes; the official files have at most 155 million, so larger files are rejected without hashing


class _File(NamedTuple):
    """A file as it is now; a change gives it another size, time or place."""

    path: Path
    size: int
    time: int
    place: int

    @classmethod
    def at(cls, path: Path) -> "_File":
        found = path.stat()
        return cls(path, found.st_size, found.st_mtime_ns, found.st_ino)


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
        self.prepare_data()
        return _read(tuple((_File.at(path.resolve()), md5) for path, md5 in self._files()))

    def _files(self) -> list[tuple[Path, str]]:
        """Path and official md5 of train, test and meta."""
        folder = Path(self.data_dir) / CIFAR100.base_folder
        listed = [*CIFAR100.train_list, *CIFAR100.test_list, [CIFAR100.meta["filename"], CIFAR100.meta["md5"]]]
        return [(folder / name, md5) for name, md5 in listed]

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
        problems = []
        for path, md5 in self._files():
            if not path.is_file():
                problems.append(f"{path} is missing")
            elif path.stat().st_size > FILE_LIMIT or _md5(_File.at(path.resolve())) != md5:
                problems.append(f"{path} ({path.stat().st_size} bytes) does not have the official md5 {md5}")
        return problems

    def _how_to_fix(self) -> str:
        return (
            "Name the folder that holds it in `data_dir`, set `download: true`, or unpack "
            f"{CIFAR100.filename} (md5 {CIFAR100.tgz_md5}) from {CIFAR100.url} so that "
            f"{Path(self.data_dir) / CIFAR100.base_folder} holds train, test and meta."
        )


@lru_cache(maxsize=16)
def _md5(file: _File) -> str:
    return calculate_md5(file.path)


@lru_cache(maxsize=1)
def _read(files: tuple[tuple[_File, str], ...]) -> ImageArrays:
    """The set of train, test and meta with their official md5."""
    train, test, meta = (_unpickle(file.path, md5) for file, md5 in files)
    images = np.concatenate([part["data"] for part in (train, test)]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([np.asarray(part["fine_labels"], dtype=np.int64) for part in (train, test)])
    return ImageArrays(images, labels, len(train["data"]), tuple(meta["fine_label_names"]))


def _unpickle(path: Path, md5: str) -> Any:
    """What a file says. Unpickling runs code, so the very bytes that are read are checked first."""
    content = path.read_bytes()
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise DataError(f"CIFAR-100: {path} was changed while it was read; its official md5 is {md5}.")
    return pickle.loads(content, encoding="latin1")
