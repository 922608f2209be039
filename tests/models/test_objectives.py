"""Objectives: each has its defining property, whatever the terms are."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from certvae.models import objectives
from certvae.models.objectives import ELBO, Capacity, FreeBits, InfoVAE, Objective, Terms, maximum_mean_discrepancy
from certvae.models.priors import StandardNormal
from certvae.models.schedules import LinearSchedule
from certvae.theory.posterior import Posterior


def terms(seed: int = 0, rows: int = 6, dim: int = 3, progress: float = 0.0, **changes: Any) -> Terms:
    generator = torch.Generator().manual_seed(seed)
    posterior = Posterior(*torch.randn(2, rows, dim, generator=generator, dtype=torch.float64))
    distortion = torch.rand(rows, generator=generator, dtype=torch.float64)
    latents = posterior.sample(torch.randn(rows, dim, generator=generator, dtype=torch.float64))
    values: dict[str, Any] = {
        "distortion": distortion,
        "kl": posterior.kl_to_standard_normal(),
        "posterior": posterior,
        "latents": latents,
        "prior": StandardNormal(),
        "progress": progress,
    }
    return Terms(**(values | changes))


OBJECTIVES: dict[str, Objective] = {
    "elbo": ELBO(),
    "weighted elbo": ELBO(beta=3.0),
    "annealed elbo": ELBO(LinearSchedule(0.1, 1.0, 10.0)),
    "capacity": Capacity(LinearSchedule(0.0, 25.0, 10.0), gamma=7.0),
    "free bits": FreeBits(0.25),
    "info vae": InfoVAE(alpha=0.5, mmd_weight=10.0),
}
every_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())


def loss_of(objective: Objective, given: Terms) -> Tensor:
    """The loss with the same draws of the prior each time."""
    torch.manual_seed(0)
    return objective(given)


@pytest.mark.slow
@every_objective
@given(seed=st.integers(0, 2**16), rows=st.integers(1, 9), progress=st.sampled_from([0.0, 3.7, math.inf]))
def test_every_loss_is_a_finite_number_for_each_row(
    objective: Objective, seed: int, rows: int, progress: float
) -> None:
    loss = loss_of(objective, terms(seed, rows=rows, progress=progress))
    assert loss.shape == (rows,)
    assert loss.dtype == torch.float64
    assert bool(loss.isfinite().all())


@pytest.mark.slow
@every_objective
@given(seed=st.integers(0, 2**16), shift=st.floats(-50, 50))
def test_every_loss_has_the_distortion_with_weight_1(objective: Objective, seed: int, shift: float) -> None:
    given = terms(seed)
    moved = terms(seed, distortion=given.distortion + shift)
    assert torch.allclose(loss_of(objective, moved) - loss_of(objective, given), torch.tensor(shift).double())


@pytest.mark.slow
@every_objective
@given(seed=st.integers(0, 2**16))
def test_no_loss_depends_on_the_order_of_the_rows(objective: Objective, seed: int) -> None:
    given, order = terms(seed), torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    posterior = Posterior(given.posterior.mean[order], given.posterior.log_variance[order])
    parts = {name: getattr(given, name)[order] for name in ("distortion", "kl", "latents")}
    shuffled = loss_of(objective, terms(seed, posterior=posterior, **parts))
    assert torch.allclose(shuffled, loss_of(objective, given)[order], atol=1e-9)


@pytest.mark.slow
@every_objective
@given(seed=st.integers(0, 2**16))
def test_every_gradient_is_finite_also_where_the_code_is_the_prior(objective: Objective, seed: int) -> None:
    mean, log_variance = torch.zeros(2, 6, 3, dtype=torch.float64, requires_grad=True).unbind()
    posterior = Posterior(mean, log_variance)
    noise = torch.randn(6, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    latents = posterior.sample(noise)
    given = terms(seed, posterior=posterior, latents=latents, kl=posterior.kl_to_standard_normal())
    gradients = torch.autograd.grad(loss_of(objective, given).mean(), (mean, log_variance), allow_unused=True)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients if gradient is not None)


def test_every_objective_that_is_shipped_has_an_instance_here() -> None:
    shipped = {value for value in vars(objectives).values() if isinstance(value, type) and issubclass(value, Objective)}
    assert shipped - {Objective} == {type(objective) for objective in OBJECTIVES.values()}


def test_elbo_adds_distortion_and_weighted_rate() -> None:
    given = terms(distortion=torch.tensor([1.0, 2.0]), kl=torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
    assert ELBO(beta=3.0)(given).tolist() == [4.0, 5.0]


@given(progress=st.floats(0, 30), seed=st.integers(0, 2**16))
def test_an_annealed_elbo_is_that_of_the_weight_at_the_moment(progress: float, seed: int) -> None:
    schedule, given = LinearSchedule(0.1, 1.0, 10.0), terms(seed, progress=progress)
    assert torch.equal(ELBO(schedule)(given), ELBO(schedule(progress))(given))


def test_evaluation_is_at_the_schedules_end() -> None:
    given = terms(progress=math.inf)
    assert torch.equal(ELBO(LinearSchedule(0.0, 2.0, 10.0))(given), ELBO(2.0)(given))


@pytest.mark.slow
@given(seed=st.integers(0, 2**16), floor=st.floats(0, 3))
def test_free_bits_never_penalize_a_dimension_below_its_floor(seed: int, floor: float) -> None:
    kl = terms(seed).kl.requires_grad_()
    FreeBits(floor)(terms(seed, kl=kl)).mean().backward()
    assert kl.grad is not None
    above = (kl.detach().mean(dim=0) > floor).double()
    assert torch.allclose(kl.grad, above.expand_as(kl) / len(kl))


def test_free_bits_hold_the_batch_mean_and_not_each_row_to_the_floor() -> None:
    kl = torch.tensor([[0.0, 0.1], [1.0, 0.1]])
    loss = FreeBits(0.25)(terms(distortion=torch.tensor([1.0, 2.0]), kl=kl, latents=torch.zeros(2, 2)))
    assert loss.tolist() == pytest.approx([1.75, 2.75])


def test_free_bits_of_a_prior_without_dimensions_are_refused() -> None:
    with pytest.raises(ValueError, match="each of 3 latent dimensions, and StandardNormal gives 1 for each row"):
        FreeBits()(terms(kl=torch.ones(6, 1)))


@given(seed=st.integers(0, 2**16), capacity=st.floats(0, 50))
def test_capacity_costs_nothing_at_the_capacity_and_gamma_for_each_nat_beside_it(seed: int, capacity: float) -> None:
    given = terms(seed)
    rate = float(given.kl.sum(dim=1).mean())
    assert torch.allclose(Capacity(rate, 1000.0)(given), given.distortion, atol=1e-9)
    extra = Capacity(capacity, 7.0)(given) - given.distortion
    assert torch.allclose(extra, torch.full_like(extra, 7 * abs(rate - capacity)))


def test_a_growing_capacity_reaches_its_end() -> None:
    growing = Capacity(LinearSchedule(0.0, 25.0, 10.0), gamma=1.0)
    assert torch.allclose(growing(terms(progress=5.0)), Capacity(12.5, gamma=1.0)(terms()))
    assert torch.allclose(growing(terms(progress=math.inf)), Capacity(25.0, gamma=1.0)(terms()))


def brute_force_discrepancy(one: Tensor, other: Tensor) -> float:
    def average(first: Tensor, second: Tensor) -> float:
        scale = 2 * first.shape[1]
        values = [scale / (scale + float(((x - y) ** 2).sum())) for x in first for y in second]
        return sum(values) / len(values)

    return average(one, one) + average(other, other) - 2 * average(one, other)


@pytest.mark.slow
@given(seed=st.integers(0, 2**16), rows=st.integers(1, 9), dim=st.integers(1, 5), shift=st.floats(-3, 3))
def test_discrepancy_is_0_for_equal_samples_and_positive_otherwise(
    seed: int, rows: int, dim: int, shift: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    one = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    other = shift + torch.randn(rows + 1, dim, generator=generator, dtype=torch.float64)
    assert float(maximum_mean_discrepancy(one, one.clone())) == 0
    found = float(maximum_mean_discrepancy(one, other))
    assert found > 0
    assert found == pytest.approx(brute_force_discrepancy(one, other), abs=1e-12)


def test_discrepancy_is_exact_in_mixed_precision_and_its_gradient_finite_at_equal_rows() -> None:
    one = torch.randn(32, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = maximum_mean_discrepancy(one, torch.cat([one.detach()[:16], torch.ones(16, 8)]))
    assert found.dtype == torch.float32
    found.backward()
    assert one.grad is not None
    assert bool(one.grad.isfinite().all())


def test_info_vae_weighs_the_rate_by_one_minus_alpha_and_the_discrepancy_by_its_weight() -> None:
    given = terms()
    torch.manual_seed(3)
    loss = InfoVAE(alpha=0.25, mmd_weight=10.0)(given)
    torch.manual_seed(3)
    discrepancy = maximum_mean_discrepancy(given.latents, torch.randn_like(given.latents))
    assert torch.allclose(loss, given.distortion + 0.75 * given.kl.sum(dim=1) + 10 * discrepancy)


@pytest.mark.parametrize(
    ("maker", "message"),
    [
        (lambda: ELBO(-1.0), "`beta` must be at least 0, got -1.0"),
        (lambda: ELBO(math.nan), "`beta` must be at least 0, got nan"),
        (lambda: Capacity(-1.0), "`capacity` must be at least 0"),
        (lambda: Capacity(gamma=-1.0), "`gamma` must be at least 0"),
        (lambda: FreeBits(-0.1), "`floor` must be at least 0"),
        (lambda: InfoVAE(alpha=1.5), "`alpha` must be at most 1, got 1.5"),
        (lambda: InfoVAE(mmd_weight=0.0), "`mmd_weight` must be positive, got 0.0"),
    ],
)
def test_bad_arguments_are_refused(maker: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        maker()
