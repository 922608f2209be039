"""Networks fit any shape, and the parts of the objective are what their formulas say."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from certvae.networks import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder
from certvae.objectives import ELBO
from certvae.posterior import Posterior
from certvae.priors import StandardNormal


@settings(deadline=None, max_examples=25)
@given(channels=st.integers(1, 4), height=st.integers(1, 37), width=st.integers(1, 37), latent=st.integers(1, 6))
def test_convolutions_fit_any_image_shape(channels: int, height: int, width: int, latent: int) -> None:
    shape = (channels, height, width)
    encoder, decoder = ConvEncoder(shape, latent, width=2), ConvDecoder(shape, latent, width=2)
    posterior = encoder(torch.rand(3, *shape))
    assert posterior.mean.shape == posterior.log_variance.shape == (3, latent)
    assert decoder(posterior.mean).shape == (3, *shape)


@pytest.mark.parametrize("shape", [(5,), (1, 8, 8), (3, 2, 4, 5)])
def test_perceptrons_fit_any_shape(shape: tuple[int, ...]) -> None:
    encoder, decoder = MLPEncoder(shape, 4, width=8), MLPDecoder(shape, 4, width=8)
    assert decoder(encoder(torch.rand(3, *shape)).mean).shape == (3, *shape)


def test_every_pixel_reaches_the_code_and_every_coordinate_the_image() -> None:
    shape = (2, 13, 21)
    images = torch.rand(1, *shape, requires_grad=True)
    ConvEncoder(shape, 3)(images).mean.sum().backward()
    assert images.grad is not None
    assert bool((images.grad != 0).all())
    latents = torch.randn(1, 3, requires_grad=True)
    ConvDecoder(shape, 3)(latents).sum().backward()
    assert latents.grad is not None
    assert bool((latents.grad != 0).all())


@given(seed=st.integers(0, 2**16))
def test_rate_equals_the_library_divergence(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    posterior = Posterior(*torch.randn(2, 5, 3, generator=generator, dtype=torch.float64))
    expected = kl_divergence(
        Normal(posterior.mean, (0.5 * posterior.log_variance).exp()), Normal(torch.zeros(5, 3).double(), 1.0)
    )
    assert torch.allclose(StandardNormal().kl(posterior, posterior.sample()), expected)


def test_draws_have_the_posteriors_moments() -> None:
    posterior = Posterior(torch.full((200_000, 1), 2.0), torch.full((200_000, 1), -1.0))
    draws = posterior.sample()
    assert float(draws.mean()) == pytest.approx(2.0, abs=0.01)
    assert float(draws.var()) == pytest.approx(float(torch.tensor(-1.0).exp()), abs=0.01)


def test_elbo_adds_distortion_and_weighted_rate() -> None:
    loss = ELBO(beta=3.0)(torch.tensor([1.0, 2.0]), torch.tensor([[0.5, 0.5], [1.0, 0.0]]), epoch=0)
    assert loss.tolist() == [4.0, 5.0]
    with pytest.raises(ValueError, match="`beta` must be at least 0"):
        ELBO(-1.0)


@pytest.mark.parametrize("maker", [ConvEncoder, ConvDecoder])
def test_bad_shapes_are_refused(maker: type[ConvEncoder]) -> None:
    with pytest.raises(ValueError, match=r"`image_shape` must hold \(channels, height, width\), got \(3, 32\)"):
        maker((3, 32), 4)
    with pytest.raises(ValueError, match="`latent_dim` and `width` must be at least 1"):
        maker((3, 32, 32), 0)
