"""Teachers that come with the package are small, named instead of a file, and what their cards say."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from certvae import load_teacher
from certvae.callbacks import CertificateCallback
from certvae.datamodules import CIFAR100DataModule
from certvae.io.files import sha256_file
from certvae.teachers import shipped_teachers, teacher_file
from tests.plain_vae import UserVAE, measured
from tests.runs import trainer

SHAPES = {"cifar100": (3, 32, 32), "tiny_imagenet": (3, 64, 64)}
MADE_FROM = {"cifar100": "50,000 training images", "tiny_imagenet": "12,000 training images of TinyImageNet, a part"}


def test_the_shipped_ones_are_these() -> None:
    assert shipped_teachers() == sorted(SHAPES)


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_a_shipped_teacher_is_small_and_says_what_it_was_made_from(name: str, tmp_path: Path) -> None:
    teacher, file = load_teacher(name), teacher_file(name)
    assert file.stat().st_size < 450_000
    assert teacher.card.image_shape == SHAPES[name]
    assert MADE_FROM[name] in str(teacher.card.choice)
    assert 0.5 < float(teacher.card.information_held_out or 0) < float(teacher.card.information_train or 0)
    probs = teacher(torch.rand(4, *SHAPES[name]))
    assert torch.allclose(probs.sum(1), torch.ones(4, dtype=torch.float64))
    assert sha256_file(teacher.save(tmp_path / "again.safetensors")) == sha256_file(file)


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_the_page_gives_the_numbers_of_the_card(name: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "ready-teachers.md").read_text()
    (row,) = (line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
    card, size = load_teacher(name).card, teacher_file(name).stat().st_size
    assert f"| {card.num_components} | {card.information_held_out:.3f} nats |" in row
    assert f"| {size / 1000:.0f} kB |" in row


def test_the_callback_takes_the_name(tmp_path: Path) -> None:
    images = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model = UserVAE()
    model.encoder.body, model.decoder = nn.Linear(3 * 32 * 32, 60), nn.Linear(30, 3 * 32 * 32)
    callback = CertificateCallback(teacher="cifar100", latents="encoder")
    with pytest.warns(UserWarning, match="teacher"):  # of noise it does not answer as of photographs
        trainer(tmp_path, callbacks=[callback]).validate(model, DataLoader(TensorDataset(images), 32), verbose=False)
    assert measured(callback).num_components == load_teacher("cifar100").num_components


def test_a_missing_file_lists_the_names(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="comes with certvae: cifar100, tiny_imagenet"):
        load_teacher("cifar10")


def test_a_file_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    load_teacher("tiny_imagenet").save("cifar100")
    assert teacher_file("cifar100") == Path("cifar100")
    assert load_teacher("cifar100").card.image_shape == SHAPES["tiny_imagenet"]


def test_the_card_of_cifar100_is_measured_on_its_rows(data_dir: Path) -> None:
    data, teacher = CIFAR100DataModule(str(data_dir), batch_size=512), load_teacher("cifar100")
    assert teacher.card.fingerprint == data.fingerprint
    held_out = load_teacher("cifar100").measure(data.loader("val")).card.information_train
    assert held_out == pytest.approx(teacher.card.information_held_out, abs=1e-9)
