"""Modules, names and files of certvae that pages and docstrings mention are there."""

import re
from pathlib import Path
from pydoc import locate

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("experiments/**/*.md")]
SOURCES = [path for folder in ("callbacks", "certvae", "datamodules") for path in ROOT.glob(f"{folder}/**/*.py")]
FILE = re.compile(r"(?<![\w./-])(?:callbacks|certvae|datamodules)/[\w./-]*\w")
NAME = re.compile(r"(?<![\w./-])certvae(?:\.[A-Za-z_]\w*)+(?![\w/])")
IN_BACKTICKS = re.compile(r"`[~.]?(certvae(?:\.[A-Za-z_]\w*)+)[(`]")
ENDS_OF_FILES = (".css", ".html", ".md")


def made_by_recipes(text: str) -> set[str]:
    """Files that a page tells its reader to write, and the classes in them: ``# stripes.py`` opens such a block."""
    blocks = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", text, flags=re.DOTALL)
    return {file for file, _ in blocks} | {name for _, code in blocks for name in re.findall(r"class (\w+)", code)}


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_file_and_name_on_a_page_is_there(page: Path) -> None:
    text = page.read_text()
    made = made_by_recipes(text)
    files = {path for path in FILE.findall(text) if not (ROOT / path).exists()}
    names = {name for name in NAME.findall(text) if not name.endswith(ENDS_OF_FILES) and locate(name) is None}
    assert {path for path in files if Path(path).name not in made} == set()
    assert {name for name in names if name.rpartition(".")[2] not in made} == set()


def test_every_name_in_a_docstring_is_there() -> None:
    names = {(path.name, name) for path in SOURCES for name in IN_BACKTICKS.findall(path.read_text())}
    assert len(names) > 5
    assert {(file, name) for file, name in names if locate(name) is None} == set()
