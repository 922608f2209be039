"""Probe and diagnostics find on several processes what they find on one.

Networks compute in float64, so that differences are those of the order in which sums are added up.
"""

from typing import Any

import pytest

from tests.distributed.callback_jobs import ROWS
from tests.distributed.launch import alone, common, launch

pytestmark = pytest.mark.slow

JOBS = "tests.distributed.callback_jobs"
LIMIT = 200.0
TOLERANCE = 1e-9
Results = dict[str, Any]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Results of a single process."""
    return alone(JOBS, tmp_path_factory)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Results]:
    """Results of each of two processes."""
    return launch(tmp_path_factory.mktemp("two"), 2, LIMIT, JOBS)


def test_the_probe_is_that_of_one_process_and_scores_each_row_once(one: Results, two: list[Results]) -> None:
    """Given the same rows for each step; 101 rows, so that a process reads a repeated one."""
    seen, expected = common(two, "probed"), one["probed"]
    for name, values in expected["probe"].items():
        assert seen["probe"][name] == pytest.approx(values, abs=1e-6), name
    assert seen["fitted"] == pytest.approx(expected["fitted"], abs=1e-6)
    assert seen["validated"] == pytest.approx(expected["validated"], abs=1e-6)
    assert seen["steps"] == expected["steps"] == 12


@pytest.mark.parametrize("rows", ROWS)
def test_diagnostics_are_those_of_one_process_and_padding_is_not_counted(
    one: Results, two: list[Results], rows: int
) -> None:
    seen = common(two, f"diagnosed_{rows}")
    assert len(seen) == 3
    assert seen == pytest.approx(one[f"diagnosed_{rows}"], abs=TOLERANCE)


@pytest.mark.parametrize("rows", ROWS)
def test_the_information_is_that_of_one_process(one: Results, two: list[Results], rows: int) -> None:
    seen = common(two, f"informed_{rows}")
    assert len(seen) == 6
    assert seen == pytest.approx(one[f"informed_{rows}"], abs=TOLERANCE)


def numbers(found: Any, path: str = "") -> dict[str, float]:
    """Every number of a nested result by its path."""
    items: Any = enumerate(found) if isinstance(found, list) else ()
    items = found.items() if isinstance(found, dict) else items
    plain = {path: float(found)} if isinstance(found, int | float) else {}
    return plain | {name: value for key, item in items for name, value in numbers(item, f"{path}/{key}").items()}


@pytest.mark.parametrize(("job", "least"), [("own_rows", 50), ("watched", 30)])
def test_rows_that_no_trainer_shows_give_the_numbers_of_one_process(
    one: Results, two: list[Results], job: str, least: int
) -> None:
    """101 rows, so that a process reads a repeated one, which does not count."""
    seen, expected = numbers(common(two, job)), numbers(one[job])
    assert seen.keys() == expected.keys()
    assert len(seen) > least
    assert seen == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("rows", ROWS)
def test_a_codebook_is_that_of_one_process_and_padding_is_not_counted(
    one: Results, two: list[Results], rows: int
) -> None:
    seen, expected = common(two, f"coded_{rows}"), one[f"coded_{rows}"]
    assert len(seen) == 10
    assert seen == pytest.approx(expected, abs=TOLERANCE)
    for name in ("signs/used", "soft/used"):
        assert seen[name] == expected[name]


@pytest.mark.parametrize("rows", ROWS)
def test_the_information_of_groups_is_that_of_one_process(one: Results, two: list[Results], rows: int) -> None:
    """Three rows make two batches at most, so that a process may have seen none."""
    seen = common(two, f"levels_{rows}")
    assert len(seen) == 18
    assert seen == pytest.approx(one[f"levels_{rows}"], abs=TOLERANCE)


@pytest.mark.parametrize("job", ["first_process_idle", "last_process_idle"])
def test_a_process_without_rows_takes_part(one: Results, two: list[Results], job: str) -> None:
    """Its rows have other places then, and with them other noise in the mutual information."""
    seen, expected = dict(common(two, job)), dict(one[job])
    noisy = "diagnostics/mutual_information"
    assert seen.pop(noisy) == pytest.approx(expected.pop(noisy), abs=0.1)
    assert seen == pytest.approx(expected, abs=TOLERANCE)


def test_iterable_rows_count_as_they_come(one: Results, two: list[Results]) -> None:
    assert common(two, "streamed") == pytest.approx(one["streamed"], abs=TOLERANCE)
