"""What befalls runs on a cluster: a scheduler's requeue, nodes that die or come late, and a slow process."""

import os
import signal
import stat
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric.utilities.rank_zero import rank_zero_only
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.strategies import DDPStrategy

from certvae.callbacks import CertificateGuard
from tests.distributed.nodes import as_agent
from tests.distributed.sets import rank
from tests.distributed.worker import redirect
from tests.faults.kills import Kill, once
from tests.faults.runs import train

SLURM = {"JOB_ID": "17", "JOB_NAME": "train", "NTASKS": "1", "NTASKS_PER_NODE": "1", "NNODES": "1"} | dict.fromkeys(
    ("PROCID", "LOCALID", "NODEID"), "0"
)
QUICK = "keep_alive_interval=2,keep_alive_max_attempt=4,last_call_timeout=1"  # seconds: a dead agent is noticed after 8


def as_slurm_job(action: Callable[..., Any]) -> Callable[..., Any]:
    """The action with what SLURM gives a task, and with a ``scontrol`` that only notes that it was called."""

    def started(*args: Any, **options: Any) -> Any:
        os.environ |= {f"SLURM_{name}": value for name, value in SLURM.items()}
        command = Path("bin/scontrol").resolve()
        command.parent.mkdir(exist_ok=True)
        command.write_text('#!/bin/sh\necho "$@" >> requeued\n')
        command.chmod(command.stat().st_mode | stat.S_IEXEC)
        os.environ["PATH"] = f"{command.parent}:{os.environ['PATH']}"
        return action(*args, **options)

    return started


class TimeOver(Kill):
    """SIGUSR1, upon which Lightning writes a checkpoint and asks for the requeue; at the next batch SIGKILL.

    Args:
        epoch: the epoch.
    """

    def __init__(self, epoch: int) -> None:
        super().__init__("batch", epoch, "signal", "SIGUSR1")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if Path("requeued").exists() and once("end"):
            os.kill(os.getpid(), signal.SIGKILL)


class Slow(Callback):
    """Lets the second process sleep in an epoch, once.

    Args:
        seconds: so long.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_rank == 1 and trainer.current_epoch == 2 and once("slow"):
            time.sleep(self.seconds)


class Told(Callback):
    """Prints where a run begins, and what its guard knows then."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        guard = next(item for item in cast(Any, trainer).callbacks if isinstance(item, CertificateGuard))
        print(f"epoch {trainer.current_epoch}, step {trainer.global_step}, guard {guard.state_dict()}", flush=True)


def guarded(resume: str | None = None, callbacks: tuple[Callback, ...] = ()) -> None:
    """A run with a guard."""
    train(resume, callbacks=[CertificateGuard(target=0.3, path="mean"), Told(), *callbacks])


def on_nodes(timeout: float = 60.0, callbacks: tuple[Callback, ...] = ()) -> None:
    """One process of a run on two nodes, in the current folder."""
    cast(Any, rank_zero_only).rank = rank()
    redirect(Path(f"process_{rank()}.log"))
    torch.set_num_threads(1)
    strategy = DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=timeout))
    train("last", callbacks=callbacks, strategy=strategy, num_nodes=int(os.environ["WORLD_SIZE"]))


def node(number: int, port: int, action: Callable[..., Any], *args: Any, restarts: int = 0, **conf: Any) -> None:
    """A node of two, with one process each."""
    # Without it the first node does not tell a new one where the processes meet (torch 2.14): that one waits in vain.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    known = f"is_host={int(number == 0)},{QUICK}," + ",".join(f"{name}={value}" for name, value in conf.items())
    as_agent(number, "2", 1, port, action, *args, **{"max-restarts": restarts, "rdzv-conf": known.rstrip(",")})


class NodeDies(Kill):
    """Kills the agent of the second node with its process, once, at a batch."""

    def _reached(self, point: str, trainer: Trainer, batch_idx: int) -> None:
        if (trainer.global_rank, trainer.current_epoch, batch_idx) == (1, self.epoch, 1) and once("node"):
            os.killpg(os.getpgrp(), signal.SIGKILL)
