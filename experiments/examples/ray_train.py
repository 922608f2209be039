"""A VAE under Ray Train on two workers, with its certificate; lines that Ray needs are marked `Ray`.

pip install "certvae[ray]"
python experiments/examples/ray_train.py
"""

import argparse
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import ray
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment, prepare_trainer
from ray.train.torch import TorchTrainer
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from certvae.callbacks import CertificateCallback
from certvae.teachers import LabelTeacher


class PlainVAE(pl.LightningModule):
    """A perceptron VAE without any certificate or Ray code."""

    def __init__(self, latent_dim: int = 10) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2 * latent_dim))
        self.decoder = nn.Linear(latent_dim, 64)

    def loss(self, batch: list[Tensor]) -> Tensor:
        """Negative ELBO in nats per image, at an observation variance of 0.05."""
        mean, log_variance = self.encoder(batch[0]).chunk(2, dim=1)
        code = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        rate = (mean**2 + log_variance.exp() - log_variance - 1).sum(dim=1) / 2
        return (((self.decoder(code) - batch[0]) ** 2).sum(dim=1) / (2 * 0.05) + rate).mean()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """One step."""
        return self.loss(batch)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log the loss."""
        self.log("val_loss", self.loss(batch), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def train(config: dict[str, Any]) -> None:
    """The function of each worker: an ordinary Lightning run."""
    pl.seed_everything(0, verbose=False)
    digits = load_digits()
    rows = TensorDataset(torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target))
    train_set, val_set = (torch.utils.data.Subset(rows, part) for part in (range(1297), range(1297, 1797)))
    loaders = DataLoader(train_set, batch_size=64, shuffle=True), DataLoader(val_set, batch_size=250)
    teacher = LabelTeacher(10).measure(DataLoader(train_set, batch_size=64), 1)
    watch = CertificateCallback(teacher, "encoder:chunk", 1, save_dir=config["folder"])
    trainer = pl.Trainer(
        max_epochs=config["max_epochs"],
        callbacks=[watch],
        accelerator="cpu",
        strategy=RayDDPStrategy(),  # Ray
        plugins=[RayLightningEnvironment()],  # Ray
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    prepare_trainer(trainer).fit(PlainVAE(), *loaders)  # Ray


def main() -> None:
    """Start two workers on this machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_epochs", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("runs/ray"))
    given = parser.parse_args()
    ray.init(num_cpus=2, include_dashboard=False)  # Ray
    TorchTrainer(  # Ray
        train,
        train_loop_config={"max_epochs": given.max_epochs, "folder": str(given.folder.resolve())},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(storage_path=str(given.folder.resolve())),
    ).fit()
    ray.shutdown()


if __name__ == "__main__":
    main()
