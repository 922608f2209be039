"""A VAE on vectors, such as standardized measurements, with a searched teacher and a guard.

python experiments/examples/vectors.py
"""

import argparse
import tempfile

import lightning.pytorch as pl
import torch
from sklearn.datasets import make_blobs
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.utils.data import DataLoader

from certvae import TeacherSearch
from certvae.callbacks import CertificateCallback, CertificateGuard


class Encoder(nn.Module):
    """Returns a pair: mean and log-variance."""

    def __init__(self, features: int, latent_dim: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(features, 64), nn.ReLU())
        self.mean, self.log_variance = nn.Linear(64, latent_dim), nn.Linear(64, latent_dim)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The posterior of each row."""
        hidden = self.body(rows)
        return self.mean(hidden), self.log_variance(hidden)


class VectorVAE(pl.LightningModule):
    """A VAE on rows of numbers; its batches are bare tensors."""

    def __init__(self, features: int = 50, latent_dim: int = 8) -> None:
        super().__init__()
        self.encoder = Encoder(features, latent_dim)
        self.decoder = nn.Sequential(nn.Linear(latent_dim, 64), nn.ReLU(), nn.Linear(64, features))

    def loss(self, rows: Tensor) -> Tensor:
        """Negative ELBO in nats per row, at an observation variance of 1."""
        mean, log_variance = self.encoder(rows)
        code = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        rate = (mean**2 + log_variance.exp() - log_variance - 1).sum(dim=1) / 2
        return (((self.decoder(code) - rows) ** 2).sum(dim=1) / 2 + rate).mean()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """One step."""
        return self.loss(batch)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Log the loss."""
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=2e-3)


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--max_epochs", type=int, default=10)
options = parser.parse_args()

pl.seed_everything(0, verbose=False)
rows = make_blobs(n_samples=2000, n_features=50, centers=6, cluster_std=8.0, random_state=0)[0]
rows = torch.tensor(StandardScaler().fit_transform(rows), dtype=torch.float32)
train, val = DataLoader(rows[:1500], batch_size=64, shuffle=True), DataLoader(rows[1500:], batch_size=250)

# The teacher: Gaussian mixtures on the rows, without labels. Later runs can use its file.
folder = tempfile.mkdtemp()
search = TeacherSearch(components=(6, 8), temperatures=(1.0, 2.0), pca_dim=10, em_iterations=15, output_dir=folder)
teacher = search.search(train, val)

watch = CertificateCallback(teacher, latents="encoder")
trainer = pl.Trainer(
    max_epochs=options.max_epochs,
    callbacks=[watch, CertificateGuard(target=0.5)],
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(VectorVAE(), train, val)
print(watch.certificate)
