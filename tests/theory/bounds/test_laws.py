"""The laws of every registered bound."""

import math

import pytest
import torch
from torch import Tensor

from certvae import Certificate, certify
from certvae.certificate.claims import check_claims
from certvae.theory.bounds import BOUNDS, find_bound, register
from certvae.theory.bounds.plugin import Plugin
from tests.conftest import random_logits, random_probs

FLOOR = 0.05
EVERY = pytest.mark.parametrize("method", sorted(BOUNDS))
PROVED = pytest.mark.parametrize("method", sorted(name for name, bound in BOUNDS.items() if bound.rigorous))


def rows(count: int, components: int, seed: int, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    teacher = (1 - FLOOR) * random_probs(count, components, seed, 3.0) + FLOOR / components
    return teacher, teacher.log() + noise * random_logits(count, components, seed, 1.0)


def made(teacher: Tensor, logits: Tensor, method: str, **options: float) -> Certificate:
    return certify(teacher, logits, method=method, teacher_floor=FLOOR, **options)  # type: ignore[arg-type]


@EVERY
@pytest.mark.parametrize("count", [1, 2, 3, 40, 700])
def test_no_bound_is_above_the_margin_and_its_certificate_contradicts_nothing(method: str, count: int) -> None:
    for seed in range(3):
        certificate = made(*rows(count, 4, seed), method)
        assert certificate.margin_lower <= certificate.margin + 1e-9
        assert certificate.method == method
        check_claims(certificate)


@EVERY
def test_a_bound_nears_the_margin_as_rows_are_added(method: str) -> None:
    widths = []
    for count in (100, 1000, 10_000):
        certificate = made(*rows(count, 4, 0), method)
        widths.append(certificate.margin - certificate.margin_lower)
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.4


@EVERY
def test_the_names_of_components_do_not_matter(method: str) -> None:
    teacher, logits = rows(300, 5, 1)
    order = torch.tensor([3, 0, 4, 1, 2])
    one, other = made(teacher, logits, method), made(teacher[:, order], logits[:, order], method)
    assert one.margin_lower == pytest.approx(other.margin_lower, abs=2e-4)


@EVERY
def test_a_constant_witness_is_never_above_its_threshold(method: str) -> None:
    """On these rows for the plug-in margin; the others are lower still."""
    teacher, _ = rows(500, 4, 2)
    for constant in (torch.zeros(4), teacher.mean(dim=0).log(), torch.tensor([3.0, 0.0, 0.0, 0.0])):
        assert made(teacher, constant.expand(500, 4), method).margin_lower <= 1e-9


@PROVED
def test_a_proved_bound_asks_for_both_floors_and_equal_weights(method: str) -> None:
    teacher, logits = rows(50, 3, 0)
    with pytest.raises(ValueError, match="`teacher_floor` and `witness_floor` must be above 0"):
        certify(teacher, logits, method=method)
    with pytest.raises(ValueError, match="needs weights that are 0 or one common value"):
        certify(teacher, logits, weights=torch.arange(50.0), method=method, teacher_floor=FLOOR)


@PROVED
def test_a_sample_without_the_rare_gross_error_is_no_proof(method: str) -> None:
    """The witness is right but for 1 % of the rows, which this sample lacks: the bound stays below the true margin."""
    teacher = ((1 - FLOOR) * torch.eye(2, dtype=torch.float64) + FLOOR / 2).repeat(30, 1)
    answers = teacher.log()
    certificate = made(teacher, answers, method, witness_floor=1e-3)
    wrong = certify(teacher, answers.flip(1), method="plugin", witness_floor=1e-3).margin
    truth = 0.99 * certificate.margin + 0.01 * wrong
    assert certificate.margin_lower < truth


@EVERY
def test_a_report_has_words_for_it(method: str) -> None:
    bound = find_bound(method)
    assert len(bound.sentence) > 20
    assert bound.name == method
    assert bound.fallback is None or BOUNDS[bound.fallback].needs_rows is False
    assert not math.isnan(bound.default_witness_floor)


def test_two_bounds_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="`name` must be new among"):
        register(Plugin)
