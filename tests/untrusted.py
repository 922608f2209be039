"""What the tests of files from strangers share: a watched folder, planted code, and paths that are no regular file."""

import os
import re
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SECONDS, MEGABYTES = 20, 400  # of processor time and of memory beyond what the process had, for any one file
MESSAGE = 4000  # characters


class Planted:
    """Unpickling it makes a folder, where the process works unless told otherwise: proof that code ran."""

    def __init__(self, marker: Path = Path("code-ran")) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


class Box:
    """A folder for bad files, inside a folder that must stay as it is.

    Attributes:
        path: the folder for bad files.
        marker: what planted code makes.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.path, self.marker = root, root / "deep" / "box", root / "code-ran"
        self.path.mkdir(parents=True)
        (root / "work").mkdir()
        (root / "kept").write_text("kept")

    def outside(self) -> dict[str, bytes | None]:
        """Everything under the root but not in the box."""
        found = (path for path in self.root.rglob("*") if self.path not in (path, *path.parents))
        return {str(path): path.read_bytes() if path.is_file() else None for path in found}

    @contextmanager
    def refuses(self, error: type[Exception], reason: str = "") -> Iterator[None]:
        """The block must raise this error for this reason, in bounded time and memory, shortly, and do nothing."""
        before, memory, start = self.outside(), _most_memory(), time.process_time()
        with pytest.raises(error, match=re.escape(reason) or None) as caught:
            yield
        assert time.process_time() - start < SECONDS
        assert _most_memory() - memory < MEGABYTES
        assert 10 < len(str(caught.value)) < MESSAGE
        assert not self.marker.exists()
        assert self.outside() == before


def _most_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Box:
    made = Box(tmp_path)
    monkeypatch.chdir(tmp_path / "work")
    return made


def slow(names: Iterable[str], *taking_long: str) -> list[Any]:
    """The names as parameters; those that take long have the mark."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in taking_long else name for name in names]


def unreadable(path: Path) -> None:
    """A file that its owner may not read."""
    path.write_bytes(b"secret")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read every file")


def sparse(size: int) -> Callable[[Path], None]:
    """A file of so many zeros, which take no room on the disk."""

    def write(path: Path) -> None:
        path.touch()
        os.truncate(path, size)

    return write


NO_FILES: dict[str, Callable[[Path], Any]] = {
    "missing": lambda path: None,
    "folder": Path.mkdir,
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "link to nothing": lambda path: path.symlink_to(path.parent / "nothing"),
}
SCRAPS: dict[str, Callable[[Path], Any]] = {
    "empty": Path.touch,
    "one byte": lambda path: path.write_bytes(b"\x80"),
    "text": lambda path: path.write_text("hello\n" * 100),
    "noise": lambda path: path.write_bytes(bytes(range(256)) * 20),
}
