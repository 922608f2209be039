"""Files: written whole or not at all, named by digest, and read within limits where a stranger may have made them."""

import csv
import hashlib
import io
import json
import math
import os
import stat
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "csv_text",
    "open_zip",
    "parse_json",
    "read_limited",
    "regular_file",
    "sha256_array",
    "sha256_file",
    "sha256_tensors",
    "write_atomic",
]

JSON_DEPTH = 32  # ours are 5 deep; copying, comparing and writing recurse, so 1,000 would already be too deep for them
ZIP_DIRECTORY = 2**25  # bytes; the 120,000 members of Tiny-ImageNet take a third, and each costs ten times its bytes


def write_atomic(path: str | Path, content: bytes | str) -> Path:
    """Write ``content`` to a temporary file beside ``path``, flush it to disk, and rename it into place.

    Returns:
        The path written.

    Raises:
        OSError: if the folder cannot be written; an earlier file at ``path`` is then untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def csv_text(columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows, which all have the keys ``columns``, as CSV with a heading."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal text."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_array(*arrays: np.ndarray) -> str:
    """SHA-256 over the types, shapes and bytes of arrays, as hexadecimal text."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def sha256_tensors(tensors: Mapping[str, Tensor], heading: bytes = b"") -> str:
    """SHA-256 over a heading and the names, types, shapes and bytes of tensors, sorted by name, as hexadecimal text."""
    digest = hashlib.sha256(heading)
    for name, value in sorted(tensors.items()):
        digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def regular_file(path: str | Path, limit: int, what: str = "file") -> Path:
    """The path, if it is a regular file of at most ``limit`` bytes.

    Raises:
        FileNotFoundError: if there is none, or it is a folder, a pipe or a device.
        ValueError: if it is larger.
    """
    path = Path(path)
    if not path.is_file():
        what_is_there = "something else than a regular file is there" if path.exists() else "there is no such file"
        raise FileNotFoundError(f"no {what} at {path}: {what_is_there}.")
    if path.stat().st_size > limit:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes; a {what} may have at most {limit:,}.")
    return path


def read_limited(path: str | Path, limit: int, what: str = "file") -> bytes:
    """The bytes of a regular file of at most ``limit`` bytes.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is larger.
        OSError: if it may not be read.
    """
    with open(regular_file(path, limit, what), "rb") as file:
        return file.read(limit)


def parse_json(text: str | bytes) -> Any:
    """Values of strict JSON in UTF-8: finite numbers, every key of an object once, at most ``JSON_DEPTH`` levels.

    Raises:
        json.JSONDecodeError: if it is not JSON, or cut short.
        ValueError: if it is JSON that is not strict.
    """
    try:
        text = text.decode() if isinstance(text, bytes) else text
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {JSON_DEPTH} levels") from None
    level = [value]
    for _ in range(JSON_DEPTH):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
    if level:
        raise ValueError(f"it is nested deeper than {JSON_DEPTH} levels")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key stands twice in an object")
    return values


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is not finite")
    return value


class _DirectoryLimit(io.FileIO):
    """A file of which no more than a directory's limit is read at once; ``ZipFile`` reads its directory at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > ZIP_DIRECTORY:
            raise BadZipFile(f"its directory has more than {ZIP_DIRECTORY:,} bytes")
        return super().read(size) or b""

    def __del__(self) -> None:
        self.close()  # a ZipFile leaves open what it was given


def open_zip(path: str | Path, limit: int) -> ZipFile:
    """Open a zip whose members are plain files and folders, each once, of which none shares bytes with another.

    Nothing is ever extracted. Read a member by ``archive.open(info).read(info.file_size)``, which unpacks no more than
    that, whatever the member really holds.

    Args:
        path: a regular file.
        limit: most bytes of all members together, unpacked.

    Raises:
        BadZipFile: if it is no zip, is damaged, or a member is not as said.
        OSError: if it may not be read.
    """
    file = _DirectoryLimit(path)
    try:
        archive = ZipFile(file)
    except Exception as error:  # zipfile raises half a dozen types for a damaged directory
        raise BadZipFile(str(error) or type(error).__name__) from None
    infos = archive.infolist()
    for info in infos:
        _check_member(info)
    if len({info.filename.casefold() for info in infos}) < len(infos):
        raise BadZipFile("two of its members have one name")
    if sum(info.compress_size for info in infos) > Path(path).stat().st_size:
        raise BadZipFile("its members overlap")
    if sum(info.file_size for info in infos) > limit:
        raise BadZipFile(f"its members have more than {limit:,} bytes, unpacked")
    return archive


def _check_member(info: ZipInfo) -> None:
    name, kind = PurePosixPath(info.filename), stat.S_IFMT(info.external_attr >> 16)
    stored = info.compress_type == ZIP_STORED
    for fault, holds in (
        ("is outside its folder", name.is_absolute() or ".." in name.parts or "\\" in info.filename),
        ("is a link or a device", kind not in (0, stat.S_IFREG, stat.S_IFDIR)),
        ("is encrypted", bool(info.flag_bits & 1)),
        ("is neither stored nor deflated", not stored and info.compress_type != ZIP_DEFLATED),
        ("is stored in another size than its own", stored and info.compress_size != info.file_size),
    ):
        if holds:
            raise BadZipFile(f"its member {info.filename[:100]!r} {fault}")
