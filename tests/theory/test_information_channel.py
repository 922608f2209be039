"""On a channel whose information is known, no witness claims more than there is."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from certvae import certify
from tests.conftest import random_probs

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(80)


def channel(points: int, noise: float, seed: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """``X`` uniform on some points, ``Z = x + noise * N(0, 1)``, integrated by Gauss-Hermite quadrature.

    Returns codes ``(points * 80, 1)``, their weights, the point of each, and ``I(X; Z)`` in nats.
    """
    places = torch.randn(points, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2
    codes = places[:, None] + noise * torch.as_tensor(NODES)
    weights = torch.as_tensor(WEIGHTS / WEIGHTS.sum()).expand(points, -1) / points
    log_density = -0.5 * ((codes[..., None] - places) / noise) ** 2
    own = torch.stack([log_density[i, :, i] for i in range(points)])
    information = float((weights * (own - log_density.logsumexp(dim=2) + np.log(points))).sum())
    which = torch.arange(points)[:, None].expand_as(codes)
    return codes.reshape(-1, 1), weights.reshape(-1), which.reshape(-1), information


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(
    points=st.integers(2, 6),
    components=st.integers(2, 5),
    noise=st.floats(0.3, 5.0),
    sharpness=st.floats(0.1, 6.0),
    seed=st.integers(0, 2**16),
)
def test_margin_never_exceeds_the_channels_information(
    points: int, components: int, noise: float, sharpness: float, seed: int
) -> None:
    """For random witnesses, and for the best one, whose margin is I(component; Z)."""
    codes, weights, which, information = channel(points, noise, seed)
    teacher = random_probs(points, components, seed, sharpness)[which]
    generator = torch.Generator().manual_seed(seed)
    slope, shift = torch.randn(2, components, generator=generator, dtype=torch.float64)
    places = torch.stack([codes[which == i].mean() for i in range(points)])
    posterior = (-0.5 * ((codes - places) / noise) ** 2).softmax(dim=1)
    best = (posterior @ random_probs(points, components, seed, sharpness)).log()
    for logits in (codes * slope + shift, best):
        margin = certify(teacher, logits, weights=weights, method="plugin").margin
        assert margin <= information + 1e-6


def test_quadrature_reaches_the_known_information_of_two_far_points() -> None:
    """Two points far apart: one bit."""
    *_, information = channel(2, 0.01, seed=0)
    assert information == pytest.approx(np.log(2), abs=1e-9)
