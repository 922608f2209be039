"""Jobs for processes on several nodes; see :mod:`tests.distributed.jobs`."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from certvae import VAE
from certvae.callbacks import AlignmentCallback, CertificateCallback, LastCheckpoint
from certvae.datamodules import DigitsDataModule, TinyImageNetDataModule, tiny_imagenet
from certvae.models.networks import MLPDecoder, MLPEncoder
from tests.datamodules.test_tiny_imagenet import NAME, made_up_set
from tests.distributed import callback_jobs, guard_jobs, jobs
from tests.distributed.jobs import Result, spread, teacher, vae, validated
from tests.distributed.sets import BATCH, rank

IMAGES = (3, 64, 64)


def own_disk(folder: Path) -> Path:
    """A folder that this process alone can see."""
    return folder / f"process_{rank()}"


def node_disk(folder: Path) -> Path:
    """A folder that the processes of this node can see."""
    return folder / f"node_{os.environ.get('GROUP_RANK', 0)}"


def teacher_of_the_first(folder: Path, world: int) -> Result | None:
    """A certificate whose teacher's file is on the disk of the first process, and on no other."""
    path = own_disk(folder) / "teacher.safetensors"
    if rank() == 0:
        teacher().save(path)
    callback = CertificateCallback(path, "encoder", channel_samples=2)
    return validated(folder, world, vae(own_teacher=False), DigitsDataModule(BATCH, subset=101), callback)


def teacher_of_nobody(folder: Path, world: int) -> str:
    """How a run ends whose teacher's file nobody has."""
    try:
        validated(folder, world, vae(), DigitsDataModule(BATCH), CertificateCallback(folder / "none.safetensors"))
    except FileNotFoundError as error:
        return str(error)
    return "not refused"


def aligned_to_it(folder: Path, world: int) -> Result:
    """The same of a callback that trains."""
    path = own_disk(folder) / "teacher.safetensors"
    if rank() == 0:
        teacher().save(path)
    return jobs.trained(folder, world, [AlignmentCallback(path, "encoder", weight=3.0)])


def decoded(folder: Path, world: int) -> Result:
    """How often this process decodes a set that is on the disk of its node."""
    disk, decode, calls = node_disk(folder), tiny_imagenet._decode, list[int]()
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        made_up_set(disk / NAME)

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return decode(*arguments)

    vars(tiny_imagenet)["_decode"] = counted
    model = VAE(MLPEncoder(IMAGES, 2, 4, 1), MLPDecoder(IMAGES, 2, 4, 1)).double()
    spread(folder, world).validate(model, TinyImageNetDataModule(str(disk), batch_size=4), verbose=False)
    tiny_imagenet._decode = decode
    return {"calls": len(calls), "first_of_node": int(os.environ.get("LOCAL_RANK", 0)) == 0}


def written(folder: Path, world: int) -> list[str]:
    """Files that this process alone has written, in a fit, a test and a search."""
    disk = own_disk(folder)
    callback = CertificateCallback(channel_samples=0, spending=True, save_dir=disk)
    run = spread(folder, world, callbacks=[callback, LastCheckpoint(disk)], enable_checkpointing=True)
    run.fit(vae(), datamodule=DigitsDataModule(BATCH, subset=7))
    run.test(vae(), datamodule=DigitsDataModule(BATCH, subset=7), verbose=False)
    jobs.searched(disk, world, 40)
    return sorted(path.name for path in disk.rglob("*") if path.is_file())


OF_OTHERS: dict[str, tuple[str, ...]] = {
    "jobs": ("datamodule_101", "datamodule_3", "fitted_101", "first_process_idle", "sharded", "searched_101"),
    "callback_jobs": ("probed", "diagnosed_101", "informed_101", "coded_101"),
    "guard_jobs": ("aligned", "guarded", "bracketed"),
}
JOBS: dict[str, Callable[[Path, int], Any]] = {
    **{name: jobs.JOBS[name] for name in OF_OTHERS["jobs"]},
    **{name: callback_jobs.JOBS[name] for name in OF_OTHERS["callback_jobs"]},
    **{name: guard_jobs.JOBS[name] for name in OF_OTHERS["guard_jobs"]},
    "teacher_of_the_first": teacher_of_the_first,
    "aligned_to_it": aligned_to_it,
    "teacher_of_nobody": teacher_of_nobody,
    "decoded": decoded,
    "written": written,
}
