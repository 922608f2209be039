"""Run the blocks of a page in their order, and compare what they print with what the page shows.

    python docs/pages.py docs/tutorial.md build/tutorial 0.2

Python blocks share one namespace, shell blocks run in bash, and both run in the folder given. A block that opens with
``# name.py`` or ``# name.yaml`` is written to that file instead. A ``text`` block shows lines of the output of the
block before it: they must come in this order, with the same words and numbers. Where networks are trained, numbers with
a point may be off by ``slack``, for other processors and versions round differently.
"""

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["PageError", "run_page"]

BLOCK = re.compile(r"^```(python|shell|yaml|text)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"# (\S+\.(?:py|yaml))\n")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")


class PageError(AssertionError):
    """A block fails, or does not print what the page shows."""


def run_page(page: Path, folder: Path, slack: float = 0.0) -> int:
    """Run a page's blocks in a folder; returns how many ran.

    Args:
        page: a Markdown file.
        folder: where its files go; must be there.
        slack: a number ``x`` with a point may be off by ``slack * (0.5 + |x|)``, beside its rounding.

    Raises:
        PageError: if a block fails, or does not print what the page shows.
    """
    namespace: dict[str, Any] = {"__name__": "__main__"}
    output, ran, environment = "", 0, dict(os.environ)
    with contextlib.chdir(folder):
        sys.path.insert(0, str(folder))
        try:
            for kind, source in BLOCK.findall(page.read_text()):
                if kind == "text":
                    compare(source, output, slack)
                else:
                    output, ran = _run(kind, source, namespace), ran + 1
        finally:
            sys.path.remove(str(folder))
            os.environ.clear()
            os.environ.update(environment)  # `seed_everything` leaves the seed there for other runs
    return ran


def _run(kind: str, source: str, namespace: dict[str, Any]) -> str:
    name = FILE.match(source)
    if name:
        Path(name[1]).write_text(source)
        return ""
    if kind == "yaml":
        return ""
    return _python(source, namespace) if kind == "python" else _shell(source)


def _python(source: str, namespace: dict[str, Any]) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(source, "a block of the page", "exec"), namespace)
    return printed.getvalue()


def _shell(source: str) -> str:
    paths = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    done = subprocess.run(
        ["bash", "-c", source], env={**os.environ, "PATH": ":".join(paths)}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise PageError(f"exit status {done.returncode} of\n{source}\n{done.stdout}{done.stderr}")
    return done.stdout


def compare(shown: str, printed: str, slack: float = 0.0) -> None:
    """Check that the lines shown were printed, in their order.

    Raises:
        PageError: naming the line that was not.
    """
    lines = iter(printed.splitlines())
    for line in shown.splitlines():
        if not any(_alike(line, other, slack) for other in lines):
            raise PageError(f"the page shows\n  {line}\nwhich was not printed, or not there:\n{printed}")


def _alike(shown: str, printed: str, slack: float) -> bool:
    if NUMBER.sub("#", shown).split() != NUMBER.sub("#", printed).split():
        return False
    pairs = zip(NUMBER.findall(shown), NUMBER.findall(printed), strict=True)
    return all(_close(one, other, slack) for one, other in pairs)


def _close(shown: str, printed: str, slack: float) -> bool:
    if "." not in shown:
        return shown == printed
    rounding = 0.51 * 10.0 ** -len(shown.partition(".")[2])
    return abs(float(shown) - float(printed)) <= slack * (0.5 + abs(float(shown))) + rounding


if __name__ == "__main__":
    target = Path(sys.argv[2]).resolve()
    target.mkdir(parents=True, exist_ok=True)
    blocks = run_page(Path(sys.argv[1]).resolve(), target, *map(float, sys.argv[3:]))
    print(f"{blocks} blocks ran, and printed what the page shows.")
