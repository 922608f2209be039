"""CIFAR-100: files that are missing, damaged or not to be had, and the official rows against torchvision's."""

import os
import pickle
import shutil
import tarfile
from hashlib import md5
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
from torchvision.datasets import CIFAR100

from certvae.datamodules import CIFAR100DataModule, DataError

FILES = ("train", "test", "meta")
TRAIN, HELD_OUT = 6, 4


def no_network(*_: Any, **__: Any) -> None:
    raise URLError("no network")


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with ten images in the official format, and torchvision told that they are the official ones."""
    folder, rng = tmp_path / "made_up" / CIFAR100.base_folder, np.random.default_rng(0)
    folder.mkdir(parents=True)
    contents: dict[str, Any] = {"meta": {"fine_label_names": [f"class {label}" for label in range(100)]}}
    for name, rows in (("train", TRAIN), ("test", HELD_OUT)):
        images = rng.integers(0, 256, (rows, 3 * 32 * 32), dtype=np.uint8)
        contents[name] = {"data": images, "fine_labels": rng.integers(0, 100, rows).tolist()}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
    digest = {name: md5((folder / name).read_bytes()).hexdigest() for name in FILES}
    monkeypatch.setattr(CIFAR100, "train_list", [["train", digest["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", digest["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", CIFAR100.meta | {"md5": digest["meta"]})
    return folder.parent


@pytest.fixture(params=["made_up", pytest.param("official", marks=pytest.mark.slow)])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The folder that holds train, test and meta; links to the real ones, so that a test can replace them."""
    origin = request.getfixturevalue("made_up" if request.param == "made_up" else "data_dir")
    folder = tmp_path / "data" / CIFAR100.base_folder
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).symlink_to(origin.resolve() / CIFAR100.base_folder / name)
    return folder


@pytest.fixture
def archive(made_up: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The made-up set as the archive that torchvision would fetch, with its md5."""
    path = made_up / CIFAR100.filename
    with tarfile.open(path, "w:gz") as tar:
        tar.add(made_up / CIFAR100.base_folder, CIFAR100.base_folder)
    monkeypatch.setattr(CIFAR100, "tgz_md5", md5(path.read_bytes()).hexdigest())
    return path


@pytest.fixture(scope="module")
def official(data_dir: Path) -> CIFAR100DataModule:
    return CIFAR100DataModule(str(data_dir))


def error_of(folder: Path, **kwargs: Any) -> str:
    """What `prepare_data` says about the files in the folder."""
    with pytest.raises(DataError, match="CIFAR-100") as caught:
        CIFAR100DataModule(str(folder.parent), **kwargs).prepare_data()
    return str(caught.value)


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def beginning(path: Path, size: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(size)


def test_official_set_has_50000_training_rows_and_10000_held_out_in_halves(official: CIFAR100DataModule) -> None:
    assert official.arrays.num_train == 50_000
    assert official.arrays.images.shape == (60_000, 3, 32, 32)
    assert official.arrays.images.dtype == np.uint8
    assert {name: len(rows) for name, rows in official.splits.items()} == {
        "train": 50_000,
        "val": 5_000,
        "test": 5_000,
    }


def test_official_set_has_100_named_classes_of_equal_size(official: CIFAR100DataModule) -> None:
    assert official.image_shape == (3, 32, 32)
    assert official.num_classes == len(set(official.class_names)) == 100
    assert (official.class_names[0], official.class_names[99]) == ("apple", "worm")
    labels = official.arrays.labels
    assert np.bincount(labels[:50_000]).tolist() == [500] * 100
    assert np.bincount(labels[50_000:]).tolist() == [100] * 100


@pytest.mark.parametrize(("train", "first"), [(True, 0), (False, 50_000)])
def test_official_rows_are_those_of_torchvision(
    official: CIFAR100DataModule, data_dir: Path, train: bool, first: int
) -> None:
    expected = CIFAR100(data_dir, train=train)
    rows = slice(first, first + len(expected))
    assert np.array_equal(official.arrays.images[rows].transpose(0, 2, 3, 1), expected.data)
    assert official.arrays.labels[rows].tolist() == expected.targets
    assert official.class_names == tuple(expected.classes)


def test_batch_of_the_official_set_belongs_to_its_index(official: CIFAR100DataModule) -> None:
    images, labels, index = next(iter(official.train_dataloader()))
    assert np.array_equal(images.numpy(), official.arrays.images[index.numpy()])
    assert np.array_equal(labels.numpy(), official.arrays.labels[index.numpy()])


def test_training_rows_come_first_in_the_order_of_the_files(made_up: Path) -> None:
    data = CIFAR100DataModule(str(made_up))
    contents = [pickle.loads((made_up / CIFAR100.base_folder / name).read_bytes()) for name in ("train", "test")]
    pixels = np.concatenate([content["data"] for content in contents])
    assert np.array_equal(data.arrays.images.reshape(TRAIN + HELD_OUT, -1), pixels)
    assert data.arrays.labels.tolist() == contents[0]["fine_labels"] + contents[1]["fine_labels"]
    assert data.arrays.num_train == TRAIN


def test_whole_files_are_accepted_and_left_as_they_are(files: Path) -> None:
    before = {path.name: path.read_bytes() for path in files.iterdir()}
    CIFAR100DataModule(str(files.parent)).prepare_data()
    assert {path.name: path.read_bytes() for path in files.iterdir()} == before


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_alone(files: Path, name: str) -> None:
    (files / name).unlink()
    message = error_of(files)
    assert f"{files / name} is missing" in message
    assert not any(str(files / other) in message for other in FILES if other != name)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_named_alone_with_its_size(files: Path, name: str) -> None:
    size = min(files.joinpath(name).stat().st_size - 1, 100_000)
    replace(files / name, beginning(files / name, size))
    message = error_of(files)
    assert f"{files / name} ({size} bytes) does not have the official md5" in message
    assert not any(str(files / other) in message for other in FILES if other != name)


def test_a_file_with_one_changed_bit_is_named_with_the_md5_it_should_have(files: Path) -> None:
    content = bytearray((files / "meta").read_bytes())
    content[len(content) // 2] ^= 1
    replace(files / "meta", bytes(content))
    expected = f"{files / 'meta'} ({len(content)} bytes) does not have the official md5 {CIFAR100.meta['md5']}"
    assert expected in error_of(files)


def test_all_faults_are_named_at_once(tmp_path: Path) -> None:
    message = error_of(tmp_path / CIFAR100.base_folder)
    assert all(f"{tmp_path / CIFAR100.base_folder / name} is missing" in message for name in FILES)


def test_files_that_are_not_the_official_ones_are_never_unpickled(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpickling runs what a file says."""
    replace(files / "test", pickle.dumps({}))
    for name in ("load", "loads"):
        monkeypatch.setattr(pickle, name, lambda *_, **__: pytest.fail("unpickled"))
    with pytest.raises(DataError, match="does not have the official md5"):
        _ = CIFAR100DataModule(str(files.parent)).arrays


def test_a_file_that_changes_between_check_and_reading_is_not_unpickled(
    made_up: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, path = CIFAR100DataModule(str(made_up)), made_up / CIFAR100.base_folder / "test"
    data.prepare_data()
    time = path.stat()
    path.write_bytes(bytes(time.st_size))
    os.utime(path, ns=(time.st_atime_ns, time.st_mtime_ns))  # size, time and place are those of the official file
    with pytest.raises(DataError, match=r"test was changed while it was read"):
        _ = data.arrays


def test_data_modules_of_a_process_read_the_files_once_and_again_after_a_change(made_up: Path) -> None:
    one, other = CIFAR100DataModule(str(made_up)), CIFAR100DataModule(str(made_up), subset=2)
    assert one.arrays is other.arrays
    path = made_up / CIFAR100.base_folder / "train"
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(DataError, match="does not have the official md5"):
        CIFAR100DataModule(str(made_up)).prepare_data()


def test_a_missing_set_says_which_files_to_put_where(tmp_path: Path) -> None:
    message = error_of(tmp_path / CIFAR100.base_folder)
    for needed in (CIFAR100.filename, CIFAR100.tgz_md5, CIFAR100.url, f"{tmp_path / CIFAR100.base_folder} holds"):
        assert needed in message


def test_download_without_network_says_which_files_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    message = error_of(tmp_path / CIFAR100.base_folder, download=True)
    assert "could not be downloaded" in message
    for needed in ("no network", CIFAR100.filename, CIFAR100.url, f"{tmp_path / CIFAR100.base_folder} holds"):
        assert needed in message


def test_download_is_not_tried_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("went to the network"))
    assert "is missing" in error_of(tmp_path / CIFAR100.base_folder)


def test_download_is_not_tried_where_the_files_are_whole(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("went to the network"))
    CIFAR100DataModule(str(files.parent), download=True).prepare_data()


@pytest.mark.parametrize("name", FILES)
def test_download_mends_each_file_that_is_damaged(archive: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive that lies in the folder already is unpacked without a network."""
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    (archive.parent / CIFAR100.base_folder / name).write_bytes(b"damaged")
    data = CIFAR100DataModule(str(archive.parent), download=True)
    assert len(data.arrays.images) == TRAIN + HELD_OUT


def test_download_makes_the_folder(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(url: str, path: str) -> None:
        assert url == CIFAR100.url
        shutil.copy(archive, path)

    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, **_: url)
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", fetch)
    data = CIFAR100DataModule(str(tmp_path / "new" / "folder"), download=True)
    assert len(data.arrays.images) == TRAIN + HELD_OUT


def test_home_is_expanded_in_data_dir(made_up: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(made_up.parent))
    data = CIFAR100DataModule(os.path.join("~", made_up.name))
    assert len(data.arrays.images) == TRAIN + HELD_OUT
