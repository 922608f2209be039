"""The permutation test: exact, reproducible, and quick on a validation set of the usual size."""

import itertools
import math
import resource
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from certvae import certify
from certvae.theory.information import margin
from certvae.theory.permutation import permutation_p_value
from tests.conftest import random_logits, random_probs


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def enumerated_p_value(teacher: Tensor, logits: Tensor) -> float:
    """Share of all pairings whose margin, by the shipped definition, is at least the seen one."""
    seen = float(margin(teacher, logits))
    orders = itertools.permutations(range(len(teacher)))
    margins = [float(margin(teacher, logits[list(order)])) for order in orders]
    return sum(value >= seen - 1e-12 for value in margins) / len(margins)


@pytest.mark.slow
@given(
    rows=st.integers(1, 40),
    components=st.integers(2, 12),
    seed=st.integers(0, 2**16),
    scale=st.sampled_from([0.0, 1e-6, 1.0, 300.0]),
)
def test_a_constant_witness_gets_exactly_one(rows: int, components: int, seed: int, scale: float) -> None:
    constant = random_logits(1, components, seed, scale).expand(rows, -1)
    assert permutation_p_value(random_probs(rows, components, seed), constant, 19, seeded(seed)) == 1.0


@pytest.mark.parametrize("rows", [3, 100, 3000])
def test_a_constant_teacher_gets_exactly_one(rows: int) -> None:
    """Every pairing has the same terms, but added in another order, which differs by rounding."""
    teacher = random_probs(1, 7, seed=0).expand(rows, -1)
    assert permutation_p_value(teacher, random_logits(rows, 7, seed=1), 50, seeded(0)) == 1.0


def test_a_large_constant_witness_gets_exactly_one() -> None:
    teacher, constant = random_probs(10_000, 100, seed=0), random_logits(1, 100, seed=1).expand(10_000, -1)
    assert permutation_p_value(teacher, constant, 20, seeded(0)) == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_the_sampled_value_approaches_the_enumeration_of_all_pairings(seed: int) -> None:
    """720 pairings of 6 rows; five standard errors of 20,000 draws."""
    teacher = random_probs(6, 3, seed)
    logits = 0.3 * teacher.log() + random_logits(6, 3, seed, scale=1.0)
    exact = enumerated_p_value(teacher, logits)
    error = math.sqrt(exact * (1 - exact) / 20_000)
    sampled = permutation_p_value(teacher, logits, 20_000, seeded(seed))
    assert sampled == pytest.approx(exact, abs=5 * error + 1e-4)


@pytest.mark.slow
def test_tied_rows_count_as_at_least() -> None:
    """Two kinds of rows, three of each: a pairing by kind is one of 6! / (3! 3!) = 20."""
    teacher = torch.tensor([[0.9, 0.1], [0.1, 0.9]], dtype=torch.float64).repeat(3, 1)
    assert enumerated_p_value(teacher, teacher.log()) == pytest.approx(1 / 20)
    sampled = permutation_p_value(teacher, teacher.log(), 20_000, seeded(0))
    assert sampled == pytest.approx(1 / 20, abs=0.008)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.01, 1.0])
def test_p_values_of_an_independent_witness_are_super_uniform(scale: float) -> None:
    """P(p <= alpha) <= alpha, up to four standard errors of 3,000 data sets; also not far below."""
    repetitions, rows = 3000, 12
    generator = seeded(7)
    values = [
        permutation_p_value(
            random_probs(rows, 3, seed=2 * number),
            random_logits(rows, 3, seed=2 * number + 1, scale=scale),
            19,
            generator,
        )
        for number in range(repetitions)
    ]
    for alpha in (0.05, 0.1, 0.25, 0.5, 0.9):
        rate = sum(value <= alpha + 1e-12 for value in values) / repetitions
        error = math.sqrt(alpha * (1 - alpha) / repetitions)
        assert abs(rate - alpha) <= 4 * error


def test_a_dependent_witness_gets_the_smallest_value() -> None:
    teacher = random_probs(200, 5, seed=0)
    logits = 0.5 * teacher.log() + random_logits(200, 5, seed=1, scale=0.5)
    assert permutation_p_value(teacher, logits, 199, seeded(0)) == 1 / 200


def test_a_dependent_witness_with_a_negative_margin_is_still_told_from_an_independent_one() -> None:
    """The test is about dependence: overconfidence costs the margin, not the p-value."""
    teacher = random_probs(200, 5, seed=0, sharpness=1.0)
    logits = 20 * (teacher.log() + random_logits(200, 5, seed=1, scale=0.5))
    assert margin(teacher, logits) < 0
    assert permutation_p_value(teacher, logits, 99, seeded(0)) == 1 / 100


def test_p_value_does_not_depend_on_the_units_of_the_rows() -> None:
    """Logits are unnormalized, and 32-bit input is summed in 64 bits."""
    teacher, logits = random_probs(50, 4, seed=0), random_logits(50, 4, seed=1)
    shift = 100 * torch.randn(50, 1, generator=seeded(2), dtype=torch.float64)
    expected = permutation_p_value(teacher, logits, 199, seeded(0))
    assert permutation_p_value(teacher, logits + shift, 199, seeded(0)) == expected
    assert permutation_p_value(teacher.float().numpy(), logits.float().numpy(), 199, seeded(0)) == expected


@settings(max_examples=30)
@given(seed=st.integers(0, 2**16), rows=st.integers(1, 30))
def test_a_generator_reproduces_the_value_and_leaves_the_global_state_alone(seed: int, rows: int) -> None:
    teacher, logits = random_probs(rows, 3, seed), random_logits(rows, 3, seed)
    before = torch.get_rng_state()
    first = permutation_p_value(teacher, logits, 29, seeded(seed))
    assert first == permutation_p_value(teacher, logits, 29, seeded(seed))
    assert torch.equal(before, torch.get_rng_state())


def test_the_global_seed_reproduces_the_value_without_a_generator() -> None:
    teacher, logits = random_probs(30, 3, seed=0), random_logits(30, 3, seed=1)
    values = set()
    for _ in range(2):
        torch.manual_seed(5)
        values.add(permutation_p_value(teacher, logits, 99))
    assert len(values) == 1


@pytest.mark.slow
def test_a_validation_set_takes_seconds_and_no_matrix_of_all_pairs() -> None:
    """40,000 rows squared would be 12.8 GB; one pass holds a copy of the rows."""
    teacher, logits = random_probs(40_000, 25, seed=0), random_logits(40_000, 25, seed=1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    permutation_p_value(teacher, logits, 200, seeded(0))
    assert time.perf_counter() - started < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 200_000  # KiB


@pytest.mark.parametrize("permutations", [0, -1])
def test_no_permutation_is_rejected(permutations: int) -> None:
    with pytest.raises(ValueError, match="`permutations` must be at least 1"):
        permutation_p_value(random_probs(5, 3, seed=0), random_logits(5, 3, seed=0), permutations)


def test_bad_rows_are_rejected() -> None:
    teacher, logits = random_probs(5, 3, seed=0), random_logits(5, 3, seed=0)
    with pytest.raises(ValueError, match="must have the same shape"):
        permutation_p_value(teacher, logits[:4], 9)
    with pytest.raises(ValueError, match="at least one row"):
        permutation_p_value(teacher[:0], logits[:0], 9)
    with pytest.raises(ValueError, match="`teacher_probs` must hold non-negative rows"):
        permutation_p_value(2 * teacher, logits, 9)
    with pytest.raises(ValueError, match="`witness_logits` must be finite"):
        permutation_p_value(teacher, logits.log(), 9)


def test_certify_fills_in_the_value() -> None:
    teacher, logits = random_probs(60, 4, seed=0), random_logits(60, 4, seed=1)
    assert certify(teacher, logits).p_value is None
    certificate = certify(teacher, logits, permutations=99, generator=seeded(0))
    assert certificate.p_value == permutation_p_value(teacher, logits, 99, seeded(0))
    assert "permutation p-value" in str(certificate)


def test_certify_tests_the_floored_witness_on_the_rows_of_positive_weight() -> None:
    teacher, logits = random_probs(60, 4, seed=0), random_logits(60, 4, seed=1)
    weights = (torch.arange(60) % 3 > 0).double()
    certificate = certify(teacher, logits, weights=weights, witness_floor=0.5, permutations=99, generator=seeded(0))
    floored = (0.5 * logits.softmax(dim=1) + 0.5 / 4).log()
    kept = weights > 0
    assert certificate.p_value == permutation_p_value(teacher[kept], floored[kept], 99, seeded(0))


def test_certify_rejects_a_negative_number_of_permutations() -> None:
    with pytest.raises(ValueError, match="`permutations` must be at least 0, got -1"):
        certify(random_probs(5, 3, seed=0), random_logits(5, 3, seed=0), permutations=-1)
