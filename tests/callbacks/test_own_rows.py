"""A certificate of rows that the callback was given, for a module without a `validation_step`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from certvae import codebook_information, information_bracket
from certvae.callbacks import (
    AlignmentCallback,
    CertificateCallback,
    CertificateGuard,
    CodebookCallback,
    InformationCallback,
    ProbeCallback,
)
from certvae.teachers import LabelTeacher
from tests.plain_vae import UserEncoder, expected, images, measured, plain_loader
from tests.runs import digits_teacher, trainer

pytestmark = pytest.mark.slow


class TrainsOnly(LightningModule):
    """A batch norm, a dropout and a draw, and neither a `validation_step` nor a val set."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = UserEncoder("pair"), nn.Linear(6, 64)
        self.norm, self.drop = nn.BatchNorm1d(64), nn.Dropout(0.5)
        self.modes: list[bool] = []
        self.beta = 1.0

    def images(self, batch: Any) -> Tensor:
        return batch[0].flatten(1)

    def forward(self, values: Tensor) -> Tensor:
        self.modes.append(self.training)
        mean, log_variance = self.encoder(values.flatten(1))
        code = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        return self.norm(self.decoder(self.drop(code)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return (self(batch[0]) - batch[0].flatten(1)).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: Path, *callbacks: Any, **arguments: Any) -> TrainsOnly:
    torch.manual_seed(0)
    model = TrainsOnly()
    options: dict[str, Any] = {"max_epochs": 2, **arguments}
    trainer(folder, callbacks=list(callbacks), **options).fit(model, plain_loader(shuffle=True))
    return model


def watching(**arguments: Any) -> CertificateCallback:
    return CertificateCallback(digits_teacher(), "encoder", dataloader=plain_loader(shuffle=True), **arguments)


def test_the_callbacks_rows_are_measured_and_no_bit_of_the_run_moves(tmp_path: Path) -> None:
    callback = watching(save_dir=tmp_path)
    with_it, without = fit(tmp_path, callback), fit(tmp_path)
    assert all(torch.equal(value, without.state_dict()[name]) for name, value in with_it.state_dict().items())
    assert callback.looks == 2
    assert all(part.training for part in with_it.modules())
    assert measured(callback).margin == pytest.approx(expected(with_it).margin, abs=1e-6)
    assert measured(callback).num_samples == 90
    assert False in with_it.modes
    assert len(list(filter(None, (tmp_path / "certificates_val.jsonl").read_text().splitlines()))) == 2


def test_only_epochs_after_which_a_trainer_validates_are_measured(tmp_path: Path) -> None:
    callback = watching()
    fit(tmp_path, callback, max_epochs=3, check_val_every_n_epoch=2)
    assert callback.looks == 1


def test_a_guard_learns_from_the_callbacks_rows(tmp_path: Path) -> None:
    guard = CertificateGuard(0.01, path="mean", headroom=0.0)
    fit(tmp_path, watching(), guard, max_epochs=3)
    assert guard._seen is not None
    assert guard.weight_now > 0
    with pytest.raises(ValueError, match="ProbeCallback scores on the rows"):
        fit(tmp_path, watching(), ProbeCallback())


def test_information_and_codebook_are_measured_on_the_callbacks_rows_and_no_bit_of_the_run_moves(
    tmp_path: Path,
) -> None:
    rows = plain_loader(shuffle=True)
    information = InformationCallback("encoder", dataloader=rows)
    codebook = CodebookCallback(lambda model, batch: (model.encoder(batch[0])[0] > 0).long(), 2, dataloader=rows)
    with_them, without = fit(tmp_path, information, codebook), fit(tmp_path)
    assert all(torch.equal(value, without.state_dict()[name]) for name, value in with_them.state_dict().items())
    with torch.no_grad():
        mean, log_variance = with_them.eval().encoder(torch.cat([batch[0] for batch in plain_loader()]))
    assert information.bracket is not None
    assert information.bracket.rate == pytest.approx(information_bracket(mean, log_variance).rate, abs=1e-6)
    assert codebook.information is not None
    signs = codebook_information((mean > 0).long(), 2)
    assert codebook.information.estimate == pytest.approx(signs.estimate, abs=1e-12)


def test_a_guard_learns_from_the_brackets_own_rows(tmp_path: Path) -> None:
    guard = CertificateGuard(0.01, on="bracket", kl_weight="beta")
    fit(tmp_path, InformationCallback("encoder", dataloader=plain_loader()), guard, max_epochs=3)
    assert guard._seen is not None


def test_a_cut_run_is_partial_and_a_batch_without_a_tensor_says_what_to_give(tmp_path: Path) -> None:
    callback = watching()
    fit(tmp_path, callback, fast_dev_run=1)
    assert measured(callback).status == "PARTIAL"
    rows: Any = [{"image": image} for image in images(40)]
    named = CertificateCallback(digits_teacher(), "encoder", images="image", dataloader=DataLoader(rows, 20))
    with pytest.raises(TypeError, match="a batch of dict of 1: image: float32.*has no first tensor.*predict_step"):
        fit(tmp_path, named)


def test_a_module_without_validation_is_told_of_the_dataloader(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs no `validation_step`: CertificateCallback\(..., dataloader="):
        fit(tmp_path, CertificateCallback(digits_teacher(), "encoder"))


def test_a_validation_that_never_comes_is_said_before_the_first_batch(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"No validation will run.*Give Trainer\(check_val_every_n_epoch=2\)"):
        fit(tmp_path, watching(), check_val_every_n_epoch=3)


def test_labels_that_are_missing_weigh_nothing(tmp_path: Path) -> None:
    """Certificate, teacher and alignment are those of the labelled rows alone."""
    labels = torch.arange(90) % 3
    hidden = labels.clone()
    hidden[::4] = -1
    kept = hidden >= 0
    teacher = LabelTeacher(3, ignore=-1)
    rows = TensorDataset(images()[kept], labels[kept][:, None]), TensorDataset(images(), hidden[:, None])
    found = []
    for data in rows:
        loader = DataLoader(data, len(data))
        teacher = LabelTeacher(3, ignore=-1).measure(loader, images=1)
        callback = CertificateCallback(teacher, "encoder", images=1, dataloader=loader)
        align = AlignmentCallback(teacher, "encoder", images=1, weight=1.0)
        torch.manual_seed(0)
        model = TrainsOnly()
        model.decoder.requires_grad_(False).weight.data.zero_()  # the alignment term alone teaches the encoder
        trainer(tmp_path, callbacks=[callback, align]).fit(model, loader)
        found.append((measured(callback), teacher.card.information_train, model.encoder.body.weight))
    (few, information, weight), (all_, other, same) = found
    assert few.num_samples == all_.num_samples == int(kept.sum())
    assert all_.margin == pytest.approx(few.margin, abs=1e-6)
    assert other == pytest.approx(information, abs=1e-12)
    torch.testing.assert_close(same, weight)
