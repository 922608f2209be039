"""Small runs that several tests share."""

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer

from certvae import VAE
from certvae.datamodules import DigitsDataModule
from certvae.models.networks import MLPDecoder, MLPEncoder
from certvae.models.objectives import ELBO
from certvae.teachers import GaussianMixtureTeacher, TeacherCard

SHAPE = (1, 8, 8)


def digits_teacher(components: int = 5, scale: float = 1.0, **card: Any) -> GaussianMixtureTeacher:
    """A mixture on raw pixels around some training images; ``scale=0`` makes it constant."""
    data = DigitsDataModule()
    rows = torch.from_numpy(data.arrays.images[:components]).flatten(start_dim=1).double() / 255
    teacher = GaussianMixtureTeacher(
        TeacherCard(components, temperature=2.0, floor=0.01, image_shape=SHAPE, value_range=(0.0, 1.0), **card),
        center=torch.zeros(64),
        projection=scale * torch.eye(64, dtype=torch.float64),
        log_weights=torch.zeros(components).log_softmax(dim=0),
        means=scale * rows,
        variances=torch.full((components, 64), 0.2),
    )
    return teacher.measure(data.loader("train"))


def small_vae(teacher: Any = None, latent_dim: int = 6, beta: float = 1.0, **arguments: Any) -> VAE:
    """A small perceptron VAE on digits, seeded."""
    torch.manual_seed(0)
    encoder, decoder = MLPEncoder(SHAPE, latent_dim, 32, 1), MLPDecoder(SHAPE, latent_dim, 32, 1)
    options: dict[str, Any] = {"observation_std": 0.2236, **arguments}
    return VAE(encoder, decoder, teacher, objective=ELBO(beta), **options)


def trainer(folder: Path, **arguments: Any) -> Trainer:
    """A quiet trainer, on the CPU unless told otherwise."""
    options: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
        **arguments,
    }
    return Trainer(
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )
