"""One process of a launch: ``python -m tests.distributed.worker FOLDER JOBS`` with torchelastic's environment."""

import importlib
import json
import os
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from tests.distributed.sets import rank

STUCK = timedelta(seconds=60)  # a process that waits so long for the others raises, and says where


def run_jobs(module: str, folder: Path, world: int) -> dict[str, Any]:
    """Results of all jobs of a module, each in a folder of its own; a job that fails gives its traceback."""
    results: dict[str, Any] = {}
    for name, job in importlib.import_module(module).JOBS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        try:
            results[name] = {"result": job(folder / name, world)}
        except Exception:
            results[name] = {"error": traceback.format_exc()}
        print(f"{name}: {time.monotonic() - started:.2f} s", flush=True)
    return results


def main() -> None:
    """Run all jobs in one process group, and write what came of them."""
    folder, world = Path(sys.argv[1]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    store = (folder / "store").as_uri()  # a file, not a port that another program may take
    torch.distributed.init_process_group("gloo", store, STUCK, world, rank())
    results = run_jobs(sys.argv[2], folder, world)
    (folder / f"results_{rank()}.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
