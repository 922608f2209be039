"""Atomic file writing, CSV and JSON lines, and SHA-256 digests."""

import csv
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "append_json",
    "csv_text",
    "sha256_array",
    "sha256_file",
    "sha256_tensors",
    "write_atomic",
]


def write_atomic(path: str | Path, content: bytes | str) -> Path:
    """Write a file atomically: write a temporary file in the same folder, flush it to disk, and rename it.

    Returns:
        The path.

    Raises:
        OSError: if the folder cannot be written; an existing file at ``path`` is then unchanged.
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
    """Rows as CSV with a header. Every row must have exactly the keys ``columns``."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def append_json(path: Path, record: Mapping[str, Any]) -> None:
    """Append a record as one line of strict JSON; missing folders are created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        file.write(json.dumps(record, allow_nan=False) + "\n")


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal text."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_array(*arrays: np.ndarray) -> str:
    """SHA-256 of the dtypes, shapes and bytes of arrays, as hexadecimal text."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def sha256_tensors(tensors: Mapping[str, Tensor], heading: bytes = b"") -> str:
    """SHA-256 of a heading and of tensors sorted by name (names, dtypes, shapes, bytes), as hexadecimal text."""
    digest = hashlib.sha256(heading)
    for name, value in sorted(tensors.items()):
        digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
