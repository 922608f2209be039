"""Teacher files: safetensors, with the card and a digest of the tensors in the header. Loading runs no code."""

import json
from dataclasses import asdict, fields
from pathlib import Path
from reprlib import repr as short
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from certvae.io.files import parse_json, regular_file, sha256_tensors, write_atomic
from certvae.teachers.base import Teacher, TeacherCard

__all__ = ["TeacherFileError", "load_teacher", "save_teacher"]

SCHEMA = "certvae.teacher/1"
TEACHER_LIMIT = 2**34  # bytes; fixed targets for a million images of 4,000 components
HEADER_LIMIT = 2**23  # bytes; a network of 50,000 tensors


class TeacherFileError(ValueError):
    """A file is not a teacher, is damaged, or does not hold what its header says."""


def save_teacher(teacher: Teacher, path: str | Path) -> Path:
    """Write a teacher; see :meth:`certvae.teachers.Teacher.save`."""
    tensors = {key: value.detach().cpu().clone().contiguous() for key, value in teacher.tensors().items()}
    if teacher.average is not None:
        tensors["average"] = teacher.average.cpu().contiguous()
    header = {"schema": SCHEMA, "kind": teacher.kind, "card": asdict(teacher.card)}
    header["sha256"] = _digest(header, tensors)
    # One entry, because safetensors does not keep the order of several: equal teachers give equal bytes.
    return write_atomic(path, save(tensors, metadata={"certvae": json.dumps(header)}))


def load_teacher(path: str | Path, network: nn.Module | None = None) -> Teacher:
    """Read a teacher file. No code in the file is run.

    Args:
        path: a safetensors file written by :meth:`certvae.teachers.Teacher.save`.
        network: for a :class:`certvae.teachers.NetworkTeacher`, the module that takes the weights.

    Returns:
        The teacher, on the CPU.

    Raises:
        FileNotFoundError: if there is no such regular file.
        TeacherFileError: if the file is not a teacher, is damaged, holds what no teacher may hold, or needs
            ``network``.
        OSError: if it may not be read.
    """
    try:
        path = regular_file(path, TEACHER_LIMIT, "teacher")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error} Run a search first (certvae fit --config .../search.yaml), or make one: "
            "`LabelTeacher(K).measure(train_loader, images=1).save(path)`, or "
            "`TeacherSearch().search(train_loader, val_loader).save(path)`."
        ) from None
    except ValueError as error:
        raise TeacherFileError(str(error)) from None
    header, tensors = _read(path)
    card = _read_card(header, path)
    if header.get("sha256") != _digest(header, tensors):
        raise TeacherFileError(f"{path} is damaged: its contents do not have the digest that its header states.")
    average = tensors.pop("average", None)
    return _build(header.get("kind", ""), card, average, tensors, network, path)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        _check_header(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, RuntimeError, TypeError, OverflowError, LookupError) as error:
        raise TeacherFileError(f"{path} is not a safetensors file or is cut short: {_line(error)}.") from None
    try:
        header = parse_json(metadata["certvae"])
        schema = header.get("schema")
    except (KeyError, ValueError, AttributeError) as error:
        raise TeacherFileError(
            f"{path} is not a teacher file: its header has no entry 'certvae' with an object of JSON: {_line(error)}."
        ) from None
    if schema != SCHEMA:
        raise TeacherFileError(f"{path} is not a teacher file: `schema` must be {SCHEMA!r}, got {short(schema)}.")
    return header, tensors


def _check_header(path: Path) -> None:
    """Refuse what safetensors would read: a long header, or one that names a tensor twice."""
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
        raise TeacherFileError(f"{path} has a faulty card in its header: {_line(error)}.") from None


def _build(
    kind: str,
    card: TeacherCard,
    average: Tensor | None,
    tensors: dict[str, Tensor],
    network: nn.Module | None,
    path: Path,
) -> Teacher:
    from certvae.teachers import GaussianMixtureTeacher, LabelTeacher, NetworkTeacher, TargetTable

    kinds: tuple[type[Teacher], ...] = (GaussianMixtureTeacher, LabelTeacher, NetworkTeacher, TargetTable)
    try:
        return {cls.kind: cls for cls in kinds}[kind].from_tensors(card, average, tensors, network)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise TeacherFileError(f"{path} does not hold a teacher of kind {short(kind)}: {_line(error)}") from None


def _line(error: Exception) -> str:
    return str(error).replace("\n", " ")[:500].rstrip(".")


def _digest(header: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    stated = {key: value for key, value in header.items() if key != "sha256"}
    return sha256_tensors(tensors, json.dumps(stated, sort_keys=True).encode())
