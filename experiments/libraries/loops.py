"""One VAE in every loop that people train with: Lightning by both names, Fabric, Hugging Face's Trainer, a plain loop.

python -m experiments.libraries.loops
"""

import tempfile
from collections.abc import Callable
from typing import Any

import lightning.pytorch
import pytorch_lightning
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

import certvae
from certvae.callbacks import CertificateCallback, Latents
from certvae.certificate.certificate import Certificate
from certvae.teachers import LabelTeacher
from experiments.libraries.comparison import Case, Watched, digits, main, seen, watched_loop


class VAE(nn.Module):
    """Gives its loss first and then its code, as models of Hugging Face do."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 20))
        self.decoder = nn.Linear(10, 64)

    def forward(self, pixels: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Loss of a batch in nats, and the mean."""
        mean, log_variance = self.encoder(pixels).chunk(2, dim=1)
        code = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        error = (self.decoder(code) - pixels.flatten(1)).square().sum(1) * 5
        rate = (mean.square() + log_variance.exp() - log_variance - 1).sum(1) / 2
        return (error + rate).mean(), mean


LATENTS = Latents(lambda model, batch: model.encoder(batch[0]), "chunk")


def own(model: VAE) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Mean and log-variance of images."""
    return lambda images: tuple(model.encoder(images).chunk(2, dim=1))


def plain(watching: bool) -> Watched:
    """A plain loop."""
    model = VAE()
    return watched_loop(model, lambda batch: model(batch[0])[0], LATENTS, own(model), watching)


def fabric(watching: bool) -> Watched:
    """A loop of Lightning Fabric."""
    rows, val = digits()
    made = Fabric(accelerator="cpu", devices=1)
    model, optimizer = made.setup(vae := VAE(), torch.optim.Adam(vae.parameters(), lr=2e-3))
    train, watched_rows = made.setup_dataloaders(rows, val)
    teacher = LabelTeacher(10).measure(rows, images=1) if watching else None  # new
    certificate = None
    for _ in range(2):
        for images, _ in train:
            optimizer.zero_grad()
            made.backward(model(images)[0])
            optimizer.step()
        if teacher is not None:
            certificate = certvae.watch(model, watched_rows, teacher, "encoder:chunk", images=1)  # new
    return seen(vae, own(vae), rows, val, certificate, LATENTS)


class Watch(TrainerCallback):  # new
    """A certificate at each evaluation."""

    def __init__(self, teacher: LabelTeacher) -> None:  # new
        self.teacher = teacher  # new
        self.certificate: Certificate | None = None

    def on_evaluate(self, *_: Any, model: Any, eval_dataloader: Any, **more: Any) -> None:  # new
        """See transformers."""
        self.certificate = certvae.watch(model, eval_dataloader, self.teacher, pixels_code, images="labels")  # new


def pixels_code(model: Any, batch: Any) -> Any:  # new
    """The two halves of what the encoder gives."""
    return model.encoder(batch["pixels"]).chunk(2, dim=1)  # new


def hugging_face(watching: bool) -> Watched:
    """The Trainer of transformers."""
    rows, val = digits()
    model = VAE()
    sets: list[Any] = [
        [{"pixels": image, "labels": label} for image, label in zip(*loader.dataset.tensors, strict=True)]
        for loader in (rows, val)
    ]
    callbacks = []
    if watching:
        teacher = LabelTeacher(10).measure([rows.dataset.tensors[1]])  # new
        callbacks.append(Watch(teacher))  # new
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=2,
            eval_strategy="epoch",
            per_device_train_batch_size=100,
            per_device_eval_batch_size=125,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
        )
        Trainer(model, arguments, train_dataset=sets[0], eval_dataset=sets[1], callbacks=callbacks).train()
    return seen(model, own(model), rows, val, callbacks[0].certificate if watching else None, LATENTS)


def lightning_module(base: Any) -> Any:
    """The VAE as a module of a Lightning."""

    class Module(base):
        def __init__(self) -> None:
            super().__init__()
            self.vae = VAE()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.vae(batch[0])[0]

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.vae(batch[0])[0])

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=2e-3)

    return Module()


def by_trainer(package: Any, watching: bool) -> Watched:
    """A trainer of Lightning."""
    rows, val = digits()
    module, callbacks = lightning_module(package.LightningModule), []
    if watching:
        teacher = LabelTeacher(10).measure(rows, images=1)  # new
        callbacks.append(CertificateCallback(teacher, "vae.encoder:chunk", images=1))  # new
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    package.Trainer(max_epochs=2, accelerator="cpu", callbacks=callbacks, **quiet).fit(module, rows, val)
    certificate = callbacks[0].certificate if watching else None
    return seen(module.vae, own(module.vae), rows, val, certificate, LATENTS)


CASES = [
    Case("torch", "plain loop", plain, source=(watched_loop,), outside=1),
    Case("lightning", "Fabric", fabric),
    Case("transformers", "Trainer", hugging_face, source=(Watch, pixels_code, hugging_face)),
    Case("lightning", "Trainer", lambda watching: by_trainer(lightning.pytorch, watching), source=(by_trainer,)),
    Case(
        "pytorch-lightning", "Trainer", lambda watching: by_trainer(pytorch_lightning, watching), source=(by_trainer,)
    ),
]

if __name__ == "__main__":
    main(__file__, CASES)
