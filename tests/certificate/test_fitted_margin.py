"""The cross-fitted margin is at most the information of its path, and its bound holds."""

import pytest
import torch

from certvae import CertificateSettings
from certvae.certificate.fitted_margin import fitted_margin
from tests.conftest import random_probs

SETTINGS = CertificateSettings(teacher_floor=0.1)


def rows(count: int, signal: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Teacher, mean code and a draw whose noise has variance 1."""
    generator = torch.Generator().manual_seed(seed)
    teacher = 0.9 * random_probs(count, 4, seed=seed) + 0.1 / 4
    mean = signal * (teacher @ torch.randn(4, 3, generator=generator, dtype=torch.float64))
    return teacher, mean, mean + torch.randn(count, 3, generator=generator, dtype=torch.float64)


def test_a_collapsed_mean_is_read_and_its_draw_is_not() -> None:
    teacher, mean, draw = rows(2000, 1e-4)
    found = fitted_margin(teacher, mean, draw, SETTINGS)
    assert found is not None
    assert found.draw is not None
    assert found.mean > 0.05
    assert abs(found.draw) < 0.01
    assert found.lower < 0


@pytest.mark.slow
def test_the_bound_decides_by_the_draw_where_there_is_one() -> None:
    teacher, mean, draw = rows(2000, 10.0)
    noisy, clean = (fitted_margin(teacher, mean, path, SETTINGS) for path in (draw, None))
    assert noisy is not None
    assert clean is not None
    assert noisy.draw is not None
    assert clean.draw is None
    assert noisy.lower < noisy.draw < noisy.mean
    assert noisy.lower < clean.lower < clean.mean == noisy.mean


@pytest.mark.slow
def test_noise_is_never_read_with_confidence() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(60, 400, 3, generator=generator, dtype=torch.float64)
    found = [fitted_margin(rows(400, 1.0, seed)[0], code, None, SETTINGS) for seed, code in enumerate(codes)]
    assert sum(item is not None and item.lower > 0 for item in found) == 0


def test_few_rows_are_not_read() -> None:
    assert fitted_margin(*rows(15, 1.0), SETTINGS) is None
