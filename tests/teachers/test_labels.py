"""Class labels as a teacher: its numbers are closed forms, and what is no label is refused."""

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from certvae import Certificate, load_teacher
from certvae.callbacks import AlignmentCallback, CertificateCallback
from certvae.teachers import LabelTeacher, TargetTable
from tests.plain_vae import UserVAE, images, measured
from tests.runs import trainer

LABELS = torch.from_numpy(load_digits().target[:90]).long()


def smoothed_information(labels: Tensor, classes: int, smoothing: float) -> float:
    """The information of smoothed labels in nats, from the class shares."""
    shares = torch.bincount(labels.long(), minlength=classes).double() / len(labels)
    average = (1 - smoothing) * shares + smoothing / classes
    hit, miss = 1 - smoothing + smoothing / classes, smoothing / classes
    row = -(hit * math.log(hit) + (classes - 1) * miss * math.log(miss)) if smoothing else 0.0
    return float(torch.special.entr(average).sum()) - row


def loader(labels: Tensor = LABELS, named: bool = False) -> DataLoader[Any]:
    if not named:
        return DataLoader(TensorDataset(images(), labels), batch_size=32)
    rows: Any = [{"pixels": image, "label": label} for image, label in zip(images(), labels, strict=True)]
    return DataLoader(rows, batch_size=32)


class NamedVAE(UserVAE):
    def step(self, batch: Any) -> Tensor:
        return super().step([batch["pixels"]])


def watched(folder: Path, teacher: LabelTeacher, where: Any, **arguments: Any) -> tuple[CertificateCallback, Trainer]:
    callback = CertificateCallback(teacher, "encoder", images=where, witness=torch.nn.Linear(6, 10), **arguments)
    return callback, trainer(folder, callbacks=[callback])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
@pytest.mark.parametrize("where", [1, "label"])
def test_the_callback_finds_the_closed_form_of_smoothed_labels(tmp_path: Path, dtype: torch.dtype, where: Any) -> None:
    rows = loader(LABELS.to(dtype), named=where == "label")
    teacher = LabelTeacher(10, smoothing=0.2).measure(rows, images=where)
    callback, runner = watched(tmp_path, teacher, where)
    runner.fit(NamedVAE() if where == "label" else UserVAE(), rows, rows)
    expected = smoothed_information(LABELS, 10, 0.2)
    assert measured(callback).teacher_information == pytest.approx(expected, abs=1e-12)
    assert teacher.card.information_train == pytest.approx(expected, abs=1e-12)
    assert measured(callback).provenance["teacher_drift"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_probabilities_are_those_of_the_formula(smoothing: float) -> None:
    probs = LabelTeacher(3, smoothing)(torch.tensor([2, 0]))
    hit, miss = 1 - smoothing + smoothing / 3, smoothing / 3
    assert torch.allclose(probs, torch.tensor([[miss, miss, hit], [hit, miss, miss]], dtype=torch.float64))
    information = LabelTeacher(3, smoothing).measure([torch.tensor([0, 1, 2, 2])]).card.information_train
    assert information == pytest.approx(smoothed_information(torch.tensor([0, 1, 2, 2]), 3, smoothing), abs=1e-12)


def test_a_file_brings_it_back(tmp_path: Path) -> None:
    fresh, teacher = LabelTeacher(10, 0.3), LabelTeacher(10, 0.3).measure([LABELS])
    for name, saved in (("fresh", fresh), ("measured", teacher)):
        loaded = load_teacher(saved.save(tmp_path / name))
        assert isinstance(loaded, LabelTeacher)
        assert loaded.card == saved.card
        assert torch.equal(loaded(LABELS), saved(LABELS))
    assert torch.equal(load_teacher(tmp_path / "measured").measured_average(), teacher.measured_average())


def test_a_table_keeps_what_it_answers() -> None:
    batches = [(images(), LABELS, torch.arange(90))]
    table = TargetTable.from_teacher(LabelTeacher(10).measure([LABELS]), [batches], images=1)
    assert torch.allclose(table(images(), torch.arange(90)), LabelTeacher(10)(LABELS).float())


@pytest.mark.slow
def test_alignment_to_labels_raises_the_margin(tmp_path: Path) -> None:
    class Wide(UserVAE):
        def __init__(self) -> None:
            super().__init__("mean")
            self.encoder.body, self.decoder = torch.nn.Linear(64, 20), torch.nn.Linear(10, 64)

    rows, margins = loader(), []
    for weight in (0.0, 1.0):
        teacher = LabelTeacher(10).measure(rows, images=1)
        callback = CertificateCallback(teacher, "encoder", images=1)
        align = AlignmentCallback(teacher, "encoder", images=1, weight=weight)
        torch.manual_seed(0)
        trainer(tmp_path, max_epochs=20, callbacks=[callback, align]).fit(Wide(), rows, rows)
        margins.append(measured(callback).margin)
    assert margins[0] < 0 < 0.3 < margins[1]


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (torch.tensor([0, 10]), ValueError, "class labels must lie in 0 ... 9, got 10"),
        (torch.tensor([1, 10]), ValueError, r"of labels that start at 1, `images=lambda batch: batch\[1\] - 1`"),
        (torch.tensor([-1, 3]), ValueError, "class labels must lie in 0 ... 9, got -1"),
        (torch.tensor([1.0, 2.0]), TypeError, r"whole numbers of shape \(B,\), got torch.float32 of shape \(2,\)"),
        (torch.rand(2, 1, 8, 8), TypeError, "`images=1` or `images='label'`"),
        (torch.eye(10).long(), ValueError, r"must have shape \(B,\), got \(10, 10\). One-hot labels need"),
        (torch.tensor([[1, 0], [2, 0]]), ValueError, r"a column of labels `batch\[1\]\[:, 0\]`"),
        (torch.tensor(3), ValueError, r"must have shape \(B,\), got \(\)"),
    ],
)
def test_what_is_no_label_is_refused(labels: Tensor, error: type[Exception], message: str) -> None:
    teacher = LabelTeacher(10)
    for ask in (teacher, teacher.check_values, lambda values: teacher.measure([values])):
        with pytest.raises(error, match=message):
            ask(labels)


def test_a_class_that_no_row_has_is_named() -> None:
    with pytest.warns(UserWarning, match="`num_classes=12`, but no row of `batches` has the label 10, 11"):
        LabelTeacher(12).measure([LABELS])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LabelTeacher(10).measure([LABELS])


@pytest.mark.parametrize("rows", [LABELS, LABELS.numpy()])
def test_one_array_is_no_batches(rows: Any) -> None:
    with pytest.raises(TypeError, match=r"`batches` must be batches.*a list: \[rows\]"):
        LabelTeacher(10).measure(rows)


def test_the_callback_without_images_says_where_labels_have_to_come_from(tmp_path: Path) -> None:
    callback, runner = watched(tmp_path, LabelTeacher(10).measure([LABELS]), 0)
    with pytest.raises(TypeError, match="Say where they stand in the batch, `images=1`"):
        runner.fit(UserVAE(), loader(), loader())
    assert callback.certificate is None


def test_bad_settings_are_refused() -> None:
    for arguments, message in (
        ({"num_classes": 1}, "`num_components` must be at least 2"),
        ({"num_classes": 3, "smoothing": 1.0}, "must be at least 0 and below 1"),
    ):
        with pytest.raises(ValueError, match=message):
            LabelTeacher(**arguments)
    with pytest.raises(ValueError, match="has no tensors but its average"):
        LabelTeacher.from_tensors(LabelTeacher(3).card, None, {"targets": torch.zeros(1)})


def test_names_of_classes_stay_with_the_teacher_and_its_targets(tmp_path: Path) -> None:
    names = [f"digit {number}" for number in range(10)]
    teacher = LabelTeacher(10, names=names).measure([LABELS])
    for kept in (teacher, load_teacher(teacher.save(tmp_path / "teacher.safetensors"))):
        assert kept.card.names == tuple(names)
    rows = [(LABELS, LABELS, torch.arange(len(LABELS)))]
    assert TargetTable.from_teacher(teacher, [rows]).card.names == tuple(names)


def test_without_names_a_file_has_no_word_of_them(tmp_path: Path) -> None:
    assert b"names" not in LabelTeacher(10).measure([LABELS]).save(tmp_path / "teacher.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("names", "error", "said"),
    [
        ("ab", TypeError, "`names` must be a list of text, one for each class"),
        ([0, 1], TypeError, "`names` must be a tuple of text"),
        (["cat"], ValueError, "`names` must hold 2 names, one for each component, got 1"),
        (["cat", ""], ValueError, "printable text of 1 to 100 characters, got ''"),
        (["cat", "x" * 101], ValueError, "printable text of 1 to 100 characters"),
        (["cat", "d\x07g"], ValueError, "printable text of 1 to 100 characters"),
    ],
)
def test_what_cannot_be_names_is_refused(names: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        LabelTeacher(2, names=names)


def test_names_that_no_certificate_could_hold_are_refused() -> None:
    with pytest.raises(ValueError, match="`names` may have 262,144 characters in all, got 300,000"):
        LabelTeacher(3000, names=["x" * 100] * 3000)


@pytest.mark.parametrize("names", [None, [f"digit {number}" for number in range(10)]])
def test_the_certificate_calls_its_classes_by_their_names(tmp_path: Path, names: Any) -> None:
    teacher = LabelTeacher(10, names=names).measure([LABELS])
    callback, runner = watched(tmp_path, teacher, 1, save_dir=tmp_path)
    runner.fit(UserVAE(), loader(), loader())
    saved = Certificate.load(tmp_path / "certificate_val.json")
    assert saved.provenance.get("component_names") == names
    assert saved.component_names == (names or [f"class {number}" for number in range(10)])
    assert "above 0; least: " + ("digit" if names else "class") in str(measured(callback))
