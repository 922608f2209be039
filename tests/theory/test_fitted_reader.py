"""The fitted reader: nearly as good as a logistic regression, worth nothing on noise, and blind to scale."""

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from certvae.theory.fitted_reader import FittedReader

DIGITS = load_digits()
CODES = torch.tensor(DIGITS.data / 16)[torch.randperm(1797, generator=torch.Generator().manual_seed(0))]
LABELS = torch.tensor(DIGITS.target)[torch.randperm(1797, generator=torch.Generator().manual_seed(0))]
TEACHER = 0.9 * torch.nn.functional.one_hot(LABELS, 10).double() + 0.01


def margin(teacher: Tensor, logits: Tensor) -> float:
    mean = teacher.mean(dim=0)
    return float((teacher * logits.log_softmax(dim=1)).sum(dim=1).mean() - torch.xlogy(mean, mean).sum())


def noisy(size: float) -> Tensor:
    return CODES + size * torch.randn(CODES.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("size", [0.0, 0.3, 1.0])
def test_it_reads_at_least_nine_tenths_of_a_tuned_logistic_regression(size: float) -> None:
    codes, fit, score = noisy(size), slice(900), slice(900, None)
    reader = FittedReader.fit(codes[fit], TEACHER[fit])
    others = [LogisticRegression(C=c, max_iter=300).fit(codes[fit], LABELS[fit]) for c in (0.01, 0.1, 1.0)]
    smoothed = [0.9 * torch.tensor(other.predict_proba(codes[score])) + 0.01 for other in others]
    best = max(margin(TEACHER[score], probs.log()) for probs in smoothed)
    assert margin(TEACHER[score], reader(codes[score])) > 0.9 * best


def test_it_reads_nothing_in_noise_and_does_little_harm() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(1797, 64, generator=generator, dtype=torch.float64)
    reader = FittedReader.fit(codes[:900], TEACHER[:900])
    assert -0.01 < margin(TEACHER[900:], reader(codes[900:])) < 0.01


def test_the_scale_of_a_coordinate_and_coordinates_that_do_not_vary_change_nothing() -> None:
    codes = noisy(0.3)
    plain = FittedReader.fit(codes[:900], TEACHER[:900])(codes[900:])
    scales = 10.0 ** torch.linspace(-6, 6, 64, dtype=torch.float64)
    scaled = FittedReader.fit(codes[:900] * scales + 5, TEACHER[:900])(codes[900:] * scales + 5)
    torch.testing.assert_close(scaled.log_softmax(dim=1), plain.log_softmax(dim=1), rtol=0, atol=1e-3)
    constant = torch.cat([codes, torch.full((1797, 1), 7.0)], dim=1)
    wider = FittedReader.fit(constant[:900], TEACHER[:900])(constant[900:])
    assert margin(TEACHER[900:], wider) == pytest.approx(margin(TEACHER[900:], plain), abs=0.01)


def test_codes_with_more_coordinates_than_rows_can_be_read() -> None:
    generator = torch.Generator().manual_seed(0)
    wide = torch.cat([noisy(0.0), torch.randn(1797, 400, generator=generator, dtype=torch.float64)], dim=1)
    assert margin(TEACHER[200:], FittedReader.fit(wide[:200], TEACHER[:200])(wide[200:])) > 0.3


def test_both_ways_to_solve_agree() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(40, 40, generator=generator, dtype=torch.float64)
    teacher = torch.randn(40, 3, generator=generator, dtype=torch.float64).softmax(dim=1)
    same = torch.cat([codes, torch.full((40, 1), 1.0)], dim=1)  # one coordinate more, which counts for nothing
    narrow, wide = FittedReader.fit(codes, teacher), FittedReader.fit(same, teacher)
    assert float(wide.weights[-1].abs().max()) == 0
    assert margin(teacher, narrow(codes)) == pytest.approx(margin(teacher, wide(same)), abs=0.1)
