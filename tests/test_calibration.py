"""The calibrated witness: the best scale and prior weight, and still only a lower bound."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from certvae.calibration import Calibration, fit_calibration
from tests.conftest import random_probs


def noisy_channel(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Teacher rows, and overconfident logits of three noisy draws, shape ``(3, rows, 4)``."""
    teacher = random_probs(rows, 4, seed, sharpness=1.5)
    noise = torch.randn(3, rows, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return teacher, 3 * (teacher.log() + 1.5 * noise)


def loss(calibration: Calibration, teacher: Tensor, logits: Tensor) -> float:
    return -float((teacher * calibration(logits).log_softmax(dim=-1)).sum(dim=-1).mean())


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
