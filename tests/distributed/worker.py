"""The processes of a launch: ``python -m tests.distributed.worker FOLDER JOBS WORLD``.

They are forked after the imports, which are paid for once, and get torchelastic's environment. Of several worlds,
``2,3,4``, each runs after the one before, in a folder of its own.
"""

import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric.utilities.rank_zero import rank_zero_only

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


def work(folder: Path, module: str, world: int) -> None:
    """Run all jobs in this process of the group, and write what came of them."""
    torch.set_num_threads(1)
    store = (folder / "store").as_uri()  # a file, not a port that another program may take
    torch.distributed.init_process_group("gloo", store, STUCK, world, rank())
    results = run_jobs(module, folder, world)
    (folder / f"results_{rank()}.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


def redirect(path: Path) -> None:
    """Let this process print to a file."""
    output = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)


def fork(action: Callable[[], Any], output: Path) -> int:
    """The id of a new process that does something, with an output of its own."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        redirect(output)
        action()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def as_process(number: int, world: int, folder: Path, module: str) -> None:
    """Do the work of one process, in torchelastic's environment."""
    place = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": world, "MASTER_PORT": 0}
    os.environ |= {name: str(value) for name, value in place.items()}
    os.environ |= {"TORCHELASTIC_RUN_ID": "tests", "MASTER_ADDR": "127.0.0.1"}
    cast(Any, rank_zero_only).rank = number  # Lightning read it when it was imported
    work(folder, module, world)


def main() -> int:
    """The status is 0 if that of every process is; the first that fails ends the wait."""
    folder, module, worlds = Path(sys.argv[1]), sys.argv[2], [int(world) for world in sys.argv[3].split(",")]
    getattr(importlib.import_module(module), "prepare", lambda folder: None)(folder)
    return int(any(run_world(folder / str(world) if worlds[1:] else folder, module, world) for world in worlds))


def run_world(folder: Path, module: str, world: int) -> bool:
    """Whether a process of this many failed."""
    folder.mkdir(exist_ok=True)
    for number in range(world):
        fork(partial(as_process, number, world, folder, module), folder / f"output_{number}.txt")
    return any(os.wait()[1] for _ in range(world))


if __name__ == "__main__":
    sys.exit(main())
