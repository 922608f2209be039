"""The betting bound against brute force over the average teacher, sums over all samples, and simulation."""

import itertools
import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from certvae.theory import betting as module
from certvae.theory import wealth as wealth_module
from certvae.theory.betting import BetSchedule, bet_schedule, betting
from certvae.theory.wealth import WealthFloor

Array = NDArray[np.float64]
Types = NDArray[np.int64]
FLOORS = st.floats(1e-3, 0.5)
SEEDS = st.integers(0, 2**20)
CAP = 0.95


def floored(probs: Array, floor: float) -> Array:
    return (1 - floor) * probs + floor / probs.shape[-1]


class Population:
    """Pairs of a teacher row and a witness row with their probabilities, so that the margin is known exactly."""

    def __init__(self, teacher: Array, witness: Array, shares: Array | None = None, floor: float = 0.01) -> None:
        self.floor = floor
        self.teacher, witness = floored(teacher, floor), floored(witness, floor)
        self.shares = np.full(len(teacher), 1 / len(teacher)) if shares is None else shares
        self.scores = (self.teacher * np.log(witness)).sum(axis=1)
        self.mean: Array = self.shares @ self.teacher
        self.true_scores = self.scores - self.teacher @ np.log(self.mean)
        self.margin = float(self.shares @ self.true_scores)
        self.lowest = math.log(floor / teacher.shape[1])

    @classmethod
    def random(cls, seed: int, components: int, floor: float = 0.01, types: int = 500) -> "Population":
        """A teacher between sharp and flat; a witness between useless and overconfident."""
        rng = np.random.default_rng(seed)
        logits = rng.choice([0.3, 2.0, 5.0]) * rng.standard_normal((types, components))
        answers = rng.uniform(0, 1.5) * logits + rng.exponential(1) * rng.standard_normal(logits.shape)
        return cls(scipy.special.softmax(logits, axis=1), scipy.special.softmax(answers, axis=1), None, floor)

    @classmethod
    def coin(cls, right: float, floor: float) -> "Population":
        """Hard labels of a fair coin, which the witness names correctly with probability ``right``."""
        labels = np.eye(2)
        shares = np.array([right, right, 1 - right, 1 - right]) / 2
        return cls(np.vstack([labels, labels]), np.vstack([labels, labels[::-1]]), shares, floor)

    @classmethod
    def rarely_wrong(cls, share: float) -> "Population":
        """Three hard labels; the witness names them, but on a share of the rows it is confidently wrong."""
        labels = np.eye(3)
        shares = np.repeat([1 - share, share], 3) / 3
        return cls(np.vstack([labels, labels]), np.vstack([labels, labels[[1, 2, 0]]]), shares)

    def rows(self, types: Types) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor(self.teacher[types]), torch.tensor(self.scores[types])

    def draw(self, seed: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.rows(np.random.default_rng(seed).choice(len(self.shares), rows, p=self.shares))

    def bound(self, rows: tuple[torch.Tensor, torch.Tensor], alpha: float = 0.05) -> float:
        return betting(*rows, alpha, teacher_floor=self.floor, witness_floor=self.floor)

    def schedule(self, rows: tuple[torch.Tensor, torch.Tensor], alpha: float = 0.05) -> BetSchedule:
        return bet_schedule(*rows, alpha, self.lowest)

    def wealth_floor(self, rows: tuple[torch.Tensor, torch.Tensor]) -> WealthFloor:
        return WealthFloor(*rows, self.floor, self.lowest)


def plugin_scores(rows: tuple[torch.Tensor, torch.Tensor]) -> Array:
    teacher, scores = (part.numpy() for part in rows)
    plugin: Array = scores - teacher @ np.log(teacher.mean(axis=0))
    return plugin


def log_wealths(
    rows: tuple[torch.Tensor, torch.Tensor], bets: torch.Tensor, margin: float, averages: Array, lowest: float
) -> Array:
    """``log K_n(m, q)`` for each ``q`` of ``averages``, by its definition."""
    teacher, scores = (part.numpy() for part in rows)
    capped = np.minimum(bets.numpy(), CAP / (margin - lowest))
    gains = scores[:, None] - teacher @ np.log(averages).T - margin
    wealths: Array = np.log1p(capped[:, None] * gains).sum(axis=0)
    return wealths


def pairs(floor: float, points: int) -> Array:
    """Averages of two components, on a dense grid."""
    first = np.linspace(floor / 2, 1 - floor / 2, points)
    return np.stack([first, 1 - first], axis=1)


def own_cell(schedule: BetSchedule, margin: float) -> torch.Tensor:
    ends = schedule.cell_ends.numpy()
    return schedule.row_bets(min(int(np.searchsorted(ends, margin)), len(ends) - 1))


def normal_width(scores: Array, alpha: float) -> float:
    return float(scipy.stats.norm.isf(alpha) * scores.std(ddof=1) / math.sqrt(len(scores)))


def bernstein_width(scores: Array, components: int, floors: tuple[float, float], alpha: float) -> float:
    reach, below = (math.log(components / floor) for floor in floors)
    log_term, left = math.log(2 / alpha), len(scores) - 1
    known = scores.std(ddof=1) * math.sqrt(2 * log_term / len(scores)) + 7 * (reach + below) * log_term / (3 * left)
    return float(known + log_term * reach**2 / (2 * left * (reach - 1 + math.exp(-reach))))


# The proof, step by step


@pytest.mark.slow
@settings(max_examples=60)
@given(seed=SEEDS, components=st.integers(2, 12), floor=FLOORS, size=st.floats(1e-3, 30), height=st.floats(0.001, 1.2))
def test_the_floor_is_below_the_wealth_at_every_average_teacher(
    seed: int, components: int, floor: float, size: float, height: float
) -> None:
    """For every bet, margin and ``q``: near the sample's average, anywhere on the simplex, and at its corners."""
    population = Population.random(seed, components, floor)
    rng = np.random.default_rng(seed)
    rows = population.draw(seed, int(rng.integers(1, 80)))
    bets = torch.tensor(size * rng.exponential(size=len(rows[1])))
    wealth = population.wealth_floor(rows)
    margin = population.lowest + height * (wealth.margin - population.lowest) + 1e-6
    mean = rows[0].numpy().mean(axis=0)
    near = mean * np.exp(rng.exponential(0.3) * rng.standard_normal((200, components)))
    far = rng.dirichlet(np.full(components, rng.choice([0.1, 1.0])), size=200)
    averages = np.vstack([near / near.sum(axis=1, keepdims=True), far, np.eye(components)])
    averages = np.vstack([floored(averages, floor), floored(mean, 0), population.mean])
    reached = log_wealths(rows, bets, margin, averages, population.lowest)
    assert wealth.at(margin, bets) <= reached.min()


@pytest.mark.parametrize(("right", "floor", "loss"), [(0.9, 0.2, 0.2), (0.6, 0.01, 0.01)])
def test_the_floor_is_close_to_the_minimum_over_a_dense_grid_of_two_components(
    right: float, floor: float, loss: float
) -> None:
    """Wherever it decides: at margins whose wealth is about the goal or more."""
    population = Population.coin(right, floor)
    rows = population.draw(1, 400)
    wealth, schedule = population.wealth_floor(rows), population.schedule(rows)
    decided = 0
    for cell in range(0, len(schedule.cell_ends), 15):
        margin, bets = float(schedule.cell_ends[cell]), schedule.row_bets(cell)
        smallest = log_wealths(rows, bets, margin, pairs(floor, 2001), population.lowest).min()
        assert wealth.at(margin, bets) <= smallest
        if smallest > 2:
            decided += 1
            assert smallest - loss < wealth.at(margin, bets)
    assert decided > 3


def test_the_floor_is_close_to_the_minimum_over_a_dense_grid_of_three_components() -> None:
    population = Population.random(3, 3)
    rows = population.draw(1, 400)
    grid = np.array([(i, j, 120 - i - j) for i in range(1, 120) for j in range(1, 120 - i)]) / 120
    wealth, schedule = population.wealth_floor(rows), population.schedule(rows)
    bets = schedule.row_bets(0)
    margin = float(schedule.cell_ends[0])
    smallest = log_wealths(rows, bets, margin, floored(grid, 0.01), population.lowest).min()
    assert smallest - 0.05 < wealth.at(margin, bets) <= smallest


@settings(max_examples=40)
@given(seed=SEEDS, floor=FLOORS, size=st.floats(0.1, 30))
def test_the_one_dimensional_parts_increase_and_are_concave(seed: int, floor: float, size: float) -> None:
    """So that a chord is below them; also where the tangent goes on, which a rare label and gross errors reach."""
    labels = np.eye(2)
    population = Population(labels[[0, 0, 1]], labels[[0, 1, 1]], np.array([0.6, 0.37, 0.03]), floor)
    rows = population.draw(seed, 60)
    wealth = population.wealth_floor(rows)
    bets = torch.full((60,), min(size, CAP / (wealth.margin - population.lowest)), dtype=torch.float64)
    values = wealth._concave_parts(bets * (torch.tensor(plugin_scores(rows)) - wealth.margin), bets)
    slopes = values.diff(dim=1) / wealth._points.diff()
    assert (slopes > 0).all()
    assert (slopes.diff(dim=1) <= 1e-9 * slopes[:, 1:] + 1e-12).all()


@pytest.mark.parametrize("seed", range(5))
def test_every_margin_below_the_bound_is_excluded_by_brute_force_and_the_next_is_not(seed: int) -> None:
    """Each margin with the bets of its cell, and with the smallest wealth over a dense grid of ``q``."""
    population = Population.coin(0.8, 0.1)
    rows = population.draw(seed, 220)
    schedule, wealth = population.schedule(rows), population.wealth_floor(rows)
    found, averages = population.bound(rows), pairs(population.floor, 41)
    near = found - np.geomspace(1e-9, found - population.lowest - 1e-3, 100)
    ends = schedule.cell_ends.numpy()
    for margin in (*near, *ends[ends <= found]):
        smallest = log_wealths(rows, own_cell(schedule, margin), margin, averages, population.lowest).min()
        assert smallest >= math.log(20)
    above = found + 2e-3 * (wealth.margin - found)
    bets = own_cell(schedule, above)
    assert wealth.at(above, bets) < math.log(20)
    assert log_wealths(rows, bets, above, averages, population.lowest).min() < math.log(20) + 0.2


@pytest.mark.parametrize("seed", range(40))
def test_no_margin_of_a_scan_is_excluded_above_the_bound_of_few_rows(seed: int) -> None:
    """With fewer than 200 rows all margins have the same bets, and the floor of the wealth need not fall everywhere."""
    generator = np.random.default_rng(seed)
    rows, floors = 30, {"teacher_floor": 1e-3, "witness_floor": 0.1}
    logits = 5 * generator.standard_normal((rows, 3))
    teacher, witness = (
        (1 - floor) * torch.tensor(values).softmax(dim=1) + floor / 3
        for floor, values in zip(floors.values(), (logits, logits + generator.standard_normal((rows, 3))), strict=True)
    )
    scores, lowest = (teacher * witness.log()).sum(dim=1), math.log(0.1 / 3) - 1e-9
    found = betting(teacher, scores, 0.05, **floors)
    wealth, bets = WealthFloor(teacher, scores, 1e-3, lowest), bet_schedule(teacher, scores, 0.05, lowest).row_bets(0)
    for margin in np.linspace(found + 2e-3 * (wealth.margin - found), wealth.margin, 60):
        assert wealth.at(float(margin), bets) < math.log(20)


def every_sample(population: Population, rows: int) -> list[tuple[float, Types]]:
    """All samples of a number of rows, with their probabilities."""
    types = itertools.product(range(len(population.shares)), repeat=rows)
    return [(float(population.shares[list(drawn)].prod()), np.array(drawn)) for drawn in types]


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.3, 0.6])
def test_the_expected_wealth_at_the_truth_is_one(alpha: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly, over all samples of 7 rows of which 5 follow the cells: the bets look at nothing that they may not."""
    blocks = [slice(row, row + 1) for row in range(7)]
    monkeypatch.setattr(module, "_blocks", lambda rows: (blocks[:2], blocks[2:]))
    labels = np.eye(2)
    population = Population(labels, labels[[0, 0]], np.array([0.3, 0.7]), 0.1)
    total, different = 0.0, set()
    for probability, types in every_sample(population, 7):
        rows = population.rows(types)
        schedule = population.schedule(rows, alpha)
        assert len(schedule.cell_ends) > 1
        bets = own_cell(schedule, population.margin)
        different.add(tuple(bets.clamp(max=CAP / (population.margin - population.lowest)).tolist()))
        wealth = log_wealths(rows, bets, population.margin, population.mean[None], population.lowest)
        total += probability * math.exp(float(wealth[0]))
    assert total == pytest.approx(1, abs=1e-9)
    assert len(different) > 20


@pytest.mark.slow
@settings(max_examples=20)
@given(seed=SEEDS, row=st.integers(0, 150))
def test_bets_depend_on_earlier_rows_only(seed: int, row: int) -> None:
    population = Population.random(seed, 4)
    rows, other = population.draw(seed, 300), population.draw(seed + 1, 300)
    mixed = tuple(torch.cat([a[:row], b[row:]]) for a, b in zip(rows, other, strict=True))
    before, after = population.schedule(rows), population.schedule((mixed[0], mixed[1]))
    if row < 90:  # the cells may change, but the early bets are those of all cells
        cells = 1
    else:
        assert torch.equal(before.cell_ends, after.cell_ends)
        cells = len(before.cell_ends)
    for cell in range(cells):
        assert torch.equal(before.row_bets(cell)[: row + 1], after.row_bets(cell)[: row + 1])


def test_early_bets_are_the_same_in_all_cells() -> None:
    population = Population.random(5, 4)
    schedule = population.schedule(population.draw(0, 300))
    early = int((schedule.sizes.cumsum(0) <= 90).sum())
    assert len(schedule.cell_ends) > 50
    assert (schedule.bets[:early] == schedule.bets[:early, :1]).all()
    assert not (schedule.bets[early:] == schedule.bets[early:, :1]).all()


@given(
    lowest=st.floats(-15, -0.1),
    bet=st.floats(0, 100),
    score=st.floats(0, 20),
    height=st.floats(1e-3, 20),
    step=st.floats(0, 5),
)
def test_a_capped_factor_is_positive_and_falls_with_the_margin(
    lowest: float, bet: float, score: float, height: float, step: float
) -> None:
    def factor(margin: float) -> float:
        return 1 + min(bet, CAP / (margin - lowest)) * (lowest + score - margin)

    low, high = factor(lowest + height), factor(lowest + height + step)
    assert high >= 1 - CAP - 1e-9
    assert high <= low * (1 + 1e-9) + 1e-9


@given(score=st.floats(-3, 3), deviation=st.floats(0.1, 3), remaining=st.integers(1, 1000))
def test_the_bet_hedges_a_digital_option(score: float, deviation: float, remaining: int) -> None:
    """The bet is the derivative of ``log Phi`` by the sum of scores, so that the wealth follows the option's price."""
    spread = deviation * math.sqrt(remaining)

    def log_price(total: float) -> float:
        return float(scipy.special.log_ndtr(total / spread))

    price = torch.tensor([log_price(score * spread)], dtype=torch.float64)
    step = 1e-5 * spread
    slope = (log_price(score * spread + step) - log_price(score * spread - step)) / (2 * step)
    assert float(module._browne_bet(price, 0.0, deviation, remaining)) == pytest.approx(slope, rel=1e-5)


def test_nothing_is_bet_once_the_goal_is_reached() -> None:
    reached = torch.tensor([3.0, 4.0, 1e3, -1e3], dtype=torch.float64)
    assert module._browne_bet(reached, 3.0, 0.5, 10).tolist()[:3] == [0, 0, 0]
    assert math.isfinite(module._browne_bet(reached, 3.0, 0.5, 10)[3])


# What every sample must show


@pytest.mark.slow
@settings(max_examples=40)
@given(
    seed=SEEDS,
    components=st.sampled_from([2, 3, 10, 200]),
    rows=st.sampled_from([1, 2, 3, 7, 50, 210]),
    floor=FLOORS,
    alpha=st.floats(1e-6, 0.9),
)
def test_the_bound_lies_between_the_lowest_score_and_the_plugin_margin(
    seed: int, components: int, rows: int, floor: float, alpha: float
) -> None:
    population = Population.random(seed, components, floor)
    drawn = population.draw(seed, rows)
    margin = float(plugin_scores(drawn).mean())
    assert min(population.lowest, margin) - 1e-8 <= population.bound(drawn, alpha) <= margin


@pytest.mark.slow
@settings(max_examples=8)
@given(seed=SEEDS, components=st.integers(2, 20), rows=st.sampled_from([30, 210]))
def test_components_may_change_places(seed: int, components: int, rows: int) -> None:
    population = Population.random(seed, components)
    teacher, scores = population.draw(seed, rows)
    places = np.random.default_rng(seed).permutation(components)
    assert population.bound((teacher[:, places], scores)) == pytest.approx(
        population.bound((teacher, scores)), rel=1e-6
    )


@pytest.mark.slow
@settings(max_examples=10)
@given(seed=SEEDS, rows=st.sampled_from([40, 210]))
def test_a_constant_witness_is_never_above_zero(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    teacher = floored(rng.dirichlet(np.ones(4), size=rows), 0.01)
    answer = floored(rng.dirichlet(np.ones(4)), 0.01)
    scores = torch.tensor(teacher @ np.log(answer))
    assert betting(torch.tensor(teacher), scores, 0.3, teacher_floor=0.01, witness_floor=0.01) <= 0


@pytest.mark.parametrize("rows", [1, 2, 3, 500])
@pytest.mark.parametrize("components", [2, 200])
@pytest.mark.parametrize("score", ["lowest", "zero"])
@pytest.mark.parametrize("label", ["same", "uniform"])
def test_scores_without_spread_and_teachers_at_their_floor_are_borne(
    rows: int, components: int, score: str, label: str
) -> None:
    lowest = math.log(0.001 / components)
    teacher = torch.full((rows, components), 0.01 / components, dtype=torch.float64)
    teacher[:, 0] += 0.99
    if label == "uniform":
        teacher[:] = 1 / components
    scores = torch.full((rows,), lowest if score == "lowest" else 0.0, dtype=torch.float64)
    found = betting(teacher, scores, 0.05, teacher_floor=0.01, witness_floor=0.001)
    entropy = -float((teacher[0] * teacher[0].log()).sum())
    assert lowest - 1e-8 <= found <= float(scores[0]) + entropy
    if rows == 500 and score == "zero":  # a share 3 / 500 of the worst score would not be seen in 5 % of the samples
        assert found > entropy - 1.2 * math.log(20) / 500 * (entropy - lowest)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_the_bound_rises_with_the_error_probability_on_these_rows(seed: int) -> None:
    """On these: the bets follow ``alpha``, and no theorem says so for all rows."""
    population = Population.random(seed, 6)
    rows = population.draw(seed, 400)
    found = [population.bound(rows, alpha) for alpha in (1e-6, 1e-3, 0.01, 0.05, 0.3)]
    assert found == sorted(found)


def test_rows_four_times_over_give_a_narrower_bound() -> None:
    population = Population.random(2, 6)
    teacher, scores = population.draw(0, 300)
    once, four = population.bound((teacher, scores)), population.bound((teacher.repeat(4, 1), scores.repeat(4)))
    margin = float(plugin_scores((teacher, scores)).mean())
    assert margin - four < 0.7 * (margin - once)


@pytest.mark.slow
def test_chunks_of_rows_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    population = Population.random(2, 6)
    rows = population.draw(0, 250)
    whole = population.bound(rows)
    monkeypatch.setattr(wealth_module, "_CHUNK", 17)
    assert population.bound(rows) == pytest.approx(whole, rel=1e-9)


# Errors and widths


@pytest.mark.parametrize(
    ("rows", "right", "floor"),
    [
        *((1, 0.1, 0.01), (2, 0.1, 0.01), (2, 0.5, 0.3), (3, 0.05, 0.1), (3, 0.9, 0.3)),
        pytest.param(4, 0.1, 0.01, marks=pytest.mark.slow),
    ],
)
def test_the_exact_error_probability_of_coin_flips_is_at_most_alpha(rows: int, right: float, floor: float) -> None:
    population = Population.coin(right, floor)
    for alpha in (0.05, 0.3):
        bounds = {}
        error = 0.0
        for probability, types in every_sample(population, rows):
            # A row is right or wrong; which of the two labels it has matters only by its equality with the others'.
            key = tuple(types) if types[0] % 2 == 0 else tuple(types ^ 1)
            if key not in bounds:
                bounds[key] = population.bound(population.rows(np.array(key)), alpha)
            error += probability * (bounds[key] > population.margin)
        assert error <= alpha


def null_population() -> Population:
    rng = np.random.default_rng(0)
    teacher = scipy.special.softmax(4 * rng.standard_normal((30, 3)), axis=1)
    witness = scipy.special.softmax(np.log(teacher.mean(axis=0)) + 0.3 * rng.standard_normal((20, 3)), axis=1)
    return Population(teacher.repeat(20, axis=0), np.tile(witness, (30, 1)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("population", "rows", "repetitions"),
    [(Population.rarely_wrong(0.01), 40, 100), (null_population(), 40, 50), (Population.coin(0.9, 0.3), 210, 20)],
    ids=["confidently wrong on 1 %", "null witness", "coin"],
)
def test_errors_are_as_rare_as_promised(population: Population, rows: int, repetitions: int) -> None:
    """At ``alpha`` = 0.2; more errors than the limit have probability 0.1 %."""
    errors = sum(population.bound(population.draw(seed, rows), 0.2) > population.margin for seed in range(repetitions))
    assert errors <= scipy.stats.binom.ppf(0.999, repetitions, 0.2)


@pytest.mark.parametrize("rows", [300, 1000, 5000])
def test_the_bound_is_much_narrower_than_bernsteins_and_nears_the_normal_one(rows: int) -> None:
    rng = np.random.default_rng(0)
    teacher = floored(scipy.special.softmax(4 * rng.standard_normal((rows, 24)), axis=1), 0.01)
    answers = np.log(teacher) + rng.standard_normal(teacher.shape)
    witness = floored(scipy.special.softmax(answers, axis=1), 0.001)
    sample = torch.tensor(teacher), torch.tensor((teacher * np.log(witness)).sum(axis=1))
    scores = plugin_scores(sample)
    width = scores.mean() - betting(*sample, 0.05, teacher_floor=0.01, witness_floor=0.001)
    assert width < 0.4 * bernstein_width(scores, 24, (0.01, 0.001), 0.05)
    assert width < (1.6 if rows == 5000 else 2.5) * normal_width(scores, 0.05)


# Arguments


def test_arguments_out_of_their_range_are_refused() -> None:
    teacher, scores = Population.random(0, 3).draw(0, 5)
    for shapes in ((teacher[0], scores), (teacher, scores[:4]), (teacher[:0], scores[:0]), (teacher[:, :1], scores)):
        with pytest.raises(ValueError, match="`teacher_probs` must have the shape"):
            betting(*shapes, 0.05, teacher_floor=0.01, witness_floor=0.01)
    for alpha in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="`alpha` must be between 0 and 1"):
            betting(teacher, scores, alpha, teacher_floor=0.01, witness_floor=0.01)
    with pytest.raises(ValueError, match="`teacher_floor` must be between 0 and 1, got 0"):
        betting(teacher, scores, 0.05, teacher_floor=0.0, witness_floor=0.01)
    with pytest.raises(ValueError, match="`witness_floor` must be between 0 and 1, got 1"):
        betting(teacher, scores, 0.05, teacher_floor=0.01, witness_floor=1.0)
    for low in (-9.0, math.nan):
        with pytest.raises(ValueError, match="`scores` must be at least log"):
            betting(teacher, torch.full_like(scores, low), 0.05, teacher_floor=0.01, witness_floor=0.01)
