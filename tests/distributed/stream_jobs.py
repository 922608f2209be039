"""Jobs over streams, each in both libraries; see :mod:`tests.distributed.jobs`."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from certvae import TeacherSearch
from certvae.callbacks import CertificateCallback, InformationCallback
from certvae.teachers.search import EvenBatches, TeacherSearchError
from experiments.examples.streams import LIBRARIES, PARTS
from tests.distributed.callback_jobs import logged
from tests.distributed.jobs import Result, Silent, spread, teacher, vae
from tests.distributed.sets import digits

ROWS = (101, 40)  # neither divides evenly by 3; 101 by no number of processes
BATCH, EACH = 8, 7  # rows of a batch and of a shard: LitData deals out whole batches
SEARCH: Result = {"pca_dim": 6, "pca_passes": 2, "em_iterations": 3, "initializations": 1, "tolerance": 0.0}


def indexed(rows: int) -> TensorDataset:
    """Digits with their place in the set."""
    return TensorDataset(*digits(rows).tensors, torch.arange(rows))


def prepare(folder: Path) -> None:
    """Write the shards of all jobs, before there are several processes: LitData's writers would wait for each other."""
    for library, (write, _) in LIBRARIES.items():
        for rows in ROWS:
            write(digits(rows), folder / "shards" / f"{library}_{rows}", EACH)


def shards_of(folder: Path, library: str, rows: int) -> Path:
    """Where :func:`prepare` has put them; a job has a folder in that of the launch, or of one of its worlds."""
    return next(place for above in folder.parents if (place := above / "shards" / f"{library}_{rows}").is_dir())


def measured(folder: Path, world: int, loader: DataLoader[Any]) -> Result:
    """Certificate and bracket of a loader."""
    callback = CertificateCallback(teacher(), channel_samples=2)
    run = spread(folder, world, callbacks=[callback, InformationCallback(block=40, rows=60)])
    run.validate(vae(Silent, own_teacher=False), loader, verbose=False)
    assert callback.certificate is not None
    found = callback.certificate
    return {"certificate": found.to_dict(), "cause": found.diagnose().cause, "logged": logged(run.callback_metrics)}


def in_memory(folder: Path, world: int, rows: int) -> Result:
    return measured(folder, world, DataLoader(indexed(rows), BATCH))


def streamed(folder: Path, world: int, library: str, rows: int) -> Result:
    """As the example reads it."""
    return measured(folder, world, LIBRARIES[library][1](shards_of(folder, library, rows), batch_size=BATCH))


def litdata_as_it_comes(folder: Path, world: int, rows: int) -> Result:
    """Without a word about ``drop_last``."""
    from litdata import StreamingDataLoader, StreamingDataset

    data = StreamingDataset(str(shards_of(folder, "litdata", rows)))
    return measured(folder, world, StreamingDataLoader(data, batch_size=8))


def webdataset_with(folder: Path, world: int, length: int, resampled: bool = False) -> Result:
    """With a length, in rows; resampled: an epoch of as many rows drawn from shards, some twice if above 101."""
    import webdataset

    shards = sorted(map(str, shards_of(folder, "webdataset", 101).glob("*.tar")))
    split = None if resampled else webdataset.split_by_node
    data = webdataset.WebDataset(shards, nodesplitter=split, shardshuffle=False, resampled=resampled, empty_check=False)
    data = data.decode().to_tuple(*PARTS)
    return measured(folder, world, DataLoader(data.with_epoch(length) if resampled else data.with_length(length), 16))


class Unsplit(IterableDataset[Any]):
    """Rows that nobody shares out among the processes."""

    def __init__(self, rows: int) -> None:
        self.rows = indexed(rows)

    def __iter__(self) -> Iterator[Any]:
        return (self.rows[place][:2] for place in range(len(self.rows)))


def unsplit(folder: Path, world: int) -> Result:
    return measured(folder, world, DataLoader(Unsplit(101), 16))


def searched(
    folder: Path, world: int, library: str, index: bool = True, even: bool = True, drop_last: bool = False
) -> Any:
    """A search over a stream; in memory for no library."""
    module = TeacherSearch((3, 4), ("diagonal",), (2.0, 3.0), **SEARCH, seed=0, output_dir=str(folder))
    loader: Any = DataLoader(indexed(101), BATCH)
    if library:
        read = LIBRARIES[library][1]
        loader = read(shards_of(folder, library, 101), drop_last, BATCH)
    if not index:
        loader.collate_fn = lambda rows: torch.stack([torch.as_tensor(row[0]) for row in rows])
    run = spread(folder, world, max_epochs=-1, precision="32-true", use_distributed_sampler=not library)
    try:
        run.fit(module, EvenBatches(loader) if library and even else loader, loader)
    except TeacherSearchError as error:
        return str(error)
    assert module.teacher is not None
    return {name: value.tolist() for name, value in module.teacher.tensors().items()}


def of_one(job: Callable[..., Any], **options: Any) -> Callable[[Path, int], Any]:
    """A job that one process alone does, for comparison."""
    return lambda folder, world: job(folder, world, **options) if world == 1 else None


def of_few(job: Callable[..., Any], **options: Any) -> Callable[[Path, int], Any]:
    """A job that more processes than two need not do."""
    return lambda folder, world: job(folder, world, **options) if world <= 2 else None


JOBS: dict[str, Callable[[Path, int], Any]] = {
    **{f"memory_{rows}": of_one(in_memory, rows=rows) for rows in ROWS},
    **{f"{library}_{rows}": partial(streamed, library=library, rows=rows) for library in LIBRARIES for rows in ROWS},
    "litdata_as_it_comes": partial(litdata_as_it_comes, rows=101),
    "webdataset_length_too_large": of_few(webdataset_with, length=202),
    "webdataset_length_too_small": of_few(webdataset_with, length=16),
    "webdataset_resampled": of_few(webdataset_with, length=128, resampled=True),
    "unsplit": of_few(unsplit),
    "searched_memory": of_one(searched, library=""),
    "searched_webdataset": partial(searched, library="webdataset"),
    "searched_litdata": of_few(searched, library="litdata"),
    "searched_litdata_without_index": partial(searched, library="litdata", index=False),
    "searched_uneven": of_few(searched, library="litdata", even=False),
    "searched_dropping": of_few(searched, library="litdata", drop_last=True),
}
