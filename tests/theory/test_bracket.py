"""The information bracket, against channels of known information, scipy and brute force."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from certvae import InformationBracket, information_bracket, information_bracket_of
from certvae.theory.contrast import CHUNK, contrast, gaussian_contrast, gaussian_density
from certvae.theory.fixed_bets import lower_bound_of_mean, upper_bound_of_mean
from certvae.theory.posterior import Posterior


def channel(nats: float, rows: int, dim: int = 1, seed: int = 0, shift: float = 0.0) -> Posterior:
    """A linear Gaussian VAE whose code carries so many nats; at ``shift`` 0 its aggregate posterior is the prior."""
    generator = torch.Generator().manual_seed(seed)
    variance = math.exp(-2 * nats / dim)
    mean = torch.randn(rows, dim, generator=generator, dtype=torch.float64) * math.sqrt(1 - variance) + shift
    return Posterior(mean, torch.full_like(mean, math.log(variance)))


def brute_force(posterior: Posterior, draws: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The summands of both sides by their definition, from normalized densities in numpy."""
    mean, deviation, codes = posterior.mean.numpy(), posterior.log_variance.div(2).exp().numpy(), draws.numpy()
    lower, upper = [], []
    for row, code in enumerate(codes):
        densities = (np.exp(-0.5 * ((code - mean) / deviation) ** 2) / (deviation * math.sqrt(2 * math.pi))).prod(
            axis=1
        )
        lower.append(np.log(densities[row] / densities.mean()))
        upper.append(np.log(densities[row] / np.delete(densities, row).mean()))
    return np.array(lower), np.array(upper)


@given(rows=st.integers(2, 12), dim=st.integers(1, 4), seed=st.integers(0, 2**16))
def test_the_summands_are_their_definition(rows: int, dim: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    posterior = Posterior(*torch.randn(2, rows, dim, generator=generator, dtype=torch.float64).unbind())
    draws = posterior.row_draws(torch.arange(rows), 1, seed)[0]
    found = gaussian_contrast(posterior, torch.arange(rows), seed, chunk=20)
    lower, upper = brute_force(posterior, draws)
    assert np.allclose(found.lower.numpy(), lower, atol=1e-9)
    assert np.allclose(found.upper.numpy(), upper, atol=1e-9)
    assert float(found.lower_influence.sum()) == pytest.approx(lower.sum(), abs=1e-9)
    assert float(found.upper_influence.sum()) == pytest.approx(upper.sum(), abs=1e-9)


def test_an_influence_is_what_a_row_adds_to_the_average() -> None:
    """The derivative of the average in the row's weight, by finite differences."""
    posterior, step, row = channel(0.7, 40, 2), 1e-5, 7
    draws = posterior.row_draws(torch.arange(40), 1, 0)[0]
    log_density = posterior.log_density(draws[:, None])
    found = gaussian_contrast(posterior, torch.arange(40), 0).lower_influence

    def average(weight: float) -> float:
        weights = torch.full((40,), (1 - weight) / 40, dtype=torch.float64)
        weights[row] += weight
        return float(weights @ (log_density.diagonal() - (log_density + weights.log()).logsumexp(dim=1)))

    slope = (average(step) - average(-step)) / (2 * step)
    assert slope == pytest.approx(float(found[row] - found.mean()), abs=1e-6)


@pytest.mark.parametrize(
    ("nats", "lower", "upper"), [(0.049, 0.049, 0.049), (1.049, 1.041, 1.049), (5.545, 5.05, 5.55), (38.4, 6.908, 38.4)]
)
def test_estimates_enclose_the_information_up_to_the_cap(nats: float, lower: float, upper: float) -> None:
    """Blocks of 1,000 of 10,000 rows."""
    bracket = information_bracket(*channel(nats, 10_000, 8), block=1000)
    assert bracket.lower_estimate == pytest.approx(lower, abs=0.03)
    assert bracket.upper_estimate == pytest.approx(upper, abs=0.08)
    assert bracket.lower <= nats <= bracket.upper
    assert bracket.cap == pytest.approx(math.log(1000))
    assert (bracket.rows, bracket.blocks, bracket.at_cap) == (10_000, 10, nats > 30)


@pytest.mark.slow
@pytest.mark.parametrize(("nats", "dim", "shift"), [(0.01, 1, 0), (0.01, 16, 1), (1, 2, 1), (3, 16, 0), (20, 32, 0)])
def test_each_side_fails_no_more_often_than_it_says(nats: float, dim: int, shift: float) -> None:
    """80 populations' samples of 400 rows: more failures than seen here have a probability below 0.001 at 5 %."""
    repetitions, allowed = 80, int(binom.ppf(0.999, 80, 0.05))
    misses = {"proved": 0, "normal": 0, "upper": 0}
    sums = np.zeros(2)
    for seed in range(repetitions):
        posterior = channel(nats, 400, dim, seed, shift)
        bracket = information_bracket(*posterior, block=100, seed=seed)
        misses["proved"] += bracket.lower > nats
        misses["normal"] += information_bracket(*posterior, block=100, seed=seed, method="normal").lower > nats
        misses["upper"] += bracket.upper < nats
        sums += bracket.lower_estimate, bracket.upper_estimate
    assert misses["proved"] <= 1
    assert max(misses["normal"], misses["upper"]) <= allowed, misses
    deviation = 3.3 * math.sqrt((nats + 0.1) / 400 / repetitions)
    assert sums[0] / repetitions - deviation <= nats <= sums[1] / repetitions + deviation


def test_the_rows_own_information_lies_between_its_bounds() -> None:
    """Of 30 rows, whose information is known from many draws."""
    posterior = channel(1.5, 30, 2)
    codes = posterior.row_draws(torch.arange(30), 20_000, 5)
    exact = sum(float((posterior.log_density(draw[:, None]).log_softmax(dim=1)).diagonal().mean()) for draw in codes)
    truth = exact / len(codes) + math.log(30)
    found = [information_bracket(*posterior, seed=seed, confidence=0.9) for seed in range(50)]
    assert sum(bracket.rows_lower > truth for bracket in found) <= 5
    assert sum(bracket.rows_upper < truth for bracket in found) <= 5
    divided = information_bracket(*posterior, block=10)
    assert divided.rows_lower <= truth <= divided.rows_upper <= math.log(30)


def test_a_constant_code_carries_almost_nothing_whatever_its_rate() -> None:
    constant = Posterior(torch.full((2000, 3), 2.4).double(), torch.full((2000, 3), -1.0).double())
    bracket = information_bracket(*constant)
    assert bracket.rate is not None
    assert bracket.rate > 8
    assert bracket.lower == bracket.rows_lower == 0
    assert bracket.upper == pytest.approx(0, abs=1e-9)
    assert information_bracket(*constant, block=2000).rows_upper < 0.05


def values(bracket: InformationBracket) -> Any:
    return pytest.approx(np.array([value for value in bracket.to_dict().values() if value is not None]), abs=1e-7)


def test_the_order_of_rows_and_the_units_of_the_code_do_not_matter() -> None:
    mean, log_variance = channel(2.0, 500, 3)
    log_variance = log_variance + mean.cos()
    rate = torch.full((500,), 4.0)
    known = {"rate": rate, "block": 100, "seed": 3}
    whole = information_bracket(mean, log_variance, keys=torch.arange(500), **known)  # type: ignore[arg-type]
    order = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    shuffled = information_bracket(mean[order], log_variance[order], keys=order, **known)  # type: ignore[arg-type]
    for scale, shift in ((1e-3, 0.0), (1.0, 1e4), (30.0, -5.0)):
        moved = information_bracket(mean * scale + shift, log_variance + 2 * math.log(scale), **known)  # type: ignore[arg-type]
        assert np.array(list(moved.to_dict().values()), dtype=float) == values(whole)
    assert np.array(list(shuffled.to_dict().values()), dtype=float) == values(whole)


def test_pieces_of_any_size_and_either_way_to_the_densities_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    mean, log_variance = channel(3.0, 200, 4)
    whole = information_bracket(mean, log_variance)
    for chunk in (1, 1000):
        assert np.array(list(information_bracket(mean, log_variance, chunk=chunk).to_dict().values()), float) == values(
            whole
        )
    monkeypatch.setattr("certvae.theory.contrast.LARGEST_SQUARE", 0.0)
    assert np.array(list(information_bracket(mean, log_variance).to_dict().values()), float) == values(whole)


def test_codes_far_more_precise_than_their_spread_lose_no_digits() -> None:
    posterior = Posterior(torch.tensor([[0.0], [1e-9], [1.0], [5.0]]).double(), torch.full((4, 1), -41.0).double())
    draws = posterior.row_draws(torch.arange(4), 1, 0)[0]
    table = gaussian_density(posterior, draws)(torch.arange(4))
    assert torch.allclose(table, posterior.log_density(draws[:, None]) + 0.5 * math.log(2 * math.pi), rtol=1e-9)


def test_any_distribution_gives_what_its_gaussian_twin_gives() -> None:
    mean, log_variance = channel(1.0, 2000, 2)
    gaussian = Independent(Normal(mean, (log_variance / 2).exp()), 1)
    prior = Independent(Normal(torch.zeros(2).double(), torch.ones(2).double()), 1)
    state = torch.get_rng_state()
    found, twin = information_bracket_of(gaussian, prior), information_bracket(mean, log_variance, block=2000)
    assert torch.equal(state, torch.get_rng_state())
    assert found.rate == pytest.approx(twin.rate)
    assert found.lower_estimate == pytest.approx(twin.lower_estimate, abs=0.1)
    assert found.lower <= 1 <= found.upper
    plain = information_bracket_of(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0))
    assert plain.to_dict() == pytest.approx(found.to_dict())


def test_categories_and_mixtures_have_a_bracket_too() -> None:
    """Rows of 4 categories that are told apart perfectly carry log 4 nats; a mixture's rate is that of its draws."""
    labels = torch.arange(1000) % 4
    sure = information_bracket_of(Categorical(logits=50.0 * torch.eye(4).double()[labels]), Categorical(torch.ones(4)))
    assert sure.lower <= math.log(4) <= sure.upper + 1e-6
    assert sure.lower_estimate == pytest.approx(math.log(4), abs=0.01)
    assert sure.rows_upper == pytest.approx(math.log(4), abs=1e-6)
    halves = Normal(torch.stack([labels.double() * 10, labels.double() * 10 + 1], dim=1), torch.ones(1000, 2).double())
    mixture = MixtureSameFamily(Categorical(torch.ones(1000, 2).double()), halves)
    found = information_bracket_of(mixture, Normal(15.0, 12.0))
    assert found.lower <= math.log(4) <= found.upper
    assert found.rate is not None
    assert information_bracket_of(mixture).rate is None


@given(seed=st.integers(0, 2**16), rows=st.integers(1, 200))
def test_a_bound_of_a_mean_is_below_the_average_and_does_not_depend_on_the_order(seed: int, rows: int) -> None:
    numbers = torch.rand(rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3 - 1
    bound = lower_bound_of_mean(numbers, -1.0, 0.05)
    assert -1 <= bound <= float(numbers.mean())
    assert lower_bound_of_mean(numbers.flip(0), -1.0, 0.05) == pytest.approx(bound)
    assert upper_bound_of_mean(-numbers, 1.0, 0.05) == pytest.approx(-bound)


def test_a_bound_of_a_mean_holds_for_numbers_of_different_distributions() -> None:
    """Coins of two kinds, whose average mean is 0.3; at 20 % error no more than 20 % fail."""
    chances = torch.tensor([0.1] * 100 + [0.5] * 100, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    tosses = [torch.bernoulli(chances, generator=generator) for _ in range(300)]
    bounds = [lower_bound_of_mean(toss, 0.0, 0.2) for toss in tosses]
    assert sum(bound > 0.3 for bound in bounds) <= 60
    assert np.mean(bounds) > 0.2


def test_the_cost_in_memory_is_bounded() -> None:
    seen: list[int] = []

    def density(part: Tensor) -> Tensor:
        seen.append(len(part) * 3000)
        return torch.zeros(len(part), 3000, dtype=torch.float64)

    contrast(density, torch.zeros(3000, dtype=torch.float64), chunk=10_000)
    assert max(seen) <= 10_000 < CHUNK


def test_lines_say_what_is_known() -> None:
    lines = [information_bracket(*channel(nats, 3000, 4)).line() for nats in (2.0, 30.0, 1e-5)]
    assert "between 1." in lines[0]
    assert "(95 % confidence, 3,000 rows)" in lines[0]
    assert "the most that blocks of 1,000 rows can show" in lines[1]
    assert lines[2].startswith("the code carries at most ")


def test_what_cannot_work_says_why() -> None:
    mean, log_variance = channel(1.0, 20, 2)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"block": 2}, "`block` must be at least 3, got 2"),
        ({"confidence": 1.0}, "`confidence` must lie between 0 and 1"),
        ({"method": "exact"}, "`method` must be 'proved' or 'normal'"),
        ({"rate": torch.zeros(3)}, "`rate` must hold a finite number for each of 20 rows"),
        ({"keys": torch.arange(3)}, "`keys` must hold one integer for each of 20 rows, got 3"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            information_bracket(mean, log_variance, **arguments)
    for broken, message in (
        ((mean[:1], log_variance[:1]), "at least 2 rows"),
        ((mean, log_variance[:, :1]), "must both have shape"),
        ((mean / 0, log_variance), "`mean` must be finite"),
        ((mean, log_variance - 600), "`log_variance` must lie within"),
    ):
        with pytest.raises(ValueError, match=message):
            information_bracket(*broken)

    class Odd:
        def sample(self) -> Tensor:
            return mean

        def log_prob(self, codes: Tensor) -> Tensor:
            return torch.zeros(2, 2)

    with pytest.raises(ValueError, match="must give a number for each of 20 codes and 20 rows"):
        information_bracket_of(Odd())


def test_the_brackets_of_levels_bound_what_the_page_says_of_them() -> None:
    """``q(z2|x) = N(x, 1)`` and below it ``q(z1|x, z2) = N(z2, e^-6)``, which adds nothing that is not in ``z2``."""
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 1500, 1, generator=generator, dtype=torch.float64)
    above, below = (x, torch.zeros_like(x)), (x + noise, torch.full_like(x, -6.0))
    top, low = (information_bracket(*level, block=1500) for level in (above, below))
    both = information_bracket(*(torch.cat(parts, dim=1) for parts in zip(above, below, strict=True)), block=1500)
    true, true_below, with_draw = 0.5 * math.log(2), 0.5 * math.log(2 - 1e-3), 0.5 * math.log(1 + 2 * math.exp(6))
    assert top.lower <= true <= top.upper
    assert low.lower <= with_draw <= low.upper
    assert true_below <= low.lower  # so that it is no lower bound of what the level carries about x
    assert both.lower > 2 * true
    assert both.rate is not None
    assert both.rate > true
