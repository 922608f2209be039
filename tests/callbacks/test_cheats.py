"""A good reconstruction is no certificate: a decoder that sees the image needs no code, and gets none certified."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule
from torch import Tensor, nn

from certvae import Certificate, Status
from certvae.callbacks import AlignmentCallback, CertificateCallback
from certvae.models.networks import MLPDecoder, MLPEncoder
from certvae.theory.posterior import Posterior
from tests.plain_vae import images, measured, plain_loader
from tests.runs import SHAPE, digits_teacher, trainer

pytestmark = pytest.mark.slow

ROWS = 600


class SkipVAE(LightningModule):
    """A VAE whose decoder adds a map of the image to what it makes of the code; or whose code is constant."""

    def __init__(self, constant: bool) -> None:
        super().__init__()
        self.encoder, self.decoder = MLPEncoder(SHAPE, 6, 32, 1), MLPDecoder(SHAPE, 6, 32, 1)
        self.skip = nn.Linear(64, 64)
        if constant:
            for parameter in self.encoder.head.parameters():
                nn.init.zeros_(parameter).requires_grad_(False)

    def step(self, batch: Any) -> tuple[Tensor, Tensor]:
        posterior = Posterior(*self.encoder(batch[0]))
        shown = self.decoder(posterior.sample()) + self.skip(batch[0].flatten(1)).unflatten(1, SHAPE)
        error = (shown - batch[0]).square().flatten(1).sum(dim=1)
        return error, posterior.kl_to_standard_normal().sum(dim=1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        error, rate = self.step(batch)
        return (error / 2 + rate).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("mean_squared_error", self.step(batch)[0].mean() / 64, batch_size=len(batch[0]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def trained(folder: Path, constant: bool, *callbacks: Callback) -> tuple[Certificate, float]:
    """The certificate, and the error as a share of that of the best constant reconstruction."""
    torch.manual_seed(0)
    certificate = CertificateCallback(digits_teacher(), "encoder")
    runner = trainer(folder, max_epochs=10, callbacks=[certificate, *callbacks])
    runner.fit(SkipVAE(constant), plain_loader(ROWS), plain_loader(ROWS, 200))
    best_constant = float(images(ROWS).var(dim=0, correction=0).mean())
    return measured(certificate), float(runner.callback_metrics["mean_squared_error"]) / best_constant


@pytest.mark.parametrize("constant", [True, False], ids=["constant code", "collapsed code"])
def test_a_decoder_that_sees_the_image_reconstructs_it_and_stays_uncertified(tmp_path: Path, constant: bool) -> None:
    certificate, error = trained(tmp_path, constant)
    assert error < 0.1
    assert certificate.status is Status.NOT_CERTIFIED
    assert certificate.margin < 0.01
    assert certificate.witness_information < 0.01


def test_the_same_module_is_certified_when_its_code_is_aligned(tmp_path: Path) -> None:
    certificate, error = trained(tmp_path, False, AlignmentCallback(digits_teacher(), "encoder", weight=20.0))
    assert error < 0.1
    assert certificate.status is Status.CERTIFIED
