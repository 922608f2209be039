"""Networks fit any shape, and posteriors are what their formulas say."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Normal, kl_divergence

from certvae.models.networks import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder
from certvae.models.priors import StandardNormal
from certvae.theory.posterior import Posterior


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


@pytest.mark.parametrize("make", [MLPDecoder, ConvDecoder])
def test_a_skip_decoder_gives_the_latent_to_every_layer(make: Any) -> None:
    """With the first layer shut, only a decoder with skips still sees the code."""
    latents, shape = torch.randn(2, 5), (2, 16, 24)
    for skip in (False, True):
        decoder = make(shape, 5, width=4, skip=skip)
        for parameter in decoder.body[0].parameters():
            nn.init.zeros_(parameter)
        one, other = decoder(latents)
        assert one.shape == shape
        assert torch.equal(one, other) != skip
        weighted = [name for name, layer in decoder.body.named_children() if hasattr(layer, "weight")]
        assert list(decoder.skips) == (weighted[1:] if skip else [])
        for layer in decoder.skips.values():
            assert layer.in_features == 5


def test_a_decoder_without_skips_has_the_weights_that_it_always_had() -> None:
    assert all(key.startswith("body.") for key in ConvDecoder((3, 8, 8), 4).state_dict())


@pytest.mark.parametrize("maker", [ConvEncoder, ConvDecoder])
def test_bad_shapes_are_refused(maker: type[ConvEncoder]) -> None:
    with pytest.raises(ValueError, match=r"`image_shape` must hold \(channels, height, width\), got \(3, 32\)"):
        maker((3, 32), 4)
    with pytest.raises(ValueError, match="`latent_dim` and `width` must be at least 1"):
        maker((3, 32, 32), 0)
