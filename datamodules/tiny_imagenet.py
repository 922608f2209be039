"""Tiny-ImageNet-200 from the official zip or its unpacked folder."""

import hashlib
import io
import os
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
from PIL import Image, UnidentifiedImageError
from rich.progress import track
from torchvision.datasets.utils import check_md5, download_url

from certvae.datamodules.arrays import DataError, ImageArrays, ImageDataModule
from certvae.files import write_atomic

__all__ = ["TinyImageNetDataModule"]

NAME = "tiny-imagenet-200"
URL = f"http://cs231n.stanford.edu/{NAME}.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
SIZE = 64


class TinyImageNetDataModule(ImageDataModule):
    """Tiny-ImageNet-200 (Le and Yang, 2015): images of ``(3, 64, 64)``, 200 labels.

    The official test labels are not public, so the official validation images are the held-out rows. The images are
    decoded once, in parallel, into an array that is kept in ``cache_dir``. A part of the set in the official layout
    works as well; a missing class folder does not.

    Args:
        data_dir: folder that holds ``tiny-imagenet-200.zip`` or the folder ``tiny-imagenet-200``.
        download: fetch the official zip if neither is there, or if the zip fails ``check_zip``.
        check_zip: check the official md5 of the zip, when it is read.
        cache_dir: where the decoded array is kept; default ``data_dir/certvae-cache``.
        kwargs: as for :class:`certvae.datamodules.ImageDataModule`.
    """

    def __init__(
        self,
        data_dir: str = "data",
        download: bool = False,
        check_zip: bool = True,
        cache_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.data_dir, self.download, self.check_zip = os.path.expanduser(data_dir), download, check_zip
        self.cache_dir = Path(cache_dir or Path(data_dir) / "certvae-cache").expanduser()

    @property
    def _zip(self) -> Path:
        return Path(self.data_dir) / f"{NAME}.zip"

    @property
    def _folder(self) -> Path:
        return Path(self.data_dir) / NAME

    def prepare_data(self) -> None:
        """Download where asked for, check the files, and decode the images once.

        Raises:
            DataError: naming a missing or damaged file.
        """
        if self.download and not self._folder.is_dir() and (self.check_zip or not self._zip.is_file()):
            try:  # does nothing if the zip has the md5, and replaces one that an earlier download left unfinished
                download_url(URL, self.data_dir, self._zip.name, MD5)
            except (OSError, RuntimeError) as error:
                raise DataError(f"Tiny-ImageNet could not be downloaded ({error}). {self._cure()}") from None
        _ = self.arrays

    def load(self) -> ImageArrays:  # noqa: D102
        source = self._source()
        wnids = source.text("wnids.txt").split()
        words = dict(line.split("\t", 1) for line in source.text("words.txt").splitlines() if "\t" in line)
        train, train_labels = _training_files(source, wnids)
        held_out, held_out_labels = _validation_files(source, wnids)
        images = self._decoded(source, [*train, *held_out])
        labels = np.asarray([*train_labels, *held_out_labels], dtype=np.int64)
        return ImageArrays(images, labels, len(train), tuple(words.get(wnid, wnid) for wnid in wnids))

    def _source(self) -> "_Source":
        if self._folder.is_dir():
            return _Source.folder(self._folder)
        if not self._zip.is_file():
            raise DataError(f"Tiny-ImageNet: neither {self._folder} nor {self._zip} is there. {self._cure()}")
        if self.check_zip and not check_md5(self._zip, MD5):
            size = self._zip.stat().st_size
            raise DataError(f"{self._zip} ({size} bytes) does not have the official md5 {MD5}. {self._cure()}")
        return _Source.zip(self._zip)

    def _decoded(self, source: "_Source", names: list[str]) -> np.ndarray:
        key = hashlib.sha256("\n".join(f"{name} {source.size(name)}" for name in names).encode()).hexdigest()[:16]
        path = self.cache_dir / f"{NAME}-{key}.npy"
        shape = (len(names), 3, SIZE, SIZE)
        if path.is_file():
            try:
                cached = np.load(path, allow_pickle=False)
            except Exception as error:  # numpy raises half a dozen types for a damaged header
                raise DataError(f"the cache {path} is damaged ({error}); delete it, and it is made again.") from None
            if cached.shape == shape and cached.dtype == np.uint8:
                return cached
        images = _decode(source, names)
        content = io.BytesIO()
        np.save(content, images)
        write_atomic(path, content.getvalue())
        return images

    def _cure(self) -> str:
        return f"Set `download: true`, or put {NAME}.zip (md5 {MD5}) from {URL} into {self.data_dir}."


class _Source:
    """Named files of the set, in a folder or in a zip that is read without being unpacked."""

    def __init__(self, names: list[str], read: Callable[[str], bytes], sizes: Callable[[str], int], label: str) -> None:
        self.names, self.read, self.size, self.label = names, read, sizes, label

    @classmethod
    def folder(cls, folder: Path) -> "_Source":
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        return cls(
            names,
            lambda name: (folder / name).read_bytes(),
            lambda name: (folder / name).stat().st_size,
            str(folder),
        )

    @classmethod
    def zip(cls, path: Path) -> "_Source":
        try:
            archive = ZipFile(path)
        except BadZipFile as error:
            raise DataError(f"{path} is not a whole zip file ({error}); fetch it again.") from None
        lock, prefix = Lock(), f"{NAME}/"
        infos = {info.filename.removeprefix(prefix): info for info in archive.infolist() if not info.is_dir()}

        def read(name: str) -> bytes:
            with lock:  # a ZipFile has one file position
                try:
                    return archive.read(infos[name])
                except (BadZipFile, EOFError, zlib.error) as error:
                    raise DataError(f"{path}: the file {name} is damaged ({error}); fetch it again.") from None

        return cls(sorted(infos), read, lambda name: infos[name].file_size, str(path))

    def text(self, name: str) -> str:
        try:
            return self.read(name).decode()
        except (KeyError, FileNotFoundError):
            raise DataError(f"{self.label} lacks {name}; fetch Tiny-ImageNet-200 again.") from None
        except UnicodeDecodeError as error:
            raise DataError(f"{self.label}: the file {name} is damaged ({error}); fetch it again.") from None


def _training_files(source: _Source, wnids: list[str]) -> tuple[list[str], list[int]]:
    files: dict[str, list[str]] = {wnid: [] for wnid in wnids}
    for name in source.names:
        parts = PurePosixPath(name).parts
        if len(parts) == 4 and parts[0] == "train" and parts[1] in files and name.endswith(".JPEG"):
            files[parts[1]].append(name)
    empty = [wnid for wnid in wnids if not files[wnid]]
    if empty or not wnids:
        raise DataError(f"{source.label} has no training images for classes {empty[:5] or 'at all'}; fetch it again.")
    names = [name for wnid in wnids for name in files[wnid]]
    return names, [label for label, wnid in enumerate(wnids) for _ in files[wnid]]


def _validation_files(source: _Source, wnids: list[str]) -> tuple[list[str], list[int]]:
    present, number = set(source.names), {wnid: label for label, wnid in enumerate(wnids)}
    names, labels = [], []
    for line in source.text("val/val_annotations.txt").splitlines():
        file, wnid, *_ = [*line.split("\t"), ""]
        name = f"val/images/{file}"
        if name not in present:
            continue
        if wnid not in number:
            raise DataError(f"{source.label}: val/val_annotations.txt has no class of wnids.txt in the line {line!r}.")
        names.append(name)
        labels.append(number[wnid])
    if not names:
        raise DataError(f"{source.label} has none of the images that val/val_annotations.txt lists; fetch it again.")
    return names, labels


def _decode(source: _Source, names: list[str]) -> np.ndarray:
    images = np.empty((len(names), 3, SIZE, SIZE), dtype=np.uint8)

    def decode(position: int) -> None:
        images[position] = _decode_one(source.read(names[position]), names[position], source.label)

    with ThreadPoolExecutor() as pool:  # Pillow releases the interpreter lock while it decodes
        for _ in track(pool.map(decode, range(len(names))), "Decoding Tiny-ImageNet", total=len(names)):
            pass
    return images


def _decode_one(data: bytes, name: str, label: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{label}: the image {name} is damaged ({error}); fetch it again.") from None
    if pixels.shape != (SIZE, SIZE, 3):
        raise DataError(
            f"{label}: the image {name} must be {SIZE} x {SIZE}, got {pixels.shape[1]} x {pixels.shape[0]}."
        )
    return pixels.transpose(2, 0, 1)
