"""A negative control on CIFAR-100: a decoder that sees the image reconstructs well, but its code is not certified.

    python experiments/cheat/run.py --data_dir data --output_dir runs/cheat

The decoder receives the image through a skip connection, so it does not need the code, and the code collapses. The
small reconstruction error does not show this; the certificate does. The second run is the same module with the
AlignmentCallback: its code carries information, and it is certified. The teacher is searched first, unless its file is
given or exists. The script takes 2 to 3 minutes on 2 CPU cores, half a minute with --quick.
"""

import argparse
import logging
from pathlib import Path
from typing import Any

import torch
import yaml
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn

from certvae.callbacks import AlignmentCallback, CertificateCallback
from certvae.commands.run_config import complete, move_paths
from certvae.commands.runs import Run, execute, interruptible
from certvae.datamodules import CIFAR100DataModule
from certvae.io.files import csv_text, write_atomic
from certvae.models.networks import ConvDecoder, ConvEncoder
from certvae.theory.posterior import Posterior

SEARCH = Path(__file__).parent.parent / "cifar100" / "search.yaml"
SHAPE = (3, 32, 32)
COLUMNS = (
    "run",
    "mean_squared_error",
    "best_constant_error",
    "rate",
    "teacher_information",
    "margin",
    "margin_lower",
    "witness_information",
    "status",
)


class SkipVAE(LightningModule):
    """A VAE whose decoder sees both the image and the code.

    Args:
        latent_dim: size of the latent.
        width: channels after the first convolution.
    """

    def __init__(self, latent_dim: int = 64, width: int = 16) -> None:
        super().__init__()
        self.encoder, self.decoder = ConvEncoder(SHAPE, latent_dim, width), ConvDecoder(SHAPE, latent_dim, width)
        self.skip = nn.Conv2d(3, width, kernel_size=3, padding=1)
        self.merge = nn.Conv2d(3 + width, 3, kernel_size=3, padding=1)

    def terms(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Squared error of each row, summed over its values, and rate in nats; both of shape ``(B,)``."""
        posterior = Posterior(*(part.float() for part in self.encoder(images)))
        shown = torch.cat([self.decoder(posterior.sample()), self.skip(images)], dim=1)
        error = (self.merge(shown).float() - images).square().flatten(start_dim=1).sum(dim=1)
        return error, posterior.kl_to_standard_normal().sum(dim=1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        error, rate = self.terms(batch[0])
        return (error / 2 + rate).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        error = self.terms(batch[0])[0].double().mean() / batch[0][0].numel()
        self.log("val/mean_squared_error", error, batch_size=len(batch[0]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def search(given: argparse.Namespace) -> Path:
    """The path of the teacher; runs a search if it does not exist."""
    if given.teacher is not None:
        return Path(given.teacher)
    folder, label = given.output_dir / "search", "search"
    changes = {"data.data_dir": given.data_dir} | ({"data.subset": given.subset} if given.subset else {})
    values = move_paths(yaml.safe_load(SEARCH.read_text()), "runs/cifar100/search", str(folder))
    path = folder / "teacher.safetensors"
    with interruptible(given.output_dir):
        execute(Run(folder, complete(values, seed=0, label=label, changes=changes), label, product=path))
    return path


def best_constant_error(data: CIFAR100DataModule) -> float:
    """Mean squared error of predicting every held-out image by the mean image."""
    sums, squares, rows = torch.zeros(SHAPE, dtype=torch.float64), torch.zeros(SHAPE, dtype=torch.float64), 0
    for batch in data.loader("val"):
        images = batch[0].double() / 255
        sums, squares, rows = sums + images.sum(dim=0), squares + images.square().sum(dim=0), rows + len(images)
    return float((squares / rows - (sums / rows) ** 2).mean())


def run(name: str, callbacks: list[Callback], teacher: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Run one model and return its line of the table."""
    seed_everything(0, verbose=False)
    data = CIFAR100DataModule(given.data_dir, batch_size=128, subset=given.subset)
    certificate = CertificateCallback(teacher, "encoder", save_dir=given.output_dir / name)
    trainer = Trainer(
        accelerator="auto",
        devices=1,
        max_epochs=given.epochs,
        precision="bf16-mixed",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[certificate, *callbacks],
    )
    trainer.fit(SkipVAE(), datamodule=data)
    assert certificate.certificate is not None
    line = {column: getattr(certificate.certificate, column, None) for column in COLUMNS}
    error = float(trainer.callback_metrics["val/mean_squared_error"])
    return {**line, "run": name, "mean_squared_error": error, "best_constant_error": best_constant_error(data)}


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def main() -> None:
    """Run both models, and print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/cheat"))
    parser.add_argument("--teacher", type=Path, default=None, help="file of a searched teacher")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="4,000 images of each split")
    given = parser.parse_args()
    given.subset = 4000 if given.quick else None
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    teacher = search(given)
    lines = [
        run("cheat", [], teacher, given),
        run("cheat_aligned", [AlignmentCallback(teacher, "encoder", weight=20.0)], teacher, given),
    ]
    text = csv_text(COLUMNS, [{name: _cell(line[name]) for name in COLUMNS} for line in lines])
    print(write_atomic(given.output_dir / "cheat.csv", text).read_text())


if __name__ == "__main__":
    main()
