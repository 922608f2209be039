"""VAEs that know nothing of certificates, as somebody else would write them."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.distributions import Normal
from torch.utils.data import DataLoader, TensorDataset

from certvae import Certificate, certify
from certvae.callbacks import CertificateCallback
from certvae.datamodules import DigitsDataModule
from tests.runs import digits_teacher, trainer


class UserEncoder(nn.Module):
    """Gives a code of six numbers as ``"mean"``, ``"pair"`` or ``"distribution"``."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.body = kind, nn.Linear(64, 12)

    def forward(self, images: Tensor) -> Any:
        mean, log_variance = self.body(images.flatten(1)).chunk(2, dim=1)
        if self.kind == "mean":
            return mean
        return (mean, log_variance) if self.kind == "pair" else Normal(mean, (log_variance / 2).exp())


class UserSteps:
    """The steps of :class:`UserVAE`, for a LightningModule of either import name."""

    def __init__(self, kind: str = "pair") -> None:
        super().__init__()
        self.encoder, self.decoder, self.learning_rate = UserEncoder(kind), nn.Linear(6, 64), 0.1

    def images(self, batch: Any) -> Tensor:
        return batch[0].flatten(1)

    def step(self, batch: Any) -> Tensor:
        images = self.images(batch)
        code = self.encoder(images)
        mean = code if isinstance(code, Tensor) else (code.mean if isinstance(code, Normal) else code[0])
        return ((self.decoder(mean) - images) ** 2).mean()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.step(batch)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        self.log("val_loss", self.step(batch), batch_size=1)  # type: ignore[attr-defined]

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        self.step(batch)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self.encoder(self.images(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)  # type: ignore[attr-defined]


class UserVAE(UserSteps, LightningModule):
    """A VAE that knows nothing of certificates, with batches ``(images, labels)``."""


class ManualVAE(UserVAE):
    """Steps its optimizer by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.step(batch))
        optimizer.step()


def images(rows: int = 90) -> Tensor:
    """The first digits, float32, shape ``(rows, 1, 8, 8)``."""
    return torch.from_numpy(DigitsDataModule().arrays.images[:rows]).float() / 255


def plain_loader(rows: int = 90, batch_size: int = 32, **arguments: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(images(rows), torch.zeros(rows)), batch_size, **arguments)


@torch.no_grad()
def expected(model: Any, loader: Iterable[Any] | None = None, teacher: Any = None) -> Certificate:
    """The one-shot certificate of a foreign VAE's mean codes on the rows of a loader."""
    teacher, model = teacher or digits_teacher(), model.eval()
    inputs = torch.cat([batch[0] for batch in loader or plain_loader()])
    codes = model.encoder.body(model.images([inputs]))[:, :6]
    witness = getattr(model, "witness", None) or teacher.witness(6)
    return certify(teacher(inputs), witness(codes), teacher_floor=teacher.card.floor)


def watch(**arguments: Any) -> CertificateCallback:
    """A certificate of a foreign VAE."""
    return CertificateCallback(**{"teacher": digits_teacher(), "latents": "encoder", **arguments})


def measured(callback: CertificateCallback) -> Certificate:
    """The latest certificate, which there must be."""
    assert callback.certificate is not None
    return callback.certificate


def fit(
    folder: Path, callbacks: Any, make: Callable[[], Any] | None = None, loaders: Any = None, **arguments: Any
) -> tuple[Trainer, Any]:
    """Train a foreign VAE, or what ``make`` makes, seeded, and validate it on the loaders."""
    torch.manual_seed(0)
    model, runner = (make or UserVAE)(), trainer(folder, callbacks=callbacks, **arguments)
    runner.fit(model, plain_loader(), plain_loader() if loaders is None else loaders)
    return runner, model
