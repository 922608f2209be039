"""Starting all processes of a launch, and ending them whatever happens."""

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
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
    run_to_end(["tests.distributed.worker", str(folder), jobs, str(world)], folder, f"{world} processes", limit)
    return _results(folder, world)


def launch_worlds(folder: Path, worlds: Sequence[int], limit: float, jobs: str) -> dict[int, list[dict[str, Any]]]:
    """The same for several numbers of processes, one after the other, by one import.

    Raises:
        LaunchError: as above.
    """
    given = ",".join(map(str, worlds))
    run_to_end(["tests.distributed.worker", str(folder), jobs, given], folder, f"{given} processes", limit)
    return {world: _results(folder / str(world), world) for world in worlds}


def launch_nodes(folder: Path, nodes: int, each: int, limit: float, jobs: str) -> list[dict[str, Any]]:
    """The same on nodes of ``each`` processes, which agents of ``torchrun`` start.

    Raises:
        LaunchError: as above.
    """
    command = ["tests.distributed.nodes", str(folder), jobs, str(nodes), str(each)]
    run_to_end(command, folder, f"{nodes} nodes of {each} processes", limit)
    return _results(folder, nodes * each)


def run_to_end(command: list[str], folder: Path, what: str, limit: float) -> None:
    """Run a module of Python with its arguments, and end it with all its children after ``limit`` seconds.

    Raises:
        LaunchError: with the end of each output in the folder, if it failed or took longer.
    """
    with (folder / "output.txt").open("wb") as output:
        parent = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        failed = parent.wait(limit)
    except subprocess.TimeoutExpired:
        raise LaunchError(f"{what} ran longer than {limit:g} s.\n{_outputs(folder)}") from None
    finally:
        with suppress(ProcessLookupError):  # where all have ended
            os.killpg(parent.pid, signal.SIGKILL)
        parent.wait()
    if failed:
        raise LaunchError(f"one of {what} failed.\n{_outputs(folder)}")


def _results(folder: Path, world: int) -> list[dict[str, Any]]:
    return [json.loads((folder / f"results_{number}.json").read_text()) for number in range(world)]


def _outputs(folder: Path) -> str:
    """The last lines of each process."""
    tails = []
    for path in sorted(folder.glob("output*.txt")):
        lines = path.read_text(errors="replace").splitlines()
        tails.append(f"{path.stem}:\n" + "\n".join(lines[-30:]))
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
