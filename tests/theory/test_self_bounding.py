"""The proof of the population's lower side, step by step: by brute force in channels whose samples can be counted."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from certvae.theory.bracket import _population_lower

CHANCES, NOISE, ROWS = (0.02, 0.2, 0.5), (0.0, 0.1, 0.4), (2, 3, 10, 60)


def information(rows: np.ndarray) -> float:
    """Of the place of a row and its output, in nats; ``rows`` holds the distribution of each row's output."""
    mean = rows.mean(axis=0)
    ratio = np.divide(rows, mean, out=np.ones_like(rows), where=rows > 0)
    return float((rows * np.log(ratio)).sum(axis=1).mean())


def constants(rows: int) -> tuple[float, float]:
    """The largest step c of one row, and the factor a of all."""
    return (
        math.log(rows) + (rows - 1) * math.log(rows / (rows - 1)),
        1 + (1 - 1 / rows) / (math.log(rows) - 1 + 1 / rows),
    )


@pytest.mark.slow
@given(rows=st.integers(2, 30), outputs=st.integers(2, 12), sharp=st.floats(0.01, 30), seed=st.integers(0, 2**16))
def test_a_row_adds_to_the_information_what_the_proof_says(rows: int, outputs: int, sharp: float, seed: int) -> None:
    """``f - f_i`` lies in [0, c], and their sum is at most ``a f``; also where rows are alike or told apart."""
    logits = sharp * np.random.default_rng(seed).standard_normal((rows, outputs))
    channel = np.exp(logits - logits.max(axis=1, keepdims=True))
    channel /= channel.sum(axis=1, keepdims=True)
    whole = rows * information(channel)
    steps = [whole - (rows - 1) * information(np.delete(channel, row, axis=0)) for row in range(rows)]
    most, factor = constants(rows)
    assert min(steps) >= -1e-9
    assert max(steps) <= most + 1e-9
    assert sum(steps) <= factor * whole + 1e-9


def counted(rows: int, chance: float, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Every value of f for one block of coins that are read with noise, and its probability."""
    outputs = np.array([[1 - noise, noise], [noise, 1 - noise]])
    values = [rows * information(outputs[[0] * (rows - heads) + [1] * heads]) for heads in range(rows + 1)]
    return np.array(values), binom.pmf(np.arange(rows + 1), rows, chance)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("chance", CHANCES)
@pytest.mark.parametrize("noise", NOISE)
def test_the_tail_has_at_most_its_probability_in_populations_that_can_be_counted(
    rows: int, chance: float, noise: float
) -> None:
    """The exponential moments of the proof, and the bound of one block and of two."""
    values, shares = counted(rows, chance, noise)
    most, factor = constants(rows)
    scaled, kappa = values / most, (3 * factor - 1) / 6
    average = float(shares @ scaled)
    for power in np.linspace(0.01, 0.99, 50) / kappa:
        moment = math.log(float(shares @ np.exp(power * (scaled - average))))
        assert moment <= factor * average * power**2 / (2 * (1 - kappa * power)) + 1e-12
    pairs, products = values[:, None] + values, shares[:, None] * shares
    for error in (0.9, 0.5, 0.2, 0.05, 0.001):
        for blocks, amounts, chances in ((1, values, shares), (2, pairs.ravel(), products.ravel())):
            whole, expected = blocks * rows, float(chances @ amounts)
            bounds = [whole * _population_lower(amount / whole, [rows] * blocks, error) for amount in amounts]
            assert chances[np.array(bounds) > expected + 1e-9].sum() <= error


def test_the_comparison_function_of_the_proof_grows_fast_enough() -> None:
    """``rho H' >= H`` up to ``1 / kappa``, and the polynomial that shows it is at least 0.85."""
    for a in np.linspace(1, 3.6, 53):
        kappa = (3 * a - 1) / 6
        x = np.linspace(1e-3, 1 / kappa, 500, endpoint=False)
        rho = x - a * (np.expm1(-x) + x)
        height = x + a * x**2 / (2 * (1 - kappa * x))
        slope = 1 + a * (2 * x - kappa * x**2) / (2 * (1 - kappa * x) ** 2)
        assert (rho * slope >= height * (1 - 1e-12)).all()
        polynomial = a * (3 - x + x**2 / 4 - x**3 / 20 + x**4 / 120) - x / 15 + x**2 / 60 - x**3 / 60 - x**4 / 360
        assert polynomial.min() >= 0.85


@given(value=st.floats(0, 5), more=st.floats(0, 5), rows=st.integers(3, 2000), error=st.floats(0.001, 0.9))
def test_where_the_bound_is_positive_it_grows_with_the_information_of_the_rows(
    value: float, more: float, rows: int, error: float
) -> None:
    """So that the rows' information may be replaced by its own lower bound."""
    bounds = [_population_lower(amount, [rows, rows], error) for amount in (value, value + more)]
    assert max(bounds[0], 0) <= max(bounds[1], 0) + 1e-12
