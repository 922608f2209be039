"""A model without a submodule that returns the code: a function computes the code instead.

python experiments/examples/function_latents.py
"""

import argparse

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, random_split

from certvae.callbacks import CertificateCallback, CertificateGuard
from certvae.teachers import LabelTeacher


class SharedVAE(pl.LightningModule):
    """A linear VAE whose decoder is its encoder transposed; its batches are dicts."""

    def __init__(self, latent_dim: int = 10) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.randn(64, latent_dim))
        self.log_variance = nn.Parameter(torch.zeros(latent_dim))
        self.offset = nn.Parameter(torch.full((64,), 0.3))

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of each row."""
        mean = (pixels - self.offset) @ self.weight
        return mean, self.log_variance.expand_as(mean)

    def loss(self, pixels: Tensor) -> Tensor:
        """Negative ELBO in nats per image, at an observation variance of 0.05."""
        mean, log_variance = self.encode(pixels)
        code = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        error = ((code @ self.weight.T + self.offset - pixels) ** 2).sum(dim=1) / (2 * 0.05)
        rate = (mean**2 + log_variance.exp() - log_variance - 1).sum(dim=1) / 2
        return (error + rate).mean()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """One step."""
        return self.loss(batch["pixels"])

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the loss."""
        self.log("val_loss", self.loss(batch["pixels"]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def code(model: SharedVAE, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The code that is certified; the function costs one more pass through the encoder."""
    return model.encode(batch["pixels"])


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--max_epochs", type=int, default=10)
options = parser.parse_args()

pl.seed_everything(0, verbose=False)
digits = load_digits()
images, labels = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
data = [{"pixels": image, "label": label} for image, label in zip(images, labels, strict=True)]
train_set, val_set = random_split(data, [1297, 500])
train, val = DataLoader(train_set, batch_size=64, shuffle=True), DataLoader(val_set, batch_size=250)

teacher = LabelTeacher(10).measure(train, images="label")
for guard in ([], [CertificateGuard(target=0.5)]):
    watch = CertificateCallback(teacher, latents=code, images="label")
    trainer = pl.Trainer(
        max_epochs=options.max_epochs,
        callbacks=[watch, *guard],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(SharedVAE(), train, val)
    print(f"with {'the' if guard else 'no'} guard:\n{watch.certificate}\n")
