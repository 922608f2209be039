"""Every cost, each beside its peer, one after the other, on a machine where nothing else runs.

    python -m experiments.cost --data_dir data
    python -m experiments.cost --data_dir data --accelerator gpu

First the pairs: a training step and a plain loop, a training step and pythae, EM and scikit-learn, an epoch with and
without the certificate, `certify` against rows and components. Then whole commands, with their seconds. Without
pythae its comparison is left out; any other failure ends the run with its message.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

EXPERIMENTS = Path(__file__).resolve().parents[1]
CERTVAE = (sys.executable, "-m", "certvae.cli")


def pairs(data_dir: str, accelerator: str) -> Iterator[list[str]]:
    """The scripts of this folder, with their arguments."""
    data, device = ["--data_dir", data_dir], ["--accelerator", accelerator]
    compiled = ["--compile", "reduce-overhead"] if accelerator == "gpu" else []
    yield ["step", *data, *device, *compiled, "--steps", "200", "--pairs", "3"]
    if find_spec("pythae") is None:
        print("pythae is not installed (pip install pythae): no comparison with it.")
    else:
        yield ["pythae_step", *data, *device, *compiled, "--steps", "200"]
    yield ["search"]
    yield ["measure", *data, *device, "--rounds", "1"]
    yield ["certify"]


def commands(data_dir: str) -> Iterator[list[str]]:
    """Whole commands, to be run in an empty folder, in this order."""
    yield [sys.executable, "-c", "import pytorch_lightning"]
    yield [*CERTVAE, "protocol", f"{EXPERIMENTS}/digits.yaml"]
    teacher = ["--model.teacher", "runs/digits/seed0/search/teacher.safetensors"]
    yield [*CERTVAE, "fit", "--config", f"{EXPERIMENTS}/digits/no_align.yaml", "--trainer.max_epochs", "1", *teacher]
    yield [*CERTVAE, "fit", "--config", f"{EXPERIMENTS}/cifar100/search.yaml", "--data.data_dir", data_dir]
    yield [*CERTVAE, "protocol", f"{EXPERIMENTS}/cifar100.yaml", "--seeds", "0", "--data_dir", data_dir]


def run(command: list[str], **options: Any) -> float:
    """Run a command, and return its seconds.

    Raises:
        SystemExit: if it fails, with the end of its messages.
    """
    started = time.perf_counter()
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, **options)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return time.perf_counter() - started


def main() -> None:
    """Run everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--accelerator", choices=("cpu", "gpu"), default="gpu" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    data_dir = str(Path(given.data_dir).resolve())
    for name, *options in pairs(data_dir, given.accelerator):
        print(f"\n{name} {' '.join(options)}", flush=True)
        run([sys.executable, "-m", f"experiments.cost.{name}", *options])
    print()
    with tempfile.TemporaryDirectory() as folder:
        for command in commands(data_dir):
            seconds = run(command, stdout=subprocess.DEVNULL, cwd=folder)
            print(f"{seconds:6.1f} s, load {os.getloadavg()[0]:.1f}: {' '.join(command[1:])}", flush=True)


if __name__ == "__main__":
    main()
