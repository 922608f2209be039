"""A pursuit holds its target where that can be held, and gives up where a larger weight does not help."""

import math

import pytest
import torch

from certvae.monitoring.dual_controller import DualController
from certvae.monitoring.pursuit import PATIENCE, Pursuit

TARGET = 0.4


def overfitting(pursuit: Pursuit, epochs: int, steps: int = 20, helps: float = 0.0) -> tuple[list[float], list[str]]:
    """Weights and reasons of a model whose training number grows with the weight, and its bound ``helps`` as much."""
    weights, reasons = [], []
    for _ in range(epochs):
        for _ in range(steps):
            number = math.log1p(float(pursuit.weight)) / 4
            pursuit.step(torch.tensor(number, dtype=torch.float64))
        reason = pursuit.look(helps * number - 0.05, number)
        weights.append(float(pursuit.weight))
        reasons += [] if reason is None else [reason]
    return weights, reasons


def started(controller: DualController | None = None) -> Pursuit:
    return Pursuit(TARGET, 0.05, controller or DualController())


def test_a_target_that_does_not_carry_over_is_given_up_and_the_weight_goes_back() -> None:
    pursuit = started()
    weights, reasons = overfitting(pursuit, 60)
    assert len(reasons) == 1, "one reason, however long it goes on"
    assert "does not carry over to validation" in reasons[0]
    assert "no better bound than -0.050" in reasons[0]
    assert weights[-1] == weights[-20] <= weights[0], "back at the weight of the best bound, and there it stays"
    assert max(weights) < 1e3


def test_without_the_rule_it_runs_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certvae.monitoring.pursuit.PATIENCE", math.inf)
    weights, _ = overfitting(started(), 60)
    assert weights[-1] == pytest.approx(1e5, rel=1e-6)


@pytest.mark.parametrize("helps", [0.3, 0.6, 1.0])
def test_a_target_that_can_be_held_is_not_given_up(helps: float) -> None:
    """A gap that grows with the weight alone is no reason, as long as the bound gets better."""
    pursuit = started()
    weights, reasons = overfitting(pursuit, 100, helps=helps)
    assert reasons == []
    assert pursuit.look(TARGET, 1.0) is None
    assert helps * math.log1p(weights[-1]) / 4 - 0.05 == pytest.approx(TARGET + 0.05, abs=0.02)


def test_looks_before_the_training_number_is_there_are_no_reason() -> None:
    pursuit = started()
    for _ in range(10 * PATIENCE):
        pursuit.step(torch.tensor(0.1, dtype=torch.float64))
        assert pursuit.look(-0.1, 0.1) is None
    assert not pursuit.given_up


def test_a_weight_that_did_not_grow_is_no_reason() -> None:
    """Many looks within a few steps show nothing of a larger weight."""
    pursuit = started()
    for _ in range(5 * PATIENCE):
        assert pursuit.look(0.1, 0.5) is None
    assert not pursuit.given_up


def test_it_goes_on_when_the_bound_is_at_the_target_after_all() -> None:
    pursuit = started()
    overfitting(pursuit, 60)
    assert pursuit.given_up
    before = pursuit.gap
    assert pursuit.look(TARGET + 0.01, 0.5) is None
    assert not pursuit.given_up
    assert pursuit.gap == pytest.approx((before + 0.5 - TARGET - 0.01) / 2)


def test_a_bound_of_minus_infinity_says_nothing_of_the_gap() -> None:
    pursuit = started()
    pursuit.look(0.1, 0.5)
    pursuit.look(-math.inf, 0.5)
    assert pursuit.gap == pytest.approx(0.2)


def test_it_goes_on_from_its_state_as_if_it_had_not_stopped() -> None:
    """Before, while and after it gives up."""
    for epochs in (1, 15, 40):
        straight, first, resumed = started(), started(), started()
        overfitting(straight, epochs), overfitting(first, epochs)
        resumed.restore(first.state())
        assert overfitting(resumed, 30) == overfitting(straight, 30)
        assert resumed.state() == straight.state()
