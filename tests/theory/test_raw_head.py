"""The raw head: known at its start, a witness like any other, with its gradient in closed form."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from certvae import RawHead
from certvae.certificate.leaks import check_witness
from certvae.theory.information import kl_divergence, margin
from tests.conftest import random_probs

SIZES = {
    "components": st.integers(2, 9),
    "latent_dim": st.integers(1, 7),
    "hidden": st.sampled_from([0, 5]),
    "temperature": st.floats(0.1, 10),
    "seed": st.integers(0, 2**16),
}


def codes(rows: int, latent_dim: int, seed: int) -> Tensor:
    return torch.randn(rows, latent_dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def trained(head: RawHead, seed: int) -> RawHead:
    """The head with some weights that are not its start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in head.parameters():
            value.copy_(torch.randn(value.shape, generator=generator))
    return head


@settings(max_examples=30)
@given(**SIZES)
def test_at_its_start_it_answers_the_prior_and_pulls_on_no_code(
    components: int, latent_dim: int, hidden: int, temperature: float, seed: int
) -> None:
    """The margin of every code is ``-KL(Tbar || prior)``: 0 for the average teacher."""
    teacher, latents = random_probs(20, components, seed), codes(20, latent_dim, seed)
    average, uniform = teacher.mean(dim=0), torch.full((components,), -math.log(components), dtype=torch.float64)
    for prior, expected in ((average, 0.0), (None, -float(kl_divergence(average[None], uniform[None])))):
        head = RawHead(components, latent_dim, hidden, temperature, prior)
        assert float(margin(teacher, head(latents))) == pytest.approx(expected, abs=1e-6)
        assert not head.alignment_gradient(latents, teacher).any()


@settings(max_examples=30)
@given(**SIZES)
def test_its_closed_form_gradient_equals_autograd(
    components: int, latent_dim: int, hidden: int, temperature: float, seed: int
) -> None:
    teacher, head = random_probs(20, components, seed), RawHead(components, latent_dim, hidden, temperature)
    latents = codes(20, latent_dim, seed).requires_grad_()
    kl_divergence(teacher, trained(head, seed)(latents).log_softmax(dim=1)).sum().backward()
    assert latents.grad is not None
    found = head.alignment_gradient(latents.detach(), teacher)
    torch.testing.assert_close(found, latents.grad, rtol=1e-8, atol=1e-10)


def test_constant_codes_and_a_head_at_its_start_are_a_stationary_point_which_codes_that_vary_are_not() -> None:
    """With the average as prior neither code nor head is pulled; a trace of variation pulls the head."""
    teacher = random_probs(50, 4, 1)
    for spread in (0.0, 1e-3):
        head = RawHead(4, 3, prior=teacher.mean(dim=0)).double()
        with torch.no_grad():
            head.state_dict()["layers.0.bias"].copy_(teacher.mean(dim=0).log())  # its own is float32
        latents = (torch.ones(50, 3).double() + spread * codes(50, 3, 2)).requires_grad_()
        kl_divergence(teacher, head(latents).log_softmax(dim=1)).mean().backward()
        assert latents.grad is not None
        assert not latents.grad.any()
        largest = max(float(value.grad.abs().max()) for value in head.parameters() if value.grad is not None)
        assert largest < 1e-15 if spread == 0 else largest > 1e-6


@pytest.mark.parametrize("hidden", [0, 8])
def test_it_passes_the_leak_tests_and_computes_narrow_codes_in_float32(hidden: int) -> None:
    head = trained(RawHead(5, 6, hidden), 0)
    latents = codes(30, 6, 0)
    assert check_witness(head, latents.float()) == []
    narrow = latents.bfloat16()
    assert head(narrow).dtype == torch.float32
    torch.testing.assert_close(head(narrow), head(narrow.float()))
    half = trained(RawHead(5, 6, hidden), 0).bfloat16()
    assert half(latents.float()).dtype == torch.float32


def test_a_linear_head_draws_no_random_number() -> None:
    state = torch.get_rng_state()
    RawHead(5, 6)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_was_left_open_is_filled_in_once() -> None:
    head = RawHead(hidden=3)
    with pytest.raises(ValueError, match="are not known yet; give both"):
        head(torch.zeros(1, 4))
    assert head.bind(5, 4, torch.full((5,), 0.2)) is head
    assert head(torch.zeros(2, 4)).shape == (2, 5)
    with pytest.raises(ValueError, match="`num_components` of the RawHead must be 6, got 5"):
        head.bind(6, 4)


def test_bad_arguments_are_refused() -> None:
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="`temperature` must be from 1e-6 to 1e6"):
            RawHead(3, 4, temperature=temperature)
    with pytest.raises(ValueError, match="`hidden` must be at least 0"):
        RawHead(3, 4, hidden=-1)
    with pytest.raises(ValueError, match="`prior` must hold 3 positive probabilities"):
        RawHead(3, 4, prior=[0.0, 0.5, 0.5])
    with pytest.raises(ValueError, match="`latents` must have 4 coordinates, got 3"):
        RawHead(3, 4)(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="`latents` and `probs` must have the same rows"):
        RawHead(3, 4).alignment_gradient(torch.zeros(2, 4), random_probs(3, 3, 0))
