"""A VAE on the frames of short videos of a moving dot; one frame of each video is a row.

    python experiments/examples/frames.py

The bounds need independent rows, but the frames of a video are not independent. The model trains on all frames. A
function gives the code of one frame per video to the certificate and the bracket.
"""

import argparse

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from certvae.callbacks import CertificateCallback, CertificateGuard, InformationCallback
from certvae.teachers import LabelTeacher

SIZE, STEPS = 16, 5


def videos(rows: int, seed: int) -> TensorDataset:
    """A bright spot that moves: ``(rows, STEPS, 1, SIZE, SIZE)``, and the quadrant of the middle frame."""
    generator = torch.Generator().manual_seed(seed)
    start, speed = torch.rand(rows, 1, 2, generator=generator), 0.1 * torch.randn(rows, 1, 2, generator=generator)
    place = (start + speed * torch.arange(STEPS)[:, None]).clamp(0, 1) * (SIZE - 1)
    grid = torch.stack(torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij"))
    distance = (grid - place[..., None, None]).square().sum(dim=2)
    middle = place[:, STEPS // 2] >= SIZE / 2
    return TensorDataset((-distance / 4).exp()[:, :, None], 2 * middle[:, 0].long() + middle[:, 1].long())


class FrameVAE(pl.LightningModule):
    """A convolutional VAE on single frames; batches are ``(videos, quadrant)``."""

    def __init__(self, latent_dim: int = 6) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 4, 2, 1), nn.ReLU(), nn.Flatten()
        )
        self.head = nn.Linear(256, 2 * latent_dim)
        self.decoder = nn.Sequential(nn.Linear(latent_dim, 128), nn.ReLU(), nn.Linear(128, SIZE**2))

    def posterior(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of frames ``(N, 1, SIZE, SIZE)``."""
        mean, log_variance = self.head(self.encoder(frames)).chunk(2, dim=1)
        return mean, log_variance

    def loss(self, batch: list[Tensor]) -> Tensor:
        """Negative ELBO in nats a frame, at an observation variance of 0.05."""
        frames = batch[0].flatten(0, 1)
        mean, log_variance = self.posterior(frames)
        code = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        error = (self.decoder(code) - frames.flatten(1)).square().sum(dim=1) / (2 * 0.05)
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


def middle_frame(model: FrameVAE, batch: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The code of one frame of each video."""
    return model.posterior(batch[0][:, STEPS // 2])


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--max_epochs", type=int, default=6)
options = parser.parse_args()

pl.seed_everything(0, verbose=False)
train, val = DataLoader(videos(800, 0), 40, shuffle=True), DataLoader(videos(1000, 1), 250)
teacher = LabelTeacher(4).measure(train, images=1)
watch = CertificateCallback(teacher, middle_frame, images=1)
trainer = pl.Trainer(
    max_epochs=options.max_epochs,
    callbacks=[watch, InformationCallback(middle_frame), CertificateGuard(target=0.5)],
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(FrameVAE(), train, val)
print(watch.certificate)
