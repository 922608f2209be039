"""What the studies' theory states, against brute force: the margin-energy path and frontier, views and their bounds."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from certvae.datamodules import DigitsDataModule
from certvae.models.networks import MLPEncoder
from certvae.theory.information import kl_divergence, margin, teacher_information
from certvae.theory.witness import SimplexWitness
from experiments.path.theory import cheapest_codes, frontier, most_margin, path
from experiments.view.bounds import covariance_of, noise_information
from experiments.view.views import KINDS, ViewEncoder, Views, view, view_numbers
from tests.conftest import random_probs
from tests.runs import SHAPE, digits_teacher

pytestmark = pytest.mark.slow

PRICES = [10 ** (-number / 2) for number in range(-2, 7)]


@given(seed=st.integers(0, 2**16), components=st.integers(2, 8))
def test_along_the_scaled_code_the_margin_is_concave_and_largest_at_the_teacher(seed: int, components: int) -> None:
    teacher = random_probs(40, components, seed)
    prior = random_probs(1, components, seed + 1)[0]
    points = path(teacher, prior, [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5])
    margins = torch.tensor([point[1] for point in points], dtype=torch.float64)
    assert (margins.diff().diff() <= 1e-12).all()
    assert margins.argmax() == 4
    assert margins[4].item() == pytest.approx(float(teacher_information(teacher)))
    assert margins[0].item() == pytest.approx(-float(kl_divergence(teacher.mean(dim=0), prior.log())))
    energy = float(SimplexWitness(components, components - 1, 1.0, prior).energy(teacher).mean())
    assert [point[0] for point in points] == pytest.approx([t**2 * energy for t in (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5)])


@settings(max_examples=20)
@given(seed=st.integers(0, 2**16), size=st.floats(0.1, 5))
def test_no_code_whatever_lies_above_the_frontier(seed: int, size: float) -> None:
    teacher = random_probs(30, 5, seed)
    witness = SimplexWitness(5, 4, 1.0, teacher.mean(dim=0))
    points = frontier(teacher, teacher.mean(dim=0), PRICES)
    noise = torch.randn(30, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for codes in (size * noise, size / 5 * witness.inverse(teacher), 0.3 * noise + 0.7 * witness.inverse(teacher)):
        energy = float((codes**2).sum(dim=1).mean() / 2)
        assert float(margin(teacher, witness(codes))) <= most_margin(energy, PRICES, points) + 1e-9
    for energy, reached in points:
        assert most_margin(energy, PRICES, points) == pytest.approx(reached, abs=1e-9)


def test_the_cheapest_codes_are_those_that_scipy_finds() -> None:
    teacher = random_probs(4, 6, 3, sharpness=4.0)
    witness = SimplexWitness(6, 5, 1.0)
    found = cheapest_codes(witness, teacher, 0.05, torch.zeros(4, 5, dtype=torch.float64))
    for row in range(4):

        def cost(code: Any, row: int = row) -> float:
            answers = witness(torch.tensor(code)[None]).log_softmax(dim=1)[0]
            return float(kl_divergence(teacher[row], answers)) + 0.05 * float((code**2).sum()) / 2

        assert found[row].tolist() == pytest.approx(minimize(cost, [0.0] * 5, tol=1e-10).x.tolist(), abs=1e-4)


def test_a_price_of_nothing_and_codes_that_are_no_numbers_have_no_cheapest_code() -> None:
    teacher, witness = random_probs(3, 3, 0), SimplexWitness(3, 2, 1.0)
    with pytest.raises(ValueError, match="`price` must be above 0"):
        cheapest_codes(witness, teacher, 0.0, torch.zeros(3, 2, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="were not found"):
        cheapest_codes(witness, teacher, 1.0, torch.full((3, 2), math.nan, dtype=torch.float64))


def _digits(rows: int) -> Tensor:
    images = DigitsDataModule().arrays.images[:rows]
    return torch.from_numpy(images).float() / 255


def _coarse_views(images: Tensor) -> Tensor:
    """All nine shifts by at most one pixel, as the code of 2 x 2 block means in three gray levels, shape ``(9, N)``."""
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
    shifted = [padded[:, :, row : row + 8, column : column + 8] for row in range(3) for column in range(3)]
    levels = torch.stack([torch.nn.functional.avg_pool2d(part, 4).flatten(start_dim=1) for part in shifted])
    return ((levels * 6).long().clamp(max=2) * 3 ** torch.arange(4)).sum(dim=-1)


@pytest.mark.parametrize("seed", range(3))
def test_the_gap_between_views_is_exactly_what_every_answer_pays_beside_its_own_misfit(seed: int) -> None:
    """Brute force over the joint distribution of 300 digits, their nine coarse views, and the component."""
    images = _digits(300)
    teacher, seen = digits_teacher()(images).double(), _coarse_views(images)
    joint = torch.zeros(81, 300, dtype=torch.float64).index_put(
        (seen, torch.arange(300).expand(9, -1)), torch.tensor(1 / 2700, dtype=torch.float64), accumulate=True
    )
    weight = joint.sum(dim=1)
    occurring = weight > 0
    conditional = torch.where(occurring[:, None], joint @ teacher / weight.clamp(min=1e-300)[:, None], 0.2)
    pairs = (joint[:, :, None] * teacher).sum(dim=1)  # the joint distribution of view and component
    known = (torch.xlogy(pairs, pairs) - torch.xlogy(pairs, weight[:, None] * teacher.mean(dim=0))).sum()
    gap = (joint * kl_divergence(teacher[None], conditional.log()[:, None])).sum()
    assert float(known) == pytest.approx(float(teacher_information(teacher) - gap))
    assert gap > 0.05
    answer = random_probs(81, 5, seed)
    misfit = (weight * kl_divergence(conditional, answer.log())).sum()
    paid = (joint * kl_divergence(teacher[None], answer.log()[:, None])).sum()
    assert float(paid) == pytest.approx(float(gap + misfit))


def test_noise_leaves_at_most_the_information_of_a_gaussian_and_the_teacher_on_views_no_more_than_bayes() -> None:
    """Brute force: with N equally likely digits and known noise, Bayes' rule gives ``E[T | view]`` exactly."""
    images, std = _digits(200), 1.0
    rows, teacher = images.flatten(start_dim=1).double(), digits_teacher()
    clean, generator = teacher(images).double(), torch.Generator().manual_seed(0)
    told, gap, own = [], [], []
    for _ in range(20):
        noisy = rows + std * torch.randn(rows.shape, generator=generator, dtype=torch.float64)
        posterior = (-((noisy[:, None] - rows) ** 2).sum(dim=2) / (2 * std**2)).log_softmax(dim=1)
        told.append((posterior.diagonal() + math.log(200)).mean())
        gap.append(kl_divergence(clean, (posterior.exp() @ clean).log()).mean())
        own.append(kl_divergence(clean, teacher(noisy.view(images.shape).clamp(0, 1)).log()).mean())
    limit = noise_information(covariance_of(images.split(64)), std)
    assert torch.stack(told).mean() <= limit
    assert teacher_information(clean) - torch.stack(gap).mean() <= min(limit, float(teacher_information(clean)))
    assert 0 < torch.stack(gap).mean() <= torch.stack(own).mean()


def test_the_covariance_of_batches_is_that_of_the_rows() -> None:
    images = _digits(150)
    found = covariance_of(images.split(40))
    torch.testing.assert_close(found, torch.cov(images.flatten(start_dim=1).double().T, correction=0))


@pytest.mark.parametrize("kind", KINDS)
def test_a_view_of_no_strength_is_the_image_and_every_view_stays_in_range(kind: str) -> None:
    images = _digits(20)
    uniforms = torch.rand(20, view_numbers(kind, SHAPE), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(view(images, kind, 0, uniforms), images)
    changed = view(images, kind, 2, uniforms)
    assert changed.shape == images.shape
    assert not torch.equal(changed, images)
    assert 0 <= changed.min() <= changed.max() <= 1


def test_a_shift_moves_the_image_by_whole_pixels_in_every_direction() -> None:
    images, places = _digits(1).expand(25, -1, -1, -1), (torch.arange(5) + 0.5) / 5
    moved = view(images, "shift", 2, torch.cartesian_prod(places, places))
    padded = torch.nn.functional.pad(images[:1], (2, 2, 2, 2))
    wanted = [padded[0, :, row : row + 8, column : column + 8] for row in range(5) for column in range(5)]
    assert torch.equal(moved, torch.stack(wanted))


@pytest.mark.parametrize("kind", KINDS)
def test_in_evaluation_the_view_belongs_to_the_image_and_in_training_it_is_new(kind: str) -> None:
    encoder, images = ViewEncoder(MLPEncoder(SHAPE, 3, 8, 1), kind, 1.0), _digits(12)
    seen = encoder.eval().views(images)
    assert torch.equal(encoder.views(images.flip(0)), seen.flip(0))
    assert torch.equal(torch.cat([encoder.views(part) for part in images.split(5)]), seen)
    assert torch.equal(encoder(images).mean, encoder.encoder(seen).mean)
    assert not torch.equal(encoder.train().views(images), encoder.views(images))


def test_views_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="`kind` must be one of shift, noise, color"):
        Views("blur", 1.0)
    with pytest.raises(ValueError, match="`strength` must be at least 0"):
        Views("shift", 0.5)
