"""Saves a run's settings and teacher next to its certificates, so that a report needs no YAML."""

import json
from pathlib import Path
from typing import Any

from certvae.io.files import write_atomic
from certvae.teachers import Teacher

__all__ = ["keep_run"]


def keep_run(folder: Path, name: str, teacher: Teacher, settings: dict[str, Any]) -> None:
    """Write ``<name>_settings.json`` and, if the teacher can be saved, ``<name>_teacher.safetensors``.

    Args:
        folder: folder of the callback's certificates.
        name: name of the callback.
        teacher: teacher of the run.
        settings: plain values by name.
    """
    write_atomic(folder / f"{name}_settings.json", json.dumps(settings, indent=2) + "\n")
    if teacher.kind:
        teacher.save(folder / f"{name}_teacher.safetensors")
