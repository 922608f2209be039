"""Alignment and the guard do on two processes what they do on one, given the same rows for each optimizer step.

Networks compute in float64, so that differences are those of the order in which gradients are added up.
"""

import math
from typing import Any

import pytest
from torch import tensor

from tests.distributed.launch import alone, common, launch

pytestmark = pytest.mark.slow

JOBS = "tests.distributed.guard_jobs"
LIMIT = 240.0
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


def difference(seen: Results, expected: Results) -> float:
    """Largest difference of a weight."""
    pairs = [(tensor(seen["weights"][name]), tensor(value)) for name, value in expected["weights"].items()]
    return max(float((left - right).abs().max()) for left, right in pairs)


@pytest.mark.parametrize("job", ["aligned", "aligned_after_the_raise"])
def test_aligned_weights_and_loss_are_those_of_one_process(one: Results, two: list[Results], job: str) -> None:
    seen = common(two, job)
    assert difference(seen, one["aligned"]) < TOLERANCE
    assert seen["alignment"] == pytest.approx(one["aligned"]["alignment"], abs=TOLERANCE)


def test_a_trained_head_and_its_margin_are_those_of_one_process(one: Results, two: list[Results]) -> None:
    seen, expected = common(two, "headed"), one["headed"]
    assert difference(seen, expected) < TOLERANCE
    assert seen["margin"] == pytest.approx(expected["margin"], abs=TOLERANCE)
    assert expected["margin"] > 0.1, "the head has learned"


def test_a_fitted_code_and_its_margins_are_those_of_one_process(one: Results, two: list[Results]) -> None:
    seen, expected = common(two, "prefitted"), one["prefitted"]
    assert difference(seen, expected) < TOLERANCE
    assert seen["margins"] == pytest.approx(expected["margins"], abs=TOLERANCE)
    assert expected["margins"][1] > expected["margins"][0] + 0.1, "the code was fitted"


def test_gradients_of_two_batches_add_up_to_those_of_one_twice_as_large(one: Results, two: list[Results]) -> None:
    for seen in (one["aligned_accumulated"], common(two, "aligned_accumulated")):
        assert difference(seen, one["aligned"]) < TOLERANCE
        assert seen["alignment"] == pytest.approx(one["aligned"]["alignment"], abs=TOLERANCE)


@pytest.mark.parametrize("job", ["aligned_bf16", "guarded_bf16"])
def test_bfloat16_trains_to_finite_weights_and_the_loss_of_float64(one: Results, two: list[Results], job: str) -> None:
    wide = one[job.removesuffix("_bf16")]
    for seen in (one[job], common(two, job)):
        assert all(math.isfinite(value) for values in seen["weights"].values() for value in values)
        assert seen["alignment"] == pytest.approx(wide["alignment"], abs=0.02)


def test_the_guards_weight_takes_the_path_of_one_process(one: Results, two: list[Results]) -> None:
    seen, expected = common(two, "guarded"), one["guarded"]
    assert len(seen["path"]) == 12
    assert max(seen["path"]) > 1.2 * seen["path"][-1], "the weight has not yet come down"
    assert seen["path"] == pytest.approx(expected["path"], rel=TOLERANCE)
    assert seen["gap"] == pytest.approx(expected["gap"], abs=TOLERANCE)
    assert difference(seen, expected) < TOLERANCE


def test_draws_are_those_of_one_process(one: Results, two: list[Results]) -> None:
    """A row's noise follows its place among the rows of all processes."""
    seen, expected = common(two, "guarded_draws"), one["guarded_draws"]
    assert seen["path"] == pytest.approx(expected["path"], rel=TOLERANCE)
    assert difference(seen, expected) < TOLERANCE
    assert difference(seen, one["guarded"]) > 1e-3


def test_the_guards_weight_moves_with_each_batch_also_where_several_make_a_step(
    one: Results, two: list[Results]
) -> None:
    seen, expected = common(two, "guarded_accumulated"), one["guarded_accumulated"]
    assert len(seen["path"]) == 24
    assert seen["path"] == pytest.approx(expected["path"], rel=TOLERANCE)
    assert difference(seen, expected) < TOLERANCE


def test_the_bracket_is_held_by_the_kl_weight_of_one_process(one: Results, two: list[Results]) -> None:
    seen, expected = common(two, "bracketed"), one["bracketed"]
    assert len(seen["path"]) == 12
    assert max(seen["path"]) > 1.0, "the weight has moved"
    assert seen["path"] == pytest.approx(expected["path"], rel=TOLERANCE)
    assert [seen[name] for name in ("gap", "beta")] == pytest.approx(
        [expected[name] for name in ("gap", "beta")], abs=TOLERANCE
    )
    for name in ("lower", "upper", "rate"):
        assert seen["bracket"][name] == pytest.approx(expected["bracket"][name], abs=TOLERANCE)
    assert difference(seen, expected) < TOLERANCE


def test_the_decoder_check_finds_the_losses_of_one_process(one: Results, two: list[Results]) -> None:
    """Codes are exchanged within a batch, so that other rows, of half as many, are others: their loss is near."""
    seen, expected = (results["bracketed"]["decoder"] for results in ({"bracketed": common(two, "bracketed")}, one))
    assert seen["rows"] == expected["rows"] == 96
    for name in ("own", "prior"):
        assert seen[name] == pytest.approx(expected[name], abs=TOLERANCE)
    assert seen["shuffled"] == pytest.approx(expected["shuffled"], abs=4 * (seen["error"] + expected["error"]))
    assert common(two, "bracketed")["ignored"] == one["bracketed"]["ignored"]


def test_losses_of_the_vae_are_means_over_the_rows_of_all_processes(one: Results, two: list[Results]) -> None:
    assert common(two, "own_vae") == pytest.approx(one["own_vae"], rel=1e-6)


def test_a_loss_of_one_process_that_is_not_finite_raises_on_all(one: Results, two: list[Results]) -> None:
    assert common(two, "diverged") == one["diverged"]
    assert one["diverged"]["error"].startswith("the loss is nan at epoch 1, batch 1. The last checkpoint")


def test_a_lost_certificate_stops_all_processes(one: Results, two: list[Results]) -> None:
    assert common(two, "lost_stop") == one["lost_stop"] == {"epochs": 1}


def test_a_lost_certificate_raises_on_all_processes_and_none_waits(one: Results, two: list[Results]) -> None:
    """What follows on the same processes still works: none has left the others behind."""
    assert "epoch 0: the margin's lower bound" in common(two, "lost_raise")["error"]
    assert common(two, "lost_raise") == one["lost_raise"]
