"""The likelihood of binary MNIST under our VAE, beside the one that pythae publishes for its own.

    python -m experiments.mnist.likelihood --data_dir data

The settings are those of pythae's script (``examples/scripts/reproducibility/vae.py`` of its repository): hidden layers
of 400 units with ReLU, 40 latents, 500 epochs with batches of 100 and Adam at 1e-4, lowered by ``10^(-1/5)`` after 200
and 350 epochs, the epoch with the best validation loss, 200 importance samples. pythae reports 89.78 (0.01) nats, and
89.9 as the value of Rezende and Mohamed (2015, https://arxiv.org/abs/1505.05770).

Two settings of the published number are not known or not to be had. pythae's script has one hidden layer on each side,
and a second one that is commented out: here each depth has a line. And pythae reads a binarization of MNIST that was
published as a file; here each pixel is drawn once, with a fixed seed and its brightness as probability. After a stop
the same command resumes.
"""

import argparse
import itertools
import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.optim.lr_scheduler import MultiStepLR

from certvae.callbacks import LastCheckpoint
from certvae.commands.tables import Line, Results, commit, origin
from certvae.datamodules import ImageArrays, MNISTDataModule
from certvae.io.checkpoints import load_weights
from certvae.models.networks import MLPDecoder, MLPEncoder
from certvae.terminal import quiet
from experiments.mnist.bernoulli import BernoulliVAE, log_likelihood

__all__ = ["PUBLISHED", "BinaryMNIST", "claims", "main"]

RESULTS = Path(__file__).parents[1] / "results" / "mnist"
PUBLISHED = 89.78  # nats, pythae's table of reproduced results
SHAPE, VALIDATION, EPOCHS, SAMPLES, DEPTHS = (1, 28, 28), 10_000, 500, 200, (1, 2)
COLUMNS = {
    "seed": "{seed}",
    "hidden layers": "{depth}",
    "negative log-likelihood": "{nll:.2f} +- {nll_error:.2f}",
    "of pythae": "{published:.2f}",
    "rate": "{rate:.2f}",
    "best epoch": "{epoch}",
    "seconds": "{seconds:.0f}",
}


class BinaryMNIST(MNISTDataModule):
    """MNIST with pixels 0 and 1, drawn once; the last 10,000 training rows are for validation."""

    def load(self) -> ImageArrays:
        gray = super().load()
        uniform = np.random.default_rng(0).random(gray.images.shape, dtype=np.float32)
        images = np.where(uniform * 255 < gray.images, np.uint8(255), np.uint8(0))
        return replace(gray, images=images)

    @cached_property
    def splits(self) -> dict[str, Tensor]:
        """Training, validation and test rows, in their order."""
        last = self.arrays.num_train
        ends = {
            "train": (0, last - VALIDATION),
            "val": (last - VALIDATION, last),
            "test": (last, len(self.arrays.images)),
        }
        return {name: torch.arange(*rows) for name, rows in ends.items()}


class SteppedVAE(BernoulliVAE):
    """With pythae's schedule of the learning rate."""

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return [optimizer], [MultiStepLR(optimizer, milestones=[200, 350], gamma=10**-0.2)]


def trained(data: BinaryMNIST, seed: int, depth: int, epochs: int, folder: Path) -> tuple[BernoulliVAE, int]:
    """A fitted VAE with the weights of its best epoch, and that epoch."""
    seed_everything(seed, verbose=False)
    encoder, decoder = MLPEncoder(SHAPE, 40, 400, depth), MLPDecoder(SHAPE, 40, 400, depth)
    for body in (encoder.body, decoder.body):
        for place, layer in enumerate(body):
            if isinstance(layer, nn.SiLU):
                body[place] = nn.ReLU()
    model = SteppedVAE(encoder, decoder, learning_rate=1e-4)
    best = ModelCheckpoint(folder, "best-{epoch}", monitor="val/loss", auto_insert_metric_name=False)
    trainer = Trainer(
        max_epochs=epochs,
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[best, LastCheckpoint(str(folder))],
    )
    trainer.fit(model, datamodule=data, ckpt_path="last")
    load_weights(model, best.best_model_path)
    return model.eval(), int(Path(best.best_model_path).stem.removeprefix("best-").partition("-")[0])


def measure(data: BinaryMNIST, seed: int, depth: int, given: argparse.Namespace) -> Line:
    """Train and measure one seed at one depth, and return its line of the table."""
    started = time.perf_counter()
    folder = given.folder / f"epochs{given.epochs}" / f"depth{depth}" / f"seed{seed}"
    model, epoch = trained(data, seed, depth, given.epochs, folder)
    seed_everything(seed, verbose=False)
    found, rates = [], []
    for batch in data.test_dataloader():
        images, _, _ = data.on_after_batch_transfer(batch, 0)
        found.append(log_likelihood(model, images, given.samples).double())
        rates.append(model(images).kl_to_standard_normal().sum(dim=1).detach().double())
    values = torch.cat(found)
    return {
        "seed": seed,
        "depth": depth,
        "nll": round(-float(values.mean()), 4),
        "nll_error": round(float(values.std()) / math.sqrt(len(values)), 4),
        "published": PUBLISHED,
        "rate": round(float(torch.cat(rates).mean()), 4),
        "epoch": epoch,
        "seconds": round(time.perf_counter() - started, 1),
    }


def claims(lines: Sequence[Line]) -> dict[str, bool]:
    """The claims of the study, and whether they hold."""
    shown = {}
    for depth in sorted({line["depth"] for line in lines}):
        near = (abs(line["nll"] - line["published"]) <= 1 for line in lines if line["depth"] == depth)
        layers = f"{depth} hidden layer{'s' if depth > 1 else ''}"
        shown[f"with {layers} the negative log-likelihood is within 1 nat of pythae's, in every seed"] = all(near)
    return shown


def main(args: Sequence[str] | None = None) -> list[Line]:
    """Train all seeds at all depths, write the table, and return its lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="data", help="holds MNIST/raw")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--depths", type=int, nargs="+", default=list(DEPTHS), help="hidden layers on each side")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--samples", type=int, default=SAMPLES, help="of each image's importance sampling")
    parser.add_argument("--folder", type=Path, default=Path("runs/mnist_likelihood"), help="of checkpoints")
    parser.add_argument("--output_dir", type=Path, default=RESULTS)
    given = parser.parse_args(args)
    quiet()
    warnings.filterwarnings("ignore", ".*there is no last checkpoint available.*")
    data, made_at = BinaryMNIST(given.data_dir, batch_size=100), commit()
    lines: list[Line] = []
    for seed, depth in itertools.product(given.seeds, given.depths):
        lines.append(measure(data, seed, depth, given))
        print(*(f"{name} {value}" for name, value in lines[-1].items()), flush=True)
    changed: dict[str, Any] = {
        "epochs": given.epochs if given.epochs != EPOCHS else None,
        "samples": given.samples if given.samples != SAMPLES else None,
        "seeds": given.seeds,
        "depths": given.depths if tuple(given.depths) != DEPTHS else None,
    }
    made = origin(
        ["python", "-m", "experiments.mnist.likelihood"],
        changed,
        f"trained at commit {made_at}",
        sum(line["seconds"] for line in lines),
    )
    Results(lines, COLUMNS, claims(lines), {}).write(given.output_dir, "likelihood", made)
    return lines


if __name__ == "__main__":
    main()
