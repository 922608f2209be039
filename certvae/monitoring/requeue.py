"""Finds the checkpoint that Lightning writes when SLURM signals a job that its time is over."""

import re
from pathlib import Path

import torch
from pytorch_lightning import Trainer

from certvae.teachers.search.passes import saved_within_pass

__all__ = ["belongs_to", "requeue_checkpoint"]


def requeue_checkpoint(trainer: Trainer) -> Path | None:
    """The latest ``hpc_ckpt_<number>.ckpt`` in the trainer's ``default_root_dir``, or None."""
    numbered = {
        int(found[1]): path
        for path in Path(trainer.default_root_dir).glob("hpc_ckpt_*.ckpt")
        if (found := re.fullmatch(r"hpc_ckpt_(\d+)\.ckpt", path.name))
    }
    return numbered[max(numbered)] if numbered else None


def belongs_to(path: Path, state_key: str, dirpath: str | Path | None) -> bool:
    """Whether a run can continue from such a checkpoint.

    Runs that share a ``default_root_dir`` find each other's checkpoints. A teacher search cannot continue in the middle
    of a pass.

    Args:
        path: path of a complete checkpoint.
        state_key: state key of the callback that keeps the run's checkpoints.
        dirpath: folder of that callback.
    """
    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    own = checkpoint.get("callbacks", {}).get(state_key)
    return own is not None and own.get("dirpath") == str(dirpath) and not saved_within_pass(checkpoint)
