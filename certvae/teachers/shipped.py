"""Teachers that come with the package, loaded by name: searched on CIFAR-100 and Tiny-ImageNet-200.

``python -m experiments.teachers`` makes them. The card of each describes its data.
"""

from pathlib import Path

__all__ = ["shipped_teachers", "teacher_file"]

FOLDER = Path(__file__).parent / "shipped_files"


def shipped_teachers() -> list[str]:
    """The names of the teachers that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def teacher_file(teacher: str | Path) -> Path:
    """The path of a teacher's file.

    Args:
        teacher: a path, or the name of a shipped teacher, such as ``"cifar100"``. A file with that name in the current
            folder takes precedence.

    Returns:
        A path. The file may not exist.
    """
    if str(teacher) in shipped_teachers() and not Path(teacher).is_file():
        return FOLDER / f"{teacher}.safetensors"
    return Path(teacher)
