"""The theorems of the certificate, against brute force in plain Python."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from certvae.theory import information
from tests.conftest import random_logits, random_probs

SIZES = {"rows": st.integers(1, 30), "components": st.integers(2, 12), "seed": st.integers(0, 2**16)}


def brute_force_kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def brute_force_constant_cost(teacher: Tensor, student: list[float]) -> float:
    rows = teacher.tolist()
    return sum(brute_force_kl(row, student) for row in rows) / len(rows)


@pytest.mark.slow
@given(**SIZES)
def test_teacher_information_is_the_cost_of_the_mean_teacher(rows: int, components: int, seed: int) -> None:
    teacher = random_probs(rows, components, seed)
    mean = information.best_constant_student(teacher)
    expected = brute_force_constant_cost(teacher, mean.tolist())
    assert float(information.teacher_information(teacher)) == pytest.approx(expected, abs=1e-12)
    assert float(information.constant_student_loss(teacher, mean)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.slow
def test_no_constant_student_beats_the_mean_teacher() -> None:
    """Over 20,000 random constants, near the optimum and far from it."""
    teacher = random_probs(50, 6, seed=1)
    best = information.teacher_information(teacher)
    mean = information.best_constant_student(teacher)
    for scale in (0.001, 0.01, 0.1, 1.0, 5.0):
        noise = scale * random_logits(4000, 6, seed=2, scale=1.0)
        students = (mean.log() + noise).softmax(dim=1)
        costs = [float(information.kl_divergence(teacher, student.log()).mean()) for student in students]
        assert min(costs) >= float(best)


@pytest.mark.slow
@given(**SIZES)
def test_a_constant_costs_the_information_plus_its_divergence_from_the_mean(
    rows: int, components: int, seed: int
) -> None:
    teacher, student = random_probs(rows, components, seed), random_probs(1, components, seed + 1)[0]
    mean = information.best_constant_student(teacher).tolist()
    expected = float(information.teacher_information(teacher)) + brute_force_kl(mean, student.tolist())
    assert float(information.constant_student_loss(teacher, student)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.slow
@given(**SIZES)
def test_margin_of_a_constant_witness_is_minus_its_divergence_from_the_mean(
    rows: int, components: int, seed: int
) -> None:
    teacher, student = random_probs(rows, components, seed), random_probs(1, components, seed + 1)
    mean = information.best_constant_student(teacher).tolist()
    margin = information.margin(teacher, student.log().expand(rows, -1))
    assert float(margin) == pytest.approx(-brute_force_kl(mean, student[0].tolist()), abs=1e-12)


@pytest.mark.slow
@given(**SIZES)
def test_margin_is_at_most_the_information_with_equality_at_the_teacher(rows: int, components: int, seed: int) -> None:
    teacher = random_probs(rows, components, seed)
    best = float(information.teacher_information(teacher))
    assert float(information.margin(teacher, random_logits(rows, components, seed))) <= best
    assert float(information.margin(teacher, teacher.log())) == pytest.approx(best, abs=1e-12)


@pytest.mark.slow
@given(**SIZES)
def test_alignment_and_witness_information_equal_brute_force(rows: int, components: int, seed: int) -> None:
    teacher, logits = random_probs(rows, components, seed), random_logits(rows, components, seed)
    witness = logits.softmax(dim=1).tolist()
    alignment = sum(brute_force_kl(t, s) for t, s in zip(teacher.tolist(), witness, strict=True)) / rows
    mean = [sum(column) / rows for column in zip(*witness, strict=True)]
    spread = sum(brute_force_kl(s, mean) for s in witness) / rows
    assert float(information.alignment_loss(teacher, logits)) == pytest.approx(alignment, abs=1e-10)
    assert float(information.witness_information(logits)) == pytest.approx(spread, abs=1e-12)


@pytest.mark.slow
@given(**SIZES)
def test_relabeling_the_components_changes_nothing(rows: int, components: int, seed: int) -> None:
    teacher, logits = random_probs(rows, components, seed), random_logits(rows, components, seed)
    order = torch.randperm(components, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(
        information.margin(teacher, logits), information.margin(teacher[:, order], logits[:, order]), atol=1e-12
    )


@settings(max_examples=30)
@given(components=st.integers(2, 8), seed=st.integers(0, 2**16))
def test_extreme_probabilities_give_no_nan(components: int, seed: int) -> None:
    """Exact zeros and 1e-30 in the teacher, log-probabilities of -700 in the witness."""
    teacher = torch.eye(components, dtype=torch.float64)
    teacher[0] = torch.full((components,), 1e-30, dtype=torch.float64)
    teacher[0, -1] = 1.0
    logits = 700 * random_logits(components, components, seed, scale=1.0)
    for value in (
        information.teacher_information(teacher),
        information.margin(teacher, logits),
        information.alignment_loss(teacher, logits),
        information.witness_information(logits),
    ):
        assert bool(value.isfinite())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_floats_are_widened_and_renormalized(dtype: torch.dtype) -> None:
    probs = random_probs(20, 5, seed=3).to(dtype)
    widened = information.as_probabilities(probs)
    assert widened.dtype == torch.float64
    assert torch.allclose(widened.sum(dim=1), torch.ones(20, dtype=torch.float64), atol=1e-15)


def test_the_floored_witness_is_a_mixture_with_the_uniform_distribution() -> None:
    probs = random_probs(5, 4, seed=4)
    floored = information.floor_log_probabilities(probs.log(), 0.1).exp()
    assert torch.allclose(floored, 0.9 * probs + 0.1 / 4, atol=1e-15)


def test_a_constant_added_to_logits_changes_nothing() -> None:
    logits = torch.randint(-20, 20, (9, 7), generator=torch.Generator().manual_seed(0)).double()
    assert torch.equal(information.as_logits(logits + 2.0**29), information.as_logits(logits))


@pytest.mark.parametrize("floor", [1e-300, 6e-308, 1e-308, 5e-324])
def test_the_smallest_floor_holds_too(floor: float) -> None:
    log_probs = torch.tensor([[0.0, -1e5, -1e9]], dtype=torch.float64)
    floored = information.floor_log_probabilities(log_probs, floor)
    least = math.log(floor) - math.log(3)
    assert torch.allclose(floored, torch.tensor([[0.0, least, least]], dtype=torch.float64), rtol=1e-14)


@pytest.mark.parametrize(
    ("probs", "message"),
    [
        ([[0.5, 0.6]], "row 0 .* sum 1.1"),
        ([[0.5, 0.5], [-0.1, 1.1]], "row 1 with minimum -0.1"),
        ([[float("nan"), 1.0]], "`teacher_probs` must hold non-negative rows"),
        ([[1.0]], "at least 2 components"),
        ([0.5, 0.5], "shape"),
    ],
)
def test_rows_that_are_no_probabilities_are_refused(probs: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        information.teacher_information(torch.tensor(probs))


def test_integers_are_refused() -> None:
    with pytest.raises(ValueError, match="floating-point"):
        information.as_probabilities(torch.eye(2, dtype=torch.int64))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="`witness_logits` must be finite, got row 1"):
        information.alignment_loss(torch.full((2, 2), 0.5), torch.tensor([[0.0, 0.0], [value, 0.0]]))


def test_teacher_and_witness_of_different_components_are_refused() -> None:
    with pytest.raises(ValueError, match=r"same shape \(N, K\), got \(2, 3\) and \(2, 4\)"):
        information.margin(torch.full((2, 3), 1 / 3), torch.zeros(2, 4))
