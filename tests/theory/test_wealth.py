"""The floor of the wealth that needs the moments of blocks only; :mod:`tests.theory.test_betting` has the exact one."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from certvae.theory import wealth as module
from certvae.theory.betting import bet_schedule
from certvae.theory.wealth import WealthFloor

FLOOR = 0.01


def rows_of(seed: int, rows: int, components: int, gross: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Teacher, scores and the lowest score; a share ``gross`` of the rows scores as low as the floor allows."""
    rng = np.random.default_rng(seed)
    teacher = torch.tensor(rng.dirichlet(np.full(components, 0.3), size=rows))
    teacher = (1 - FLOOR) * teacher + FLOOR / components
    lowest = math.log(FLOOR / components) - 1e-9
    scores = torch.tensor(-rng.exponential(0.5, size=rows)).clamp(min=lowest + 1e-9)
    return teacher, torch.where(torch.tensor(rng.random(rows) < gross), lowest + 1e-9, scores), lowest


@given(start=st.floats(-40, 0.5), above=st.floats(0, 50))
def test_a_parabola_is_below_the_logarithm_and_its_tangent(start: float, above: float) -> None:
    curvature = float(module._curvatures(torch.tensor(start, dtype=torch.float64)))
    x = start + above
    tangent = math.log(1 - module.CAP) + (x + module.CAP) / (1 - module.CAP)
    assert x - curvature * x**2 <= (math.log1p(x) if x >= -module.CAP else tangent) + 1e-9
    assert curvature < module._MOST_CURVATURE


@pytest.mark.parametrize("start", [-0.9, -0.3, -0.01])
def test_no_smaller_parabola_will_do(start: float) -> None:
    curvature = float(module._curvatures(torch.tensor(start, dtype=torch.float64)))
    assert start - curvature * start**2 == pytest.approx(math.log1p(start), rel=1e-9)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**20), size=st.floats(1e-3, 30), gross=st.sampled_from([0.0, 0.05]))
def test_the_moments_give_less_than_the_rows(seed: int, size: float, gross: float) -> None:
    """For any bets that are the same within a block, small and huge, and margins from the lowest to the plug-in one."""
    teacher, scores, lowest = rows_of(seed, 60, 4, gross)
    wealth = WealthFloor(teacher, scores, FLOOR, lowest)
    rng = np.random.default_rng(seed)
    sizes, bets = torch.tensor([8, 2, 30, 20]), torch.tensor(size * rng.exponential(size=(4, 5)))
    margins = lowest + torch.tensor([0.001, 0.5, 0.9, 0.99, 1.0], dtype=torch.float64) * (wealth.margin - lowest)
    quick = wealth.at_cells(sizes, margins, bets)
    exact = [wealth.at(float(m), bets[:, j].repeat_interleave(sizes)) for j, m in enumerate(margins)]
    assert (quick <= torch.tensor(exact) + 1e-9).all()


def test_they_give_little_less_where_the_bound_is_decided() -> None:
    teacher, scores, lowest = rows_of(1, 2000, 10)
    wealth, schedule = WealthFloor(teacher, scores, FLOOR, lowest), bet_schedule(teacher, scores, 0.05, lowest)
    quick = wealth.at_cells(schedule.sizes, schedule.cell_ends, schedule.bets)
    exact = torch.tensor([wealth.at(float(m), schedule.row_bets(j)) for j, m in enumerate(schedule.cell_ends)])
    decided = (exact > 2) & (exact < 4)
    assert decided.sum() > 5
    assert (exact - quick)[decided].max() < 0.25


def test_cells_in_parts_give_what_all_at_once_give(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, scores, lowest = rows_of(2, 500, 5)
    wealth, schedule = WealthFloor(teacher, scores, FLOOR, lowest), bet_schedule(teacher, scores, 0.05, lowest)
    whole = wealth.at_cells(schedule.sizes, schedule.cell_ends, schedule.bets)
    monkeypatch.setattr(module, "_CELLS", 7)
    assert torch.allclose(wealth.at_cells(schedule.sizes, schedule.cell_ends, schedule.bets), whole, rtol=0, atol=1e-9)
