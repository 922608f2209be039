"""The studies of MNIST: likelihoods against closed forms, and both commands from start to end on files made here."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal

from certvae import VAE
from certvae.callbacks import ReconstructionImages
from certvae.datamodules import DigitsDataModule
from certvae.models.networks import MLPDecoder, MLPEncoder
from certvae.theory.posterior import Posterior
from experiments.mnist import likelihood, study
from experiments.mnist.bernoulli import BernoulliVAE, log_likelihood
from tests.mnist_files import write_mnist
from tests.runs import trainer


class ExactEncoder(nn.Module):
    """The posterior of z given x = z + noise, both standard normal."""

    latent_dim = 1

    def forward(self, images: Tensor) -> Posterior:
        return Posterior(images / 2, torch.full_like(images, math.log(0.5)))


def test_with_the_exact_posterior_one_draw_gives_the_likelihood() -> None:
    model, images = VAE(ExactEncoder(), nn.Identity()), torch.linspace(-3, 3, 9)[:, None]
    found = log_likelihood(model, images, samples=1) - 0.5 * math.log(2 * math.pi)
    expected = Normal(0.0, math.sqrt(2)).log_prob(images)[:, 0]
    assert torch.allclose(found, expected, atol=1e-5)


def test_many_draws_of_another_posterior_tend_to_the_likelihood_from_below() -> None:
    class WideEncoder(ExactEncoder):
        def forward(self, images: Tensor) -> Posterior:
            return Posterior(torch.zeros_like(images), torch.zeros_like(images))

    torch.manual_seed(0)
    model, images = VAE(WideEncoder(), nn.Identity()), torch.full((2000, 1), 1.0)
    expected = float(Normal(0.0, math.sqrt(2)).log_prob(torch.tensor(1.0))) + 0.5 * math.log(2 * math.pi)
    few, many = (float(log_likelihood(model, images, samples).mean()) for samples in (1, 300))
    assert few < many - 0.05
    assert many == pytest.approx(expected, abs=0.01)


def test_the_distortion_is_the_negative_log_likelihood_of_binary_pixels() -> None:
    torch.manual_seed(0)
    model = BernoulliVAE(MLPEncoder((1, 4, 4), 3, 8), MLPDecoder((1, 4, 4), 3, 8))
    images, codes = torch.randint(0, 2, (5, 1, 4, 4)).float(), torch.randn(5, 3)
    expected = -Bernoulli(logits=model.decoder(codes)).log_prob(images).flatten(1).sum(1)
    assert torch.allclose(model.distortion(images, model.decode(codes)), expected, atol=1e-5)
    assert torch.equal(model.reconstruct(codes), model.decoder(codes).sigmoid())


def test_a_pixel_that_is_surely_wrong_still_has_a_gradient() -> None:
    model = BernoulliVAE(MLPEncoder((1, 1, 1), 1, 8), MLPDecoder((1, 1, 1), 1, 8))
    logit = torch.full((1, 1, 1, 1), 30.0, requires_grad=True)
    found = model.distortion(torch.zeros(1, 1, 1, 1), logit)
    found.sum().backward()
    assert float(found) == pytest.approx(30.0)
    assert logit.grad is not None
    assert float(logit.grad) == pytest.approx(1.0)


@pytest.mark.slow
def test_the_likelihood_is_measured_and_a_second_call_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mnist(tmp_path, 500, 100)
    monkeypatch.setattr(likelihood, "VALIDATION", 100)
    places = [f"--folder={tmp_path / 'runs'}", f"--output_dir={tmp_path / 'out'}", f"--data_dir={tmp_path}"]
    lines = likelihood.main([*places, "--epochs", "3", "--samples", "5"])
    assert [line["depth"] for line in lines] == [1, 2]
    assert all(0 < line["nll"] < 784 * math.log(2) for line in lines)  # better than a fair coin for each pixel
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.ckpt")}
    again = likelihood.main([*places, "--epochs", "3", "--samples", "5"])
    assert [line["nll"] for line in again] == [line["nll"] for line in lines]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.ckpt")} == written
    text = (tmp_path / "out" / "likelihood.md").read_text()
    assert "**does not hold**: with 2 hidden layers the negative log-likelihood is within 1 nat" in text


@pytest.mark.slow
def test_the_study_runs_its_phases(tmp_path: Path) -> None:
    write_mnist(tmp_path, 1797, 1797)  # the same rows twice, so that the search finds a teacher that generalizes
    given = ["--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "runs"), "--max_epochs", "2", "--seeds", "0"]
    lines = study.main(given)
    assert [line["phase"] for line in lines] == list(study.PHASES)
    plain, aligned, prefit = (line["margin"] for line in lines)
    assert plain < min(aligned, prefit)
    assert (tmp_path / "runs" / "mnist.png").is_file()


def test_pictures_show_probabilities_not_logits(tmp_path: Path) -> None:
    model = BernoulliVAE(MLPEncoder((1, 8, 8), 3, 8), MLPDecoder((1, 8, 8), 3, 8), learning_rate=1e-12)
    for parameter in model.decoder.parameters():
        nn.init.zeros_(parameter)  # logits 0: every pixel is as likely on as off
    pictures = ReconstructionImages(save_dir=str(tmp_path))
    trainer(tmp_path, callbacks=[pictures], max_epochs=1).fit(model, datamodule=DigitsDataModule(subset=64))
    (path,) = tmp_path.glob("*samples*.png")
    middle = np.median(np.asarray(Image.open(path).convert("L")))
    assert middle == pytest.approx(127.5, abs=1)
