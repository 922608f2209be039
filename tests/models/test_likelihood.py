"""The optimal variance is the one that no other beats."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal

from certvae.models.likelihood import optimal_distortion, optimal_log_std


def clipped(log_std: float) -> float:
    return -6 + math.log1p(math.exp(log_std + 6))


@given(seed=st.integers(0, 2**16), scale=st.floats(1e-1, 1e2), log_std=st.floats(-5, 5))
def test_no_other_standard_deviation_is_more_likely(seed: int, scale: float, log_std: float) -> None:
    """Up to the soft clip, which costs less than D times the square of how far it moves the logarithm."""
    error = scale * torch.rand(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    best = float(optimal_distortion(error, 8).mean())
    other = float((error / 2).mean() * math.exp(-2 * log_std) + 8 * log_std)
    exact = 0.5 * math.log(float(error.mean()) / 8)
    assert best <= other + 8 * (clipped(exact) - exact) ** 2 + 1e-9


def test_it_is_the_likelihood_of_the_values() -> None:
    difference = torch.randn(4, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    error = (difference**2).sum(dim=1)
    std = optimal_log_std(error, 9).exp()
    assert float(optimal_log_std(error, 9)) == pytest.approx(clipped(0.5 * math.log(float((difference**2).mean()))))
    expected = -Normal(0.0, std).log_prob(difference).sum(dim=1) - 9 / 2 * math.log(2 * math.pi)
    assert torch.allclose(optimal_distortion(error, 9), expected)


@pytest.mark.parametrize("error", [0.0, 1e-30])
def test_a_perfect_reconstruction_costs_a_finite_amount_and_gives_a_finite_gradient(error: float) -> None:
    squared_error = torch.full((3,), error, requires_grad=True)
    loss = optimal_distortion(squared_error, 8).mean()
    loss.backward()
    assert float(optimal_log_std(squared_error, 8).detach()) == pytest.approx(-6.0)
    assert float(loss.detach()) == pytest.approx(8 * -6.0)
    assert squared_error.grad is not None
    assert bool(squared_error.grad.isfinite().all())
