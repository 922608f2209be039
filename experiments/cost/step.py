"""Compares the speed of a training step with a plain loop of the same networks, in turn on one machine.

    python experiments/cost/step.py --data_dir data
    python experiments/cost/step.py --accelerator gpu --compile reduce-overhead --steps 300 --data_dir data

Both take batches of 128 images of CIFAR-100 and train the shipped pair of networks with Adam, without alignment. The
plain loop is as fast as a short loop can be: rows on the device, shuffled there and gathered at once, fused Adam, no
logging. Both keep the rows on the device; with ``--compile`` both compile encoder and decoder. Each line is one pair:
images per second, and the ratios of wall time and of processor time (less sensitive to other work).
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
DEVICES = {"cpu": "cpu", "gpu": "cuda"}


class Setting(NamedTuple):
    """How both sides run."""

    steps: int
    precision: str
    accelerator: str = "cpu"
    compiled: str | None = None  # mode of torch.compile


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


def networks(compiled: str | None = None) -> tuple[nn.Module, nn.Module]:
    """The shipped encoder and decoder, with the same weights each time."""
    seed_everything(0, verbose=False)
    parts = MLPEncoder((3, 32, 32), 64), MLPDecoder((3, 32, 32), 64)
    if compiled is not None:
        for part in parts:
            part.compile(mode=compiled)
    return parts


def ours(data: CIFAR100DataModule, setting: Setting) -> Clock:
    """The VAE of this project under Lightning's trainer."""
    watch = Stopwatch(setting.steps)
    trainer = Trainer(
        max_epochs=1,
        limit_train_batches=WARM_UP + setting.steps,
        limit_val_batches=0,
        accelerator=setting.accelerator,
        devices=1,
        precision=setting.precision,  # type: ignore[arg-type]
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[watch],
    )
    trainer.fit(VAE(*networks(setting.compiled), objective=ELBO(BETA)), datamodule=data)
    return watch.passed


def plain(data: CIFAR100DataModule, setting: Setting) -> Clock:
    """The plain loop: twenty lines of PyTorch."""
    device = torch.device(DEVICES[setting.accelerator])
    encoder, decoder = (part.to(device) for part in networks(setting.compiled))
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3, fused=True)
    images = torch.from_numpy(data.arrays.images).to(device)

    def batches() -> Iterator[Tensor]:
        while True:
            for rows in torch.randperm(data.arrays.num_train, device=device).split(BATCH):
                if len(rows) == BATCH:  # a compiled network is made for one size
                    yield images.index_select(0, rows).float() / 255

    def step(batch: Tensor) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=setting.precision == "bf16-mixed"):
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
    for batch in islice(source, setting.steps):
        step(batch)
    return started.until(Clock.now())


def main() -> None:
    """Run the pairs and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100, help="at most 380, all in one epoch")
    parser.add_argument("--precision", default=choose_precision())
    parser.add_argument("--accelerator", choices=DEVICES, default="gpu" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", metavar="MODE", help="of torch.compile, such as default or reduce-overhead")
    given = parser.parse_args()
    if not 1 <= given.steps <= 380:
        parser.error(f"--steps must be from 1 to 380, all in one epoch, got {given.steps}")
    setting = Setting(given.steps, given.precision, given.accelerator, given.compile)
    data = CIFAR100DataModule(given.data_dir, batch_size=BATCH, rows_on_device=True)
    _ = data.arrays  # loaded before the clock starts
    ratios: list[tuple[float, float]] = []
    for pair in range(given.pairs):
        sides = [plain, ours] if pair % 2 == 0 else [ours, plain]
        passed = {side: side(data, setting) for side in sides}
        ratios.append((passed[plain].seconds / passed[ours].seconds, passed[plain].processor / passed[ours].processor))
        speeds = {side.__name__: BATCH * given.steps / passed[side].seconds for side in (plain, ours)}
        print(
            f"pair {pair}, {given.accelerator}, {given.precision}: plain loop {speeds['plain']:.0f} images/s, "
            f"ours {speeds['ours']:.0f}, ratio {ratios[-1][0]:.3f}, of processor seconds {ratios[-1][1]:.3f}, "
            f"load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
    seconds, processor = (median(column) for column in zip(*ratios, strict=True))
    print(f"median ratio, ours to the plain loop: {seconds:.3f}, of processor seconds {processor:.3f}")


if __name__ == "__main__":
    main()
