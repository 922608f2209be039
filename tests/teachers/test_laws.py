"""What holds of every teacher, one of a user's own included: each law is applied to each teacher of one list."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from certvae import load_teacher
from certvae.teachers import (
    LabelTeacher,
    NetworkTeacher,
    TargetTable,
    Teacher,
    TeacherCard,
    TeacherFileError,
)
from certvae.theory.information import teacher_information
from tests.conftest import random_probs
from tests.runs import SHAPE, digits_teacher

ROWS, K, FLOOR = 60, 5, 0.02
TOLERANCE = 1e-6  # of probabilities in float32


class BrightnessTeacher(Teacher):
    """A teacher as a user would write it: the mean pixel against thresholds, smoothed."""

    kind = "tests.brightness"
    thresholds: Tensor

    def __init__(self, card: TeacherCard, thresholds: Tensor, average: Tensor | None = None) -> None:
        super().__init__(card, average)
        self.register_buffer("thresholds", thresholds)

    def forward(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        level = (images.flatten(1).mean(dim=1, keepdim=True) > self.thresholds).sum(dim=1)
        share = self.card.floor
        return (1 - share) * nn.functional.one_hot(level, self.num_components) + share / self.num_components

    def tensors(self) -> dict[str, Tensor]:
        return {"thresholds": self.thresholds}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, K))


@dataclass(frozen=True)
class Case:
    """A teacher, and what it is asked about.

    Attributes:
        make: a fresh one.
        labels: whether its input is the rows' labels.
        parts: what its file needs to be loaded.
    """

    make: Callable[[], Teacher]
    labels: bool = False
    parts: Callable[[], dict[str, Any]] = dict

    def batch(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(ROWS, *SHAPE, generator=generator)
        labels = torch.randint(K, (ROWS,), generator=generator)
        return labels if self.labels else images, torch.arange(ROWS)

    def loader(self) -> DataLoader[Any]:
        inputs, index = self.batch()
        return DataLoader(TensorDataset(inputs, inputs, index), batch_size=7, shuffle=True)

    def measured(self) -> Teacher:
        return self.make().measure(self.loader())


TEACHERS = {
    "mixture": Case(digits_teacher),
    "labels": Case(lambda: LabelTeacher(K, FLOOR), labels=True),
    "network": Case(lambda: NetworkTeacher(network(), K, 2.0, FLOOR), parts=lambda: {"network": network()}),
    "table": Case(lambda: TargetTable(TeacherCard(K), random_probs(ROWS, K, seed=0))),
    "of a user": Case(lambda: BrightnessTeacher(TeacherCard(K, floor=FLOOR), torch.linspace(0.45, 0.55, K - 1))),
}
every_teacher = pytest.mark.parametrize("case", TEACHERS.values(), ids=TEACHERS.keys())


@every_teacher
def test_every_answer_is_a_distribution_above_the_floor(case: Case) -> None:
    teacher = case.make()
    probs = teacher(*case.batch())
    assert probs.shape == (ROWS, teacher.num_components)
    assert probs.dtype in (torch.float32, torch.float64)
    assert torch.allclose(probs.sum(dim=1), torch.ones(ROWS, dtype=probs.dtype), atol=TOLERANCE)
    assert float(probs.min()) >= teacher.card.floor / teacher.num_components - TOLERANCE


@every_teacher
def test_answers_are_repeatable_in_every_mode_and_have_no_gradient(case: Case) -> None:
    teacher = case.make()
    first = teacher(*case.batch())
    assert not first.requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert torch.equal(teacher.train()(*case.batch()), first)
    assert torch.equal(teacher.half()(*case.batch()), first), "a cast by a precision plugin"


@every_teacher
def test_the_answer_for_a_row_does_not_depend_on_the_other_rows(case: Case) -> None:
    teacher, (inputs, index) = case.make(), case.batch()
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
    whole = teacher(inputs, index)
    assert torch.allclose(teacher(inputs[order], index[order]), whole[order], atol=TOLERANCE)
    alone = torch.cat([teacher(inputs[i : i + 1], index[i : i + 1]) for i in range(ROWS)])
    assert torch.allclose(alone, whole, atol=TOLERANCE)


@every_teacher
def test_what_is_saved_is_loaded(case: Case, tmp_path: Path) -> None:
    teacher = case.measured()
    path = teacher.save(tmp_path / "teacher.safetensors")
    loaded = load_teacher(path, **case.parts())
    assert type(loaded) is type(teacher)
    assert loaded.card == teacher.card
    assert torch.equal(loaded.measured_average(), teacher.measured_average())
    assert torch.equal(loaded(*case.batch()), teacher(*case.batch()))
    assert loaded.save(tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


@every_teacher
def test_a_teacher_that_was_not_measured_is_loaded_as_such(case: Case, tmp_path: Path) -> None:
    teacher = case.make()
    teacher.average = None
    loaded = load_teacher(teacher.save(tmp_path / "teacher.safetensors"), **case.parts())
    assert loaded.average is None
    with pytest.raises(ValueError, match="never measured"):
        loaded.measured_average()


@every_teacher
def test_the_card_states_what_the_probabilities_say(case: Case) -> None:
    teacher = case.measured()
    probs = teacher(*case.batch()).double()
    assert torch.allclose(teacher.measured_average(), probs.mean(dim=0), atol=TOLERANCE)
    assert teacher.card.information_train == pytest.approx(float(teacher_information(probs)), abs=TOLERANCE)
    energy = teacher.witness(K - 1, scale=1.0).energy(probs).mean()
    assert teacher.card.energy == pytest.approx(float(energy), rel=1e-5)


def streams() -> list[Any]:
    """The state of each global random stream."""
    return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]  # type: ignore[index]  # noqa: NPY002


@every_teacher
def test_a_measurement_leaves_the_random_state_as_it_was(case: Case) -> None:
    """Although the loader shuffles, and the user's function draws."""
    teacher, loader = case.make(), case.loader()

    def inputs(batch: Any) -> Tensor:
        torch.rand(1), random.random(), np.random.rand()  # noqa: NPY002
        return batch[0]

    before = streams()
    teacher.measure(loader, images=inputs)
    assert streams() == before


@every_teacher
def test_a_part_that_the_kind_does_not_take_is_refused(case: Case, tmp_path: Path) -> None:
    path = case.make().save(tmp_path / "teacher.safetensors")
    takes = "takes `network`" if case.parts() else "takes no part"
    with pytest.raises(TeacherFileError, match=f"`load_teacher` was given `labels`, and this kind {takes}"):
        load_teacher(path, **case.parts(), labels=1)


def test_a_kind_is_given_once() -> None:
    with pytest.raises(TypeError, match=r"`kind = 'labels'` of .*Other is already used by .*LabelTeacher"):

        class Other(Teacher):
            kind = "labels"


def test_a_cell_of_a_notebook_may_be_run_again() -> None:
    def cell() -> type[Teacher]:
        class Mine(BrightnessTeacher):
            kind = "tests.mine"

        return Mine

    assert cell() is not cell()


def test_a_file_of_a_class_that_was_not_imported_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = TEACHERS["of a user"].make().save(tmp_path / "teacher.safetensors")
    monkeypatch.setattr("certvae.teachers.base._KINDS", {"labels": LabelTeacher})
    with pytest.raises(TeacherFileError, match="kind 'tests.brightness' .* import the module that defines it first"):
        load_teacher(path)


def test_a_class_without_a_kind_cannot_be_saved(tmp_path: Path) -> None:
    class Nameless(Teacher):
        def forward(self, images: Tensor, index: Tensor | None = None) -> Tensor:
            return torch.full((len(images), 2), 0.5)

        def tensors(self) -> dict[str, Tensor]:
            return {}

    with pytest.raises(TypeError, match="Nameless has no name for its files; give the class an attribute"):
        Nameless(TeacherCard(2)).save(tmp_path / "teacher.safetensors")
