"""`watch` gives without a Trainer what the callback gives with one."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

import certvae
from certvae.callbacks import CertificateCallback
from certvae.certificate.settings import CertificateSettings
from tests.plain_vae import UserEncoder, UserVAE, images, measured, plain_loader
from tests.runs import digits_teacher, trainer

TEACHER = digits_teacher()


class Plain(nn.Module):
    """No Lightning anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = UserEncoder("pair"), nn.Sequential(nn.Dropout(), nn.Linear(6, 64))
        self.norm = nn.BatchNorm1d(64)

    def forward(self, values: Tensor) -> Tensor:
        mean, log_variance = self.encoder(values.flatten(1))
        return self.norm(self.decoder(mean + torch.randn_like(mean) * (log_variance / 2).exp()))


def model() -> Plain:
    torch.manual_seed(0)
    return Plain()


def numbers(certificate: Any) -> dict[str, float]:
    found = {name: getattr(certificate, name) for name in ("margin", "margin_lower", "channel_margin", "rate")}
    return found | {"lower": certificate.information.lower, "fitted": certificate.fitted.lower}


@pytest.mark.slow
def test_its_numbers_are_those_of_the_callback_and_nothing_moves(tmp_path: Path) -> None:
    plain = model()
    lightning = UserVAE()
    lightning.encoder.load_state_dict(plain.encoder.state_dict())
    callback = CertificateCallback(TEACHER, "encoder")
    trainer(tmp_path, callbacks=[callback]).validate(lightning, plain_loader(), verbose=False)
    rows = plain_loader()
    before, state = {name: value.clone() for name, value in plain.state_dict().items()}, torch.get_rng_state()
    found = certvae.watch(plain, rows, TEACHER, "encoder")
    for name, value in numbers(measured(callback)).items():
        assert numbers(found)[name] == pytest.approx(value, abs=1e-9), name
    assert (found.status, found.reading) == (measured(callback).status, measured(callback).reading)
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(part.training for part in plain.modules())
    assert not plain.encoder._forward_hooks


def test_fabrics_wrapper_and_a_function_give_the_same() -> None:
    plain, fabric = model(), Fabric(accelerator="cpu", devices=1)
    expected = certvae.watch(plain, plain_loader(), TEACHER, "encoder", information_rows=0)
    wrapped = fabric.setup(plain)
    loader = fabric.setup_dataloaders(plain_loader())
    by_hook = certvae.watch(wrapped, loader, TEACHER, "encoder", information_rows=0)
    by_function = certvae.watch(
        plain, plain_loader(), TEACHER, lambda net, batch: net.encoder(batch[0].flatten(1)), information_rows=0
    )
    by_run = certvae.watch(
        plain, plain_loader(), TEACHER, "encoder", run=lambda net, batch: net(batch[0]), information_rows=0
    )
    for other in (by_hook, by_function, by_run):
        assert other.margin == pytest.approx(expected.margin, abs=1e-9)
        assert other.channel_margin == pytest.approx(expected.channel_margin, abs=1e-9)


def test_the_leak_tests_find_codes_made_from_a_whole_batch() -> None:
    class Whole(Plain):
        def forward(self, values: Tensor) -> Tensor:
            return self.encoder(values.flatten(1) - values.flatten(1).mean(0))[0]

    torch.manual_seed(0)
    whole = Whole()
    found = certvae.watch(whole, plain_loader(), TEACHER, lambda net, batch: net(batch[0]), check_encoder=True)
    assert found.status == "LEAKING"


class Masked(Plain):
    def forward(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            raise TypeError("mask is missing")
        return super().forward(values)


def test_a_model_that_is_called_in_another_way_is_told_of_run() -> None:
    rows = [(batch[0], torch.ones(())) for batch in plain_loader()]
    with pytest.raises(TypeError, match="mask is missing") as raised:
        certvae.watch(Masked(), rows, TEACHER, "encoder")
    assert re.search(r"the first tensor of a batch, float32.*`predict_step`.*`run=", raised.value.__notes__[0])
    assert certvae.watch(Masked(), rows, TEACHER, "encoder", run=lambda model, batch: model(*batch)).num_samples > 0


def test_a_model_that_has_diverged_and_wrong_settings_are_refused() -> None:
    broken = model()
    broken.encoder.body.bias.data[:] = math.nan
    with pytest.raises(ValueError, match="the model has diverged, and there is no certificate"):
        certvae.watch(broken, [(images(),)], TEACHER, "encoder")
    assert not broken.encoder._forward_hooks
    strict = certvae.watch(model(), [(images(),)], TEACHER, "encoder", confidence=0.99, information_rows=0)
    assert strict.confidence == CertificateSettings.for_teacher(0.01, confidence=0.99).confidence
