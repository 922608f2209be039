"""Teacher files: what is saved comes back, what does not fit is refused, no code is run."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from certvae import load_teacher
from certvae.datamodules import DigitsDataModule
from certvae.teachers import NetworkTeacher, TargetTable, Teacher, TeacherCard, TeacherMismatchError
from tests.conftest import random_probs
from tests.teachers.test_mixture import make


def measured() -> Teacher:
    data = DigitsDataModule()
    return make(temperature=3.0, floor=0.01)[0].measure(data.loader("train"))


def test_a_mixture_comes_back_whole(tmp_path: Path) -> None:
    teacher = measured()
    loaded = load_teacher(teacher.save(tmp_path / "teacher.safetensors"))
    images = torch.rand(9, 1, 8, 8)
    assert torch.equal(loaded(images), teacher(images))
    assert loaded.card == teacher.card
    assert torch.equal(loaded.measured_average(), teacher.measured_average())


def test_a_network_comes_back_into_a_module_of_its_kind(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    teacher = NetworkTeacher(network, 5, temperature=2.0, floor=0.05).measure(DigitsDataModule().loader("train"))
    path = teacher.save(tmp_path / "teacher.safetensors")
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(load_teacher(path, network=other)(images), teacher(images))
    with pytest.raises(ValueError, match="load_teacher\\(path, network=...\\)"):
        load_teacher(path)
    with pytest.raises(ValueError, match="does not take the file's weights"):
        load_teacher(path, network=nn.Linear(3, 5))


def test_a_table_answers_by_index_what_its_teacher_answered(tmp_path: Path) -> None:
    data, teacher = DigitsDataModule(batch_size=100), measured()
    table = TargetTable.from_teacher(teacher, [data.loader(split) for split in ("train", "val", "test")])
    loaded = load_teacher(table.save(tmp_path / "targets.safetensors"))
    images, _, index = data.on_after_batch_transfer(next(iter(data.loader("test"))), 0)
    assert torch.allclose(loaded(torch.zeros(0), index), teacher(images).float())
    assert torch.equal(loaded.measured_average(), teacher.measured_average())


def test_a_table_refuses_rows_without_a_target() -> None:
    targets = random_probs(4, 3, seed=0).float()
    targets[2] = torch.nan
    table = TargetTable(TeacherCard(3), targets)
    images = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="needs the rows' index"):
        table(images)
    with pytest.raises(ValueError, match="index 2 has no target"):
        table(images, torch.tensor([2]))
    with pytest.raises(ValueError, match="index -1 has no target"):
        table(images, torch.tensor([-1]))
    with pytest.raises(ValueError, match="index 9 has no target; the table has 4 rows"):
        table(images, torch.tensor([9]))
    with pytest.raises(ValueError, match="must hold non-negative rows that sum to 1"):
        TargetTable(TeacherCard(3), torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"`targets` must have shape \(N, 3\)"):
        TargetTable(TeacherCard(3), torch.ones(2, 4) / 4)
    with pytest.raises(ValueError, match="must hold at least one row"):
        TargetTable.from_teacher(table, [])
    with pytest.raises(ValueError, match="this batch has no index"):
        TargetTable.from_teacher(measured(), [[torch.rand(2, 1, 8, 8)]])


def test_measured_numbers_are_those_of_the_probabilities() -> None:
    data, teacher = DigitsDataModule(), make(temperature=3.0, floor=0.01)[0]
    with pytest.raises(ValueError, match="never measured"):
        teacher.measured_average()
    with pytest.raises(ValueError, match="at least one row"):
        teacher.measure([])
    teacher.measure(data.loader("train"))
    probs = torch.cat([teacher(batch[0].float() / 255) for batch in data.loader("train")])
    mean = probs.mean(dim=0)
    information = (probs * (probs.log() - mean.log())).sum(dim=1).mean()
    witness = teacher.witness(latent_dim=5, scale=1.0)
    assert torch.allclose(teacher.measured_average(), mean)
    assert teacher.card.information_train == pytest.approx(float(information), abs=1e-10)
    assert teacher.card.energy == pytest.approx(float(witness.energy(probs).mean()), rel=1e-9)


def test_other_data_is_refused() -> None:
    teacher = measured()
    teacher.card = replace(teacher.card, fingerprint="a" * 64)
    with pytest.raises(TeacherMismatchError, match=r"inputs of shape \(1, 8, 8\), got \(3, 32, 32\)"):
        teacher.check_data((3, 32, 32))
    with pytest.raises(TeacherMismatchError, match="fingerprint aaaaaaaaaaaa, got data with bbbbbbbbbbbb"):
        teacher.check_data((1, 8, 8), "b" * 64)
    teacher.check_data((1, 8, 8), "a" * 64)
    with pytest.raises(TeacherMismatchError, match=r"values in \[0, 1\], got \[-2, 2\]"):
        teacher.check_values(torch.tensor([-2.0, 2.0]).repeat(32).view(1, 1, 8, 8))


@pytest.mark.parametrize("position", [0.001, 0.005, 0.01, 0.02, 0.03, 0.5, 0.999])
def test_one_flipped_bit_is_noticed(tmp_path: Path, position: float) -> None:
    path = measured().save(tmp_path / "teacher.safetensors")
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="teacher.safetensors"):
        load_teacher(path)


def test_files_that_are_no_teacher_are_refused_and_run_no_code(tmp_path: Path) -> None:
    class Planted:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    path = tmp_path / "teacher.safetensors"
    path.write_bytes(pickle.dumps(Planted()))
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_teacher(path)
    assert not (tmp_path / "ran").exists()
    whole = measured().save(path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a safetensors file or is cut short"):
        load_teacher(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="is not a teacher file"):
        load_teacher(path)
    with pytest.raises(FileNotFoundError, match="no teacher at"):
        load_teacher(tmp_path / "none.safetensors")


def test_a_false_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    header = {"schema": "certvae.teacher/1", "kind": "gaussian_mixture"}
    for text, message in (
        ("{", "has no entry 'certvae'"),
        ("[]", "has no entry 'certvae'"),
        (json.dumps({**header, "schema": "other"}), "`schema` must be 'certvae.teacher/1', got 'other'"),
        (json.dumps(header), "faulty card"),
        (json.dumps({**header, "card": []}), "faulty card"),
        (json.dumps({**header, "card": {"num_components": 1}}), "faulty card"),
        (json.dumps({**header, "card": {"num_components": 2}}), "is damaged"),
    ):
        save_file({"a": torch.zeros(1)}, path, metadata={"certvae": text})
        with pytest.raises(ValueError, match=message):
            load_teacher(path)


def test_equal_teachers_give_equal_bytes(tmp_path: Path) -> None:
    one, other = measured().save(tmp_path / "one"), measured().save(tmp_path / "other")
    assert one.read_bytes() == other.read_bytes()


def test_a_network_teacher_stays_in_eval_mode_and_checks_its_logits() -> None:
    teacher = NetworkTeacher(nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 3)), 3)
    teacher.train()
    images = torch.rand(4, 1, 8, 8)
    assert torch.equal(teacher(images), teacher(images))
    with pytest.raises(ValueError, match=r"logits of shape \(B, 4\), got \(2, 3\)"):
        NetworkTeacher(nn.Linear(3, 3), 4)(torch.zeros(2, 3))


def test_bad_cards_are_refused() -> None:
    for arguments, message in (
        ({"num_components": 1}, "`num_components` must be at least 2"),
        ({"num_components": 3, "temperature": 0.0}, "`temperature` must be positive"),
        ({"num_components": 3, "floor": 1.0}, "`floor` must be at least 0 and below 1"),
    ):
        with pytest.raises(ValueError, match=message):
            TeacherCard(**arguments)
