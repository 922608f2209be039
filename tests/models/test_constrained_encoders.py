"""Constrained encoders keep their promise for any encoder."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from certvae.models.constrained_encoders import BatchNormEncoder, DeltaEncoder
from certvae.models.networks import MLPEncoder
from certvae.theory.posterior import Posterior
from tests.runs import SHAPE


class Answers(nn.Module):
    """An encoder whose answer is its input."""

    latent_dim = 4

    def forward(self, values: Tensor) -> Posterior:
        return Posterior(*values.chunk(2, dim=1))


@pytest.mark.slow
@given(rate=st.floats(0.01, 20), size=st.floats(0, 100), seed=st.integers(0, 2**16))
def test_delta_vae_has_at_least_its_committed_rate_for_any_encoder(rate: float, size: float, seed: int) -> None:
    values = size * torch.randn(16, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    kl = DeltaEncoder(Answers(), rate)(values).kl_to_standard_normal()
    assert float(kl.min()) >= rate * (1 - 1e-9)


def test_delta_vae_can_commit_no_more_than_its_rate_and_then_carries_nothing() -> None:
    posterior = DeltaEncoder(Answers(), 0.15)(torch.full((5, 8), -3.0, dtype=torch.float64))
    assert torch.allclose(posterior.kl_to_standard_normal(), torch.tensor(0.15, dtype=torch.float64))
    assert float(posterior.mean.var(dim=0).max()) == 0


def test_delta_vae_is_differentiable_at_the_ends_of_its_interval() -> None:
    values = torch.tensor([[1.0] * 4 + [-200.0, 200.0, 0.0, 0.0]], requires_grad=True)
    posterior = DeltaEncoder(Answers(), 0.15)(values)
    posterior.kl_to_standard_normal().sum().backward()
    assert values.grad is not None
    assert bool(values.grad.isfinite().all())


@pytest.mark.slow
@given(scale=st.floats(0.1, 2), size=st.sampled_from([1e-6, 1e-3, 1.0, 1e3]), seed=st.integers(0, 2**16))
def test_bn_vae_fixes_the_batch_statistics_of_the_mean(scale: float, size: float, seed: int) -> None:
    """However small the encoder makes its means, which is its way out if the norm's epsilon is not smaller still."""
    noise = torch.randn(64, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values = size * (2 + noise)
    encoder = BatchNormEncoder(Answers(), scale).double()
    bias = torch.tensor([0.0, 0.5, -1.0, 2.0])
    encoder.norm.bias.data.copy_(bias)
    posterior = Posterior(*(value.detach() for value in encoder(values)))
    assert torch.allclose(posterior.mean.mean(dim=0), bias.double(), atol=1e-9)
    assert torch.allclose(posterior.mean.std(dim=0, correction=0), torch.tensor(scale).double(), rtol=1e-4)
    bound = (scale**2 + bias**2).sum() / 2
    assert float(posterior.kl_to_standard_normal().sum(dim=1).mean()) >= float(bound) * (1 - 1e-4)


def test_bn_vae_learns_the_bias_and_not_the_scale() -> None:
    encoder = BatchNormEncoder(MLPEncoder(SHAPE, 4, 8, 1), 0.5)
    learned = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert "norm.bias" in learned
    assert "norm.weight" not in learned
    assert encoder.norm.weight.tolist() == [0.5] * 4


def test_in_evaluation_a_bn_vae_codes_each_row_by_itself() -> None:
    encoder = BatchNormEncoder(MLPEncoder(SHAPE, 4, 8, 1))
    images = torch.rand(16, *SHAPE)
    encoder(images)
    encoder.eval()
    assert torch.allclose(encoder(images).mean[:1], encoder(images[:1]).mean, atol=1e-6)


def test_constrained_encoders_widen_and_tell_what_they_are_around() -> None:
    inner = MLPEncoder(SHAPE, 4, 8, 1)
    for kind in (DeltaEncoder, BatchNormEncoder):
        encoder = kind(inner)
        assert (encoder.latent_dim, encoder.image_shape) == (4, SHAPE)
        with torch.autocast("cpu", torch.bfloat16):
            assert encoder(torch.rand(3, *SHAPE)).mean.dtype == torch.float32
        assert encoder.bfloat16()(torch.rand(3, *SHAPE).bfloat16()).mean.dtype == torch.float32
        encoder.float()


def test_bad_arguments_are_refused() -> None:
    for rate in (0.0, -1.0, 21.0, float("nan")):
        with pytest.raises(ValueError, match="`rate` must be above 0 and at most 20 nats"):
            DeltaEncoder(Answers(), rate)
    for scale in (0.0, float("inf")):
        with pytest.raises(ValueError, match="`scale` must be positive"):
            BatchNormEncoder(Answers(), scale)
