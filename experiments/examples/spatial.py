"""A convolutional VAE whose code is a map (B, C, h, w): the certificate reads its mean over positions.

python experiments/examples/spatial.py
"""

import argparse

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from certvae.callbacks import AlignmentCallback, CertificateCallback, Latents
from certvae.teachers import LabelTeacher


class ConvVAE(pl.LightningModule):
    """A VAE with a code of shape (B, 12, 2, 2); the encoder gives means and log-variances side by side."""

    def __init__(self, channels: int = 12) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(32, 2 * channels, 3, stride=2, padding=1)
        )
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(channels, 32, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(32, 1, 4, stride=2, padding=1),
        )

    def loss(self, batch: list[Tensor]) -> Tensor:
        """Negative ELBO in nats per image, at an observation variance of 0.05."""
        images = batch[0]
        mean, log_variance = self.encoder(images).chunk(2, dim=1)
        code = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        error = ((self.decoder(code) - images) ** 2).flatten(1).sum(dim=1) / (2 * 0.05)
        rate = (mean**2 + log_variance.exp() - log_variance - 1).flatten(1).sum(dim=1) / 2
        return (error + rate).mean()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """One step."""
        return self.loss(batch)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log the loss."""
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=3e-3)


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--max_epochs", type=int, default=10)
options = parser.parse_args()

pl.seed_everything(0, verbose=False)
digits = load_digits()
images = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32)
train_set, val_set = random_split(TensorDataset(images, torch.tensor(digits.target)), [1297, 500])
train, val = DataLoader(train_set, batch_size=64, shuffle=True), DataLoader(val_set, batch_size=250)

teacher = LabelTeacher(10).measure(train, images=1)
where = Latents("encoder", part="chunk", spatial="pool")
for align in (False, True):
    watch = CertificateCallback(teacher, latents=where, images=1)
    trainer = pl.Trainer(
        max_epochs=options.max_epochs,
        callbacks=[watch, AlignmentCallback(teacher, latents=where, images=1, weight=10.0)] if align else [watch],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(ConvVAE(), train, val)
    print(f"with{'' if align else 'out'} alignment:\n{watch.certificate}\n")
