"""Where a module optimizes by hand, the alignment gradient is added at the code, as often as it should be."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from certvae.callbacks import AlignmentCallback, CertificateCallback, CertificateGuard, Latents
from certvae.monitoring.auxiliary_gradient import AuxiliaryGradient
from certvae.reading.latents import LatentCapture
from certvae.theory.information import kl_divergence
from tests.plain_vae import ManualVAE, UserVAE, measured, plain_loader
from tests.runs import digits_teacher, trainer

pytestmark = pytest.mark.slow
TEACHER = digits_teacher()


class GAN(ManualVAE):
    """A VAE with a discriminator, two optimizers, and a discriminator's pass that reaches the encoder first."""

    def __init__(self) -> None:
        super().__init__()
        self.judge = nn.Linear(64, 1)

    def configure_optimizers(self) -> Any:
        own = [*self.encoder.parameters(), *self.decoder.parameters()]
        return torch.optim.Adam(own, lr=1e-2), torch.optim.Adam(self.judge.parameters(), lr=1e-2)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizers: Any = self.optimizers()
        generator, discriminator = optimizers
        images = batch[0].flatten(1)
        mean, log_variance = self.encoder(images)
        fake = self.decoder(mean + (log_variance / 2).exp() * torch.randn_like(mean))
        real, false = self.judge(images), self.judge(fake)
        discriminator.zero_grad()
        self.manual_backward(false.mean() - real.mean(), retain_graph=True)  # nobody detached the fake
        discriminator.step()
        generator.zero_grad()
        rate = (mean.square() + log_variance.exp() - log_variance - 1).sum(1).mean() / 2
        self.manual_backward((fake - images).square().sum(1).mean() - 0.1 * self.judge(fake).mean() + 5 * rate)
        generator.step()


def fit(folder: Path, model: Any, *callbacks: Any, **arguments: Any) -> Any:
    torch.manual_seed(1)
    rows = plain_loader(batch_size=16)
    trainer(folder, callbacks=list(callbacks), **{"max_epochs": 2, **arguments}).fit(model, rows, plain_loader())
    return model


def seeded(kind: type[UserVAE]) -> Any:
    torch.manual_seed(0)
    return kind()


def aligned(**arguments: Any) -> AlignmentCallback:
    return AlignmentCallback(TEACHER, **{"latents": "encoder", "weight": 3.0, **arguments})


@pytest.mark.parametrize("path", ["mean", "draw"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_weights_equal_those_of_automatic_optimization(tmp_path: Path, path: Any, precision: str) -> None:
    by_hand = fit(tmp_path, seeded(ManualVAE), aligned(path=path), precision=precision).state_dict()
    automatic = fit(tmp_path, seeded(UserVAE), aligned(path=path), precision=precision).state_dict()
    for name, value in automatic.items():
        torch.testing.assert_close(by_hand[name], value, atol=1e-6 if precision == "32-true" else 1e-2, rtol=1e-5)


def test_the_gradient_at_the_code_is_the_closed_form() -> None:
    class Module(UserVAE):
        trainer: Any = type("T", (), {"training": True, "precision_plugin": None})()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.code = self.encoder(batch.flatten(1))[0]
            self.code.retain_grad()
            return 0.0 * self.code.sum()

    model, rows = seeded(Module), torch.rand(7, 1, 8, 8)
    witness = TEACHER.witness(6)

    def term(batch: Any, code: Any) -> Tensor:
        return 3.0 * kl_divergence(TEACHER(batch).float(), witness(code.mean).log_softmax(1)).mean()

    by_hand = AuxiliaryGradient(Latents("encoder"), term)
    by_hand.attach(model)
    loss = model.training_step(rows, 0)
    for _ in range(2):  # accumulated losses get it once
        loss.backward(retain_graph=True)
    grad = torch.autograd.grad(term(rows, type("C", (), {"mean": model.code})()), model.code)[0]
    closed = 3.0 * witness.alignment_gradient(model.code.detach(), TEACHER(rows)) / 7
    torch.testing.assert_close(grad.double(), closed, atol=1e-6, rtol=1e-5)
    expected_bias = closed.sum(dim=0).float()
    torch.testing.assert_close(model.encoder.body.bias.grad[:6], expected_bias, atol=1e-5, rtol=1e-4)
    by_hand.stepped()
    model.zero_grad()
    loss.backward()
    torch.testing.assert_close(model.encoder.body.bias.grad[:6], expected_bias, atol=1e-5, rtol=1e-4)
    by_hand.detach()
    assert not model.encoder._forward_hooks
    assert "training_step" not in vars(model)


def test_a_gan_hybrid_is_guarded(tmp_path: Path) -> None:
    """It collapses under its KL weight; the guard finds the weight that brings it back."""
    margins = []
    for guards in ([], [CertificateGuard(0.05, path="mean", headroom=0.0)]):
        watch = CertificateCallback(TEACHER, "encoder", information_rows=0, channel_samples=0, method="normal")
        fit(tmp_path, seeded(GAN), watch, *guards, max_epochs=15)
        margins.append(measured(watch).margin)
    assert margins[0] < 0.02 < 0.05 < margins[1]


def test_a_weight_of_zero_changes_no_bit(tmp_path: Path) -> None:
    left, right = (fit(tmp_path, seeded(GAN), *more).state_dict() for more in ([aligned(weight=0.0)], []))
    assert all(torch.equal(value, right[name]) for name, value in left.items())


def test_what_has_no_place_for_the_gradient_is_refused(tmp_path: Path) -> None:
    sources: list[Any] = [None, lambda *_: None, {"a": "encoder"}, Latents("encoder", calls="last"), ":0,1"]
    for source in [LatentCapture(given).source for given in sources]:
        with pytest.raises(ValueError, match="`latents` must name one submodule, as in latents='encoder.fc_mu'"):
            AuxiliaryGradient(source, lambda *_: torch.zeros(())).attach(seeded(GAN))


def test_a_second_call_in_a_step_is_refused_or_left_out(tmp_path: Path) -> None:
    class Twice(ManualVAE):
        def step(self, batch: Any) -> Tensor:
            return super().step(batch) + 0 * self.encoder(self.images(batch))[0].sum()

    with pytest.raises(ValueError, match=r"called twice in one step.*calls='first'"):
        fit(tmp_path, seeded(Twice), aligned())
    first = fit(tmp_path, seeded(Twice), aligned(latents=Latents("encoder", calls="first"))).state_dict()
    once = fit(tmp_path, seeded(ManualVAE), aligned()).state_dict()
    assert all(torch.allclose(value, once[name], atol=1e-6) for name, value in first.items())
