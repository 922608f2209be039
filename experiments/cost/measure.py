"""What the certificate costs: the same CIFAR-100 run with and without the callback, in turn, on the same machine.

    python experiments/cost/measure.py --data_dir data

Prints the seconds of each run, the ratio of each pair, and whether the trained weights are bit-equal.
"""

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from pytorch_lightning import Callback, Trainer, seed_everything

from certvae import VAE, load_teacher
from certvae.callbacks import CertificateCallback
from certvae.datamodules import CIFAR100DataModule
from certvae.leaks import check_witness
from certvae.networks import ConvDecoder, ConvEncoder
from certvae.objectives import ELBO

CONFIG = Path(__file__).parent.parent / "cifar100" / "full.yaml"


def run(data: CIFAR100DataModule, teacher: Path, callbacks: list[Callback], precision: str) -> tuple[float, Any]:
    """Train for one epoch with validation; returns seconds and weights."""
    seed_everything(0, verbose=False)
    values = yaml.safe_load(CONFIG.read_text())["model"]["init_args"]
    networks = [maker((3, 32, 32), 64, 32) for maker in (ConvEncoder, ConvDecoder)]
    model = VAE(
        *networks,
        teacher=load_teacher(teacher),
        objective=ELBO(**values["objective"]["init_args"]),
        alignment_weight=values["alignment_weight"],
        observation_std=values["observation_std"],
    )
    trainer = Trainer(
        max_epochs=1,
        precision=precision,  # type: ignore[arg-type]
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=callbacks,
    )
    started = time.perf_counter()
    trainer.fit(model, datamodule=data)
    return time.perf_counter() - started, model.state_dict()


def leak_test_seconds(teacher: Path, repeats: int = 50) -> float:
    """Median seconds of the leak tests of one certificate, on one batch of codes."""
    witness, codes = load_teacher(teacher).witness(64), torch.randn(128, 64)
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        check_witness(witness, codes)
        times.append(time.perf_counter() - started)
    return median(times)


def main() -> None:
    """Run the pairs and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--teacher", type=Path, default=Path("runs/cifar100/seed0/search/teacher.safetensors"))
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--subset", type=int, default=None)
    parser.add_argument("--precision", default="bf16-mixed")
    given = parser.parse_args()
    data = CIFAR100DataModule(given.data_dir, batch_size=128, subset=given.subset)
    _ = data.fingerprint  # read before the clock starts
    ratios: list[float] = []
    seconds: dict[bool, float] = {}
    for pair in range(given.pairs):
        order: list[list[Callback]] = [[], [CertificateCallback()]]
        weights: dict[bool, Any] = {}
        for callbacks in order if pair % 2 == 0 else order[::-1]:
            seconds[bool(callbacks)], weights[bool(callbacks)] = run(data, given.teacher, callbacks, given.precision)
        ratios.append(seconds[True] / seconds[False])
        equal = all(torch.equal(value, weights[True][key]) for key, value in weights[False].items())
        print(
            f"pair {pair}: {seconds[False]:.2f} s without, {seconds[True]:.2f} s with, "
            f"ratio {ratios[-1]:.4f}, weights bit-equal: {equal}",
            flush=True,
        )
    print(f"median ratio {median(ratios):.4f}")
    leak_tests = leak_test_seconds(given.teacher)
    print(f"leak tests: {leak_tests * 1000:.2f} ms a certificate, {leak_tests / seconds[False]:.2e} of the epoch")


if __name__ == "__main__":
    main()
