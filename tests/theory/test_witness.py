"""The simplex witness: its inverse, its energy and its gradient are closed forms."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from certvae import SimplexWitness
from certvae.theory.information import alignment_loss, kl_divergence
from certvae.theory.witness import simplex_basis
from tests.conftest import random_probs

CASES = {
    "components": st.integers(2, 15),
    "extra": st.integers(0, 4),
    "scale": st.floats(0.1, 10),
    "with_prior": st.booleans(),
    "seed": st.integers(0, 2**16),
}


def make(components: int, extra: int, scale: float, with_prior: bool, seed: int) -> tuple[SimplexWitness, Tensor]:
    prior = random_probs(1, components, seed + 1)[0] if with_prior else None
    return SimplexWitness(components, components - 1 + extra, scale, prior), random_probs(20, components, seed)


@given(components=st.integers(2, 60))
def test_basis_is_orthonormal_and_sums_to_zero(components: int) -> None:
    basis = simplex_basis(components)
    assert torch.allclose(basis.T @ basis, torch.eye(components - 1, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(basis.sum(dim=0), torch.zeros(components - 1, dtype=torch.float64), atol=1e-12)


@pytest.mark.slow
@given(**CASES)
def test_inverse_gives_alignment_loss_zero(
    components: int, extra: int, scale: float, with_prior: bool, seed: int
) -> None:
    witness, teacher = make(components, extra, scale, with_prior, seed)
    assert float(alignment_loss(teacher, witness(witness.inverse(teacher)))) == pytest.approx(0, abs=1e-12)


@pytest.mark.slow
@given(**CASES)
def test_energy_is_half_the_squared_norm_of_the_inverse_code(
    components: int, extra: int, scale: float, with_prior: bool, seed: int
) -> None:
    witness, teacher = make(components, extra, scale, with_prior, seed)
    expected = (witness.inverse(teacher) ** 2).sum(dim=1) / 2
    assert torch.allclose(witness.energy(teacher), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@given(**CASES)
def test_closed_form_gradient_equals_autograd(
    components: int, extra: int, scale: float, with_prior: bool, seed: int
) -> None:
    witness, teacher = make(components, extra, scale, with_prior, seed)
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(20, witness.latent_dim, generator=generator, dtype=torch.float64, requires_grad=True)
    kl_divergence(teacher, witness(codes).log_softmax(dim=1)).sum().backward()
    assert codes.grad is not None
    assert torch.allclose(witness.alignment_gradient(codes.detach(), teacher), codes.grad, rtol=1e-8, atol=1e-10)


def test_collapsed_code_with_prior_answers_exactly_the_best_constant_student() -> None:
    teacher = random_probs(100, 7, seed=3)
    witness = SimplexWitness(7, 10, prior=teacher.mean(dim=0))
    answer = witness(torch.zeros(1, 10, dtype=torch.float64)).softmax(dim=1)
    assert torch.allclose(answer[0], teacher.mean(dim=0), atol=1e-15)


def test_collapsed_code_is_pulled_for_any_teacher_that_varies() -> None:
    teacher = random_probs(100, 7, seed=3)
    witness = SimplexWitness(7, 6, prior=teacher.mean(dim=0))
    gradient = witness.alignment_gradient(torch.zeros(100, 6, dtype=torch.float64), teacher)
    assert (gradient.norm(dim=1) > 0).all()


@pytest.mark.slow
@settings(deadline=None)
@given(dtype=st.sampled_from([torch.float16, torch.bfloat16]))
def test_narrow_codes_are_computed_in_float32_also_when_the_module_is_cast(dtype: torch.dtype) -> None:
    witness = SimplexWitness(5, 4).to(dtype)
    codes = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    logits = witness(codes)
    assert logits.dtype == torch.float32
    assert torch.allclose(logits, SimplexWitness(5, 4)(codes.float()))


def test_it_reads_only_the_first_coordinates() -> None:
    witness = SimplexWitness(3, 5)
    codes = torch.randn(4, 5)
    changed = codes.clone()
    changed[:, 2:] = 9
    assert torch.equal(witness(codes), witness(changed))


def test_it_has_no_parameters_and_no_state() -> None:
    witness = SimplexWitness(3, 5, prior=[0.2, 0.3, 0.5])
    assert not list(witness.parameters())
    assert not witness.state_dict()


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="`num_components` must be at least 2, got 1"):
        SimplexWitness(1, 4)
    with pytest.raises(ValueError, match="`latent_dim` must be at least num_components - 1 = 9, got 8"):
        SimplexWitness(10, 8)
    for scale in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="`scale` must be positive and finite"):
            SimplexWitness(3, 4, scale)
    with pytest.raises(ValueError, match="`prior` must hold 3 positive probabilities"):
        SimplexWitness(3, 4, prior=[0.0, 0.5, 0.5])
    with pytest.raises(ValueError, match="`prior` must hold 3 positive probabilities, got 2"):
        SimplexWitness(3, 4, prior=[0.5, 0.5])
    with pytest.raises(ValueError, match="`latents` must have 4 coordinates, got 3"):
        SimplexWitness(3, 4)(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="must be positive for a finite code"):
        SimplexWitness(2, 1).inverse(torch.eye(2))
