"""What each process of a launch does, job by job; results are plain values, so that they can be compared."""

import os
import warnings
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

from certvae import VAE, TeacherSearch
from certvae.callbacks import CertificateCallback
from certvae.datamodules import DigitsDataModule
from certvae.models.networks import MLPDecoder, MLPEncoder
from certvae.teachers import Teacher
from tests.distributed.sets import BATCH, KINDS, Lengthy, Stream, digits, loader, rank
from tests.plain_vae import UserVAE, plain_loader
from tests.runs import SHAPE, digits_teacher, trainer

Result = dict[str, Any]
OURS = ("counted twice", "groups them in batches")


@cache
def teacher() -> Teacher:
    return digits_teacher()


def vae(kind: type[VAE] = VAE, own_teacher: bool = True, **options: Any) -> VAE:
    """The same small model on every process; without a teacher it has no witness either."""
    torch.manual_seed(0)
    networks = MLPEncoder(SHAPE, 6, 32, 1), MLPDecoder(SHAPE, 6, 32, 1)
    return kind(*networks, teacher() if own_teacher else None, observation_std=0.2236, **options)


def spread(folder: Path, world: int, callback: Any = None, **arguments: Any) -> Trainer:
    options = {"strategy": "ddp" if world > 1 else "auto", "precision": "64-true", **arguments}
    callbacks = options.pop("callbacks", []) + ([callback] if callback else [])
    each = int(os.environ.get("LOCAL_WORLD_SIZE", world))  # processes of this node
    return trainer(folder, devices=each, num_nodes=world // each, callbacks=callbacks, **options)


def fields(callback: CertificateCallback) -> Result | None:
    return None if callback.certificate is None else callback.certificate.to_dict()


def validated(folder: Path, world: int, model: VAE, data: Any, callback: CertificateCallback, **arguments: Any) -> Any:
    spread(folder, world, callback, **arguments).validate(model, data, verbose=False)
    return fields(callback)


def datamodule(folder: Path, world: int, rows: int) -> Result:
    """``validate`` and ``test`` of our DataModule."""
    callback, data = CertificateCallback(channel_samples=2), DigitsDataModule(BATCH, subset=rows)
    result = validated(folder, world, vae(), data, callback)
    spread(folder, world, callback).test(vae(), data, verbose=False)
    return {"val": result, "test": fields(callback)}


def fitted(folder: Path, world: int, rows: int) -> Result:
    """Two epochs of training; the weights are kept, so that one process can measure them too."""
    callback, model = CertificateCallback(channel_samples=2), vae(alignment_weight=20.0)
    spread(folder, world, callback, max_epochs=2).fit(model, datamodule=DigitsDataModule(BATCH, subset=rows))
    if rank() == 0:
        torch.save(model.state_dict(), folder / "weights.pt")
    return {"certificate": fields(callback), "weights": str(folder / "weights.pt"), **history(callback)}


def history(callback: CertificateCallback) -> Result:
    """What a callback keeps of a fit."""
    found = {"best_margin": callback.best_margin, "first_certified_epoch": callback.first_certified_epoch}
    return {**callback.state_dict(), **found}


def loaded(folder: Path, world: int, kind: str, rows: int) -> Result | None:
    """A user's loader of some kind; Lightning puts its sampler in unless the user did."""
    data, inject = loader(kind, rows, world), not kind.startswith("distributed")
    callback = CertificateCallback(channel_samples=2)
    return validated(folder, world, vae(), data, callback, use_distributed_sampler=inject)


def warned(folder: Path, world: int, kind: str) -> Result:
    """What is warned of in two epochs, and how many rows count. Lightning leaves the plain loader as it is."""
    callback, inject = CertificateCallback(), kind != "plain"
    run = spread(folder, world, callback, max_epochs=2, use_distributed_sampler=inject)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        run.fit(vae(learning_rate=0.0), DataLoader(digits(32), BATCH), loader(kind, 101, world))
    texts = [str(item.message) for item in caught]
    return {"certificate": fields(callback), "warnings": [text for text in texts if any(part in text for part in OURS)]}


class Silent(VAE):
    """Logs nothing in its steps: that would be reduced over processes, and a process without rows takes no step."""

    def _log(self, name: str, value: Tensor, images: Tensor) -> None:
        pass


def streamed(folder: Path, world: int, idle: int | None, train: bool = False, kind: type[VAE] = Silent) -> Any:
    """Iterable data; ``idle`` counts from the end if negative, and is nobody in a single process."""
    absent = None if idle is None or world == 1 else idle % world
    callback = CertificateCallback(teacher(), channel_samples=2 if idle is None else 0)
    model, data = vae(kind, own_teacher=False, learning_rate=0.0), DataLoader(Stream(digits(101), world, absent), BATCH)
    if train:
        spread(folder, world, callback).fit(model, DataLoader(digits(32), BATCH), data)
        return fields(callback)
    return validated(folder, world, model, data, callback)


class PeeksOnTheLastProcess(nn.Module):
    """A witness that reads other rows than its own, on one process only."""

    def __init__(self, world: int) -> None:
        super().__init__()
        self.peeks = rank() == world - 1

    def forward(self, codes: Tensor) -> Tensor:
        return codes[:, :5] - codes[:, :5].mean(dim=0) if self.peeks else codes[:, :5]


def leaking(folder: Path, world: int) -> Result | None:
    callback = CertificateCallback(witness=PeeksOnTheLastProcess(world))
    return validated(folder, world, vae(), DigitsDataModule(BATCH), callback)


def cut_short(folder: Path, world: int) -> Result | None:
    """Two batches of data that has two on the first process and more on the others."""
    data, callback = DataLoader(Lengthy(digits(96), 2 + rank()), BATCH), CertificateCallback()
    return validated(folder, world, vae(), data, callback, limit_val_batches=2)


def without_batches(folder: Path, world: int) -> str:
    """How a run is refused whose last process has a validation loader of length 0, which Lightning can allow."""
    model, data = vae(), DataLoader(Lengthy(digits(32), int(rank() < world - 1)), BATCH)
    model.allow_zero_length_dataloader_with_multiple_devices = True
    try:
        spread(folder, world, CertificateCallback()).fit(model, DataLoader(digits(32), BATCH), data)
    except ValueError as error:
        return str(error)
    return "not refused"


def watched(folder: Path, world: int) -> Result:
    """A run that is stopped, and its checkpoints chosen, by the certificate."""
    callback = CertificateCallback(method="normal")
    stopping = EarlyStopping("certificate/margin_lower", mode="max", patience=2, min_delta=0.3)
    best = ModelCheckpoint(folder, "{epoch}", monitor="certificate/margin_lower", mode="max")
    others = {"callbacks": [stopping, best], "enable_checkpointing": True}
    run = spread(folder, world, callback, max_epochs=30, **others)
    run.fit(vae(alignment_weight=200.0, learning_rate=3e-3), datamodule=DigitsDataModule())
    return {
        "certificate": fields(callback),
        **history(callback),
        "epochs": run.current_epoch,
        "stopped": stopping.stopped_epoch,
        "best_path": best.best_model_path,
        "best_score": float(best.best_model_score or 0),
        "logged": float(run.callback_metrics["certificate/margin_lower"]),
    }


def searched(folder: Path, world: int, rows: int, index: bool = True) -> Result:
    """A search; without ``index`` a row is known by its place in the order only, which must then be the same."""
    options: Result = {"pca_dim": 6, "pca_passes": 3, "em_iterations": 4, "initializations": 1, "tolerance": 0.0}
    module = TeacherSearch((3, 4), ("diagonal",), (2.0, 3.0), **options, seed=0, output_dir=str(folder))
    run = spread(folder, world, max_epochs=-1, precision="32-true", use_distributed_sampler=index)
    if index:
        run.fit(module, datamodule=DigitsDataModule(BATCH, subset=rows))
    else:
        run.fit(module, loader("distributed", rows, world), loader("distributed", rows, world))
    assert module.teacher is not None
    tensors = {name: value.tolist() for name, value in module.teacher.tensors().items()}
    return {"folder": str(folder), "tensors": tensors, "choice": module.teacher.card.choice}


class Sharded(VAE):
    """Encoder, decoder and witness with their parameters spread over the data-parallel processes (FSDP2)."""

    def configure_model(self) -> None:
        from torch.distributed.fsdp import fully_shard

        assert self.device_mesh is not None
        for part in (self.encoder, self.decoder, self.witness):
            assert part is not None
            fully_shard(part, mesh=self.device_mesh["data_parallel"])


def sharded(folder: Path, world: int, copies: int = 1, train: bool = False) -> Result | None:
    """Sharded parameters; ``copies`` processes share each part of the rows, as under tensor parallelism."""
    torch.manual_seed(1)
    options: Result = {"witness": nn.Linear(6, 5), "learning_rate": 0.0}
    model, arguments = vae(Sharded if world > 1 else VAE, **options).double(), Result(precision="32-true")
    if world > 1:
        arguments["strategy"] = ModelParallelStrategy(data_parallel_size=world // copies, tensor_parallel_size=copies)
    callback, data = CertificateCallback(channel_samples=2), DigitsDataModule(BATCH, subset=101)
    if not train:
        return validated(folder, world, model, data, callback, **arguments)
    spread(folder, world, callback, **arguments).fit(model, datamodule=data)
    return fields(callback)


def sharded_in_bfloat16(folder: Path, world: int) -> str:
    """How a trained witness is refused that would have to be gathered and widened."""
    model, callback = vae(Sharded if world > 1 else VAE, witness=nn.Linear(6, 5)), CertificateCallback()
    strategy = ModelParallelStrategy(world, 1) if world > 1 else "auto"
    try:
        validated(folder, world, model, DigitsDataModule(BATCH), callback, strategy=strategy, precision="bf16-true")
    except ValueError as error:
        return str(error)
    return "not refused"


ROWS = (101, 7, 3)
FEW = (101, 3)
JOBS: dict[str, Callable[[Path, int], Any]] = {
    **{f"datamodule_{rows}": partial(datamodule, rows=rows) for rows in ROWS},
    **{f"fitted_{rows}": partial(fitted, rows=rows) for rows in ROWS},
    **{f"{kind}_{rows}": partial(loaded, kind=kind, rows=rows) for kind in KINDS for rows in FEW},
    **{f"warned_{kind}": partial(warned, kind=kind) for kind in ("plain", "batch_sampler", "sampler")},
    "watched": watched,
    "leaking": leaking,
    "cut_short": cut_short,
    "searched_101": partial(searched, rows=101),
    "searched_40": partial(searched, rows=40),
    "searched_101_without_index": partial(searched, rows=101, index=False),
    "sharded": sharded,
    "sharded_in_bfloat16": sharded_in_bfloat16,
    "sharded_fitted": partial(sharded, train=True),
    "copies": lambda folder, world: sharded(folder, world, copies=1 if world % 2 else 2),
    "streamed": partial(streamed, idle=None),
    "first_process_idle": partial(streamed, idle=0),
    "last_process_idle": partial(streamed, idle=-1),
    "first_process_idle_fitted": partial(streamed, idle=0, train=True),
    # Last, because processes that wait for others in vain can do nothing together afterwards.
    "without_batches": without_batches,
    "first_process_idle_logging": partial(streamed, idle=0, kind=VAE),
}


class WithAdam(UserVAE):
    """The foreign VAE, whose steps do not grow with the guard's weight."""

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.03)


def trained(
    folder: Path,
    world: int,
    callbacks: list[Callback],
    accumulate: int = 1,
    model: UserVAE | None = None,
    **arguments: Any,
) -> Result:
    """Train on the same 32 rows an optimizer step, whatever the number of processes and of batches for a step."""
    torch.manual_seed(0)
    model = model or WithAdam()
    options = {"accumulate_grad_batches": accumulate, "max_epochs": 4, "callbacks": callbacks, **arguments}
    run = spread(folder, world, **options)
    # Lightning's own sampler would shuffle training rows on several processes, and not on one.
    sampler: Any = DistributedSampler(cast(Any, range(96)), world, rank(), shuffle=False)
    run.fit(model, plain_loader(96, 32 // world // accumulate, sampler=sampler), plain_loader(96, 32 // world))
    return {
        "weights": {name: value.flatten().tolist() for name, value in model.state_dict().items()},
        "alignment": float(run.callback_metrics.get("certificate/alignment_train", torch.nan)),
        "epochs": run.current_epoch,
    }
