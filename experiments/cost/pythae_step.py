"""How fast a training step is beside pythae's trainer with the same networks, in turn, on the same machine.

    python -m experiments.cost.pythae_step --data_dir data      # needs pythae: pip install pythae

Both take batches of 128 images of CIFAR-100 and train the shipped pair of networks with Adam, without alignment.
pythae gets its images as a tensor in memory, which is its fastest way. On a GPU (``--accelerator gpu``) ours keeps its
rows there, and ``--compile`` compiles our networks. pythae trains in float32. Each line is one pair: images a second,
and the ratio of the seconds.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from statistics import median

import torch
from pythae.data.datasets import BaseDataset
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from pythae.trainers.training_callbacks import TrainingCallback
from torch import Tensor, nn

from certvae.datamodules import CIFAR100DataModule
from experiments.cost.step import BATCH, DEVICES, WARM_UP, Clock, Setting, networks, ours

Side = Callable[[CIFAR100DataModule, Setting], Clock]


class Encoder(BaseEncoder):
    """The shipped encoder, as pythae wants it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> ModelOutput:
        posterior = self.network(images)
        return ModelOutput(embedding=posterior.mean, log_covariance=posterior.log_variance)


class Decoder(BaseDecoder):
    """The shipped decoder, as pythae wants it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, latents: Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=self.network(latents))


class Stopwatch(TrainingCallback):
    """Times the steps after the warm-up."""

    def __init__(self, steps: int) -> None:
        self.steps, self.taken = steps, 0
        self.passed = Clock(0.0, 0.0)

    def on_train_step_end(self, training_config: BaseTrainerConfig, **kwargs: object) -> None:
        """A step has been taken."""
        self.taken += 1
        if self.taken == WARM_UP:
            self.started = Clock.now()
        if self.taken == WARM_UP + self.steps:
            self.passed = self.started.until(Clock.now())


def pythaes(data: CIFAR100DataModule, setting: Setting) -> Clock:
    """The same networks under pythae's trainer."""
    rows = (WARM_UP + setting.steps) * BATCH
    images = torch.from_numpy(data.arrays.images[:rows]).float() / 255
    encoder, decoder = networks()
    model = VAE(VAEConfig(input_dim=(3, 32, 32), latent_dim=64), Encoder(encoder), Decoder(decoder))
    watch = Stopwatch(setting.steps)
    with tempfile.TemporaryDirectory() as folder:
        config = BaseTrainerConfig(
            output_dir=folder,
            num_epochs=1,
            per_device_train_batch_size=BATCH,
            learning_rate=1e-3,
            no_cuda=setting.accelerator == "cpu",
        )
        BaseTrainer(model, BaseDataset(images, torch.zeros(rows)), training_config=config, callbacks=[watch]).train()
    return watch.passed


def main() -> None:
    """Run the pairs and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--precision", default="32-true", help="of our side")
    parser.add_argument("--accelerator", choices=DEVICES, default="gpu" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", metavar="MODE", help="of torch.compile, such as reduce-overhead; of our side")
    given = parser.parse_args()
    setting = Setting(given.steps, given.precision, given.accelerator, given.compile)
    data = CIFAR100DataModule(given.data_dir, batch_size=BATCH, rows_on_device=True)
    _ = data.arrays  # read before the clock starts
    ratios = []
    for pair in range(given.pairs):
        sides: list[Side] = [pythaes, ours] if pair % 2 == 0 else [ours, pythaes]
        passed = {side: side(data, setting) for side in sides}
        ratios.append(passed[pythaes].seconds / passed[ours].seconds)
        speeds = [BATCH * given.steps / passed[side].seconds for side in (pythaes, ours)]
        print(
            f"pair {pair}: pythae {speeds[0]:.0f} images/s, ours {speeds[1]:.0f}, ratio {ratios[-1]:.3f}, "
            f"load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
    print(f"median ratio {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
