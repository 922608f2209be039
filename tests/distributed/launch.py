"""Starting all processes of a launch, and ending them whatever happens."""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


class LaunchError(RuntimeError):
    """A process failed, or all of them took too long."""


def launch(folder: Path, world: int, limit: float, jobs: str = "tests.distributed.jobs") -> list[dict[str, Any]]:
    """Results of all jobs of a module on ``world`` processes, one entry a process.

    Raises:
        LaunchError: with the end of each process's output, if one failed or ``limit`` seconds have passed.
    """
    processes = [_start(folder, world, number, jobs) for number in range(world)]
    try:
        deadline = time.monotonic() + limit
        while any(process.poll() is None for process in processes):
            if any(process.poll() for process in processes):
                raise LaunchError(f"a process of {world} failed.\n{_outputs(folder, world)}")
            if time.monotonic() > deadline:
                raise LaunchError(f"{world} processes ran longer than {limit:g} s.\n{_outputs(folder, world)}")
            time.sleep(0.05)
    finally:
        for process in processes:
            process.kill()  # does nothing to one that has ended
            process.wait()
    if any(process.returncode for process in processes):
        raise LaunchError(f"a process of {world} failed.\n{_outputs(folder, world)}")
    return [json.loads((folder / f"results_{number}.json").read_text()) for number in range(world)]


def _start(folder: Path, world: int, number: int, jobs: str) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(world),
        "TORCHELASTIC_RUN_ID": "tests",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tests.distributed.worker", str(folder), jobs]
    with (folder / f"output_{number}.txt").open("wb") as output:
        return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)


def _outputs(folder: Path, world: int) -> str:
    tails = []
    for number in range(world):
        lines = (folder / f"output_{number}.txt").read_text(errors="replace").splitlines()
        tails.append(f"process {number}:\n" + "\n".join(lines[-30:]))
    return "\n\n".join(tails)


def alone(jobs: str, factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of a module's jobs in this process."""
    return {name: job(factory.mktemp(name), 1) for name, job in importlib.import_module(jobs).JOBS.items()}


def common(processes: list[dict[str, Any]], job: str) -> Any:
    """The result of a job on which all processes agree to the last bit."""
    for results in processes:
        assert "error" not in results[job], results[job]["error"]
    first = processes[0][job]
    assert all(results[job] == first for results in processes), f"processes differ in {job}"
    return first["result"]
