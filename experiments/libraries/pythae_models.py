"""Models of pythae, trained by its pipeline, watched from one of its training callbacks.

python -m experiments.libraries.pythae_models
"""

import tempfile
from typing import Any

from pythae.data.datasets import BaseDataset
from pythae.models import (
    AE,
    INFOVAE_MMD,
    IWAE,
    VAE,
    VAE_IAF,
    VAMP,
    VQVAE,
    WAE_MMD,
    AEConfig,
    BetaTCVAE,
    BetaTCVAEConfig,
    BetaVAE,
    BetaVAEConfig,
    DisentangledBetaVAE,
    DisentangledBetaVAEConfig,
    FactorVAE,
    FactorVAEConfig,
    INFOVAE_MMD_Config,
    IWAEConfig,
    VAE_IAF_Config,
    VAEConfig,
    VAMPConfig,
    VQVAEConfig,
    WAE_MMD_Config,
)
from pythae.pipelines import TrainingPipeline
from pythae.trainers import AdversarialTrainerConfig, BaseTrainerConfig
from pythae.trainers.training_callbacks import TrainingCallback
from torch import Tensor
from torch.utils.data import DataLoader

import certvae
from certvae.callbacks import Latents
from certvae.certificate.certificate import Certificate
from certvae.teachers import LabelTeacher
from experiments.libraries.comparison import Case, Watched, digits, main, seen

BASE: dict[str, Any] = {"input_dim": (1, 8, 8), "latent_dim": 10}
GAUSSIAN = Latents(lambda model, batch: model.encoder(batch[0]), "embedding,log_covariance")
POINT = Latents(lambda model, batch: model.encoder(batch[0]), "embedding", deterministic=True)


class Watch(TrainingCallback):  # new
    """A certificate after each epoch; the pipeline does not hand the model to its callbacks."""

    def __init__(self, model: Any, rows: DataLoader[Any], teacher: LabelTeacher, latents: Latents) -> None:  # new
        self.model, self.rows, self.teacher, self.latents = model, rows, teacher, latents  # new
        self.certificate: Certificate | None = None

    def on_epoch_end(self, training_config: Any, **kwargs: Any) -> None:  # new
        """See pythae."""
        self.certificate = certvae.watch(self.model, self.rows, self.teacher, self.latents, images=1)  # new


def fitted(kind: Any, config: Any, watching: bool, latents: Latents = GAUSSIAN) -> Watched:
    """A model after two epochs of pythae's pipeline."""
    rows, val = digits()
    images, labels = rows.dataset.tensors
    model, callbacks = kind(config), []
    if watching:
        teacher = LabelTeacher(10).measure([labels])  # new
        callbacks.append(Watch(model, val, teacher, latents))  # new
    options: dict[str, Any] = {"num_epochs": 2, "per_device_train_batch_size": 100, "no_cuda": True}
    with tempfile.TemporaryDirectory() as folder:
        made = AdversarialTrainerConfig if kind is FactorVAE else BaseTrainerConfig
        pipeline = TrainingPipeline(model, made(output_dir=folder, **options))
        pipeline(BaseDataset(images, labels), callbacks=callbacks)

    def own(images: Tensor) -> tuple[Tensor, Tensor | None]:
        out = model.encoder(images)
        return out.embedding, out.log_covariance if latents is GAUSSIAN else None

    certificate = callbacks[0].certificate if watching else None
    return seen(model, own, rows, val, certificate, latents)


def _case(kind: Any, config: Any, latents: Latents = GAUSSIAN) -> Case:
    return Case(
        "pythae",
        kind.__name__,
        lambda watching: fitted(kind, config, watching, latents),
        source=(Watch, fitted),
        outside=1,
    )


CASES = [
    _case(VAE, VAEConfig(**BASE)),
    _case(BetaVAE, BetaVAEConfig(**BASE, beta=2.0)),
    _case(DisentangledBetaVAE, DisentangledBetaVAEConfig(**BASE)),
    _case(BetaTCVAE, BetaTCVAEConfig(**BASE)),
    _case(FactorVAE, FactorVAEConfig(**BASE)),
    _case(INFOVAE_MMD, INFOVAE_MMD_Config(**BASE)),
    _case(IWAE, IWAEConfig(**BASE, number_samples=3)),
    _case(VAMP, VAMPConfig(**BASE, number_components=5)),
    _case(VAE_IAF, VAE_IAF_Config(**BASE, n_blocks=1)),
    _case(WAE_MMD, WAE_MMD_Config(**BASE), POINT),
    _case(VQVAE, VQVAEConfig(**BASE, num_embeddings=16), POINT),
    _case(AE, AEConfig(**BASE), POINT),
]

if __name__ == "__main__":
    main(__file__, CASES)
