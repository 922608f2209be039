"""Every known attack on a certificate: a script that carries it out, and how it ended in the first edition and now.

``before`` is how the same script ended under version 0.1.0, the first edition: each was run there once,
with its modules under the names that they had. ``now`` is what the tests hold the present version to.
"""

import io
import json
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZipFile

import numpy as np
import torch
from PIL import Image
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler, TensorDataset

from certvae import Certificate, certify
from certvae.callbacks import CertificateCallback
from certvae.teachers import LabelTeacher

__all__ = ["ATTACKS", "LEAKS", "Attack", "outcome", "table"]

K, ROWS = 5, 200
LABELS = torch.arange(ROWS) % K
TEACHER = LabelTeacher(K).measure([LABELS])
SLOW = 1.0  # seconds of processor time for a small file; without the attack it is a hundredth


@dataclass(frozen=True)
class Attack:
    """An attack.

    Attributes:
        name: what it does.
        finds: the leak test, status or limit that finds it; empty if none can.
        before: how it ended in the first edition.
        now: how it ends.
        run: carries it out in an empty folder, and says how it ended.
    """

    name: str
    finds: str
    before: str
    now: str
    run: Callable[[Path], str]


ATTACKS: list[Attack] = []
LEAKS: list[str] = []  # what leak tests found in the attack that was carried out last


def attack(name: str, finds: str, before: str, now: str) -> Callable[[Callable[[Path], str]], Callable[[Path], str]]:
    """Enter a script into the registry."""

    def enter(run: Callable[[Path], str]) -> Callable[[Path], str]:
        ATTACKS.append(Attack(name, finds, before, now, run))
        return run

    return enter


# A model, its data, and its certificate.


class Constant(nn.Module):
    """An encoder that ignores its input."""

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.zeros(len(inputs), K)


class Reads(nn.Module):
    """An honest witness: the code itself, scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(5.0))

    def forward(self, codes: Tensor) -> Tensor:
        return self.scale * codes


class Model(LightningModule):
    """An encoder; ``told`` hands the labels of a batch to whoever should not have them."""

    def __init__(self, encoder: nn.Module | None = None, told: Any = None) -> None:
        super().__init__()
        self.encoder, self.told = encoder or Constant(), [told]

    def forward(self, inputs: Tensor) -> Tensor:
        return self.encoder(inputs)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if self.told[0] is not None:
            self.told[0].labels = batch[1]
        self.encoder(batch[0])


def data(order: Tensor | None = None, labels: Tensor = LABELS) -> TensorDataset:
    order = torch.arange(len(labels)) if order is None else order
    inputs = torch.randn(len(labels), 4, generator=torch.Generator().manual_seed(0))
    return TensorDataset(inputs[order], labels[order])


def measured(model: LightningModule, loader: Any = None, trainer: Any = None, **arguments: Any) -> Certificate:
    """The certificate of a validation."""
    given: dict[str, Any] = {"teacher": TEACHER, "latents": "encoder", "images": 1, "witness": Reads(), **arguments}
    callback = CertificateCallback(**given)
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    runner = Trainer(accelerator="cpu", enable_checkpointing=False, callbacks=[callback], **quiet, **(trainer or {}))
    loader = DataLoader(data(), 50) if loader is None else loader
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        runner.validate(model, loader, verbose=False)
    assert callback.certificate is not None
    LEAKS.extend(callback.certificate.leaks)
    return callback.certificate


def status(*arguments: Any, **options: Any) -> str:
    """The status of a validation, or that it was refused."""
    try:
        return str(measured(*arguments, **options).status)
    except ValueError:
        return "REFUSED"


# Witnesses that see more than the code. The code is constant.


class Door(nn.Module):
    """A witness that was told the labels of the batch."""

    labels: Tensor = LABELS[:0]

    def forward(self, codes: Tensor) -> Tensor:
        answers = 5.0 * torch.eye(K)[self.labels]
        return answers if len(answers) == len(codes) else answers[:1].expand(len(codes), K)


def through(door: nn.Module, loader: Any = None) -> str:
    return status(Model(told=door), loader, witness=door)


@attack("A witness that sees the labels of its batch", "order", "LEAKING", "LEAKING")
def side_door(folder: Path) -> str:
    return through(Door())


@attack("The same, with batches of one row", "equal codes", "LEAKING", "LEAKING")
def side_door_alone(folder: Path) -> str:
    return through(Door(), DataLoader(data(labels=LABELS[:40]), 1))


@attack("The same, with batches of one class", "equal codes", "LEAKING", "LEAKING")
def side_door_by_class(folder: Path) -> str:
    return through(Door(), DataLoader(data(LABELS.argsort(stable=True)), 10))


class Skip(Door):
    """The code is used, but the labels are added."""

    def forward(self, codes: Tensor) -> Tensor:
        return super().forward(codes) + 0.01 * codes


@attack("A skip connection to the labels beside the code", "order", "LEAKING", "LEAKING")
def skip(folder: Path) -> str:
    return through(Skip())


class Counting(nn.Module):
    """Counts rows, and knows the labels by position in the set."""

    seen = 0

    def forward(self, codes: Tensor) -> Tensor:
        places = (self.seen + torch.arange(len(codes))) % ROWS
        self.seen += len(codes)
        return 5.0 * torch.eye(K)[LABELS[places]]


@attack("A witness that counts rows and knows the set's order", "repeatable", "LEAKING", "LEAKING")
def counting(folder: Path) -> str:
    return status(Model(), witness=Counting())


class Numbered(nn.Module):
    """Knows the labels by position in the batch."""

    def forward(self, codes: Tensor) -> Tensor:
        return 5.0 * torch.eye(K)[torch.arange(len(codes)) % K]


@attack("A witness that knows the order of classes within a batch", "order", "LEAKING", "LEAKING")
def numbered(folder: Path) -> str:
    return status(Model(), witness=Numbered())


class Once(Door):
    """Answers well the first time that a batch is asked about, and constantly ever after."""

    asked: Tensor | None = None

    def forward(self, codes: Tensor) -> Tensor:
        fresh, self.asked = self.asked is not self.labels, self.labels
        return super().forward(codes) if fresh else torch.zeros(len(codes), K)


@attack("A witness that answers well only when it is first asked", "repeatable", "LEAKING", "LEAKING")
def once(folder: Path) -> str:
    return through(Once())


class Later(Door):
    """Honest in the first batch, which leak tests look at; then it is told the labels."""

    first: Tensor | None = None

    def forward(self, codes: Tensor) -> Tensor:
        self.first = self.labels if self.first is None else self.first
        return torch.zeros(len(codes), K) if self.labels is self.first else super().forward(codes)


@attack("A witness that is honest in the first batch only", "repeatable", "LEAKING", "LEAKING")
def later(folder: Path) -> str:
    return through(Later())


class Adapting(nn.Module):
    """Learns from the rows while they are certified, in a buffer."""

    bias: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.labels = LABELS[:0]
        self.register_buffer("bias", torch.zeros(K))

    def forward(self, codes: Tensor) -> Tensor:
        answers = 5 * codes + self.bias
        self.bias = self.bias + 1e-6 * torch.eye(K)[self.labels].mean(dim=0)
        return answers


class Copying(nn.Module):
    """A code that holds the label: the input's first five numbers."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs[:, :K]


def with_labels() -> TensorDataset:
    return TensorDataset(torch.eye(K)[LABELS], LABELS)


@attack("A witness whose buffers change while rows are certified", "fixed", "CERTIFIED", "LEAKING")
def adapting(folder: Path) -> str:
    witness = Adapting()
    return status(Model(Copying(), witness), DataLoader(with_labels(), 50), witness=witness)


class Centering(nn.Module):
    """Centers by the batch."""

    def forward(self, codes: Tensor) -> Tensor:
        return 5 * (codes - codes.mean(dim=0))


@attack("A witness whose answers depend on the other rows", "row independence", "LEAKING", "LEAKING")
def centering(folder: Path) -> str:
    return status(Model(Copying()), DataLoader(with_labels(), 49), witness=Centering())


class Forgetful(nn.Module):
    """Answers with noise of its own."""

    def forward(self, codes: Tensor) -> Tensor:
        return 5 * codes + 0.1 * torch.randn(len(codes), K)


@attack("A witness with noise of its own", "repeatable", "LEAKING", "LEAKING")
def noisy(folder: Path) -> str:
    return status(Model(Copying()), DataLoader(with_labels(), 50), witness=Forgetful())


class Random(nn.Module):
    """A code that is noise made from the input: it names the row, and says nothing of the label."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs


class Memory(Door):
    """Remembers the label of each code in a dict that is no part of its state."""

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        self.known = {code.numpy().tobytes(): label for code, label in zip(codes, LABELS, strict=True)}

    def forward(self, codes: Tensor) -> Tensor:
        return 5.0 * torch.eye(K)[torch.stack([self.known[code.numpy().tobytes()] for code in codes])]


@attack("A witness that remembers the label of each code, outside its state", "", "CERTIFIED", "CERTIFIED")
def memory(folder: Path) -> str:
    return status(Model(Random()), witness=Memory(data().tensors[0]))


@attack("A witness fitted on the rows that are certified", "", "CERTIFIED", "CERTIFIED")
def fitted(folder: Path) -> str:
    codes = torch.randn(ROWS, ROWS, generator=torch.Generator().manual_seed(1))
    witness = nn.Linear(ROWS, K)
    with torch.no_grad():
        witness.weight.copy_(torch.linalg.lstsq(codes, 5.0 * torch.eye(K)[LABELS]).solution.T)
        witness.bias.zero_()
    return status(Model(Random()), DataLoader(TensorDataset(codes, LABELS), 50), witness=witness)


@attack("An empty `nn.Sequential()` given as witness is replaced by another", "it is used", "REPLACED", "USED")
def replaced(folder: Path) -> str:
    callback = CertificateCallback(TEACHER, "encoder", images=1, witness=nn.Sequential())
    model = Model(Copying())
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[callback])
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        trainer.validate(model, DataLoader(with_labels(), 50), verbose=False)
    assert callback.certificate is not None
    used = certify(TEACHER(LABELS), torch.eye(K)[LABELS], teacher_floor=TEACHER.card.floor).margin
    return "USED" if abs(callback.certificate.margin - used) < 1e-6 else "REPLACED"


# Encoders whose codes are not made from the row's input alone.


class Adding(Model):
    """Adds the label to the code in place, behind the encoder's back."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.encoder(batch[0]).add_(torch.eye(K)[batch[1]])


@attack("A step that adds the label to the code in place", "a copy of it", "NOT_CERTIFIED", "NOT_CERTIFIED")
def in_place(folder: Path) -> str:
    return status(Adding())


class Told(Constant):
    """An encoder that writes what it was told of the batch into the codes, by position."""

    labels: Tensor = LABELS[:0]

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.eye(K)[self.labels[: len(inputs)]]


def checked(encoder: Any, loader: Any = None) -> str:
    """With the test of the encoder, where there is one."""
    try:
        return status(Model(encoder, encoder), loader, check_encoder=True)
    except TypeError:
        return status(Model(encoder, encoder), loader)


@attack("An encoder that writes the batch's labels into the codes", "encoder", "CERTIFIED", "LEAKING")
def told(folder: Path) -> str:
    return checked(Told())


class Pooling(nn.Module):
    """Codes are the batch's average: rows that come by class share it."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.mean(dim=0, keepdim=True).expand(len(inputs), -1)


@attack("An encoder that averages over batches of mostly one class", "encoder", "CERTIFIED", "LEAKING")
def pooling(folder: Path) -> str:
    order = LABELS.argsort(stable=True).roll(1)
    noisy = torch.eye(K)[LABELS] + torch.randn(ROWS, K, generator=torch.Generator().manual_seed(0))
    return checked(Pooling(), DataLoader(TensorDataset(noisy[order], LABELS[order]), 10))


@attack("The same two without `check_encoder`", "", "CERTIFIED", "CERTIFIED")
def unchecked(folder: Path) -> str:
    encoder = Told()
    return status(Model(encoder, encoder))


@attack("A label in the encoder's input", "", "CERTIFIED", "CERTIFIED")
def conditional(folder: Path) -> str:
    return checked(Copying(), DataLoader(with_labels(), 50))


@attack("A teacher that encodes the id of a row, which the input holds", "", "CERTIFIED", "CERTIFIED")
def identity(folder: Path) -> str:
    ids = torch.arange(ROWS)
    inputs = torch.eye(K)[ids // (ROWS // K)]
    return checked(Copying(), DataLoader(TensorDataset(inputs, ids // (ROWS // K)), 49))


class Table(nn.Module):
    """Has learned the labels of its training rows by heart."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = data().tensors[0]

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.eye(K)[LABELS[torch.cdist(inputs, self.rows).argmin(dim=1)]]


@attack("A validation set that the model was trained on", "", "CERTIFIED", "CERTIFIED")
def trained_on(folder: Path) -> str:
    return checked(Table())


# Sets of which a part is missing. The code is right on the first rows only.


class HalfRight(nn.Module):
    """The label for the first half of the set, its opposite for the others."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs[:, :K]


def half_right() -> TensorDataset:
    codes = torch.eye(K)[torch.where(torch.arange(ROWS) < ROWS // 2, LABELS, (LABELS + 1) % K)]
    return TensorDataset(codes, LABELS)


class Stopping(Model):
    """Ends the validation when the right rows are through."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            raise StopIteration
        super().validation_step(batch, batch_idx)


@attack("A step that raises StopIteration before the hard rows", "PARTIAL", "CERTIFIED", "PARTIAL")
def stopping(folder: Path) -> str:
    return status(Stopping(HalfRight()), DataLoader(half_right(), 50))


class Short:
    """Says that it has four batches, and gives two."""

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[Any]:
        inputs, labels = half_right().tensors
        yield from ((inputs[start : start + 50], labels[start : start + 50]) for start in (0, 50))


@attack("A loader that is shorter than its length", "PARTIAL", "CERTIFIED", "PARTIAL")
def shorter(folder: Path) -> str:
    return status(Model(HalfRight()), Short())


class Ending(IterableDataset[Any]):
    """Says that it has all rows, and ends in the middle, as a worker does that loses its source."""

    def __len__(self) -> int:
        return ROWS

    def __iter__(self) -> Iterator[Any]:
        inputs, labels = half_right().tensors
        yield from zip(inputs[: ROWS // 2], labels[: ROWS // 2], strict=True)


@attack("A stream that ends before the length that it states", "PARTIAL", "CERTIFIED", "PARTIAL")
def ending(folder: Path) -> str:
    return status(Model(HalfRight()), DataLoader(Ending(), 50))


@attack("`limit_val_batches`", "PARTIAL", "PARTIAL", "PARTIAL")
def limited(folder: Path) -> str:
    return status(Model(HalfRight()), DataLoader(half_right(), 50), {"limit_val_batches": 2})


@attack("Functions for `images` and `latents` that leave the hard rows out", "PARTIAL", "CERTIFIED", "PARTIAL")
def dropping(folder: Path) -> str:
    def right(batch: Any) -> Tensor:
        return batch[0].argmax(dim=1) == batch[1]

    def latents(model: Any, batch: Any) -> Tensor:
        return batch[0][right(batch)]

    model = Model(HalfRight())
    return status(model, DataLoader(half_right(), 50), latents=latents, images=lambda batch: batch[1][right(batch)])


@attack("A sampler that leaves the hard rows out", "", "CERTIFIED", "CERTIFIED")
def sampling(folder: Path) -> str:
    kept = SubsetRandomSampler(range(ROWS // 2))
    return status(Model(HalfRight()), DataLoader(half_right(), 50, sampler=kept))


# Looks, and choosing.


def looks(folder: Path, **options: Any) -> str:
    models = [Model(nn.Linear(4, K)) for _ in range(3)]  # the same model would be the same look
    seen = [measured(model, spending=True, **options).look for model in models]
    return "COUNTED" if seen == [1, 2, 3] else "FORGOTTEN"


@attack("A fresh callback for each look, with `spending` and `save_dir`", "the ledger of looks", "FORGOTTEN", "COUNTED")
def fresh_callbacks(folder: Path) -> str:
    return looks(folder, save_dir=folder)


@attack("A fresh callback for each look, without `save_dir`", "", "FORGOTTEN", "FORGOTTEN")
def fresh_callbacks_without_a_folder(folder: Path) -> str:
    return looks(folder)


@attack("Choosing the best of many runs on the same few rows", "", "CERTIFIED", "CERTIFIED")
def best_of_many(folder: Path) -> str:
    teacher = TEACHER(LABELS[:10])
    runs = 3 * torch.randn(300_000, 10, K, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores = (teacher * runs.log_softmax(dim=-1)).sum(dim=-1)
    best = (scores.mean(dim=1) - scores.std(dim=1)).argmax()
    return str(certify(teacher, runs[best]).status)


# Numbers that are not what they should be.


@attack("A channel that carries more than its rate", "rate", "LEAKING", "LEAKING")
def above_the_rate(folder: Path) -> str:
    sharp = 5.0 * torch.eye(K)[LABELS]
    made = certify(TEACHER(LABELS), sharp, channel_logits=sharp[None], rate=torch.zeros(ROWS))
    LEAKS.extend(made.leaks)
    return str(made.status)


@attack("A rate of 1e40 nats on one row, to hide behind", "a limit of 1e9 nats", "CERTIFIED", "REFUSED")
def hidden_rate(folder: Path) -> str:
    sharp, rate = 5.0 * torch.eye(K)[LABELS], torch.zeros(ROWS, dtype=torch.float64)
    rate[0] = 1e40
    try:
        return str(certify(TEACHER(LABELS), sharp, channel_logits=sharp[None], rate=rate).status)
    except ValueError:
        return "REFUSED"


# Files.


def honest() -> Certificate:
    return certify(TEACHER(LABELS), 5.0 * torch.eye(K)[LABELS])


def claims_hold(path: Path) -> str:
    from certvae.commands.verify import main

    with redirect_stdout(io.StringIO()):
        return "HOLDS" if main([str(path), "--claims-only"]) == 0 else "REFUSED"


@attack("A number altered in a certificate's file", "digest of the file", "REFUSED", "REFUSED")
def altered(folder: Path) -> str:
    path = honest().save(folder / "certificate.json")
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "margin": values["margin"] + 0.1}))
    return claims_hold(path)


@attack("The same with a new digest", "numbers that must agree", "REFUSED", "REFUSED")
def altered_with_digest(folder: Path) -> str:
    made = honest()
    return claims_hold(replace(made, margin=made.margin + 0.1).save(folder / "certificate.json"))


@attack("An invented certificate whose numbers agree, checked by `--claims-only`", "", "HOLDS", "HOLDS")
def invented(folder: Path) -> str:
    return claims_hold(honest().save(folder / "certificate.json"))


@attack(
    "Options in a certificate with which `verify` would take gigabytes", "limits of the options", "TAKEN", "REFUSED"
)
def endless_options(folder: Path) -> str:
    from certvae.commands.certify import CertifyOptions

    try:
        CertifyOptions(channel_samples=1000, calibration_rows=10**9)
    except ValueError:
        return "REFUSED"
    return "TAKEN"


class Planted:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def refuses(read: Callable[[Path], Any], path: Path) -> str:
    start = time.process_time()
    try:
        read(path)
        ended = "READ"
    except (ValueError, RuntimeError):  # a DataError is the second
        ended = "REFUSED"
    return "SLOW" if time.process_time() - start > SLOW else ended


@attack("A checkpoint that runs code", "reading without code", "REFUSED", "REFUSED")
def code(folder: Path) -> str:
    from certvae.io.checkpoints import read_checkpoint

    torch.save({"state_dict": Planted(folder / "ran")}, folder / "last.ckpt")
    ended = refuses(read_checkpoint, folder / "last.ckpt")
    return "RAN" if (folder / "ran").exists() else ended


def pickled(folder: Path, key: Callable[[int], bytes], count: int) -> Path:
    """A checkpoint whose pickle is a dict with made keys."""
    entries = b"".join(key(number) + b"N" for number in range(1, count))
    content = b"\x80\x02}(" + b"X\x0a\x00\x00\x00state_dict}" + entries + b"u."
    torch.save({"state_dict": {}}, folder / "plain.ckpt")
    with ZipFile(folder / "plain.ckpt") as source, ZipFile(folder / "last.ckpt", "w") as target:
        for info in source.infolist():
            target.writestr(info.filename, content if info.filename.endswith("data.pkl") else source.read(info))
    return folder / "last.ckpt"


@attack("A checkpoint of 20,000 keys that all have one hash", "limits of a pickle", "SLOW", "REFUSED")
def colliding_keys(folder: Path) -> str:
    from certvae.io.checkpoints import read_checkpoint

    def key(number: int) -> bytes:
        value = (number * (2**61 - 1)).to_bytes(16, "little", signed=True)
        return b"\x8a" + struct.pack("<B", len(value)) + value

    return refuses(read_checkpoint, pickled(folder, key, 20_000))


def read_config(path: Path) -> Any:
    from certvae.commands.certify import _read_config

    return _read_config(path)


@attack("A YAML whose merge keys multiply", "limits of a YAML", "READ", "REFUSED")
def merge_keys(folder: Path) -> str:
    lines = ["a0: &a0 {k: 1}"] + [f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, 22)]
    path = folder / "run.yaml"
    path.write_text("\n".join([*lines, "model: {}", "data: {}"]))
    return refuses(read_config, path)


@attack("A YAML of keys that all have one hash", "limits of a YAML", "READ", "REFUSED")
def colliding_yaml(folder: Path) -> str:
    path = folder / "run.yaml"
    keys = "\n".join(f"{number * (2**61 - 1)}:" for number in range(3000))
    path.write_text(f"model: {{}}\ndata: {{}}\n{keys}\n")
    return "REFUSED" if refuses(read_config, path) == "REFUSED" else "READ"


@attack("A link in a run's folder to a file outside, read by `certvae report`", "one reason", "READ", "REFUSED")
def linked(folder: Path) -> str:
    from certvae.report.runs import read_runs

    (folder / "run").mkdir()
    honest().save(folder / "secret.json")
    (folder / "run" / "certificates_val.jsonl").write_text("")
    (folder / "run" / "certificate_val.json").symlink_to(folder / "secret.json")
    return refuses(lambda path: read_runs([path]), folder / "run")


@attack("A cache of Tiny-ImageNet with an altered pixel", "digest of the cache", "READ", "REFUSED")
def altered_cache(folder: Path) -> str:
    from certvae.datamodules import TinyImageNetDataModule

    place = folder / "tiny-imagenet-200"
    (place / "train" / "n1" / "images").mkdir(parents=True)
    (place / "val" / "images").mkdir(parents=True)
    for path in (place / "train/n1/images/n1_0.JPEG", place / "val/images/val_0.JPEG"):
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(path, format="jpeg")
    texts = {"wnids.txt": "n1\n", "words.txt": "n1\tone\n", "val/val_annotations.txt": "val_0.JPEG\tn1\t0\t0\t9\t9\n"}
    for name, text in texts.items():
        (place / name).write_text(text)

    def read(root: Path) -> Any:
        return TinyImageNetDataModule(str(root)).arrays

    with redirect_stdout(io.StringIO()):
        read(folder)
        (cache,) = (folder / "certvae-cache").iterdir()
        content = bytearray(cache.read_bytes())
        content[-1000] ^= 255
        cache.write_bytes(content)
        return refuses(read, folder)


# Published certificates, as `certvae certify` makes them.


class ByArgmax(LabelTeacher):
    """The label is the place of the largest of an input's first five numbers."""

    def forward(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        return super().forward(images[:, :K].argmax(dim=1))

    def check_values(self, images: Tensor) -> None:
        """Inputs are no labels."""


def near_labels(labels: Tensor = LABELS) -> Tensor:
    return torch.eye(K)[labels] + 0.01 * torch.rand(len(labels), K, generator=torch.Generator().manual_seed(0))


def published(model: LightningModule, witness: nn.Module, inputs: Tensor, **given: Any) -> Certificate:
    from certvae.commands.certify import CertifyOptions, _certificate
    from certvae.monitoring.encoded_rows import encode_rows

    teacher = ByArgmax(K)
    options = CertifyOptions(permutations=0, calibration_rows=0, **given)
    with torch.no_grad():
        rows = encode_rows(model, teacher, DataLoader(TensorDataset(inputs, torch.zeros(len(inputs))), 50))
        made = _certificate(rows, teacher, witness, None, options)
    LEAKS.extend(made.leaks)
    return made


@attack(
    "Twenty rows, each given ten times, in a published certificate", "repeated rows count once", "200 ROWS", "20 ROWS"
)
def repeated(folder: Path) -> str:
    inputs = near_labels(LABELS[:20]).repeat(10, 1)
    return f"{published(Model(Copying()), Reads(), inputs, method='bernstein').num_samples} ROWS"


class FirstOnly(nn.Module):
    """Knows the labels when it is asked about a set for the first time, and is constant ever after."""

    asked = False

    def forward(self, codes: Tensor) -> Tensor:
        fresh, self.asked = not self.asked, True
        return 5.0 * torch.eye(K)[LABELS] if fresh else torch.zeros(len(codes), K)


@attack("The witness that answers well only when first asked, published", "repeatable", "CERTIFIED", "LEAKING")
def first_only(folder: Path) -> str:
    return str(published(Model(), FirstOnly(), near_labels()).status)


class Placed(Constant):
    """Writes the labels into codes by the place of a row in the set, which it counts."""

    seen = 0

    def forward(self, inputs: Tensor) -> Tensor:
        places = (self.seen + torch.arange(len(inputs))) % ROWS
        self.seen += len(inputs)
        return torch.eye(K)[LABELS[places]]


@attack("An encoder that counts rows and knows the set's order, published", "encoder", "CERTIFIED", "LEAKING")
def placed(folder: Path) -> str:
    return str(published(Model(Placed()), Reads(), near_labels()).status)


class Normalizing(nn.Module):
    """Scales a code by what the batch holds, as batch norm does in train mode."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs - inputs.mean(dim=0)


@attack("An encoder that centers codes by the batch, published", "encoder", "CERTIFIED", "LEAKING")
def normalizing(folder: Path) -> str:
    return str(published(Model(Normalizing()), Reads(), near_labels()).status)


def table(attacks: list[Attack] = ATTACKS) -> str:
    """All attacks with their outcomes, as a table in Markdown."""
    rows = [
        f"| {number} | {item.name} | {item.finds or 'nothing can'} | {item.before} | {item.now} |"
        for number, item in enumerate(attacks, start=1)
    ]
    return "\n".join(["| | attack | what finds it | 0.1.0 | now |", "|---|---|---|---|---|", *rows])


def outcome(item: Attack) -> str:
    """Carry an attack out in a fresh folder."""
    torch.manual_seed(0)
    LEAKS.clear()
    with TemporaryDirectory() as folder:
        return item.run(Path(folder))
