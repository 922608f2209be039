"""Priors: densities against brute force, divergences against their definition."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from certvae import VAE
from certvae.datamodules import DigitsDataModule
from certvae.models.networks import MLPDecoder, MLPEncoder
from certvae.models.priors import StandardNormal, VampPrior
from certvae.theory.posterior import Posterior
from tests.runs import SHAPE, trainer


def vamp(components: int = 5, latent_dim: int = 3, seed: int = 0, dtype: torch.dtype = torch.float32) -> VampPrior:
    torch.manual_seed(seed)
    prior, encoder = VampPrior(components, std=1.0), MLPEncoder(SHAPE, latent_dim, 16, 1).to(dtype)
    prior.bind(encoder)
    return prior.to(dtype)


def vamp_vae() -> VAE:
    torch.manual_seed(0)
    return VAE(MLPEncoder(SHAPE, 6, 16, 1), MLPDecoder(SHAPE, 6, 16, 1), prior=VampPrior(7), observation_std=0.2236)


@pytest.mark.slow
@given(components=st.integers(1, 9), latent_dim=st.integers(1, 5), seed=st.integers(0, 2**16))
def test_vamp_density_is_that_of_a_brute_force_mixture(components: int, latent_dim: int, seed: int) -> None:
    prior = vamp(components, latent_dim, seed, torch.float64)
    latents = 2 * torch.randn(7, latent_dim, dtype=torch.float64)
    mean, log_variance = prior.components()
    mixture = MixtureSameFamily(
        Categorical(torch.ones(components, dtype=torch.float64)),
        Independent(Normal(mean, (0.5 * log_variance).exp()), 1),
    )
    assert torch.allclose(prior.log_density(latents), mixture.log_prob(latents))


def test_the_density_of_a_posterior_is_the_librarys() -> None:
    posterior = Posterior(*torch.randn(2, 5, 3, dtype=torch.float64))
    latents = torch.randn(5, 3, dtype=torch.float64)
    expected = Normal(posterior.mean, (0.5 * posterior.log_variance).exp()).log_prob(latents).sum(dim=1)
    assert torch.allclose(posterior.log_density(latents), expected)
    assert posterior.log_density(latents[:2, None]).shape == (2, 5)


def test_one_vamp_component_has_the_closed_divergence_on_average() -> None:
    prior = vamp(components=1)
    component = prior.components()
    posterior = Posterior(*torch.randn(2, 1, 3))
    rows = Posterior(*(value.expand(100_000, -1) for value in posterior))
    found = prior.kl(rows, rows.sample())
    assert found.shape == (100_000, 1)
    exact = torch.distributions.kl_divergence(
        Normal(posterior.mean, (0.5 * posterior.log_variance).exp()),
        Normal(component.mean, (0.5 * component.log_variance).exp()),
    ).sum()
    assert float(found.mean().detach()) == pytest.approx(float(exact.detach()), rel=0.02)


def test_draws_are_those_of_the_prior() -> None:
    prior = vamp(components=3)
    mean, log_variance = (value.detach() for value in prior.components())
    draws = prior.draws_like(torch.empty(200_000, 3)).detach()
    variance = (log_variance.exp() + mean**2).mean(dim=0) - mean.mean(dim=0) ** 2
    assert torch.allclose(draws.mean(dim=0), mean.mean(dim=0), atol=0.02)
    assert torch.allclose(draws.var(dim=0), variance, rtol=0.03)
    normal = StandardNormal().draws_like(torch.empty(200_000, 2, dtype=torch.float64))
    assert normal.dtype == torch.float64
    assert torch.allclose(normal.var(dim=0), torch.ones(2).double(), rtol=0.03)


def test_the_encoder_is_registered_once_and_the_pseudo_inputs_are_trained() -> None:
    vae = vamp_vae()
    keys = [key for key in vae.state_dict() if key.startswith("prior.")]
    assert keys == ["prior.pseudo_inputs"]
    assert vae.prior.pseudo_inputs.shape == (7, *SHAPE)
    vae.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    vae.training_step((torch.rand(4, *SHAPE), torch.zeros(4), torch.arange(4)), 0)["loss"].backward()
    gradient = vae.prior.pseudo_inputs.grad
    assert isinstance(gradient, torch.Tensor)
    assert bool((gradient != 0).any())


def test_a_trained_vamp_prior_comes_back_from_its_checkpoint(tmp_path: Path) -> None:
    vae, data = vamp_vae(), DigitsDataModule()
    runner = trainer(tmp_path)
    runner.fit(vae, datamodule=data)
    runner.save_checkpoint(tmp_path / "vamp.ckpt")
    encoder, decoder = MLPEncoder(SHAPE, 6, 16, 1), MLPDecoder(SHAPE, 6, 16, 1)
    again = VampPrior(7)
    VAE(encoder, decoder, prior=again, init_weights_from=tmp_path / "vamp.ckpt")
    latents = torch.randn(5, 6)
    assert isinstance(vae.prior, VampPrior)
    assert torch.equal(again.log_density(latents), vae.prior.log_density(latents))


def test_a_row_of_a_posterior_that_is_a_component_has_at_most_the_rate_log_k() -> None:
    prior = vamp(components=4)
    components = prior.components()
    kl = prior.kl(components, components.sample())
    assert float(kl.max().detach()) <= math.log(4) + 1e-5


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="`pseudo_inputs` must be at least 1, got 0"):
        VampPrior(0)
    with pytest.raises(ValueError, match="`std` must be positive, got 0.0"):
        VampPrior(std=0.0)
    with pytest.raises(ValueError, match="`encoder` must have an attribute `image_shape` for a VampPrior; Linear"):
        VampPrior().bind(nn.Linear(2, 2))
