"""A VAE on a stream of shards from LitData or WebDataset, with its certificate.

pip install "certvae[streams]"
python experiments/examples/streams.py --library webdataset
torchrun --nproc-per-node 2 experiments/examples/streams.py --library litdata
"""

import argparse
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningDataModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, Dataset, TensorDataset, random_split

from certvae import VAE, Certificate
from certvae.callbacks import AlignmentCallback, CertificateCallback
from certvae.models.networks import MLPDecoder, MLPEncoder
from certvae.teachers import LabelTeacher

BATCH = 64
PARTS = ("image.npy", "label.cls", "index.cls")  # files of a row in a WebDataset shard


def rows_of(data: Dataset[Any]) -> Iterator[tuple[Any, ...]]:
    """Image, label and index of each row; the index identifies a row on any number of processes."""
    for index in range(len(data)):
        image, label = data[index]
        yield image.numpy(), int(label), index


def write_litdata(data: Dataset[Any], folder: Path, rows_each: int) -> None:
    """Write shards; ``litdata.optimize`` does the same on many workers."""
    from litdata.streaming import Cache

    cache = Cache(str(folder), chunk_size=rows_each)
    for image, label, index in rows_of(data):
        cache[index] = (image, label, index)
    cache.done()
    cache.merge()


def read_litdata(folder: Path, training: bool = False, batch_size: int = BATCH) -> DataLoader[Any]:
    """Batches of images, labels and indices.

    With several processes, LitData drops the last rows. Training needs this, because its steps wait for each other.
    Validation and a teacher search must see all rows: ``drop_last=False``.
    """
    from litdata import StreamingDataLoader, StreamingDataset

    data = StreamingDataset(str(folder), shuffle=training, drop_last=training)
    return StreamingDataLoader(data, batch_size=batch_size)


def write_webdataset(data: Dataset[Any], folder: Path, rows_each: int) -> None:
    """Write shards ``000000.tar``, ``000001.tar``, ..."""
    import webdataset

    folder.mkdir(parents=True, exist_ok=True)
    with webdataset.ShardWriter(str(folder / "%06d.tar"), maxcount=rows_each, verbose=0) as shards:
        for row in rows_of(data):
            shards.write({"__key__": f"{row[-1]:09d}", **dict(zip(PARTS, row, strict=True))})


def read_webdataset(folder: Path, training: bool = False, batch_size: int = BATCH) -> DataLoader[Any]:
    """Batches of images, labels and indices.

    Each process reads shards of its own (``split_by_node``); one without a shard takes part (``empty_check``). No
    length is said: Lightning then reads to the end. For training on several processes, whose steps wait for each
    other, WebDataset repeats shards at random: ``WebDataset(..., resampled=True).with_epoch(rows)``.
    """
    import webdataset

    shards = sorted(map(str, folder.glob("*.tar")))
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if training and processes > 1:
        count = sum(1 for _ in webdataset.WebDataset(shards, nodesplitter=None, shardshuffle=False))
        data = webdataset.WebDataset(shards, resampled=True, nodesplitter=None).with_epoch(count // processes)
    else:
        split = webdataset.split_by_node
        data = webdataset.WebDataset(shards, nodesplitter=split, shardshuffle=False, empty_check=False)
    return DataLoader(data.decode().to_tuple(*PARTS), batch_size=batch_size)


LIBRARIES: dict[str, tuple[Callable[..., None], Callable[..., DataLoader[Any]]]] = {
    "litdata": (write_litdata, read_litdata),
    "webdataset": (write_webdataset, read_webdataset),
}


class StreamedDigits(LightningDataModule):
    """Digits in shards, for training and validation.

    Args:
        library: ``"litdata"`` or ``"webdataset"``.
        folder: folder of the shards.
    """

    def __init__(self, library: str, folder: Path) -> None:
        super().__init__()
        self.folder, (self.write, self.read) = folder, LIBRARIES[library]
        digits = load_digits()
        images = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32)
        self.rows = random_split(TensorDataset(images, torch.tensor(digits.target)), [1297, 500])

    def prepare_data(self) -> None:
        """Write the shards, by one process: several writers would wait for each other.

        Raises:
            FileNotFoundError: if several processes are used and there are no shards.
        """
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not self.folder.exists():
            raise FileNotFoundError(f"no shards in {self.folder}; write them first, by this script without torchrun.")
        for part, rows in zip(("train", "val"), self.rows, strict=True):
            if not (self.folder / part).exists():
                self.write(rows, self.folder / part, 50)

    def train_dataloader(self) -> DataLoader[Any]:
        return self.read(self.folder / "train", True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.read(self.folder / "val")


def main() -> Certificate | None:
    """Write shards of digits, train on them, and certify on held-out shards."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", choices=tuple(LIBRARIES), default="litdata")
    parser.add_argument("--folder", type=Path, default=Path("runs/streams"))
    parser.add_argument("--max_epochs", type=int, default=10)
    given = parser.parse_args()
    seed_everything(0, verbose=False)
    data = StreamedDigits(given.library, given.folder / given.library)
    teacher = LabelTeacher(10).measure(DataLoader(data.rows[0], BATCH), images=1)
    watch = CertificateCallback(teacher, "encoder", images=1)
    trainer = Trainer(
        max_epochs=given.max_epochs,
        callbacks=[watch, AlignmentCallback(teacher, "encoder", images=1, weight=10.0)],
        accelerator="cpu",
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
        num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", 1)),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    networks = MLPEncoder((1, 8, 8), 10, 128, 1), MLPDecoder((1, 8, 8), 10, 128, 1)
    trainer.fit(VAE(*networks, observation_std=0.2236, learning_rate=2e-3), data)
    return watch.certificate


if __name__ == "__main__":
    print(main())
