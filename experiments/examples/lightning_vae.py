"""A plain Lightning VAE on digits with one callback: only the two lines marked `new` are added.

python experiments/examples/lightning_vae.py
"""

import argparse

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from certvae import callbacks, teachers  # new


class VAE(pl.LightningModule):
    """A perceptron VAE without any certificate code."""

    def __init__(self, latent_dim: int = 10) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 2 * latent_dim))
        self.decoder = nn.Sequential(nn.Linear(latent_dim, 128), nn.ReLU(), nn.Linear(128, 64))

    def loss(self, batch: list[Tensor]) -> Tensor:
        """Negative ELBO in nats per image, at an observation variance of 0.05."""
        images = batch[0]
        mean, log_variance = self.encoder(images).chunk(2, dim=1)
        code = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        error = ((self.decoder(code) - images) ** 2).sum(dim=1) / (2 * 0.05)
        rate = (mean**2 + log_variance.exp() - log_variance - 1).sum(dim=1) / 2
        return (error + rate).mean()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """One step."""
        return self.loss(batch)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log the loss."""
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=2e-3)


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--max_epochs", type=int, default=15)
options = parser.parse_args()

pl.seed_everything(0, verbose=False)
digits = load_digits()
data = TensorDataset(torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target))
train_set, val_set = random_split(data, [1297, 500])
train, val = DataLoader(train_set, batch_size=64, shuffle=True), DataLoader(val_set, batch_size=250)

trainer = pl.Trainer(
    max_epochs=options.max_epochs,
    callbacks=[callbacks.CertificateCallback(teachers.LabelTeacher(10).measure(train, 1), "encoder:chunk", 1)],  # new
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(VAE(), train, val)
print({name: round(float(value), 3) for name, value in trainer.callback_metrics.items()})
