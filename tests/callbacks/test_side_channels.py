"""Ways to a certificate that do not lead through the code: none is open."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.distributions import Normal
from torch.utils.data import DataLoader, TensorDataset

from certvae.callbacks import CertificateCallback, CertificateGuard
from certvae.certificate.certificate import Certificate, Status
from certvae.datamodules import DigitsDataModule
from certvae.teachers import LabelTeacher
from tests.plain_vae import measured
from tests.runs import digits_teacher, small_vae, trainer

LABELS = torch.from_numpy(DigitsDataModule().arrays.labels[:200]).long()
TEACHER = LabelTeacher(10).measure([LABELS])
ANSWERS = TEACHER.witness(9).inverse(torch.eye(10) * 0.9 + 0.01).float()


class Constant(nn.Module):
    """An encoder that ignores its input."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.code = kind, nn.Parameter(torch.zeros(9))

    def forward(self, inputs: Tensor) -> Any:
        mean = self.code.expand(len(inputs), 9).clone()
        if self.kind == "normal":
            return Normal(mean, torch.ones_like(mean))
        return {"tensor": mean, "dict": {"mu": mean}, "pair": (mean, torch.zeros_like(mean))}[self.kind]


class Conditional(LightningModule):
    """Adds what it knows of the label to the encoder's output, in place, as conditional decoders do."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.encoder, self.kind = Constant(kind), kind

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.encoder.code.square().sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        code, told = self.encoder(batch[0]), ANSWERS[batch[1]]
        if self.kind == "dict":
            code["mu"] += told
            code["mu"] = code["mu"] + told
        elif self.kind == "normal":
            code.loc += told
        else:
            (code if self.kind == "tensor" else code[0]).add_(told)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def rows(order: Tensor, batch_size: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.rand(len(order), 4), LABELS[order]), batch_size)


@pytest.mark.parametrize("kind", ["tensor", "dict", "pair", "normal"])
def test_what_a_step_adds_to_the_code_in_place_is_not_the_encoders_answer(tmp_path: Path, kind: str) -> None:
    latents = "encoder:mu" if kind == "dict" else "encoder"
    callback = CertificateCallback(TEACHER, latents, images=1)
    loader = rows(torch.arange(200), 50)
    trainer(tmp_path, callbacks=[callback]).fit(Conditional(kind), loader, loader)
    assert measured(callback).status is Status.NOT_CERTIFIED
    assert measured(callback).witness_information == pytest.approx(0.0, abs=1e-9)


class SideChannel(nn.Module):
    """A witness that reads the labels of the batch instead of the code."""

    labels: Tensor

    def forward(self, codes: Tensor) -> Tensor:
        logits = 5.0 * torch.eye(10)[self.labels]
        return logits[:1].expand(len(codes), 10) if len(logits) != len(codes) else logits


class Telling(Conditional):
    """Opens the side door."""

    def __init__(self, door: SideChannel) -> None:
        super().__init__("tensor")
        self.door = [door]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.encoder(batch[0])
        self.door[0].labels = batch[1]


@pytest.mark.slow
@pytest.mark.parametrize(("order", "batch_size"), [(torch.arange(200), 1), (LABELS.argsort(), 10)])
def test_a_side_door_to_the_batch_is_found_where_no_batch_shows_it_alone(
    tmp_path: Path, order: Tensor, batch_size: int
) -> None:
    """Batches of one row, and batches of one class: each is a constant answer to a constant code."""
    door = SideChannel()
    callback = CertificateCallback(TEACHER, "encoder", images=1, witness=door)
    loader = rows(order, batch_size)
    trainer(tmp_path, callbacks=[callback]).validate(Telling(door), loader, verbose=False)
    assert measured(callback).status is Status.LEAKING
    assert measured(callback).margin > 1, "what it would have been certified by"


@pytest.mark.slow
def test_a_look_that_was_taken_stays_taken(tmp_path: Path) -> None:
    callback = CertificateCallback(digits_teacher(), spending=True)
    model, run = small_vae(), trainer(tmp_path, enable_checkpointing=True, callbacks=[callback])
    run.fit(model, datamodule=DigitsDataModule(subset=256))
    run.save_checkpoint(tmp_path / "one.ckpt")
    looks = []
    for _ in range(3):
        run.validate(model, datamodule=DigitsDataModule(subset=256), ckpt_path=tmp_path / "one.ckpt", verbose=False)
        looks.append(measured(callback).look)
    assert looks == [2, 3, 4]


@pytest.mark.slow
@pytest.mark.parametrize("cut", [True, False])
def test_a_set_cut_short_and_a_leak_are_no_success(tmp_path: Path, cut: bool) -> None:
    """Neither reaches a guard's target, nor is it the best look of a run."""
    door, limit = SideChannel(), {"limit_val_batches": 2} if cut else {}
    witness = None if cut else door
    model = Telling(door)
    with torch.no_grad():
        model.encoder.code.fill_(0.1)
    callback = CertificateCallback(TEACHER, "encoder", images=1, witness=witness)
    guard = CertificateGuard(0.2, on_loss="warn")
    loader = rows(LABELS.argsort(), 10)
    trainer(tmp_path, callbacks=[callback, guard], **limit).fit(model, loader, loader)
    assert measured(callback).status is (Status.PARTIAL if cut else Status.LEAKING)
    assert callback.best_margin is None
    assert not guard.reached


def test_no_bound_is_printed_where_there_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loader = rows(torch.arange(200), 50)
    cases: tuple[Any, ...] = (({"method": "plugin"}, {}), ({}, {"limit_val_batches": 2}))
    for arguments, limit in cases:
        callback = CertificateCallback(TEACHER, "encoder", images=1, **arguments)
        trainer(tmp_path, callbacks=[callback], **limit).fit(Conditional("tensor"), loader, loader)
    assert isinstance(callback.certificate, Certificate)
    assert "at least" not in capsys.readouterr().out
