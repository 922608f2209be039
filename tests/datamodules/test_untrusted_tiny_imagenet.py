"""Tiny-ImageNet from strangers: a good set, altered in one thing, ends in a DataError; nothing is unpacked or run."""

import io
import os
import pickle
import shutil
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile, ZipInfo

import numpy as np
import pytest
from PIL import Image

from certvae.datamodules import DataError, TinyImageNetDataModule, tiny_imagenet
from tests.datamodules.test_tiny_imagenet import CORRUPT, HELD_OUT, NAME, TRAIN, cache_file, module, pack, root, write
from tests.untrusted import NO_FILES, SCRAPS, Box, Planted, box, slow, sparse, unreadable

__all__ = ["box", "root"]

Write = Callable[[Path], Any]
DEFLATED = zipfile.ZIP_DEFLATED
NEW = f"{NAME}/train/n01/images/n01_9.JPEG"


@pytest.fixture
def folder(box: Box, root: Path) -> Path:
    return Path(shutil.move(root.parent, box.path / "data")) / NAME


def refused(box: Box, folder: Path, reason: str = "") -> None:
    data = module(folder)
    with box.refuses(DataError, reason):
        data.prepare_data()


def member(name: str, content: bytes = b"evil", method: int = zipfile.ZIP_STORED, **fields: Any) -> Callable[..., None]:
    """Add a member, and then alter what the directory says of it."""

    def add(archive: ZipFile) -> None:
        info = ZipInfo(name)
        info.compress_type = method
        info.external_attr = fields.pop("external_attr", 0)
        archive.writestr(info, content)
        for key, value in fields.items():
            setattr(info, key, value)

    return add


def zeros(size: int, **fields: Any) -> Callable[[ZipFile], None]:
    """Add an image of so many zeros, never in memory at once."""

    def add(archive: ZipFile) -> None:
        info = ZipInfo(NEW)
        info.compress_type = DEFLATED
        with archive.open(info, "w") as file:
            for _ in range(size // 2**20):
                file.write(bytes(2**20))
        for key, value in fields.items():
            setattr(info, key, value)

    return add


def listed(name: str, **fields: Any) -> Callable[[ZipFile], None]:
    """Alter what the directory says of a member that is there."""

    def change(archive: ZipFile) -> None:
        for key, value in fields.items():
            setattr(archive.getinfo(f"{NAME}/{name}"), key, value)

    return change


ZIPS: dict[str, Callable[[], Callable[[ZipFile], None]]] = {
    "member outside": lambda: member("../evil"),
    "member outside its class": lambda: member(f"{NAME}/train/n01/images/../../../../../evil.JPEG"),
    "absolute member": lambda: member("/certvae-evil"),
    "member with backslashes": lambda: member(f"{NAME}\\..\\evil"),
    "link": lambda: member(NEW, b"/etc/passwd", external_attr=(stat.S_IFLNK | 0o777) << 16),
    "device": lambda: member(NEW, external_attr=(stat.S_IFCHR | 0o777) << 16),
    "member twice": lambda: member(f"{NAME}/wnids.txt", b"n01\n"),
    "list in the folder and outside": lambda: member("wnids.txt", b"n01\n"),
    "encrypted member": lambda: listed(CORRUPT, flag_bits=1),
    "packed by bzip2": lambda: member(NEW, bytes(10**6), zipfile.ZIP_BZIP2),
    "packed by lzma": lambda: member(NEW, bytes(10**6), zipfile.ZIP_LZMA),
    "members of 2 GiB": lambda: member(f"{NAME}/words2.txt", b"evil", DEFLATED, file_size=2**31),
    "image of 1 MB of zeros": lambda: zeros(2**20),
    "image longer than it says": lambda: zeros(2**28, file_size=2**10),
    "image shorter than it says": lambda: member(NEW, bytes(2**10), DEFLATED, file_size=2**17),
    "stored image longer than it says": lambda: listed(CORRUPT, file_size=10),
    "image beyond the end": lambda: listed(CORRUPT, file_size=2**29, compress_size=2**29),
    "image at another's place": lambda: listed(CORRUPT, header_offset=0),
    "code as image": lambda: member(NEW, pickle.dumps(Planted())),
    "list that is not what was packed": lambda: listed("wnids.txt", CRC=0),
}


REASONS = {
    "member outside": "is outside its folder",
    "member outside its class": "is outside its folder",
    "absolute member": "is outside its folder",
    "member with backslashes": "is outside its folder",
    "link": "is a link or a device",
    "device": "is a link or a device",
    "member twice": "two of its members have the same name",
    "list in the folder and outside": "both in the folder",
    "encrypted member": "is encrypted",
    "packed by bzip2": "is neither stored nor deflated",
    "packed by lzma": "is neither stored nor deflated",
    "members of 2 GiB": "bytes, unpacked",
    "image of 1 MB of zeros": "more than 262,144",
    "image longer than it says": "is damaged",
    "image shorter than it says": "is shorter than it says",
    "stored image longer than it says": "uncompressed with two different sizes",
    "image beyond the end": "its members overlap",
    "image at another's place": "is damaged",
    "code as image": "is damaged",
    "list that is not what was packed": "is damaged",
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", slow(ZIPS, "image longer than it says"))
def test_forged_zips_are_refused(box: Box, folder: Path, name: str) -> None:
    path = pack(folder)
    with ZipFile(path, "a") as archive:
        archive._didModify = True  # type: ignore[attr-defined]  # the directory is written again, whether a member was added or not
        ZIPS[name]()(archive)
    refused(box, folder, REASONS[name])


def huge_directory(path: Path) -> None:
    sparse(40 * 2**20)(path)
    with open(path, "ab") as file:
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 9, 9, 40 * 2**20, 0, 0))


WHOLE: dict[str, Write] = {
    **NO_FILES,
    **SCRAPS,
    "huge directory": huge_directory,
    "large": sparse(tiny_imagenet.ZIP_LIMIT + 1),
    "code": lambda path: path.write_bytes(pickle.dumps(Planted())),
    "not readable": unreadable,
}


@pytest.mark.parametrize("check_zip", [False, True])
@pytest.mark.parametrize("name", WHOLE)
def test_paths_without_a_zip_are_refused(box: Box, name: str, check_zip: bool) -> None:
    WHOLE[name](box.path / f"{NAME}.zip")
    with box.refuses(DataError):
        TinyImageNetDataModule(str(box.path), check_zip=check_zip).prepare_data()


@pytest.mark.parametrize("way", ["link", "pipe"])
def test_a_download_of_the_zip_does_not_write_through_links_or_pipes(
    box: Box, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    path = box.path / f"{NAME}.zip"
    path.symlink_to(box.root / "kept") if way == "link" else os.mkfifo(path)
    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, **_: url)
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", lambda _, path: Path(path).write_bytes(b"evil"))
    with box.refuses(DataError):
        TinyImageNetDataModule(str(box.path), download=True).prepare_data()


def replaced(name: str, write_to: Write) -> Write:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        write_to(folder / name)

    return change


def annotated(line: str) -> Write:
    def change(folder: Path) -> None:
        with open(folder / "val/val_annotations.txt", "a") as file:
            file.write(line + "\n")

    return change


def listing(name: str, text: str) -> Write:
    return lambda folder: write(folder, name, text)


def picture(width: int, height: int) -> bytes:
    """A JPEG of 64 x 64 whose header says another size."""
    content = io.BytesIO()
    Image.new("RGB", (64, 64)).save(content, "JPEG")
    data = bytearray(content.getvalue())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def other_format(form: str) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (64, 64)).save(content, form)
    return content.getvalue()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n(code-ran) (w) file closefile\n%%EOF\n"
IMAGES: dict[str, bytes] = {
    "60000 x 60000": picture(60000, 60000),
    "13000 x 13000": picture(13000, 13000),
    "64 x 65000": picture(64, 65000),
    "0 x 0": picture(0, 0),
    "PNG": other_format("PNG"),
    "GIF": other_format("GIF"),
    "TIFF": other_format("TIFF"),
    "EPS, which starts Ghostscript": EPS,
    "code": pickle.dumps(Planted()),
    "first half": picture(64, 64)[:300],
    "300 KB of comments": picture(64, 64) + bytes(300_000),
}
LISTS = ["wnids.txt", "words.txt", "val/val_annotations.txt"]
FOLDERS: dict[str, Write] = {
    "annotation of a file outside": annotated("../../x.JPEG\tn01\t0\t0\t9\t9"),
    "annotation of a file far outside": annotated("../../../../kept\tn01\t0\t0\t9\t9"),
    "annotation of an absolute path": annotated("/etc/passwd\tn01\t0\t0\t9\t9"),
    "annotation of a folder": annotated("..\tn01\t0\t0\t9\t9"),
    "annotation twice": annotated("val_0.JPEG\tn03\t0\t0\t9\t9"),
    "class twice": listing("wnids.txt", "n01\nn02\nn03\nn01\n"),
    "class a million times": listing("wnids.txt", "n01\n" * 10**6),
    "201 classes": listing("wnids.txt", "\n".join(f"n{n:02}" for n in range(201))),
    "class outside": listing("wnids.txt", "n01\n../../deep\n"),
    "class of escape codes": listing("wnids.txt", "n01\n\x1b[2J\n"),
    **{f"{name}: {bad}": replaced(name, NO_FILES[bad]) for name in LISTS for bad in NO_FILES},
    **{f"{name}: noise": replaced(name, SCRAPS["noise"]) for name in LISTS},
    **{f"{name}: large": replaced(name, sparse(tiny_imagenet.FILE_LIMIT + 1)) for name in LISTS},
    **{f"image: {name}": listing(CORRUPT, data) for name, data in IMAGES.items()},  # type: ignore[arg-type]
    **{f"image: {name}": replaced(CORRUPT, scrap) for name, scrap in SCRAPS.items()},
    "image: large": replaced(CORRUPT, sparse(2**40)),
    "image: not readable": replaced(CORRUPT, unreadable),
}


@pytest.mark.filterwarnings("ignore:Image size:PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", FOLDERS)
def test_forged_folders_are_refused(box: Box, folder: Path, name: str) -> None:
    FOLDERS[name](folder)
    refused(box, folder)
    assert not module(folder).cache_dir.exists()


def npy(header: str, body: bytes = b"") -> bytes:
    content = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(content)) + content + body


def shaped(size: int) -> bytes:
    return npy(str({"descr": "|u1", "fortran_order": False, "shape": (size,)}), bytes(100))


def of_arrays(path: Path) -> None:
    with open(path, "wb") as file:
        np.savez(file, images=np.zeros(3))


CACHES: dict[str, Write] = {
    "code": lambda path: path.write_bytes(pickle.dumps(Planted())),
    "array of code": lambda path: np.save(path, np.array([Planted()]), allow_pickle=True),
    "several arrays": of_arrays,
    "shape of 2^60": lambda path: path.write_bytes(
        npy(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({2**60},)}}")
    ),
    "negative shape": lambda path: path.write_bytes(npy("{'descr': '|u1', 'fortran_order': False, 'shape': (-1,)}")),
    "header that is code": lambda path: path.write_bytes(npy("__import__('os').mkdir('code-ran')")),
    "deep header": lambda path: path.write_bytes(npy("(" * 9000)),
    "large": sparse(tiny_imagenet.CACHE_LIMIT + 1),
    "folder": Path.mkdir,
    "pipe": os.mkfifo,
    "device": NO_FILES["device"],
    **SCRAPS,
}


@pytest.mark.parametrize("name", CACHES)
def test_forged_caches_are_refused(box: Box, folder: Path, name: str) -> None:
    data = module(folder)
    assert len(data.arrays.images) == TRAIN + HELD_OUT
    path = cache_file(data)
    path.unlink()
    CACHES[name](path)
    refused(box, folder)
