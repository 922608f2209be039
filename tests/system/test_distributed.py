"""One number on any number of processes.

Each number of processes is launched once and runs all jobs of :mod:`tests.distributed.jobs`; a single process, this
one, runs them for comparison. Networks compute in float64, so that differences are those of the sums.
"""

import csv
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Subset

from certvae.callbacks import CertificateCallback
from certvae.datamodules import DigitsDataModule
from tests.distributed.jobs import FEW, ROWS, vae, validated
from tests.distributed.launch import LaunchError, common, launch
from tests.distributed.sets import BATCH, KINDS, digits
from tests.distributed.worker import run_jobs

pytestmark = pytest.mark.slow

LIMIT = 300.0
TOLERANCE = 1e-10
Results = dict[str, Any]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Results of a single process."""
    return run_jobs("tests.distributed.jobs", tmp_path_factory.mktemp("one"), world=1)


@pytest.fixture(scope="module", params=(2, 3, 4), ids="{} processes".format)
def many(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Results]:
    """Results of each of several processes."""
    return launch(tmp_path_factory.mktemp("many"), request.param, LIMIT)


def result(results: Results, job: str) -> Any:
    assert "error" not in results[job], results[job]["error"]
    return results[job]["result"]


def assert_same(seen: Any, expected: Any, tolerance: float = TOLERANCE, path: str = "") -> None:
    """Every float to the tolerance, everything else exactly, except the number of steps that a fit took."""
    if isinstance(expected, dict):
        assert isinstance(seen, dict)
        assert seen.keys() == expected.keys(), path
        for name in expected.keys() - {"global_step"}:
            assert_same(seen[name], expected[name], tolerance, f"{path}/{name}")
    elif isinstance(expected, list):
        assert len(seen) == len(expected), path
        for number, (left, right) in enumerate(zip(seen, expected, strict=True)):
            assert_same(left, right, tolerance, f"{path}/{number}")
    elif isinstance(expected, float):
        assert seen == pytest.approx(expected, abs=tolerance, rel=0), path
    else:
        assert seen == expected, path


OTHER_ROWS = ("shuffled", "distributed_dropping")
SAME_ROWS = [f"{kind}_{rows}" for kind in KINDS for rows in FEW if kind not in OTHER_ROWS]
SHARDED = ["sharded", "sharded_fitted", "copies"]
OF_PLACES = {
    "information",
    "fitted",
    "reading",
}  # from rows that a hash of their places picks, with noise of the places
IDLE = ["first_process_idle", "last_process_idle", "first_process_idle_fitted", "first_process_idle_logging"]


@pytest.mark.parametrize("job", [*(f"datamodule_{rows}" for rows in ROWS), *SAME_ROWS])
def test_every_field_is_that_of_one_process_and_padding_is_not_counted(
    one: Results, many: list[Results], job: str
) -> None:
    """101, 7 and 3 rows, so that some processes read repeated rows, and some nothing else."""
    assert_same(common(many, job), result(one, job))


@pytest.mark.parametrize("rows", ROWS)
def test_validation_within_a_fit_measures_the_weights_of_that_epoch(
    many: list[Results], tmp_path: Path, rows: int
) -> None:
    """The weights of several processes, which are others than those of one, measured again by one."""
    seen, model, callback = common(many, f"fitted_{rows}"), vae().double(), CertificateCallback(channel_samples=2)
    model.load_state_dict(torch.load(seen["weights"], weights_only=True))
    expected = validated(tmp_path, 1, model, DigitsDataModule(BATCH, subset=rows), callback)
    del seen["certificate"]["provenance"], expected["provenance"]
    assert_same(seen["certificate"], expected)
    assert seen["looks"] == 2
    assert seen["best_margin"] >= seen["certificate"]["margin"]


@pytest.mark.parametrize("rows", FEW)
def test_of_a_shuffled_loader_all_but_the_noise_is_that_of_one_process(
    one: Results, many: list[Results], rows: int
) -> None:
    """Noise belongs to a place in the order; Lightning's shuffled order is another than that of one process."""
    seen, expected = common(many, f"shuffled_{rows}"), dict(result(one, f"shuffled_{rows}"))
    drawn = {name for name in expected if name.startswith("channel_margin")} | OF_PLACES
    assert_same({**seen, **{name: expected[name] for name in drawn}}, expected)


@pytest.mark.parametrize("rows", FEW)
def test_a_sampler_that_drops_rows_is_measured_on_those_that_it_keeps(
    many: list[Results], tmp_path: Path, rows: int
) -> None:
    """With fewer rows than processes none is kept: nothing is measured, and nobody waits."""
    seen, kept = common(many, f"distributed_dropping_{rows}"), rows - rows % len(many)
    if kept == 0:
        assert seen is None
        return
    data, callback = Subset(digits(rows), range(kept)), CertificateCallback(channel_samples=2)
    assert_same(seen, validated(tmp_path, 1, vae(), DataLoader(data, BATCH), callback))


@pytest.mark.parametrize("job", ["streamed", *IDLE])
def test_iterable_data_counts_as_it_comes_also_with_a_process_that_gets_none(
    one: Results, many: list[Results], job: str
) -> None:
    """Where a process gets no batch, the places of the others' rows are not those in a single process."""
    seen, expected = common(many, job), result(one, job)
    drawn = OF_PLACES if job in IDLE and isinstance(expected, dict) else set()
    assert_same({**seen, **{name: expected[name] for name in drawn & set(expected)}} if drawn else seen, expected)


@pytest.mark.parametrize("job", SHARDED)
def test_sharded_parameters_and_rows_read_by_two_processes_change_nothing(
    one: Results, many: list[Results], job: str
) -> None:
    """FSDP2 of encoder, decoder and a trained witness; under tensor parallelism two processes read the same rows."""
    assert_same(common(many, job), result(one, job))


def test_a_sharded_witness_that_cannot_be_called_outside_the_step_is_refused(one: Results, many: list[Results]) -> None:
    assert result(one, "sharded_in_bfloat16") == "not refused"
    assert "`witness` has parameters that are sharded over processes" in common(many, "sharded_in_bfloat16")


def test_rows_of_several_processes_without_a_sampler_count_for_each_with_one_warning(many: list[Results]) -> None:
    results = [result(process, "warned_plain") for process in many]
    assert {item["certificate"]["num_samples"] for item in results} == {101 * len(many)}
    assert [len(item["warnings"]) for item in results] == [1] + [0] * (len(many) - 1)
    assert "bounds are too tight" in results[0]["warnings"][0]


def test_a_users_batch_sampler_that_gets_padding_is_warned_of_once_and_a_sampler_is_not(many: list[Results]) -> None:
    results = [result(process, "warned_batch_sampler")["warnings"] for process in many]
    assert [len(item) for item in results] == [1] + [0] * (len(many) - 1)
    assert "a Growing groups them in batches" in results[0][0]
    assert common(many, "warned_sampler")["warnings"] == []


def test_stopping_and_checkpoints_agree_on_all_processes(many: list[Results]) -> None:
    seen = common(many, "watched")
    assert 2 < seen["epochs"] < 30
    assert seen["stopped"] == seen["epochs"] - 1
    assert 0 <= seen["first_certified_epoch"] < seen["epochs"]
    assert seen["logged"] == pytest.approx(seen["certificate"]["margin_lower"], abs=1e-12)
    assert seen["best_score"] >= seen["logged"]
    assert Path(seen["best_path"]).is_file()


def test_a_leak_on_one_process_is_a_leak_on_all(many: list[Results]) -> None:
    results = [result(process, "leaking") for process in many]
    assert {item["status"] for item in results} == {"LEAKING"}
    assert [item["leaks"] != ["found on another process"] for item in results] == [False] * (len(many) - 1) + [True]


def test_a_set_cut_short_on_one_process_is_partial_on_all(many: list[Results]) -> None:
    assert common(many, "cut_short")["status"] == "PARTIAL"


def test_a_process_without_validation_batches_is_refused_on_all(many: list[Results]) -> None:
    assert "CertificateCallback measures on validation rows" in common(many, "without_batches")


@pytest.mark.parametrize("job", ["searched_101", "searched_40", "searched_101_without_index"])
def test_the_search_finds_the_same_teacher_and_writes_the_same_table(
    one: Results, many: list[Results], job: str
) -> None:
    seen, expected = common(many, job), result(one, job)
    assert seen["choice"] == expected["choice"]
    assert_same(seen["tensors"], expected["tensors"], tolerance=1e-9)
    one_table, other_table = (_table(Path(item["folder"]) / "candidates.csv") for item in (expected, seen))
    assert_same(other_table, one_table, tolerance=1e-9)


def _table(path: Path) -> list[list[Any]]:
    with path.open() as file:
        return [[_number(value) for value in row] for row in csv.reader(file)]


def _number(value: str) -> Any:
    try:
        return float(value)
    except ValueError:
        return value


def test_processes_that_take_too_long_are_ended(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(LaunchError, match="2 processes ran longer than 0.2 s"):
        launch(tmp_path, 2, limit=0.2)
    assert time.monotonic() - started < 10
    assert not list(tmp_path.glob("results_*.json"))
