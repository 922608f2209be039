"""The escape force does not vanish on the collapsed manifold for any teacher that varies."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from certvae import RawHead, SimplexWitness
from certvae.theory.escape import escape_force, has_escape_force, least_escape_force
from certvae.theory.information import teacher_information
from tests.conftest import random_probs


@settings(max_examples=40)
@given(
    components=st.integers(2, 12),
    extra=st.integers(0, 3),
    scale=st.floats(0.1, 10),
    sharpness=st.floats(0.01, 20),
    with_prior=st.booleans(),
    size=st.floats(0, 30),
    seed=st.integers(0, 2**16),
)
def test_the_mean_force_on_any_constant_code_is_at_least_what_the_teacher_information_promises(
    components: int, extra: int, scale: float, sharpness: float, with_prior: bool, size: float, seed: int
) -> None:
    teacher = random_probs(20, components, seed, sharpness)
    prior = random_probs(1, components, seed + 1)[0] if with_prior else None
    witness = SimplexWitness(components, components - 1 + extra, scale, prior)
    generator = torch.Generator().manual_seed(seed)
    code = size * torch.randn(1, witness.latent_dim, generator=generator, dtype=torch.float64)
    least = least_escape_force(teacher, scale)
    assert float(escape_force(witness, code.expand(20, -1), teacher).mean()) >= least > 0


@settings(max_examples=30)
@given(components=st.integers(2, 12), scale=st.floats(0.1, 10), seed=st.integers(0, 2**16))
def test_with_a_prior_the_force_at_the_collapsed_code_is_the_distance_from_it(
    components: int, scale: float, seed: int
) -> None:
    """``scale |T - prior|`` in each row; the pulls add up to 0 if the prior is the average."""
    teacher = random_probs(20, components, seed)
    average = teacher.mean(dim=0)
    witness, zero = SimplexWitness(components, components - 1, scale, average), torch.zeros(20, components - 1).double()
    expected = scale * (teacher - average).norm(dim=1)
    torch.testing.assert_close(escape_force(witness, zero, teacher), expected)
    assert float(witness.alignment_gradient(zero, teacher).sum(dim=0).abs().max()) < 1e-12 * scale * components * 20


def test_a_constant_teacher_needs_no_force_and_an_aligned_code_feels_none() -> None:
    constant, teacher = torch.full((5, 3), 1 / 3, dtype=torch.float64), random_probs(5, 3, 0)
    witness = SimplexWitness(3, 2)
    assert least_escape_force(constant, 2.0) == pytest.approx(0, abs=1e-15)
    assert float(escape_force(witness, torch.zeros(5, 2).double(), constant).max()) == pytest.approx(0, abs=1e-15)
    assert float(escape_force(witness, witness.inverse(teacher), teacher).max()) == pytest.approx(0, abs=1e-12)


def test_a_component_that_is_never_used_does_not_empty_the_promise() -> None:
    teacher = torch.cat([random_probs(9, 3, 1), torch.zeros(9, 1, dtype=torch.float64)], dim=1)
    assert float(teacher_information(teacher)) > 0
    witness, zero = SimplexWitness(4, 3, 2.0), torch.zeros(9, 3).double()
    assert float(escape_force(witness, zero, teacher).mean()) >= least_escape_force(teacher, 2.0) > 0


@pytest.mark.parametrize("hidden", [0, 6])
def test_of_a_raw_head_at_its_start_it_vanishes_for_every_code_and_teacher(hidden: int) -> None:
    head = RawHead(5, 3, hidden)
    assert not escape_force(head, torch.randn(20, 3, dtype=torch.float64), random_probs(20, 5, 0)).any()


def test_a_witness_without_a_closed_form_is_refused_by_name() -> None:
    assert has_escape_force(RawHead(3, 2))
    assert not has_escape_force(nn.Linear(2, 3))
    with pytest.raises(TypeError, match=r"`witness` must have a method `alignment_gradient.*got Linear"):
        escape_force(nn.Linear(2, 3), torch.zeros(1, 2), random_probs(1, 3, 0))
