"""Every known attack ends as the table in ``docs/cheats.md`` says."""

from pathlib import Path

import pytest

from tests.attacks.attacks import ATTACKS, LEAKS, Attack, outcome, table

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "cheats.md"


@pytest.mark.parametrize("item", ATTACKS, ids=[item.run.__name__ for item in ATTACKS])
def test_an_attack_ends_as_the_table_says(item: Attack) -> None:
    assert outcome(item) == item.now
    if item.now == "LEAKING":
        assert any(found.startswith(f"{item.finds}:") for found in LEAKS), LEAKS


def test_the_page_shows_the_table_of_the_registry() -> None:
    assert table() in PAGE.read_text()


def test_what_nothing_can_find_is_said_so() -> None:
    """An attack that still succeeds has no test that is said to find it, and the other way round."""
    succeeds = {item.name for item in ATTACKS if item.now in ("CERTIFIED", "HOLDS", "FORGOTTEN")}
    assert succeeds == {item.name for item in ATTACKS if not item.finds}
    assert len(ATTACKS) >= 25
