"""Measures the cost of alignment: alternating training steps of the CIFAR-100 VAE with and without it.

    python experiments/cost/alignment.py --data_dir data

Every second step leaves the alignment out, in the order without, with, with, without, so that other work on the machine
and a drift of its speed affect both equally. The cases are the AlignmentCallback with the searched teacher, the same
with a table of its targets, the CertificateGuard, and no callback (the accuracy of the comparison itself). For wall
time and processor time, the script prints the median step without alignment, the median ratio of neighboring steps, its
95 % confidence interval from order statistics, and the quartiles of the ratios.
"""

import argparse
import itertools
import logging
import math
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything

from certvae import VAE, load_teacher
from certvae.callbacks import AlignmentCallback, CertificateCallback, CertificateGuard
from certvae.commands.precision import choose_precision
from certvae.datamodules import CIFAR100DataModule
from certvae.models.networks import MLPDecoder, MLPEncoder
from certvae.models.objectives import ELBO
from certvae.teachers import TargetTable, Teacher

CONFIG = Path(__file__).parent.parent / "cifar100" / "guard.yaml"
WARM = 8  # first steps, which fill caches
Seconds = tuple[float, float]


class Alternating(Callback):
    """Leaves alignment out at every second batch and records wall and processor seconds; the last callback."""

    def __init__(self) -> None:
        self.ticks: list[Seconds] = []
        self._aligned: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._aligned = vars(pl_module).get("training_step")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._place(pl_module, aligned=batch_idx % 4 in (1, 2))
        self.ticks.append((time.perf_counter(), time.process_time()))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._place(pl_module, aligned=True)

    def _place(self, pl_module: LightningModule, aligned: bool) -> None:
        vars(pl_module).pop("training_step", None)
        if aligned and self._aligned is not None:
            pl_module.training_step = self._aligned  # type: ignore[method-assign]

    def pairs(self, column: int) -> list[Seconds]:
        """Seconds of neighboring steps without and with alignment; column 0 is wall time, 1 processor time."""
        ticks = [tick[column] for tick in self.ticks]
        steps = [end - start for start, end in itertools.pairwise(ticks)]
        pairs = [(steps[i], steps[i + 1]) for i in range(WARM, len(steps) - 1, 2)]
        return [pair if number % 2 == 0 else pair[::-1] for number, pair in enumerate(pairs)]


def ways(teacher: Teacher, data: CIFAR100DataModule) -> dict[str, list[Callback]]:
    """Callbacks of each comparison."""
    table = TargetTable.from_teacher(teacher, [data.loader("train")])
    return {
        "nothing": [],
        "alignment": [AlignmentCallback(teacher, weight=160.0)],
        "alignment to a table": [AlignmentCallback(table, weight=160.0)],
        "guard": [CertificateCallback(teacher), CertificateGuard(target=0.5, path="mean")],
    }


def model_without_alignment(teacher: Teacher) -> VAE:
    """The VAE of experiments/cifar100/guard.yaml."""
    seed_everything(0, verbose=False)
    values = yaml.safe_load(CONFIG.read_text())["model"]["init_args"]
    encoder, decoder = (maker((3, 32, 32), 64) for maker in (MLPEncoder, MLPDecoder))
    objective, std = ELBO(**values["objective"]["init_args"]), values["observation_std"]
    return VAE(encoder, decoder, teacher, objective=objective, observation_std=std)


def run(model: VAE, data: CIFAR100DataModule, callbacks: list[Callback], given: argparse.Namespace) -> Alternating:
    """Train, alternating between steps with and without the callbacks."""
    alternating = Alternating()
    trainer = Trainer(
        accelerator=given.accelerator,
        devices=1,
        max_epochs=1,
        limit_train_batches=2 * given.pairs + WARM + 1,
        limit_val_batches=1,  # the guard's certificate needs a validation, which is not timed
        precision=given.precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[*callbacks, alternating],
    )
    trainer.fit(model, datamodule=data)
    return alternating


def summary(pairs: list[Seconds]) -> str:
    """Median step without alignment, and the ratios of neighboring steps."""
    ratios = sorted(aligned / without for without, aligned in pairs)
    count = len(ratios)
    reach = 1.96 * math.sqrt(count) / 2
    low, high = (ratios[min(count - 1, max(0, round(count / 2 + side * reach)))] for side in (-1, 1))
    step = 1000 * median(without for without, _ in pairs)
    quartiles = f"quartiles {ratios[count // 4]:.3f}, {ratios[3 * count // 4]:.3f}"
    return f"{step:.2f} ms, ratio {median(ratios):.4f} ({low:.4f} to {high:.4f}; {quartiles})"


def main() -> None:
    """Run the comparisons and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--teacher", type=Path, default=Path("runs/cifar100/seed0/search/teacher.safetensors"))
    parser.add_argument("--pairs", type=int, default=190, help="of steps in each comparison; an epoch has 195")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--precision", default=choose_precision())
    given = parser.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    data, teacher = CIFAR100DataModule(given.data_dir, batch_size=128), load_teacher(given.teacher)
    model = model_without_alignment(teacher)
    for name, callbacks in ways(teacher, data).items():
        taken = run(model, data, callbacks, given)
        for column, kind in enumerate(("wall", "processor")):
            print(f"{name}: {kind} {summary(taken.pairs(column))}", flush=True)


if __name__ == "__main__":
    main()
