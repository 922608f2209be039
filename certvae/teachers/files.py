"""The format of teacher files: safetensors, with the card and a digest of the tensors in the header.

The format is the same for all kinds of teachers, and reading runs no code.
"""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from reprlib import repr as short
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from certvae.io.files import sha256_tensors, write_atomic
from certvae.io.untrusted import parse_json, regular_file
from certvae.teachers.card import TeacherCard
from certvae.teachers.shipped import shipped_teachers

__all__ = ["TeacherFile", "TeacherFileError", "read_teacher_file", "write_teacher_file"]

SCHEMA = "certvae.teacher/1"
TEACHER_LIMIT = 2**34  # bytes; enough for targets of a million images with 4,000 components
HEADER_LIMIT = 2**23  # bytes; enough for a network of 50,000 tensors


class TeacherFileError(ValueError):
    """The file is not a teacher, is damaged, or does not match its header."""


@dataclass(frozen=True)
class TeacherFile:
    """The contents of a teacher file.

    Attributes:
        kind: kind of the teacher's class.
        card: description of the teacher.
        average: mean teacher over training rows, shape ``(K,)``; None if not measured.
        tensors: tensors from which the teacher is rebuilt.
    """

    kind: str
    card: TeacherCard
    average: Tensor | None
    tensors: dict[str, Tensor]


def write_teacher_file(path: str | Path, kind: str, card: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    """Write a teacher atomically; equal teachers give equal bytes.

    Args:
        path: of the file.
        kind: kind of the teacher's class.
        card: the card as plain values.
        tensors: tensors from which the teacher is rebuilt, with ``average`` if it was measured.
    """
    kept = {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}
    header = {"schema": SCHEMA, "kind": kind, "card": card}
    header["sha256"] = _digest(header, kept)
    # One entry, because safetensors does not keep the order of several entries.
    return write_atomic(path, save(kept, metadata={"certvae": json.dumps(header)}))


def read_teacher_file(path: str | Path) -> TeacherFile:
    """Read a teacher file and check its digest.

    Raises:
        FileNotFoundError: if there is no such regular file.
        TeacherFileError: if the file is not a teacher, is damaged, or has an invalid card.
        OSError: if it cannot be read.
    """
    try:
        path = regular_file(path, TEACHER_LIMIT, "teacher")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error} Run a search first (certvae fit --config .../search.yaml), or make one: "
            "`LabelTeacher(K).measure(train_loader, images=1).save(path)`, or "
            "`TeacherSearch().search(train_loader, val_loader).save(path)`, or name one that comes with certvae: "
            f"{', '.join(shipped_teachers())}."
        ) from None
    except ValueError as error:
        raise TeacherFileError(str(error)) from None
    header, tensors = _read(path)
    card = _read_card(header, path)
    if header.get("sha256") != _digest(header, tensors):
        raise TeacherFileError(f"{path} is damaged: its contents do not have the digest that its header states.")
    kind = header.get("kind")
    if not isinstance(kind, str):
        raise TeacherFileError(f"{path} is not a teacher file: `kind` must be text, got {short(kind)}.")
    return TeacherFile(kind, card, tensors.pop("average", None), tensors)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        _check_header(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, RuntimeError, TypeError, OverflowError, LookupError) as error:
        raise TeacherFileError(f"{path} is not a safetensors file or is cut short: {one_line(error)}.") from None
    try:
        header = parse_json(metadata["certvae"])
        schema = header.get("schema")
    except (KeyError, ValueError, AttributeError) as error:
        raise TeacherFileError(
            f"{path} is not a teacher file: its header has no entry 'certvae' with an object of JSON: "
            f"{one_line(error)}."
        ) from None
    if schema != SCHEMA:
        raise TeacherFileError(f"{path} is not a teacher file: `schema` must be {SCHEMA!r}, got {short(schema)}.")
    return header, tensors


def _check_header(path: Path) -> None:
    """Reject headers that safetensors would accept: a header that is too long, or that names a tensor twice."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > HEADER_LIMIT:
            raise ValueError(f"its header may have at most {HEADER_LIMIT:,} bytes, and claims {size:,}")
        parse_json(file.read(size))


def _read_card(header: dict[str, Any], path: Path) -> TeacherCard:
    try:
        values = header["card"]
        known = {item.name for item in fields(TeacherCard)}
        values = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items() if key in known
        }
        return TeacherCard(**values)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise TeacherFileError(f"{path} has a faulty card in its header: {one_line(error)}.") from None


def one_line(error: Exception) -> str:
    """The first line of an error's message, shortened, for use in another message."""
    return str(error).replace("\n", " ")[:500].rstrip(".")


def _digest(header: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    stated = {key: value for key, value in header.items() if key != "sha256"}
    return sha256_tensors(tensors, json.dumps(stated, sort_keys=True).encode())
