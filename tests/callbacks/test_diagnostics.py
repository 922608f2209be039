"""Active units and mutual information, against numpy and closed forms."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from certvae.callbacks import CollapseDiagnostics
from certvae.datamodules import DigitsDataModule
from certvae.reading.latents import Captured
from certvae.theory.contrast import aggregate_information
from certvae.theory.posterior import Posterior
from certvae.theory.row_noise import row_normal
from tests.plain_vae import UserVAE, fit, plain_loader
from tests.runs import small_vae, trainer

pytestmark = pytest.mark.slow


def gaussian(rows: int, dim: int = 3, noise: float = 1.0, seed: int = 0) -> Posterior:
    """Standard normal means, and one variance for all."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    return Posterior(mean, torch.full_like(mean, 2 * math.log(noise)))


def brute_force(posterior: Posterior, seed: int) -> float:
    """The definition, one density after the other, with normalized densities."""
    mean, variance = posterior.mean.numpy(), posterior.log_variance.exp().numpy()
    draws = mean + np.sqrt(variance) * row_normal(torch.arange(len(mean)), mean.shape[1], seed).numpy()
    terms = []
    for row, draw in enumerate(draws):
        densities = np.exp(-0.5 * (draw - mean) ** 2 / variance) / np.sqrt(2 * np.pi * variance)
        products = densities.prod(axis=1)
        terms.append(np.log(products[row]) - np.log(products.mean()))
    return float(np.mean(terms))


@pytest.mark.parametrize("rows", [1, 2, 100])
def test_mutual_information_is_the_definition(rows: int) -> None:
    posterior = gaussian(rows)
    varied = Posterior(posterior.mean, posterior.mean.cos() - 1)
    assert float(aggregate_information(varied, seed=3)) == pytest.approx(brute_force(varied, 3), abs=1e-12)


@pytest.mark.parametrize("noise", [0.5, 1.0, 3.0])
def test_mutual_information_of_a_linear_gaussian_encoder_is_its_closed_form(noise: float) -> None:
    r"""``z = x + noise``: :math:`I(X; Z) = \frac d2 \log(1 + 1/\sigma^2)`, at most 2.41 nats here."""
    expected = 1.5 * math.log(1 + noise**-2)
    found = [float(aggregate_information(gaussian(2048, noise=noise, seed=seed), seed)) for seed in range(3)]
    assert np.mean(found) == pytest.approx(expected, abs=0.06)


def test_mutual_information_saturates_at_the_logarithm_of_the_block_and_never_exceeds_it() -> None:
    for rows in (2, 50, 500):
        assert float(aggregate_information(gaussian(rows, noise=1e-4))) == pytest.approx(math.log(rows), abs=1e-9)
        for noise in (0.01, 0.3, 2.0):
            assert float(aggregate_information(gaussian(rows, noise=noise))) <= math.log(rows) + 1e-12


def test_a_constant_posterior_has_no_mutual_information() -> None:
    posterior = Posterior(torch.full((40, 3), 2.4).double(), torch.full((40, 3), -1.0).double())
    assert float(aggregate_information(posterior)) == pytest.approx(0, abs=1e-12)


def test_pieces_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    posterior, whole = gaussian(90), float(aggregate_information(gaussian(90)))
    monkeypatch.setattr("certvae.theory.contrast.CHUNK", 1000)
    assert float(aggregate_information(posterior)) == pytest.approx(whole, abs=1e-12)


class Scaled(UserVAE):
    """The means are the first six pixels, each times a number; nothing is trained."""

    scales = torch.tensor([1.0, 0.0, 1e-3, 10.0, 0.5, 1.0])

    def __init__(self, kind: str = "pair") -> None:
        super().__init__(kind)
        self.learning_rate = 0.0
        with torch.no_grad():
            self.encoder.body.weight.zero_()
            self.encoder.body.weight[:6, 18:24] = torch.diag(self.scales)
            self.encoder.body.bias.fill_(-1.0)


def logged(folder: Path, *arguments: Any, rows: int = 90, batch_size: int = 32, **options: Any) -> dict[str, float]:
    callback = CollapseDiagnostics("encoder", **options)
    loader = plain_loader(rows, batch_size)
    runner, _ = fit(folder, [callback], lambda: Scaled(*arguments), loader)
    found = {name: value for name, value in runner.callback_metrics.items() if name.startswith("diagnostics")}
    assert all(value.dtype == torch.float64 for value in found.values())
    return {name.split("/")[1]: float(value) for name, value in found.items()}


def codes(rows: int = 90) -> Any:
    return Scaled.scales.numpy() * next(iter(plain_loader(rows, rows)))[0].flatten(1)[:, 18:24].numpy() - 1


def test_active_units_are_those_of_numpy_var(tmp_path: Path) -> None:
    variances = np.sort(codes().var(axis=0))
    assert 1 < (variances >= 0.01).sum() < 6
    for threshold in (1e-9, 0.01, *(variances[2:] * 0.999), *(variances[2:] * 1.001)):
        assert logged(tmp_path, threshold=threshold)["active_units"] == (variances >= threshold).sum()


def test_active_units_do_not_lose_a_small_variance_far_from_zero() -> None:
    callback = CollapseDiagnostics()
    mean = 1e5 + 0.2 * torch.randn(500, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for part in mean.split(30):
        callback._add(Captured(part, None, None), torch.arange(len(part)), torch.ones(len(part)))
    assert callback._sums is not None
    mean_of, second = (callback._sums[2:] / callback._sums[0]).split(2)
    assert torch.allclose(second - mean_of**2, mean.var(dim=0, correction=0), atol=1e-4)


def test_rate_is_the_average_of_the_closed_form(tmp_path: Path) -> None:
    means = codes()
    expected = 0.5 * (means**2 + math.exp(-1) - 1 + 1).sum(axis=1).mean()
    assert logged(tmp_path)["rate"] == pytest.approx(expected, abs=1e-5)


def test_one_number_however_the_rows_come_in_batches(tmp_path: Path) -> None:
    whole = logged(tmp_path, batch_size=90, block=40)
    assert whole["mutual_information"] <= math.log(40)
    for size in (7, 32):
        assert logged(tmp_path, batch_size=size, block=40) == pytest.approx(whole, abs=1e-12)
    assert logged(tmp_path, block=90, batch_size=90) == pytest.approx(logged(tmp_path, block=1000), abs=1e-12)
    assert logged(tmp_path, block=40, seed=1)["mutual_information"] != whole["mutual_information"]


def test_a_latent_that_is_only_a_mean_has_active_units_alone(tmp_path: Path) -> None:
    assert set(logged(tmp_path, "mean")) == {"active_units"}
    assert set(logged(tmp_path, "distribution")) == {"active_units", "mutual_information", "rate"}


def test_our_own_vae_needs_no_name_and_nothing_else(tmp_path: Path) -> None:
    """Also with a sanity check before, which is not measured."""
    runner = trainer(tmp_path, callbacks=[CollapseDiagnostics()], num_sanity_val_steps=2)
    runner.fit(small_vae(learning_rate=5e-3), datamodule=DigitsDataModule(subset=300))
    assert 0 <= runner.callback_metrics["diagnostics/active_units"] <= 6
    assert 0 < runner.callback_metrics["diagnostics/mutual_information"] < math.log(300)
    rate = runner.callback_metrics["val/rate"]
    assert runner.callback_metrics["diagnostics/rate"] == pytest.approx(float(rate), rel=1e-5)


def test_the_dataloader_that_is_named_is_measured(tmp_path: Path) -> None:
    loaders = {
        "zeros": DataLoader(TensorDataset(torch.zeros(40, 1, 8, 8), torch.zeros(40)), 32),
        "digits": plain_loader(),
    }
    for name, expected in (("zeros", 0), (0, 0), ("digits", logged(tmp_path)["active_units"])):
        callback = CollapseDiagnostics("encoder", dataloader=name)
        runner, _ = fit(tmp_path, [callback], Scaled, loaders)
        assert runner.callback_metrics["diagnostics/active_units"] == expected
    alone = trainer(tmp_path, callbacks=[CollapseDiagnostics("encoder")])
    alone.validate(Scaled(), plain_loader(), verbose=False)
    assert alone.callback_metrics["diagnostics/active_units"] == expected


class Nothing(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(())


def test_what_cannot_work_says_why(tmp_path: Path) -> None:
    for block in (1, 0, -5):
        with pytest.raises(ValueError, match=f"`block` must be at least 2 rows, got {block}"):
            CollapseDiagnostics(block=block)
    for threshold in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="`threshold` must be above 0"):
            CollapseDiagnostics(threshold=threshold)
    with pytest.raises(ValueError, match="`latents='encoderr'` names no submodule"):
        fit(tmp_path, [CollapseDiagnostics("encoderr")])
    with pytest.raises(ValueError, match="the measured dataloader gave no row; choose another"):
        fit(tmp_path, [CollapseDiagnostics("encoder")], None, DataLoader(Nothing()))
