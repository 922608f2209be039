"""The probe finds what an affine map can read, whatever the scale of the code."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from torch import Tensor

from certvae.monitoring.affine_probe import AffineProbe
from tests.callbacks.test_unchanged_runs import plain
from tests.conftest import random_probs


def identity(values: Tensor) -> Tensor:
    return values


def fitted(codes: Tensor, probs: Tensor, epochs: int = 6, batch: int = 50) -> AffineProbe:
    """A probe after some epochs, each in another order."""
    probe, generator = AffineProbe(), torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for rows in torch.randperm(len(codes), generator=generator).split(batch):
            probe.fit(codes[rows], probs[rows], identity)
    return probe


def problem(rows: int = 2000, dim: int = 6, components: int = 5) -> tuple[Tensor, Tensor]:
    """Codes with a teacher that is a noisy logistic function of them."""
    generator = torch.Generator().manual_seed(1)
    codes, weights, noise = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((rows, dim), (dim, components), (rows, components))
    )
    return codes, (codes @ weights + 0.5 * noise).softmax(dim=1)


def cross_entropy(probs: Tensor, logits: Any) -> float:
    return float(-(probs.numpy() * log_softmax(np.asarray(logits), axis=1)).sum(axis=1).mean())


def optimum(codes: Tensor, probs: Tensor) -> float:
    """The least cross-entropy of any affine map, by scipy."""
    features, targets = np.c_[codes.numpy(), np.ones(len(codes))], probs.numpy()

    def loss(flat: Any) -> Any:
        logits = features @ flat.reshape(features.shape[1], -1)
        gradient = features.T @ (softmax(logits, axis=1) - targets) / len(features)
        return -(targets * log_softmax(logits, axis=1)).sum(axis=1).mean(), gradient.ravel()

    return float(minimize(loss, np.zeros(features.shape[1] * targets.shape[1]), jac=True, method="L-BFGS-B").fun)


@pytest.mark.slow
def test_a_few_epochs_reach_the_best_affine_map() -> None:
    codes, probs = problem()
    probe = fitted(codes, probs)
    assert cross_entropy(probs, probe(codes)) == pytest.approx(optimum(codes, probs), abs=0.005)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-3, 1e3, 1e-12])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_the_scale_and_the_place_of_a_code_do_not_matter(scale: float, offset: float) -> None:
    codes, probs = problem(800)
    moved = scale * (codes + offset)
    assert torch.allclose(fitted(moved, probs)(moved), fitted(codes, probs)(codes), atol=1e-6)


@pytest.mark.slow
def test_a_coordinate_that_does_not_vary_is_left_out() -> None:
    """Also where float32 gives it some rounding."""
    codes, probs = problem(800)
    constant = (0.1 + 1e-8 * codes[:, :1]).float().double()
    widened = torch.cat([codes, constant, torch.zeros_like(constant)], dim=1)
    assert torch.allclose(fitted(widened, probs)(widened), fitted(codes, probs)(codes), atol=1e-9)


def test_rows_that_have_diverged_teach_nothing() -> None:
    codes, probs = problem(200)
    probe = fitted(codes, probs, epochs=1)
    before = probe(codes)
    probe.fit(codes / 0, probs, identity)
    assert probe(codes).isfinite().all()
    assert (probe(codes) - before).abs().max() < 0.5


def contribution(probe: AffineProbe, codes: Tensor, probs: Tensor) -> Tensor:
    """What a process with these rows hands in to be added up."""
    parts: list[Tensor] = []
    copied = AffineProbe()

    def keep(values: Tensor) -> Tensor:
        parts.append(values)
        return values

    copied.load(probe.state(), torch.device("cpu"))
    copied.fit(codes, probs, keep)
    return parts[0]


def test_two_processes_that_add_their_gradients_up_fit_what_one_fits() -> None:
    codes, probs = problem(200)
    one, other = fitted(codes, probs, epochs=1, batch=20), AffineProbe()
    for rows in torch.randperm(200, generator=torch.Generator().manual_seed(0)).split(20):
        total = torch.stack([contribution(other, codes[half], probs[half]) for half in rows.chunk(2)]).sum(dim=0)

        def add_up(_: Tensor, total: Tensor = total) -> Tensor:
            return total

        other.fit(codes[rows], probs[rows], add_up)
    assert torch.allclose(one(codes), other(codes), atol=1e-9)


def test_optimizer_and_probe_go_on_bit_for_bit() -> None:
    codes, probs = problem(200)
    straight, first, second = AffineProbe(), AffineProbe(), AffineProbe()
    for rows in torch.arange(200).split(10):
        straight.fit(codes[rows], probs[rows], identity)
    for rows in torch.arange(100).split(10):
        first.fit(codes[rows], probs[rows], identity)
    second.load(first.state(), torch.device("cpu"))
    for rows in torch.arange(100, 200).split(10):
        second.fit(codes[rows], probs[rows], identity)
    assert plain(second.state()) == plain(straight.state())


def test_what_cannot_work_says_why() -> None:
    for rate in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="`learning_rate` must be above 0"):
            AffineProbe(learning_rate=rate)
    codes, probs = torch.ones(3, 4), random_probs(3, 5, 0)
    probe = fitted(codes, probs)
    with pytest.raises(ValueError, match="`latents` must have 4 numbers per row, as in the fit, got 6"):
        probe(torch.ones(3, 6))
