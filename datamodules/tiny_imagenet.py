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
from zipfile import BadZipFile

import numpy as np
from PIL import Image
from rich.progress import track
from torchvision.datasets.utils import check_md5, download_url

from certvae.datamodules.arrays import DataError, ImageArrays, ImageDataModule
from certvae.io.files import sha256_array, write_atomic
from certvae.io.untrusted import open_zip, read_limited

__all__ = ["TinyImageNetDataModule"]

NAME = "tiny-imagenet-200"
URL = f"http://cs231n.stanford.edu/{NAME}.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
SIZE = 64
MOST_CLASSES, MOST_IMAGES = 200, 110_000  # of the official set; a larger array is not Tiny-ImageNet
ZIP_LIMIT = 2**30  # bytes, packed and unpacked; four times the official zip
CACHE_LIMIT = 2**31  # bytes; the official set's array has 1.4 billion
FILE_LIMIT = 2**24  # bytes of a list; the largest official one has 2.6 million
IMAGE_LIMIT = 2**18  # bytes; the largest 64 x 64 JPEG has about 6,000, so long comments are allowed


class TinyImageNetDataModule(ImageDataModule):
    """Tiny-ImageNet-200 (Le and Yang, 2015): images of ``(3, 64, 64)``, 200 labels.

    The official test labels are not public, so the official validation images are the held-out rows. The images are
    decoded once, in parallel, into an array that is kept in ``cache_dir``. A part of the set in the official layout
    works too, but no class folder may be missing.

    Args:
        data_dir: folder that holds ``tiny-imagenet-200.zip`` or the folder ``tiny-imagenet-200``.
        download: whether to download the official zip if both are missing or the zip fails ``check_zip``.
        check_zip: whether to check the official md5 of the zip when it is read.
        cache_dir: where the decoded array is kept; default ``data_dir/certvae-cache``.
        kwargs: arguments of :class:`certvae.datamodules.ImageDataModule`.
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
        """Download the zip if ``download`` is true and it is missing, check the files, and decode the images once.

        Raises:
            DataError: if a file is missing or damaged, or a download would write through a link; the message names it.
        """
        if self.download and not self._folder.is_dir() and (self.check_zip or not self._zip.is_file()):
            self._refuse_link()
            try:  # does nothing if the zip has the md5; replaces an unfinished download
                download_url(URL, self.data_dir, self._zip.name, MD5)
            except (OSError, RuntimeError) as error:
                raise DataError(f"Tiny-ImageNet could not be downloaded ({error}). {self._how_to_fix()}") from None
        _ = self.arrays

    def load(self) -> ImageArrays:
        source = self._source()
        wnids = _classes(source)
        words = dict(line.split("\t", 1) for line in source.text("words.txt").splitlines() if "\t" in line)
        train, train_labels = _training_files(source, wnids)
        held_out, held_out_labels = _validation_files(source, wnids)
        images = self._decoded(source, [*train, *held_out])
        labels = np.asarray([*train_labels, *held_out_labels], dtype=np.int64)
        return ImageArrays(images, labels, len(train), tuple(words.get(wnid, wnid) for wnid in wnids))

    def _refuse_link(self) -> None:
        """Refuse a download that would write through a link or replace something that is not a regular file."""
        path = self._zip
        whole = path.is_file() and check_md5(path, MD5)  # then it is only read
        if not whole and (path.is_symlink() or (path.exists() and not path.is_file())):
            raise DataError(
                f"Tiny-ImageNet: the download would write to {path}, which is not a regular file; remove it."
            )

    def _source(self) -> "_Source":
        if self._folder.is_dir():
            return _Source.folder(self._folder)
        if not self._zip.is_file():
            raise DataError(f"Tiny-ImageNet: neither {self._folder} nor {self._zip} is there. {self._how_to_fix()}")
        size = self._zip.stat().st_size
        if size > ZIP_LIMIT:
            raise DataError(f"{self._zip} has {size:,} bytes; the official zip has fewer than {ZIP_LIMIT:,}.")
        if self.check_zip and not check_md5(self._zip, MD5):
            raise DataError(f"{self._zip} ({size} bytes) does not have the official md5 {MD5}. {self._how_to_fix()}")
        return _Source.zip(self._zip)

    def _decoded(self, source: "_Source", names: list[str]) -> np.ndarray:
        if len(names) > MOST_IMAGES:
            raise DataError(f"{source.label} lists {len(names):,} images; Tiny-ImageNet has {MOST_IMAGES:,}.")
        key = hashlib.sha256("\n".join(f"{name} {source.size(name)}" for name in names).encode()).hexdigest()[:16]
        path = self.cache_dir / f"{NAME}-{key}.npy"
        cached = _read_cache(path, (len(names), 3, SIZE, SIZE))
        if cached is not None:
            return cached
        images = _decode(source, names)
        content = io.BytesIO()
        np.save(content, images)
        content.write(sha256_array(images).encode())  # after the array, where numpy does not read
        write_atomic(path, content.getvalue())
        return images

    def _how_to_fix(self) -> str:
        return (
            f"Name the folder that holds it in `data_dir`, set `download: true`, or put {NAME}.zip (md5 {MD5}) from "
            f"{URL} into {self.data_dir}."
        )


class _Source:
    """Named files of the set, in a folder or in a zip file that is not unpacked."""

    def __init__(self, names: list[str], read: Callable[[str], bytes], sizes: Callable[[str], int], label: str) -> None:
        self.names, self.read, self.size, self.label = names, read, sizes, label

    @classmethod
    def folder(cls, folder: Path) -> "_Source":
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())

        def read(name: str) -> bytes:
            try:
                return read_limited(folder / name, _limit(name))
            except FileNotFoundError:
                raise
            except (OSError, ValueError) as error:
                raise DataError(f"{error} Fetch Tiny-ImageNet-200 again.") from None

        return cls(names, read, lambda name: (folder / name).stat().st_size, str(folder))

    @classmethod
    def zip(cls, path: Path) -> "_Source":
        try:
            archive = open_zip(path, ZIP_LIMIT)
        except (BadZipFile, OSError) as error:
            raise DataError(f"{path} is not a whole zip file ({error}); fetch it again.") from None
        lock, prefix = Lock(), f"{NAME}/"
        files = [info for info in archive.infolist() if not info.is_dir()]
        infos = {info.filename.removeprefix(prefix): info for info in files}
        if len(infos) < len(files):
            raise DataError(f"{path} has a file both in the folder {NAME} and outside; fetch it again.")

        def read(name: str) -> bytes:
            info = infos[name]
            if info.file_size > _limit(name):
                raise DataError(f"{path}: the file {name} has {info.file_size:,} bytes, more than {_limit(name):,}.")
            with lock:  # a ZipFile has one file position
                try:
                    with archive.open(info) as file:
                        content = file.read(info.file_size)
                    if len(content) < info.file_size:
                        raise EOFError("it is shorter than it says")
                except (BadZipFile, EOFError, zlib.error) as error:
                    raise DataError(f"{path}: the file {name} is damaged ({error}); fetch it again.") from None
            return content

        return cls(sorted(infos), read, lambda name: infos[name].file_size, str(path))

    def text(self, name: str) -> str:
        try:
            return self.read(name).decode()
        except (KeyError, FileNotFoundError):
            raise DataError(f"{self.label} lacks {name}; fetch Tiny-ImageNet-200 again.") from None
        except UnicodeDecodeError as error:
            raise DataError(f"{self.label}: the file {name} is damaged ({error}); fetch it again.") from None


def _limit(name: str) -> int:
    return IMAGE_LIMIT if name.endswith(".JPEG") else FILE_LIMIT


def _read_cache(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The array at ``path``, if it has this shape and the digest after it; older caches have no digest."""
    if not path.exists():
        return None
    try:
        if not path.is_file():
            raise ValueError("it is not a regular file")
        if path.stat().st_size > CACHE_LIMIT:
            raise ValueError("it is too large")
        # Memory-mapped, so that no memory is used before the shape is checked.
        cached = np.lib.format.open_memmap(path, mode="r")
        if cached.shape != shape or cached.dtype != np.uint8:
            return None
        digest = _behind(path, cached.offset + cached.nbytes)
        images = np.array(cached)
        if digest and sha256_array(images) != digest:
            raise ValueError("its pixels are not those that were kept")
    except Exception as error:  # numpy raises half a dozen types for a damaged header
        raise DataError(f"the cache {path} is damaged ({error}); delete it, and it is made again.") from None
    return images if digest else None


def _behind(path: Path, offset: int) -> str:
    """The contents of a file after a number of bytes."""
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(128).decode()


def _classes(source: _Source) -> list[str]:
    wnids = source.text("wnids.txt").split()
    if len(wnids) > MOST_CLASSES or len(set(wnids)) < len(wnids):
        raise DataError(f"{source.label}: wnids.txt must list up to {MOST_CLASSES} classes, each once; fetch it again.")
    return wnids


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
        if "/" in file or file == "..":
            raise DataError(
                f"{source.label}: val/val_annotations.txt names {file[:100]!r}, which is not the name of a file."
            )
        if name not in present:
            continue
        if wnid not in number:
            raise DataError(f"{source.label}: val/val_annotations.txt has no class of wnids.txt in the line {line!r}.")
        names.append(name)
        labels.append(number[wnid])
    if len(set(names)) < len(names):
        raise DataError(f"{source.label}: val/val_annotations.txt lists an image twice; fetch it again.")
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
        # Only JPEG: some of Pillow's formats start other programs or unpack without a limit.
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            size = image.size
            pixels = np.asarray(image.convert("RGB")) if size == (SIZE, SIZE) else None
    except Exception as error:  # Pillow raises a dozen types for a damaged file
        raise DataError(f"{label}: the image {name} is damaged ({error}); fetch it again.") from None
    if pixels is None:
        raise DataError(f"{label}: the image {name} must be {SIZE} x {SIZE}, got {size[0]} x {size[1]}.")
    return pixels.transpose(2, 0, 1)
