"""A stream gives the certificate and the teacher of the same rows in memory, on one to four processes.

What a library leaves out or reads twice by its defaults is found, named and never certified.
"""

import json
from typing import Any

import pytest

pytest.importorskip("litdata", reason="streams need litdata: pip install 'certvae[streams]'")
pytest.importorskip("webdataset", reason="streams need webdataset: pip install 'certvae[streams]'")

from experiments.examples.streams import LIBRARIES
from tests.distributed.launch import common, launch_worlds
from tests.distributed.stream_jobs import ROWS
from tests.system.test_distributed import assert_same

pytestmark = pytest.mark.slow

JOBS, WORLDS, LIMIT = "tests.distributed.stream_jobs", (1, 2, 3, 4), 400.0


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """Results of each number of processes, by one import."""
    return launch_worlds(tmp_path_factory.mktemp("streams"), WORLDS, LIMIT, JOBS)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("rows", ROWS)
def test_the_certificate_of_a_stream_is_that_of_its_rows_in_memory(
    worlds: dict[int, Any], library: str, rows: int, world: int
) -> None:
    """Every field, the bracket and what is logged; uneven rows, and shards that no number of processes divides."""
    assert_same(common(worlds[world], f"{library}_{rows}"), common(worlds[1], f"memory_{rows}"))


@pytest.mark.parametrize("world", WORLDS)
def test_the_rows_that_litdata_drops_by_default_are_named(worlds: dict[int, Any], world: int) -> None:
    """96 rows of 101 on two to four processes, and all 101 on one."""
    seen = common(worlds[world], "litdata_as_it_comes")["certificate"]
    assert seen["num_samples"] == (101 if world == 1 else 96)
    assert (seen["status"] == "PARTIAL") == (world > 1)
    assert ("drop_last=False" in json.dumps(seen["provenance"])) == (world > 1)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize(
    ("job", "word"), [("too_large", "ended before the length"), ("too_small", "goes on after the length")]
)
def test_a_length_that_is_not_that_of_the_stream_is_named(
    worlds: dict[int, Any], job: str, word: str, world: int
) -> None:
    seen = common(worlds[world], f"webdataset_length_{job}")
    assert (seen["certificate"]["status"], seen["cause"]) == ("PARTIAL", "partial")
    assert word in seen["certificate"]["provenance"]["missing"][0]


@pytest.mark.parametrize(("job", "world"), [("unsplit", 2), ("webdataset_resampled", 1), ("webdataset_resampled", 2)])
def test_rows_that_are_read_twice_are_never_certified(worlds: dict[int, Any], job: str, world: int) -> None:
    seen = common(worlds[world], job)
    assert (seen["certificate"]["status"], seen["cause"]) == ("LEAKING", "rows counted twice")
    assert "had been counted before" in seen["certificate"]["leaks"][0]


def test_rows_that_one_process_reads_once_are_no_repeats(worlds: dict[int, Any]) -> None:
    assert common(worlds[1], "unsplit")["certificate"]["leaks"] == []


@pytest.mark.parametrize("world", WORLDS)
def test_the_search_over_a_stream_finds_the_teacher_of_the_rows_in_memory(worlds: dict[int, Any], world: int) -> None:
    assert_same(common(worlds[world], "searched_webdataset"), common(worlds[1], "searched_memory"))
    if world <= 2:
        assert_same(common(worlds[world], "searched_litdata"), common(worlds[1], "searched_memory"))


@pytest.mark.parametrize("world", WORLDS)
def test_without_an_index_the_search_finds_one_teacher_on_any_number_of_processes(
    worlds: dict[int, Any], world: int
) -> None:
    name = "searched_litdata_without_index"
    assert_same(common(worlds[world], name), common(worlds[1], name))


@pytest.mark.parametrize(("job", "word"), [("uneven", "EvenBatches(train)"), ("dropping", "`drop_last=False`")])
def test_a_search_that_would_wait_or_leave_rows_out_is_refused(worlds: dict[int, Any], job: str, word: str) -> None:
    assert word in common(worlds[2], f"searched_{job}")
