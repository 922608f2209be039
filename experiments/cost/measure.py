"""Measures the cost of the certificate: the same CIFAR-100 run with and without the callback, in turn.

    python experiments/cost/measure.py --data_dir data

Each round has three runs: without the callback, with the certificate alone, and with the information bracket and the
fitted reader too (the default). The script prints the ratios of wall time and of processor time (less sensitive to
other work), whether the trained weights are bit-equal, and the share of the run inside the callback.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from pytorch_lightning import Callback, Trainer, seed_everything

from certvae import VAE, load_teacher
from certvae.callbacks import CertificateCallback
from certvae.certificate.leaks import check_witness
from certvae.commands.precision import choose_precision
from certvae.datamodules import CIFAR100DataModule
from certvae.models.networks import MLPDecoder, MLPEncoder
from certvae.models.objectives import ELBO

CONFIG = Path(__file__).parent.parent / "cifar100" / "full.yaml"
ROWS = {"certificate": 0, "certificate, bracket and reader": 4096}  # rows for the bracket and the fitted reader


class TimedCallback(CertificateCallback):
    """Sums the seconds spent in the certificate's hooks."""

    seconds = 0.0

    def on_validation_epoch_start(self, *args: Any) -> None:
        self._timed(super().on_validation_epoch_start, *args)

    def on_validation_batch_end(self, *args: Any) -> None:
        self._timed(super().on_validation_batch_end, *args)

    def on_validation_epoch_end(self, *args: Any) -> None:
        self._timed(super().on_validation_epoch_end, *args)

    def _timed(self, hook: Callable[..., None], *args: Any) -> None:
        started = time.perf_counter()
        hook(*args)
        self.seconds += time.perf_counter() - started


def run(data: CIFAR100DataModule, callbacks: list[Callback], given: argparse.Namespace) -> tuple[float, float, Any]:
    """Train for one epoch with validation; return seconds, processor seconds and weights."""
    seed_everything(0, verbose=False)
    values = yaml.safe_load(CONFIG.read_text())["model"]["init_args"]
    model = VAE(
        MLPEncoder((3, 32, 32), 64),
        MLPDecoder((3, 32, 32), 64),
        teacher=load_teacher(given.teacher),
        objective=ELBO(**values["objective"]["init_args"]),
        alignment_weight=values["alignment_weight"],
        alignment_path=values["alignment_path"],
        observation_std=values["observation_std"],
    )
    trainer = Trainer(
        max_epochs=1,
        accelerator=given.accelerator,
        precision=given.precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=callbacks,
    )
    started, used = time.perf_counter(), time.process_time()
    trainer.fit(model, datamodule=data)
    return time.perf_counter() - started, time.process_time() - used, model.state_dict()


def leak_test_seconds(teacher: str, repeats: int = 50) -> float:
    """Median seconds of the leak tests of one certificate, on one batch of codes."""
    witness, codes = load_teacher(teacher).witness(64), torch.randn(128, 64)
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        check_witness(witness, codes)
        times.append(time.perf_counter() - started)
    return median(times)


def main() -> None:
    """Run the pairs and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--teacher", default="cifar100", help="a file, or the name of a shipped teacher")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--subset", type=int, default=None)
    parser.add_argument("--precision", default=choose_precision())
    parser.add_argument("--accelerator", choices=("auto", "cpu", "gpu"), default="auto")
    given = parser.parse_args()
    data = CIFAR100DataModule(given.data_dir, batch_size=128, subset=given.subset)
    _ = data.fingerprint  # computed before the clock starts
    shares: dict[str, list[float]] = {name: [] for name in ROWS}
    plain = 0.0
    for round_ in range(given.rounds):
        watched = {name: TimedCallback(information_rows=rows) for name, rows in ROWS.items()}
        order = [None, *watched] if round_ % 2 == 0 else [*watched, None]
        runs = {name: run(data, [watched[name]] if name else [], given) for name in order}
        plain, used, weights = runs[None]
        for name, timed in watched.items():
            seconds, processor, found = runs[name]
            shares[name].append(timed.seconds / seconds)
            equal = all(torch.equal(value, found[key]) for key, value in weights.items())
            print(
                f"round {round_}, {name}: {plain:.2f} s without, {seconds:.2f} s with, ratio {seconds / plain:.4f}, of "
                f"processor seconds {processor / used:.4f}, inside the callback {timed.seconds:.2f} s = "
                f"{shares[name][-1]:.2%}, weights bit-equal: {equal}",
                flush=True,
            )
    for name, found_shares in shares.items():
        print(f"{name}: median share inside the callback {median(found_shares):.2%}")
    leak_tests = leak_test_seconds(given.teacher)
    print(f"leak tests: {leak_tests * 1000:.2f} ms a certificate, {leak_tests / plain:.2e} of the epoch")


if __name__ == "__main__":
    main()
