"""Random numbers that belong to rows."""

import torch
from scipy import stats

from certvae.theory.row_noise import row_normal, row_uniform


def test_a_rows_numbers_do_not_depend_on_the_batch() -> None:
    keys = torch.arange(100)
    assert torch.equal(row_normal(keys, 7, seed=3)[40:60], row_normal(keys[40:60], 7, seed=3))


def test_uniform_numbers_pass_kolmogorov_smirnov() -> None:
    values = row_uniform(torch.arange(20_000), 5, seed=1)
    assert stats.kstest(values.flatten().numpy(), "uniform").pvalue > 1e-3
    assert 0 < float(values.min()) < float(values.max()) < 1


def test_normal_numbers_pass_kolmogorov_smirnov_and_are_uncorrelated() -> None:
    values = row_normal(torch.arange(20_000), 6, seed=2)
    assert stats.kstest(values.flatten().numpy(), "norm").pvalue > 1e-3
    correlation = torch.corrcoef(values.T) - torch.eye(6, dtype=torch.float64)
    neighbors = torch.corrcoef(torch.stack([values[:-1, 0], values[1:, 0]]))[0, 1]
    assert correlation.abs().max() < 5 / 20_000**0.5
    assert neighbors.abs() < 5 / 20_000**0.5


def test_seeds_give_different_numbers_and_the_global_state_is_untouched() -> None:
    state = torch.get_rng_state()
    keys = torch.arange(5)
    assert not torch.equal(row_normal(keys, 2, seed=0), row_normal(keys, 2, seed=1))
    assert torch.equal(state, torch.get_rng_state())
