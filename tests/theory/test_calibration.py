"""The calibrated witness: the best scale and prior weight, and still only a lower bound."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from certvae.theory.calibration import Calibration, fit_calibration
from tests.conftest import random_probs


def noisy_channel(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Teacher rows, and overconfident logits of three noisy draws, shape ``(3, rows, 4)``."""
    teacher = random_probs(rows, 4, seed, sharpness=1.5)
    noise = torch.randn(3, rows, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return teacher, 3 * (teacher.log() + 1.5 * noise)


def loss(calibration: Calibration, teacher: Tensor, logits: Tensor) -> float:
    return -float((teacher * calibration(logits).log_softmax(dim=-1)).sum(dim=-1).mean())


@pytest.mark.slow
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**16))
def test_newton_finds_the_minimum_that_scipy_finds(seed: int) -> None:
    teacher, logits = noisy_channel(80, seed)
    ours = fit_calibration(teacher, logits)
    prior = ours.prior

    def objective(weights: np.ndarray) -> float:
        return loss(Calibration(float(weights[0]), float(weights[1]), prior, 80), teacher, logits.log_softmax(dim=-1))

    theirs = minimize(objective, np.array([1.0, 0.0]), method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12})
    assert loss(ours, teacher, logits.log_softmax(dim=-1)) == pytest.approx(theirs.fun, abs=1e-8)


def margins(calibration: Calibration, teacher: Tensor, logits: Tensor) -> tuple[float, float]:
    """The margin of the calibrated witness and of the raw one."""
    threshold = -torch.xlogy(teacher.mean(dim=0), teacher.mean(dim=0)).sum()
    answers = torch.stack([calibration(logits), logits]).log_softmax(dim=-1)
    calibrated, raw = (teacher * answers).sum(dim=-1).mean(dim=(1, 2)) + threshold
    return float(calibrated), float(raw)


@pytest.mark.slow
@pytest.mark.parametrize("hard", [True, False])
def test_on_the_rows_of_the_fit_it_is_the_best_at_every_scale_of_the_logits(hard: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    classes = torch.eye(10, dtype=torch.float64)[torch.randint(10, (500,), generator=generator)]
    teacher = classes if hard else 0.9 * classes + 0.01
    logits = torch.randn(2, 500, 10, generator=generator, dtype=torch.float64) + classes
    best = margins(fit_calibration(teacher, logits), teacher, logits)[0]
    assert best > 0.3
    for exponent in range(-9, 7):
        scaled = 10.0**exponent * logits
        calibrated, raw = margins(fit_calibration(teacher, scaled), teacher, scaled)
        assert calibrated == pytest.approx(best, abs=1e-9)
        assert calibrated >= max(raw, 0.0)


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**16), size=st.floats(-9, 6), sense=st.floats(-2, 2))
def test_on_the_rows_of_the_fit_it_is_at_least_the_raw_and_the_constant_witness(
    seed: int, size: float, sense: float
) -> None:
    teacher = random_probs(60, 4, seed, sharpness=3)
    noise = torch.randn(2, 60, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    logits = 10**size * (sense * teacher.log() + noise)
    calibrated, raw = margins(fit_calibration(teacher, logits), teacher, logits)
    assert calibrated >= max(raw, 0.0) - 1e-9


def test_a_witness_of_constant_logits_stays_the_best_constant_student() -> None:
    teacher = random_probs(60, 4, seed=0)
    for logits in (torch.zeros(2, 60, 4), torch.full((2, 60, 4), 0.3), teacher.mean(dim=0).log().expand(2, 60, 4)):
        calibrated, _ = margins(fit_calibration(teacher, logits), teacher, logits.double())
        assert calibrated == pytest.approx(0, abs=1e-9)


def test_a_shut_channel_gets_the_best_constant_student() -> None:
    """Logits that say nothing of the teacher are given weight near 0 and the prior weight near 1."""
    teacher = random_probs(4000, 4, seed=0)
    noise = torch.randn(2, 4000, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    calibration = fit_calibration(teacher, 5 * noise)
    assert abs(calibration.scale) < 0.05
    answers = calibration(5 * noise).softmax(dim=-1).mean(dim=(0, 1))
    assert torch.allclose(answers, teacher.mean(dim=0), atol=0.02)


def test_on_other_rows_it_beats_the_overconfident_witness() -> None:
    calibration = fit_calibration(*noisy_channel(500, seed=0))
    teacher, logits = noisy_channel(500, seed=1)
    raw = -float((teacher * logits.log_softmax(dim=-1)).sum(dim=-1).mean())
    assert loss(calibration, teacher, logits) < raw - 0.5


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`channel_logits` must have shape \(draws, N, K\)"):
        fit_calibration(random_probs(5, 3, 0), torch.zeros(2, 4, 3))
