"""The README is short, its scripts print what it shows, and what it points to is there."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "README.md"
README = PAGE.read_text()
run_page = runpy.run_path(str(ROOT / "docs" / "pages.py"))["run_page"]


@pytest.mark.slow
def test_its_scripts_run_and_the_first_prints_the_readings_that_are_shown(tmp_path: Path) -> None:
    """Words exactly and in this order; numbers that come from training to 20 %."""
    shown = re.findall(r"^at the end: (\w+), (\w+) \(", README, flags=re.MULTILINE)
    expected = [("INFORMATIVE", "NOT_CERTIFIED"), ("COLLAPSED", "NOT_CERTIFIED"), ("ALIGNED", "CERTIFIED")]
    assert shown == expected
    assert run_page(PAGE, tmp_path, 0.2) == 2


def test_it_has_at_most_900_words() -> None:
    assert len(README.split()) <= 900


def test_every_link_points_to_a_file() -> None:
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", README) if not target.startswith("http")]
    assert len(targets) > 10
    for target in targets:
        assert (ROOT / target).exists(), target
