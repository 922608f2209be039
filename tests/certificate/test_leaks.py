"""Planted cheats: each is caught, and an honest witness is not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from certvae import SimplexWitness, Status
from certvae.callbacks import CertificateCallback
from certvae.certificate.leaks import WitnessAudit, check_witness, shuffled_margin_leaks
from certvae.datamodules import DigitsDataModule
from certvae.models.vae import VAE
from tests.runs import digits_teacher, small_vae, trainer


class SideChannel(nn.Module):
    """Answers what the teacher says of the batch that it was shown behind the back: a closure over the images."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = torch.zeros(0)

    def forward(self, latents: Tensor) -> Tensor:
        return self.answers[: len(latents)]


class Skip(SideChannel):
    """A skip connection: the code is used, but the images are added."""

    def forward(self, latents: Tensor) -> Tensor:
        return self.answers[: len(latents)] + 0.01 * latents[:, :5]


class Position(nn.Module):
    """Labels smuggled by the position of a row in the set."""

    def __init__(self) -> None:
        super().__init__()
        self.labels, self.position = torch.randint(0, 5, (1000,)), 0

    def forward(self, latents: Tensor) -> Tensor:
        rows = self.labels[self.position : self.position + len(latents)]
        self.position += len(latents)
        return 5 * nn.functional.one_hot(rows, 5).float()


class RowNumber(nn.Module):
    """Labels smuggled by the row's number in the batch."""

    def forward(self, latents: Tensor) -> Tensor:
        return 5 * nn.functional.one_hot(torch.arange(len(latents)) % 5, 5).float()


class OtherRows(nn.Module):
    """Centers codes by the batch: order-preserving, but rows depend on each other."""

    def forward(self, latents: Tensor) -> Tensor:
        return (latents - latents.mean(dim=0))[:, :5]


def codes() -> Tensor:
    return torch.randn(40, 6, generator=torch.Generator().manual_seed(0))


def cheat_with_answers(kind: type[SideChannel]) -> SideChannel:
    witness = kind()
    witness.answers = torch.randn(40, 5, generator=torch.Generator().manual_seed(1))
    return witness


@pytest.mark.parametrize(
    ("witness", "finding"),
    [
        (cheat_with_answers(SideChannel), "order"),
        (cheat_with_answers(Skip), "order"),
        (Position(), "repeatable"),
        (RowNumber(), "order"),
        (OtherRows(), "row independence"),
        (nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 5)), "row independence"),
        (nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 5)), "eval mode"),
        (nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 5)), "repeatable"),
        (nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 5)), "eval mode"),
    ],
)
def test_each_planted_cheat_is_caught(witness: nn.Module, finding: str) -> None:
    assert any(sentence.startswith(finding) for sentence in check_witness(witness, codes()))


@pytest.mark.parametrize(
    "witness",
    [
        SimplexWitness(5, 6),
        nn.Linear(6, 5),
        nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 5)).eval(),
        nn.Sequential(nn.Linear(6, 400), nn.ReLU(), nn.Linear(400, 5)),
    ],
)
@pytest.mark.parametrize("rows", [1, 2, 3, 40])
def test_an_honest_witness_is_not_accused(witness: nn.Module, rows: int) -> None:
    assert check_witness(witness, codes()[:rows]) == []
    assert check_witness(witness, 100 * codes()[:rows]) == []


def test_a_margin_that_survives_shuffling_is_a_leak() -> None:
    assert shuffled_margin_leaks(-0.1) == []
    assert "0.2000 nats stays" in shuffled_margin_leaks(0.2)[0]


class Whispering(VAE):
    """Shows the images to the witness behind the certificate's back."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        outputs = super().validation_step(batch, batch_idx, dataloader_idx)
        assert self.teacher is not None
        assert isinstance(self.witness, nn.Module)
        self.witness.answers = self.teacher(batch[0]).log().float()
        return outputs


@pytest.mark.slow
def test_the_callback_reports_a_cheat_as_leaking(tmp_path: Path) -> None:
    honest = small_vae(digits_teacher())
    model = Whispering(honest.encoder, honest.decoder, digits_teacher())
    model.witness = SideChannel()
    callback = CertificateCallback(witness=model.witness)
    trainer(tmp_path, callbacks=[callback]).validate(model, DigitsDataModule(), verbose=False)
    assert callback.certificate is not None
    assert callback.certificate.margin > 0.3
    assert callback.certificate.status is Status.LEAKING
    assert "leak: order" in str(callback.certificate)
    assert "leak: rate" in str(callback.certificate)


class FirstTime(nn.Module):
    """Answers well when it is first asked about a batch, and constantly ever after."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []

    def forward(self, latents: Tensor) -> Tensor:
        fresh = latents.data_ptr() not in self.asked
        self.asked.append(latents.data_ptr())
        return torch.randn(len(latents), 5) if fresh and len(latents) == 40 else torch.zeros(len(latents), 5)


class Learning(nn.Module):
    """Its buffer changes by less than any comparison of answers shows."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, latents: Tensor) -> Tensor:
        self.count = self.count + 1e-9
        return latents[:, :5] + self.count


def audited(witness: nn.Module, batches: list[Tensor], answers: list[Tensor] | None = None) -> list[str]:
    """What an audit finds, batch by batch, of the answers given or those that the witness gives when asked once."""
    audit = WitnessAudit()
    for number, batch in enumerate(batches):
        counted = witness(batch) if answers is None else answers[number]
        audit.add(witness, batch, counted, 40 * number + torch.arange(len(batch)))
    return audit.finish(witness)


@pytest.mark.parametrize(
    ("witness", "finding"), [(FirstTime(), "repeatable"), (Learning(), "fixed"), (Position(), "repeatable")]
)
def test_an_audit_compares_with_the_answers_that_were_counted(witness: nn.Module, finding: str) -> None:
    assert any(found.startswith(finding) for found in audited(witness, [codes(), codes() + 1, codes() + 2]))


def test_equal_codes_with_unequal_answers_are_found_within_a_batch_and_across_batches() -> None:
    constant = torch.zeros(40, 6)
    one, other = torch.zeros(40, 5), torch.eye(5)[0].expand(40, 5)
    honest = nn.Linear(6, 5)
    across = audited(honest, [constant, constant], [one, other])
    within = audited(honest, [constant], [torch.eye(5)[torch.arange(40) % 5]])
    for found in (across, within):
        assert any(sentence.startswith("equal codes") for sentence in found)


def test_an_audit_does_not_accuse_an_honest_witness_and_asks_no_row_that_was_not_there() -> None:
    for witness in (SimplexWitness(5, 6), nn.Sequential(nn.Linear(6, 400), nn.ReLU(), nn.Linear(400, 5))):
        assert audited(witness, [codes(), codes().flip(0), codes()[:3], torch.zeros(40, 6)]) == []
    assert WitnessAudit().finish(nn.Linear(6, 5)) == []
