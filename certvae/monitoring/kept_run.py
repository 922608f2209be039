"""What a callback keeps of a run beside its certificates, so that a report of it needs no YAML."""

import json
from pathlib import Path
from typing import Any

from certvae.io.files import write_atomic
from certvae.teachers import Teacher

__all__ = ["keep_run"]


def keep_run(folder: Path, name: str, teacher: Teacher, settings: dict[str, Any]) -> None:
    """Write ``<name>_settings.json``, and ``<name>_teacher.safetensors`` of a teacher that can be saved.

    Args:
        folder: where the callback's certificates go.
        name: of the callback.
        teacher: the run's.
        settings: plain values by name.
    """
    write_atomic(folder / f"{name}_settings.json", json.dumps(settings, indent=2) + "\n")
    if teacher.kind:
        teacher.save(folder / f"{name}_teacher.safetensors")
