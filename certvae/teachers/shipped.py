"""Teachers that come with the package: searched on CIFAR-100 and Tiny-ImageNet-200, named instead of a file.

``python -m experiments.teachers`` makes them; each says on its card what it was made from.
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
        teacher: a path, or the name of a shipped teacher, such as ``"cifar100"``. A file of that name in the current
            folder comes first.

    Returns:
        A path at which there need not be a file.
    """
    if str(teacher) in shipped_teachers() and not Path(teacher).is_file():
        return FOLDER / f"{teacher}.safetensors"
    return Path(teacher)
