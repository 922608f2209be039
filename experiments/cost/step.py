"""Compares the speed of a training step with a plain loop of the same networks, in turn on one machine.

    python experiments/cost/step.py --data_dir data

Both take batches of 128 images of CIFAR-100 from memory and train the shipped pair of networks with Adam, without
alignment. The plain loop is as fast as a short loop can be: rows gathered at once, fused Adam, no logging. Each line is
one pair: images per second, and the ratios of wall time and of processor time (less sensitive to other work).
"""

import argparse
import os
import time
from collections.abc import Iterator
from itertools import islice
from statistics import median
from typing import Any, NamedTuple

import torch
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn

from certvae import VAE
from certvae.commands.precision import choose_precision
from certvae.datamodules import CIFAR100DataModule
from certvae.models.networks import MLPDecoder, MLPEncoder
from certvae.models.objectives import ELBO

BATCH, WARM_UP, BETA = 128, 10, 96.0


class Clock(NamedTuple):
    """Seconds and processor seconds."""

    seconds: float
    processor: float

    @classmethod
    def now(cls) -> "Clock":
        """The current clocks, after the device has finished its work."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return cls(time.perf_counter(), time.process_time())

    def until(self, end: "Clock") -> "Clock":
        """What has passed."""
        return Clock(end.seconds - self.seconds, end.processor - self.processor)


class Stopwatch(Callback):
    """Times the steps after the warm-up."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.passed = Clock(0.0, 0.0)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == WARM_UP:
            self._started = Clock.now()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if args[-1] == WARM_UP + self.steps - 1:
            self.passed = self._started.until(Clock.now())


def networks() -> tuple[nn.Module, nn.Module]:
    """The shipped encoder and decoder, with the same weights each time."""
    seed_everything(0, verbose=False)
    return MLPEncoder((3, 32, 32), 64), MLPDecoder((3, 32, 32), 64)


def ours(data: CIFAR100DataModule, steps: int, precision: str) -> Clock:
    """The VAE of this project under Lightning's trainer."""
    watch = Stopwatch(steps)
    trainer = Trainer(
        max_epochs=1,
        limit_train_batches=WARM_UP + steps,
        limit_val_batches=0,
        precision=precision,  # type: ignore[arg-type]
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[watch],
    )
    trainer.fit(VAE(*networks(), objective=ELBO(BETA)), datamodule=data)
    return watch.passed


def plain(data: CIFAR100DataModule, steps: int, precision: str) -> Clock:
    """The plain loop: twenty lines of PyTorch."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder, decoder = (part.to(device) for part in networks())
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3, fused=True)
    images = torch.from_numpy(data.arrays.images)

    def batches() -> Iterator[Tensor]:
        while True:
            for rows in torch.randperm(data.arrays.num_train).split(BATCH):
                yield images.index_select(0, rows).to(device).float() / 255

    def step(batch: Tensor) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            mean, log_variance = encoder(batch)
            latents = mean + torch.randn_like(mean) * (log_variance / 2).exp()
            error = ((decoder(latents) - batch) ** 2).sum() / 2
            rate = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum()
        optimizer.zero_grad()
        ((error + BETA * rate) / len(batch)).backward()
        optimizer.step()

    source = batches()
    for batch in islice(source, WARM_UP):
        step(batch)
    started = Clock.now()
    for batch in islice(source, steps):
        step(batch)
    return started.until(Clock.now())


def main() -> None:
    """Run the pairs and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--precision", default=choose_precision())
    given = parser.parse_args()
    data = CIFAR100DataModule(given.data_dir, batch_size=BATCH)
    _ = data.arrays  # loaded before the clock starts
    ratios: list[tuple[float, float]] = []
    for pair in range(given.pairs):
        sides = [plain, ours] if pair % 2 == 0 else [ours, plain]
        passed = {side: side(data, given.steps, given.precision) for side in sides}
        ratios.append((passed[plain].seconds / passed[ours].seconds, passed[plain].processor / passed[ours].processor))
        speeds = {side.__name__: BATCH * given.steps / passed[side].seconds for side in (plain, ours)}
        print(
            f"pair {pair}, {given.precision}: plain loop {speeds['plain']:.0f} images/s, ours {speeds['ours']:.0f}, "
            f"ratio {ratios[-1][0]:.3f}, of processor seconds {ratios[-1][1]:.3f}, load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
    seconds, processor = (median(column) for column in zip(*ratios, strict=True))
    print(f"median ratio, ours to the plain loop: {seconds:.3f}, of processor seconds {processor:.3f}")


if __name__ == "__main__":
    main()
