"""The decoder check tells a decoder that ignores its code from one that uses it, and leaves no trace in the run."""

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric

from certvae.callbacks import CertificateCallback, CertificateGuard, DecoderCheck, InformationCallback, Latents
from certvae.callbacks.decoder_check import _derangement, _summary
from certvae.datamodules import DigitsDataModule
from certvae.teachers import LabelTeacher
from tests.callbacks.test_unchanged_runs import NoisyVAE, plain, streams
from tests.plain_vae import UserVAE, fit, plain_loader, watch
from tests.runs import digits_teacher, small_vae, trainer

pytestmark = pytest.mark.slow
CLASSES, WORDS, LENGTH = 4, 12, 8


def sentences(rows: int, seed: int) -> TensorDataset:
    """Words of which each is nearly always the next of the one before; the class is that of the first."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (rows,), generator=generator)
    words = [3 * labels + torch.randint(0, 3, (rows,), generator=generator)]
    for _ in range(LENGTH - 1):
        regular = torch.rand(rows, generator=generator) < 0.9
        words.append(torch.where(regular, (words[-1] + 1) % WORDS, torch.randint(0, WORDS, (rows,))))
    return TensorDataset(torch.stack(words, dim=1), labels)


class TextVAE(LightningModule):
    """An LSTM that writes each word from those before it and the code; ``given`` first words cost nothing."""

    def __init__(self, given: int) -> None:
        super().__init__()
        self.given, self.embed = given, nn.Embedding(WORDS + 1, 16)
        self.reader, self.head = nn.LSTM(16, 32, batch_first=True), nn.Linear(32, 16)
        self.first, self.writer, self.out = nn.Linear(8, 32), nn.LSTM(16, 32, batch_first=True), nn.Linear(32, WORDS)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        words = batch[0]
        mean, log_variance = self.head(self.reader(self.embed(words))[1][0][-1]).chunk(2, dim=1)
        state = self.first(mean + (log_variance / 2).exp() * torch.randn_like(mean)).tanh()[None]
        before = torch.cat([torch.full_like(words[:, :1], WORDS), words[:, :-1]], dim=1)
        answers = self.out(self.writer(self.embed(before), (state, torch.zeros_like(state)))[0])
        cost = nn.functional.cross_entropy(answers.transpose(1, 2), words, reduction="none")[:, self.given :]
        rate = (mean**2 + log_variance.exp() - log_variance - 1).sum(dim=1) / 2
        return (cost.sum(dim=1) + rate).mean()

    validation_step = training_step

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def test_a_certified_text_vae_whose_decoder_ignores_the_code_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the first word is given, the words say all that the code does."""
    train, val = DataLoader(sentences(600, 0), 50, shuffle=True), DataLoader(sentences(600, 1), 100)
    teacher, found = LabelTeacher(CLASSES).measure(train, images=1), {}
    for given, path in ((1, "mean"), (0, "draw")):
        torch.manual_seed(0)
        check = DecoderCheck("head:chunk", batches=6, share=0.005)
        certificate = CertificateCallback(teacher, "head:chunk", images=1)
        guard = CertificateGuard(0.4, path=path)  # type: ignore[arg-type]
        trainer(tmp_path, max_epochs=10, callbacks=[check, certificate, guard]).fit(TextVAE(given), train, val)
        assert certificate.certificate is not None
        assert certificate.certificate.certified
        assert check.losses is not None
        found[given], printed = check.losses, capsys.readouterr().out
        assert ("the decoder ignores the code: its loss is" in printed) or not given
    assert found[1].ignored
    assert found[0].ignored is False
    assert found[0].shuffled - found[0].own > 20 * (found[1].shuffled - found[1].own)


def test_our_own_vae_is_checked_by_its_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check = DecoderCheck("encoder")
    run = trainer(tmp_path, max_epochs=6, callbacks=[check])
    run.fit(small_vae(), datamodule=DigitsDataModule(batch_size=32, eval_batch_size=32))
    losses = check.losses
    assert losses is not None
    assert losses.rows == 128
    assert losses.ignored is False
    assert capsys.readouterr().out.splitlines()[-1].count("the decoder uses the code") == 1
    for key in ("own", "shuffled", "prior"):
        assert float(run.callback_metrics[f"decoder/{key}"]) == pytest.approx(getattr(losses, key), rel=1e-6)


class Deaf(UserVAE):
    """Its decoder reads nothing, and its loss is known in closed form."""

    def step(self, batch: Any) -> Tensor:
        mean, _ = self.encoder(self.images(batch))
        return self.decoder(0 * mean).square().mean()


def test_a_decoder_that_reads_nothing_is_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check = DecoderCheck("encoder")
    trainer(tmp_path, max_epochs=3, callbacks=[check]).fit(Deaf(), plain_loader(), plain_loader(64, 16))
    losses = check.losses
    assert losses is not None
    assert losses.own == losses.shuffled == losses.prior
    assert losses.ignored
    assert capsys.readouterr().out.count("the decoder ignores the code") == 1


class Closed(UserVAE):
    """Its loss compares each code with the first numbers of its image, and each log-variance with 1."""

    def step(self, batch: Any) -> Tensor:
        mean, log_variance = self.encoder(self.images(batch))
        return (self.images(batch)[:, :6] - mean).square().mean() + (log_variance - 1).square().mean()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return {"loss": self.step(batch)}


def test_the_losses_are_those_of_the_codes_put_in_by_hand(tmp_path: Path) -> None:
    """Own, exchanged in one cycle through the batch, and mean and log-variance 0; means over rows of uneven batches."""
    check, model = DecoderCheck("encoder", batches=3, seed=5), Closed()
    trainer(tmp_path, callbacks=[check]).validate(model, plain_loader(90, 40), verbose=False)
    expected = []
    with torch.no_grad():
        for number, batch in enumerate(plain_loader(90, 40)):
            inputs, (mean, log_variance) = model.images(batch)[:, :6], model.encoder(batch[0])
            order = _derangement(len(inputs), 5 + number)
            pairs = [(mean, log_variance), (mean[order], log_variance[order]), (0 * mean, 0 * mean)]
            by_hand = [float((inputs - m).square().mean() + (v - 1).square().mean()) for m, v in pairs]
            expected.append([float(len(inputs)), *by_hand])
    table = torch.tensor(expected, dtype=torch.float64)
    means = (table[:, :1] * table[:, 1:]).sum(dim=0) / 90
    losses = check.losses
    assert losses is not None
    assert [losses.own, losses.shuffled, losses.prior] == pytest.approx(means.tolist(), rel=1e-6)


def test_the_standard_error_of_equal_batches_is_the_usual_one() -> None:
    own, shuffled = torch.tensor([1.0, 2.0, 4.0]).double(), torch.tensor([2.0, 5.0, 6.0]).double()
    table = torch.stack([torch.full_like(own, 8), own, shuffled, own], dim=1)
    losses = _summary(table, 0.0)
    assert losses.error == pytest.approx(float((shuffled - own).std()) / math.sqrt(3))
    assert losses.needed == pytest.approx(2.9200 * losses.error, rel=1e-4)  # Student's table, 2 degrees of freedom
    assert _summary(table, 0.5).needed == pytest.approx(max(losses.needed, 0.5 * losses.own))
    assert _summary(table[:1], 0.0).ignored is None


@pytest.mark.parametrize("rows", [2, 3, 10, 101])
def test_no_row_keeps_its_place(rows: int) -> None:
    for seed in range(20):
        order = _derangement(rows, seed)
        assert sorted(order.tolist()) == list(range(rows))
        assert not (order == torch.arange(rows)).any()


class Booking(NoisyVAE):
    """Logs in every way, and counts its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.average, self.steps = MeanMetric(), 0

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        loss = self.step(batch)
        self.average.update(loss)
        batch[0].zero_()
        self.steps += 1
        self.log("val_loss", loss, batch_size=len(batch[0]))
        self.log("val_average", self.average, batch_size=len(batch[0]))
        if self.logger is not None:
            self.logger.log_metrics({"direct": float(loss)}, step=self.steps)
        return loss


class Drawing(NoisyVAE):
    """Returns no loss from its validation step."""


@pytest.mark.parametrize("make", [Booking, Drawing])
@pytest.mark.parametrize("first", [True, False])
def test_a_run_is_the_same_bits_with_and_without_it(tmp_path: Path, make: Any, first: bool) -> None:
    """Weights, optimizer, random streams, batch norm, metrics, logged values, and other callbacks' readings."""
    found = []
    for checked in (False, True):
        folder = tmp_path / str(checked)
        others, check = [watch(), InformationCallback("encoder")], [DecoderCheck("encoder")] if checked else []
        logger = CSVLogger(folder, "", "")
        callbacks = [*check, *others] if first else [*others, *check]
        runner, model = fit(
            folder, callbacks, make, plain_loader(80, 20), max_epochs=2, logger=logger, log_every_n_steps=1
        )
        metrics = {name: float(value) for name, value in runner.callback_metrics.items() if "decoder" not in name}
        assert bool([name for name in runner.callback_metrics if "decoder" in name]) == checked
        with open(folder / "metrics.csv") as file:
            direct = [row["direct"] for row in csv.DictReader(file) if row.get("direct")]
        assert len(direct) == (8 if make is Booking else 0)
        books = [getattr(model, "steps", 0), [module.training for module in model.modules()], vars(model).get("log")]
        state = [plain(model.state_dict()), plain(runner.optimizers[0].state_dict()), streams()]
        found.append([*state, metrics, books, direct])
    assert found[0] == found[1]


class Sometimes(UserVAE):
    """Encodes twice a step, and decodes the second code."""

    def step(self, batch: Any) -> Tensor:
        images = self.images(batch)
        self.encoder(0 * images)
        return ((self.decoder(self.encoder(images)[0]) - images) ** 2).mean()


def test_of_several_calls_the_chosen_one_is_replaced(tmp_path: Path) -> None:
    found: dict[str, Any] = {}
    for calls in ("first", "last"):
        torch.manual_seed(0)
        check = DecoderCheck(Latents("encoder", calls=calls))
        trainer(tmp_path, callbacks=[check]).validate(Sometimes(), plain_loader(), verbose=False)
        assert check.losses is not None
        found[calls] = check.losses
    assert found["first"].own == found["first"].shuffled
    assert found["last"].own != found["last"].shuffled
    with pytest.raises(ValueError, match="was called 2 times in one step"):
        trainer(tmp_path, callbacks=[DecoderCheck("encoder")]).validate(Sometimes(), plain_loader(), verbose=False)


def test_a_code_that_is_only_a_mean_has_no_prior(tmp_path: Path) -> None:
    check = DecoderCheck("encoder")
    runner, _ = fit(tmp_path, [check], lambda: UserVAE("mean"))
    assert check.losses is not None
    assert math.isnan(check.losses.prior)
    assert {name for name in runner.callback_metrics if "decoder" in name} == {"decoder/own", "decoder/shuffled"}


class Silent(UserVAE):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.step(batch)


def test_what_cannot_work_says_why(tmp_path: Path) -> None:
    for latents in (None, lambda module, batch: batch):
        with pytest.raises(TypeError, match="`latents` must name a submodule, such as 'encoder'"):
            DecoderCheck(latents)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`batches` must be at least 2"):
        DecoderCheck("encoder", batches=1)
    with pytest.raises(ValueError, match="`share` must be at least 0"):
        DecoderCheck("encoder", share=-1)
    with pytest.raises(ValueError, match="`latents='encoderr'` names no submodule"):
        fit(tmp_path, [DecoderCheck("encoderr")])
    with pytest.raises(ValueError, match="neither `validation_step` nor `training_step` of Silent returns one"):
        trainer(tmp_path, callbacks=[DecoderCheck("encoder")]).validate(Silent(), plain_loader(), verbose=False)
    with pytest.warns(UserWarning, match="has no result: every batch has a single row"):
        fit(tmp_path, [DecoderCheck("encoder")], None, plain_loader(6, 1))
    with pytest.warns(UserWarning, match="has no result: it takes two batches") as caught:
        fit(tmp_path, [DecoderCheck("encoder")], None, plain_loader(6, 6), max_epochs=3)
    assert len([item for item in caught if "has no result" in str(item.message)]) == 1


def test_it_stands_beside_the_certificate_under_a_sanity_check(tmp_path: Path) -> None:
    check = DecoderCheck("encoder")
    run = trainer(tmp_path, callbacks=[check, CertificateCallback()], num_sanity_val_steps=2)
    model = small_vae(digits_teacher())
    run.fit(model, datamodule=DigitsDataModule(subset=300))
    assert check.losses is not None
    assert not model.encoder._forward_hooks
