"""Loads a teacher of any registered kind."""

import inspect
from pathlib import Path
from typing import Any

from certvae.teachers.base import Teacher, kind_named
from certvae.teachers.files import TeacherFileError, one_line, read_teacher_file
from certvae.teachers.shipped import teacher_file

__all__ = ["load_teacher"]


def load_teacher(path: str | Path, **parts: Any) -> Teacher:
    """Read a teacher file. No code in the file is run.

    Args:
        path: a safetensors file written by :meth:`certvae.teachers.Teacher.save`, or the name of a teacher that comes
            with the package: ``"cifar100"`` or ``"tiny_imagenet"``.
        parts: arguments that the teacher's kind needs and the file does not hold: for a
            :class:`certvae.teachers.NetworkTeacher`, ``network``, the module that takes the weights.

    Returns:
        The teacher, on the CPU.

    Raises:
        FileNotFoundError: if there is no such regular file.
        TeacherFileError: if the file is not a teacher, is damaged or holds invalid values, no imported module defines
            its kind, or ``parts`` do not fit its kind.
        OSError: if it cannot be read.
    """
    found = read_teacher_file(teacher_file(path))
    try:
        teacher_class = kind_named(found.kind)
        _check_parts(teacher_class, parts)
        return teacher_class.from_tensors(found.card, found.average, found.tensors, **parts)
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        reason = one_line(error)
        raise TeacherFileError(
            f"{path} cannot be loaded as a teacher of kind {found.kind[:100]!r}: {reason}."
        ) from None


def _check_parts(teacher_class: type[Teacher], parts: dict[str, Any]) -> None:
    more = list(inspect.signature(teacher_class.from_tensors).parameters.values())[3:]
    taken = [part.name for part in more]
    unknown = sorted(parts.keys() - set(taken))
    if unknown and not any(part.kind is part.VAR_KEYWORD for part in more):
        raise TypeError(
            f"`load_teacher` was given {', '.join(f'`{name}`' for name in unknown)}, and this kind takes "
            f"{', '.join(f'`{name}`' for name in taken) or 'no part'}"
        )
