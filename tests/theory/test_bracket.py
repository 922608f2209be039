"""The information bracket, against channels of known information, scipy and brute force."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from scipy.stats import t as student
from torch import Tensor
from torch.distributions import (
    Categorical,
    Independent,
    Laplace,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    TransformedDistribution,
    Uniform,
    kl_divergence,
)
from torch.distributions.transforms import AffineTransform, ExpTransform, StickBreakingTransform, TanhTransform

from certvae import InformationBracket, codebook_information, information_bracket, information_bracket_of
from certvae.theory.bracket import _normal_upper
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_any_distribution_gives_what_its_gaussian_twin_gives() -> None:
    mean, log_variance = channel(1.0, 2000, 2)
    posterior = Independent(Normal(mean, (log_variance / 2).exp()), 1)
    prior = Independent(Normal(torch.zeros(2).double(), torch.ones(2).double()), 1)
    state = torch.get_rng_state()
    found, twin = information_bracket_of(posterior, prior), information_bracket(mean, log_variance, block=2000)
    assert torch.equal(state, torch.get_rng_state())
    assert found.rate == pytest.approx(twin.rate)
    assert found.lower_estimate == pytest.approx(twin.lower_estimate, abs=0.1)
    assert found.lower <= 1 <= found.upper
    plain = information_bracket_of(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0))
    assert plain.to_dict() == pytest.approx(found.to_dict())


@pytest.mark.slow
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


def gaussian(nats: float, rows: int, dim: int) -> Any:
    mean, log_variance = channel(nats, rows, dim)
    return Independent(Normal(mean, (log_variance / 2).exp()), 1)


@pytest.mark.slow
def test_a_flow_after_a_gaussian_carries_what_the_gaussian_carries() -> None:
    """An invertible map loses nothing: each summand is the same, of elementwise maps and of one over coordinates."""
    base, prior = gaussian(1.5, 600, 3), Independent(Normal(torch.zeros(3).double(), 1.0), 1)
    plain = information_bracket_of(base, prior)
    shift = AffineTransform(torch.tensor([1.0, -2.0, 0.5]).double(), 3.0, event_dim=1)
    maps: list[list[Any]] = [[TanhTransform()], [shift, ExpTransform()], [StickBreakingTransform()], [TanhTransform(1)]]
    for transforms in maps:
        found = information_bracket_of(
            TransformedDistribution(base, transforms), TransformedDistribution(prior, transforms)
        )
        assert found.to_dict() == pytest.approx(plain.to_dict(), abs=1e-6)
    rows = Independent(Normal(torch.zeros(600, 3).double(), 1.0), 1)  # the row is in the flow, and not in its base
    own = TransformedDistribution(rows, [AffineTransform(base.mean, base.stddev, event_dim=1)])
    found = information_bracket_of(own, prior)
    assert found.lower <= 1.5 <= found.upper
    assert found.rate == pytest.approx(plain.rate, abs=0.1)


class Autoregressive:
    """A flow as people write them: a step of its own, the density by the change of variables; no torch distribution."""

    def __init__(self, base: Any) -> None:
        self.base = base

    def sample(self) -> Tensor:
        first, second = self.base.sample().unbind(dim=-1)
        return torch.stack([first, second * first.cos().exp() + first**2], dim=-1)

    def log_prob(self, codes: Tensor) -> Tensor:
        first, second = codes.unbind(dim=-1)
        inverse = torch.stack([first, (second - first**2) * (-first.cos()).exp()], dim=-1)
        return self.base.log_prob(inverse) - first.cos()


def test_an_object_with_sample_and_log_prob_is_enough() -> None:
    base = gaussian(2.0, 500, 2)
    found, plain = information_bracket_of(Autoregressive(base)), information_bracket_of(base)
    assert found.to_dict() == pytest.approx(plain.to_dict(), abs=1e-6)
    prior = Autoregressive(Independent(Normal(torch.zeros(2).double(), 1.0), 1))
    rate = information_bracket_of(Autoregressive(base), prior).rate
    assert rate == pytest.approx(information_bracket_of(base, prior.base).rate, abs=0.2)


@pytest.mark.slow
def test_a_mixture_whose_component_says_nothing_carries_what_one_component_carries() -> None:
    base = gaussian(1.0, 1500, 2)
    means = torch.stack([base.mean - 50, base.mean + 50], dim=1)
    parts = Independent(Normal(means, base.stddev[:, None].expand(-1, 2, -1)), 1)
    mixture = MixtureSameFamily(Categorical(torch.ones(1500, 2).double()), parts)
    prior = MixtureSameFamily(
        Categorical(torch.ones(2).double()),
        Independent(Normal(torch.tensor([[-50.0] * 2, [50.0] * 2]).double(), 1.0), 1),
    )
    found = information_bracket_of(mixture, prior)
    assert found.lower <= 1 <= found.upper
    assert found.lower_estimate == pytest.approx(1, abs=0.1)
    assert found.rate == pytest.approx(1, abs=0.1)
    assert found.rows_upper < math.log(1500)


def test_a_laplace_code_of_two_places_has_its_closed_form() -> None:
    """Places -1 and 1 of scale 1: log 2 less the entropy of the place given the code, integrated."""
    places = torch.where(torch.arange(2000) % 2 == 0, -1.0, 1.0).double()[:, None]
    grid = torch.linspace(-40, 40, 400_001, dtype=torch.float64)
    density = torch.stack([Laplace(place, 1.0).log_prob(grid).exp() for place in (-1.0, 1.0)])
    share = density / density.sum(dim=0)
    truth = math.log(2) + float((density * share.log()).sum() / 2 * (grid[1] - grid[0]))
    found = information_bracket_of(Laplace(places, torch.ones_like(places)), Laplace(0.0, 2.0))
    assert found.lower_estimate == pytest.approx(truth, abs=0.03)
    assert found.rows_lower <= truth <= found.rows_upper
    assert found.rate == pytest.approx(float(kl_divergence(Laplace(1.0, 1.0), Laplace(0.0, 2.0))))


@pytest.mark.parametrize("groups", [1, 3])
def test_one_hot_codes_have_the_information_of_the_categories(groups: int) -> None:
    """Of one category a row, where it is known without draws, and of several that are drawn independently."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(800, groups, 5, generator=generator, dtype=torch.float64)
    uniform = torch.zeros(groups, 5).double()
    found = information_bracket_of(
        Independent(OneHotCategorical(logits=logits), 1), Independent(OneHotCategorical(logits=uniform), 1)
    )
    exact = codebook_information(logits, 5, kind="logits", axis=-1, positions="each")
    assert found.rate == pytest.approx(exact.rate)
    assert found.lower_estimate <= exact.estimate * groups + 0.2  # groups whose draws are independent add up at most
    if groups == 1:
        assert found.rows_lower <= exact.estimate <= found.rows_upper
        assert found.lower_estimate == pytest.approx(exact.estimate, abs=0.08)
        twin = information_bracket_of(Categorical(logits=logits[:, 0]), Categorical(logits=uniform[0]))
        assert twin.lower_estimate == pytest.approx(exact.estimate, abs=0.08)


@pytest.mark.slow
def test_the_rate_is_that_of_the_prior_that_is_given() -> None:
    """A code that is moved and scaled has its old rate against the prior moved alike; against N(0, 1) a larger one."""
    base = gaussian(1.0, 1000, 2)
    moved = Normal(base.mean * 3 + 5, base.stddev * 3)
    old = information_bracket_of(base, Independent(Normal(torch.zeros(2).double(), 1.0), 1))
    found = information_bracket_of(moved, Normal(5.0, 3.0))
    wide = information_bracket_of(moved, Independent(Normal(torch.zeros(2).double(), 1.0), 1))
    assert found.rate == pytest.approx(old.rate)
    assert found.to_dict() == pytest.approx(old.to_dict(), abs=1e-6)
    assert wide.rate is not None
    assert wide.rate > 20
    assert (wide.lower, wide.lower_estimate) == pytest.approx((found.lower, found.lower_estimate))
    correlated = MultivariateNormal(torch.zeros(2).double(), torch.tensor([[1.0, 0.5], [0.5, 1.0]]).double())
    mixed = information_bracket_of(base, correlated)
    expected = kl_divergence(MultivariateNormal(base.mean, torch.diag_embed(base.variance)), correlated)
    assert mixed.rate == pytest.approx(float(expected.mean()), abs=0.15)


def test_codes_that_a_row_cannot_give_have_no_density_or_an_error_that_says_so() -> None:
    """Intervals of length 1 that do not meet tell rows apart; other rows then give no upper limit, but log N does."""
    left = 2.0 * torch.arange(50, dtype=torch.float64)[:, None]
    with pytest.raises(ValueError, match="must return -inf for codes.*Construct the Uniform.*with validate_args=False"):
        information_bracket_of(Uniform(left, left + 1, validate_args=True))
    found = information_bracket_of(Uniform(left, left + 1, validate_args=False))
    assert found.lower_estimate == pytest.approx(math.log(50))
    assert found.rows_upper == pytest.approx(math.log(50))
    assert found.upper == math.inf
    assert found.to_dict()["upper"] is None

    class Broken:
        def log_prob(self, codes: Tensor) -> Tensor:
            return codes[:, 0] * math.nan

    with pytest.raises(ValueError, match="`prior` must give every code a log-density, or a divergence.*got NaN"):
        information_bracket_of(gaussian(1.0, 20, 2), Broken())


@pytest.mark.slow
@given(seed=st.integers(0, 2**16), rows=st.integers(1, 200))
def test_a_bound_of_a_mean_is_below_the_average_and_does_not_depend_on_the_order(seed: int, rows: int) -> None:
    numbers = torch.rand(rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3 - 1
    bound = lower_bound_of_mean(numbers, -1.0, 0.05)
    assert -1 <= bound <= float(numbers.mean())
    assert lower_bound_of_mean(numbers.flip(0), -1.0, 0.05) == pytest.approx(bound)
    assert upper_bound_of_mean(-numbers, 1.0, 0.05) == pytest.approx(-bound)


@pytest.mark.slow
def test_a_bound_of_a_mean_holds_for_numbers_of_different_distributions() -> None:
    """Coins of two kinds, whose average mean is 0.3; at 20 % error no more than 20 % fail."""
    chances = torch.tensor([0.1] * 100 + [0.5] * 100, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    tosses = [torch.bernoulli(chances, generator=generator) for _ in range(300)]
    bounds = [lower_bound_of_mean(toss, 0.0, 0.2) for toss in tosses]
    assert sum(bound > 0.3 for bound in bounds) <= 60
    assert np.mean(bounds) > 0.2


@pytest.mark.slow
def test_skewed_numbers_are_below_their_upper_bound_hardly_more_often_than_it_says() -> None:
    """Averages of 500 squared normal numbers, as of rates of one coordinate: Student's bound alone errs too often."""
    generator, plain, misses = torch.Generator().manual_seed(0), 0, 0
    quantile = float(student.ppf(0.975, 499))
    for numbers in torch.randn(10_000, 500, generator=generator, dtype=torch.float64).square():
        plain += float(numbers.mean() + quantile * numbers.std() / math.sqrt(500)) < 1
        misses += _normal_upper(numbers, numbers, 0.025) < 1
    assert 250 - 40 < misses < 340 < plain


@pytest.mark.slow
def test_the_cost_in_memory_is_bounded() -> None:
    seen: list[int] = []

    def density(part: Tensor) -> Tensor:
        seen.append(len(part) * 3000)
        return torch.zeros(len(part), 3000, dtype=torch.float64)

    contrast(density, torch.zeros(3000, dtype=torch.float64), chunk=10_000)
    assert max(seen) <= 10_000 < CHUNK


@pytest.mark.slow
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


@pytest.mark.slow
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
