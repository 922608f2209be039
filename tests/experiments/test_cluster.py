"""The script for SLURM, with stand-ins for its commands."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "cluster" / "slurm.sh"


def start(folder: Path, srun: str) -> "subprocess.Popen[bytes]":
    """The script as a job of 2 nodes with 4 tasks each, with what ``srun`` does."""
    for name, text in {"srun": srun, "scontrol": 'echo "$@" >> "$FOLDER/requeued"'}.items():
        command = folder / name
        command.write_text(f"#!/bin/sh\n{text}\n")
        command.chmod(0o755)
    values = {"SLURM_JOB_ID": "17", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "4", "FOLDER": str(folder)}
    environment = {**os.environ, **values, "PATH": f"{folder}:{os.environ['PATH']}"}
    return subprocess.Popen(["bash", str(SCRIPT), "run.yaml", "--seed_everything", "3"], env=environment)


def wait_for(path: Path) -> str:
    """The text of a file, once there is one."""
    deadline = time.monotonic() + 20
    while not (path.is_file() and path.read_text()):
        assert time.monotonic() < deadline, f"no {path.name}"
        time.sleep(0.02)
    return path.read_text()


def test_a_job_whose_time_is_over_asks_for_its_requeue_once_and_its_tasks_go_on(tmp_path: Path) -> None:
    job = start(tmp_path, 'echo "$@" > "$FOLDER/called"; while [ ! -e "$FOLDER/end" ]; do sleep 0.05; done; exit 3')
    called = wait_for(tmp_path / "called").split()
    assert called[:4] == ["certvae", "fit", "--config", "run.yaml"]
    assert called[4:] == [
        *("--trainer.num_nodes", "2", "--trainer.devices", "4", "--trainer.strategy", "ddp"),
        *("--ckpt_path", "last", "--seed_everything", "3"),
    ]
    job.send_signal(signal.SIGUSR1)
    assert wait_for(tmp_path / "requeued") == "requeue 17\n"
    assert job.poll() is None
    (tmp_path / "end").touch()
    assert job.wait(20) == 3


@pytest.mark.parametrize("status", [0, 1])
def test_the_status_of_a_job_is_that_of_its_tasks(tmp_path: Path, status: int) -> None:
    assert start(tmp_path, f"exit {status}").wait(20) == status
    assert not (tmp_path / "requeued").exists()


def test_the_signal_goes_to_the_script_and_not_to_its_tasks() -> None:
    """Tasks that got it would save within a step of the others, and wait for each other in vain."""
    options = [line.split()[1] for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"--signal=B:USR1@120", "--requeue", "--open-mode=append"} <= set(options)
