"""The small runs that faults strike: a Trainer in Python, ``certvae fit`` and ``certvae protocol``, all on digits."""

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import yaml
from pytorch_lightning import Callback, LightningModule, Trainer

from certvae import TeacherSearch, load_teacher
from certvae.callbacks import CertificateCallback, LastCheckpoint
from certvae.certificate.history import read_history
from certvae.cli import main
from certvae.datamodules import DigitsDataModule
from certvae.io.files import sha256_file, sha256_tensors
from certvae.models.networks import MLPDecoder, MLPEncoder
from tests.faults.kills import NoisyVAE
from tests.runs import SHAPE, digits_teacher, trainer

EPOCHS = 4
EXPERIMENTS = Path(__file__).parents[2] / "experiments" / "digits"
SEARCH: dict[str, Any] = {
    "components": [6],
    "covariances": ["diagonal"],
    "temperatures": [2.0, 3.0],
    "initializations": 2,
    "pca_dim": 8,
    "pca_passes": 2,
    "em_iterations": 3,
}


class Report(Callback):
    """Seed the streams of each process as a run starts, and write what it came to as ``result.json``."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for generator in (torch.manual_seed, random.seed, np.random.seed):
            generator(self.seed + trainer.global_rank)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        measured = next(item for item in cast(Any, trainer).callbacks if isinstance(item, CertificateCallback))
        if trainer.is_global_zero and measured.certificate is not None:
            result = {
                "certificate": measured.certificate.to_dict(),
                "state": measured.state_dict(),
                "weights": sha256_tensors(pl_module.state_dict()),
                "metrics": {key: float(value) for key, value in trainer.callback_metrics.items()},
                "draws": [float(torch.rand(())), random.random(), float(np.random.random())],  # noqa: NPY002
                "history": [item.margin for item in read_history(Path("certificates_val.jsonl"))],
            }
            Path("result.json").write_text(json.dumps(result))


def train(
    resume: str | None = None,
    callbacks: Sequence[Callback] = (),
    nan_epoch: int | None = None,
    checkpoints: str = "checkpoints",
    devices: int = 1,
    strategy: Any = None,
    **options: Any,
) -> None:
    """Train a VAE in the current folder, seeded, with a Trainer in Python."""
    teacher = digits_teacher()
    torch.manual_seed(0)
    networks = MLPEncoder(SHAPE, 6, 32, 1), MLPDecoder(SHAPE, 6, 32, 1)
    module = NoisyVAE(*networks, teacher, alignment_weight=40.0, observation_std=0.5)
    module.nan_epoch = nan_epoch
    measured = CertificateCallback(teacher=teacher, spending=True, save_dir=".")
    goes_on = resume is not None and any(Path(checkpoints).glob("*.ckpt"))
    report = Report(99 if goes_on else 3)  # a run that goes on must not depend on how it is seeded
    trainer(
        Path(),
        max_epochs=EPOCHS,
        callbacks=[measured, report, *callbacks, LastCheckpoint(checkpoints)],
        enable_checkpointing=True,
        devices=devices,
        strategy=strategy or ("ddp_fork" if devices > 1 else "auto"),
        **options,
    ).fit(module, datamodule=DigitsDataModule(batch_size=64, eval_batch_size=64), ckpt_path=resume)


def search(resume: str | None = None, callbacks: Sequence[Callback] = (), devices: int = 1) -> None:
    """Search a teacher in the current folder, with a Trainer in Python; 1,197 rows do not divide by two."""
    torch.manual_seed(3 if resume is None else 99)
    trainer(
        Path(),
        max_epochs=-1,
        callbacks=[*callbacks, LastCheckpoint("checkpoints")],
        enable_checkpointing=True,
        devices=devices,
        strategy="ddp_fork" if devices > 1 else "auto",
    ).fit(
        TeacherSearch(**SEARCH, seed=0, output_dir="."),
        datamodule=DigitsDataModule(batch_size=100, eval_batch_size=100),
        ckpt_path=resume,
    )


def fit(*options: str, resume: bool = False) -> int:
    """``certvae fit --config experiments/digits/full.yaml`` in the current folder, with a small teacher."""
    teacher = Path("runs/digits/search/teacher.safetensors")
    if not teacher.exists():
        digits_teacher().save(teacher)
    quiet = (f"--trainer.max_epochs={EPOCHS}", "--trainer.enable_progress_bar=false")
    again = ("--ckpt_path", "last") if resume else ()
    return main(["fit", "--config", str(EXPERIMENTS / "full.yaml"), *quiet, *options, *again])


def fit_strike(point: str, epoch: int, kind: str = "SIGKILL") -> str:
    """The option that lets a signal strike :func:`fit`."""
    values = {"class_path": "tests.faults.kills.Kill", "init_args": {"point": point, "epoch": epoch, "kind": kind}}
    return f"--trainer.callbacks+={json.dumps(values)}"


def protocol(strikes: dict[str, list[dict[str, Any]]] | None = None) -> int:
    """``certvae protocol`` on digits in the current folder, with a small search and three epochs.

    Args:
        strikes: for each phase, arguments of the strikes in it.
    """
    phases = {}
    for phase in ("search", "full", "no_align", "rescue"):
        config = yaml.safe_load((EXPERIMENTS / f"{phase}.yaml").read_text())
        if phase == "search":
            config["model"]["init_args"].update(SEARCH)
            config["data"]["init_args"]["batch_size"] = 128
        for arguments in (strikes or {}).get(phase, []):
            strike = {"class_path": "tests.faults.kills.Kill", "init_args": {"name": phase, **arguments}}
            config["trainer"]["callbacks"].insert(0, strike)
        Path(f"{phase}.yaml").write_text(yaml.safe_dump(config))
        phases[phase] = f"{phase}.yaml"
    values = {"dataset": "digits", "phases": phases, "seeds": [0], "output_dir": "runs/digits"}
    Path("protocol.yaml").write_text(yaml.safe_dump(values))
    return main(["protocol", "protocol.yaml", "--max_epochs", "3"])


def results(folder: Path) -> dict[str, Any]:
    """Everything that must be the same in an interrupted and in an uninterrupted run."""
    found: dict[str, Any] = {}
    if (folder / "result.json").is_file():
        found["result"] = json.loads((folder / "result.json").read_text())
    for path in sorted(folder.rglob("teacher.safetensors")):
        found[str(path.relative_to(folder))] = sha256_file(path)
    for path in sorted(folder.rglob("certificate_*.json")):
        found[str(path.relative_to(folder))] = json.loads(path.read_text())
    return found


def spoil(path: Path, how: str) -> None:
    """Damage a file: ``"truncated"``, ``"zeros"`` or ``"random bytes"``."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    if how == "truncated":
        del content[middle:]
    elif how == "zeros":
        content[:] = bytes(len(content))
    else:
        content[middle : middle + 64] = random.Random(0).randbytes(64)
    path.write_bytes(content)


def same_teacher(one: Path, other: Path) -> bool:
    """Whether two teacher files are equal to rounding."""
    tensors = load_teacher(other).tensors()
    return all(torch.allclose(value, tensors[name], atol=1e-9) for name, value in load_teacher(one).tensors().items())


def copy(source: Path, target: Path) -> Path:
    """A copy of a run's folder."""
    shutil.copytree(source, target)
    return target
