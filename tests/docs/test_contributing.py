"""The recipes of CONTRIBUTING.md work as they are written."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "CONTRIBUTING.md"
run_page = runpy.run_path(str(ROOT / "docs" / "pages.py"))["run_page"]


@pytest.mark.slow
def test_every_recipe_prints_what_the_page_shows(tmp_path: Path) -> None:
    assert run_page(PAGE, tmp_path) == len(re.findall(r"^```python$", PAGE.read_text(), flags=re.MULTILINE)) > 8


def test_what_the_page_points_to_is_there() -> None:
    text = PAGE.read_text()
    of_recipes = set(re.findall(r"^# (\w+\.py)$", text, flags=re.MULTILINE))
    named = re.findall(r"\]\(([^)#]+)\)|`((?:tests|certvae|callbacks|datamodules|experiments)/[\w/.]*)`", text)
    for path in (link or name for link, name in named):
        assert (ROOT / path).exists() or Path(path).name in of_recipes, path
