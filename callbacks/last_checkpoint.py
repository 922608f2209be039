"""A callback that keeps the latest checkpoint, from which a run resumes exactly."""

import os
import shutil
import sys
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any
from weakref import proxy

import torch
from lightning_utilities.core.rank_zero import rank_zero_only, rank_zero_warn
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint

from certvae.io.random_state import random_state, set_random_state
from certvae.monitoring.requeue import belongs_to, requeue_checkpoint

__all__ = ["CheckpointError", "LastCheckpoint", "is_whole"]

_STATE = "certvae.random_state"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or no checkpoint of a run can be read."""


class LastCheckpoint(ModelCheckpoint):
    """Keep the last finished epoch as ``last.ckpt`` and the one before as ``previous.ckpt``, to resume bit for bit.

    After the validation of each epoch, the checkpoint is written to a temporary file in the same folder, flushed to
    disk and renamed. So whenever the run is killed, at least one of the two files is complete. (Lightning itself does
    not flush, and renames a file from the system's temporary folder, which is a copy if that is another disk.) Resume
    with ``fit(ckpt_path="last")`` or ``certvae fit ... --ckpt_path last``. If ``last.ckpt`` is damaged, the callback
    prints a line, renames the file to ``last.ckpt.damaged`` and resumes from ``previous.ckpt``. Without any checkpoint,
    the run starts from the beginning.

    When SLURM requeues a job, Lightning writes ``hpc_ckpt_<number>.ckpt`` to the trainer's ``default_root_dir`` in the
    middle of an epoch. ``"last"`` resumes from it if it is newer than ``last.ckpt``. A teacher search cannot resume
    within a pass, so it resumes from the end of the previous pass. With several nodes, ``dirpath`` must be on a shared
    disk.

    The random streams of torch (CPU and device), numpy and Python are saved too, for each process, and are restored
    before Lightning creates the first data iterator, which draws from them. (Seeding each epoch from the run's seed and
    the epoch number would change every run that adds this callback, and would not be exact.) A resumed run then equals
    an uninterrupted one, with these limits: hooks that draw random numbers at the start of a run (``on_fit_start`` of a
    module, ``train_dataloader``, ``on_train_start``) draw once more; ``persistent_workers`` have their own streams,
    which are lost; with another number of processes the streams cannot be matched, and there is a warning.

    Args:
        dirpath: folder of this run's checkpoints, on a local disk.

    Attributes:
        resumed_at: number of finished epochs when this process started; 0 for a new run.

    Raises:
        ValueError: if ``dirpath`` is not local.
        CheckpointError: before the first epoch, if the folder cannot be written; later, if a checkpoint cannot be
            written (earlier ones stay complete); on resuming, if both checkpoints are damaged, or the processes find
            different ones.

    Example:
        >>> from certvae.callbacks import LastCheckpoint
        >>> keep = LastCheckpoint("runs/vae/checkpoints")

        ``Trainer(callbacks=[keep]).fit(model, data, ckpt_path="last")`` resumes an earlier run that was killed.
    """

    def __init__(self, dirpath: str | Path) -> None:
        if "://" in str(dirpath):
            raise ValueError(f"`dirpath` must be a folder on a local disk, got {dirpath}.")
        super().__init__(dirpath, "last", save_top_k=0, save_on_train_epoch_end=True, enable_version_counter=False)
        folder = Path(self.dirpath or "")
        self.last, self.previous = folder / "last.ckpt", folder / "previous.ckpt"
        self._temporary = folder / "last.ckpt.writing"
        self.resumed_at = 0
        self._begun = False
        self._streams: list[dict[str, Any]] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and trainer.is_global_zero and not _is_dev_run(trainer):
            try:
                self.last.parent.mkdir(parents=True, exist_ok=True)
                _discard(self._temporary)
                tempfile.TemporaryFile(dir=self.last.parent).close()
            except OSError as error:
                raise CheckpointError(
                    f"checkpoints cannot be written to `dirpath={self.last.parent}`: {error}. Give another folder."
                ) from error

    def _find_last_checkpoints(self, trainer: Trainer) -> set[str]:
        """The checkpoint that Lightning uses for ``ckpt_path="last"``."""
        found = [path for path in (self.last, self.previous) if path.exists()]
        whole = next((path for path in found if is_whole(path)), None)
        requeued = self._requeued(trainer, whole)
        if requeued is not None:
            _say(f"going on from {requeued}, which SLURM's requeue left.")
            return {str(requeued)}
        if whole is None and found:
            raise CheckpointError(
                f"every checkpoint of the run is damaged: {' and '.join(str(path) for path in found)}. Delete the "
                "folder to start again, or give the path of another checkpoint as `ckpt_path`."
            )
        if whole == self.previous:
            _say(f"{self.last} is {'damaged' if self.last in found else 'missing'}; going on from {self.previous}.")
            # So that it never replaces the good one, and Lightning, which takes the newest, does not find it.
            with suppress(FileNotFoundError):  # missing, or another process was first
                _replace(self.last, self.last.with_name("last.ckpt.damaged"))
        return set() if whole is None else {str(whole)}

    def _requeued(self, trainer: Trainer, whole: Path | None) -> Path | None:
        """Lightning's requeue checkpoint, if this run wrote it after ``last.ckpt`` and can resume from it."""
        path = requeue_checkpoint(trainer)
        if path is None or (whole is not None and path.stat().st_mtime <= whole.stat().st_mtime):
            return None
        return path if is_whole(path) and belongs_to(path, self.state_key, self.dirpath) else None

    def _check_agreement(self, trainer: Trainer) -> None:
        """Refuse to start from different checkpoints, as on nodes with separate disks; collectives."""
        own = "" if trainer.ckpt_path is None else Path(trainer.ckpt_path).name
        first = trainer.strategy.broadcast(own)
        if not trainer.strategy.reduce_boolean_decision(own == first, all=True):
            raise CheckpointError(
                f"the processes would resume from different checkpoints: the first from {first or 'none'!r}, this one "
                f"from {own or 'none'!r}. Put `dirpath={self.last.parent}` on a disk that all nodes share."
            )
        hidden = requeue_checkpoint(trainer)
        if hidden is not None and own and own not in (hidden.name, self.last.name, self.previous.name):
            rank_zero_warn(
                f"`ckpt_path={trainer.ckpt_path}` hides {hidden}, which SLURM's requeue left, so the run starts from "
                "there each time. Give ckpt_path='last', and `init_weights_from` for initial weights."
            )

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if not trainer.training:
            return
        self._streams, self.resumed_at = checkpoint.get(_STATE), checkpoint["epoch"] + 1
        if trainer.strategy.restore_checkpoint_after_setup:  # then `on_fit_start` has already run
            self._restore_streams(trainer)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check_agreement(trainer)
        self._restore_streams(trainer)

    def _restore_streams(self, trainer: Trainer) -> None:
        streams, self._streams = self._streams, None
        if streams is None:
            return
        if len(streams) != trainer.world_size:
            rank_zero_warn(
                f"The checkpoint has the random streams of {len(streams)} processes, but {trainer.world_size} resume: "
                "the run will not equal an uninterrupted one bit for bit."
            )
        if trainer.global_rank < len(streams):
            set_random_state(streams[trainer.global_rank], trainer.strategy.root_device)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        resumed = trainer.ckpt_path
        # Do not fall back to checkpoints of an earlier run in this folder.
        self._begun = resumed is not None and Path(resumed).resolve().parent == self.last.parent

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        streams: list[Any] = [random_state(trainer.strategy.root_device)]
        if trainer.world_size > 1:
            own, streams = streams[0], [None] * trainer.world_size
            torch.distributed.all_gather_object(streams, own)
        checkpoint[_STATE] = streams

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if _is_dev_run(trainer):
            return
        self.best_model_path = self.last_model_path = str(self.last)
        try:
            trainer.save_checkpoint(self._temporary, weights_only=False)
            if trainer.is_global_zero:
                self._put_in_place()
        except OSError as error:
            raise CheckpointError(f"the checkpoint {self.last} was not written: {error}.") from error
        trainer.strategy.barrier("LastCheckpoint")
        for logger in trainer.loggers if trainer.is_global_zero else ():
            logger.after_save_checkpoint(proxy(self))

    def _put_in_place(self) -> None:
        if self._temporary.is_file():
            with open(self._temporary, "rb") as file:
                os.fsync(file.fileno())
        if self._begun and self.last.exists():
            _replace(self.last, self.previous)
        _replace(self._temporary, self.last)
        if not self._begun:
            _discard(self.previous)
        self._begun = True


def is_whole(path: str | Path) -> bool:
    """Whether a checkpoint can be read and its contents match the checksums of ``torch.save``.

    A folder, as sharded strategies write, has no checksums and counts as complete.
    """
    if Path(path).is_dir():
        return True
    reader = torch._C.PyTorchFileReader  # of `torch.load`; checks no sums, unlike zipfile
    try:
        records = reader(str(path))
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist() if torch.serialization.get_crc32_options() else []
            return all(records.get_record(name.partition("/")[2]) == archive.read(name) for name in names)
    except Exception:  # bytes that are not an archive can raise anything
        return False


def _is_dev_run(trainer: Trainer) -> bool:
    return bool(getattr(trainer, "fast_dev_run", False))


def _discard(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _replace(source: Path, target: Path) -> None:
    if target.is_dir():
        _discard(target)
    os.replace(source, target)


@rank_zero_only
def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
