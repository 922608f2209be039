"""Tiny-ImageNet: a made-up set in the official layout, as folder and as zip, whole and damaged; and the real images."""

import hashlib
import io
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image

from certvae.datamodules import DataError, TinyImageNetDataModule, tiny_imagenet

NAME = "tiny-imagenet-200"
WNIDS = ("n03", "n01", "n02")  # not in the order of their names
WORDS = "n01\tgoldfish, Carassius auratus\nn02\tbullfrog\nn99\tnot in the set\n"
TRAIN_EACH, HELD_OUT_EACH = 4, 2
TRAIN, HELD_OUT = 12, 6
GRAY = "train/n01/images/n01_1.JPEG"
CORRUPT = "train/n02/images/n02_3.JPEG"


def jpeg(rng: np.random.Generator, size: tuple[int, ...] = (64, 64, 3)) -> bytes:
    """A JPEG file of smooth random colors, ``(height, width)`` being grayscale."""
    coarse = rng.integers(0, 256, (4, 4, *size[2:]), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(coarse).resize((size[1], size[0])).save(content, "JPEG")
    return content.getvalue()


def write(folder: Path, name: str, content: bytes | str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return made_up_set(tmp_path / "data" / NAME)


def made_up_set(folder: Path, train_each: int = TRAIN_EACH, held_out_each: int = HELD_OUT_EACH) -> Path:
    """The unpacked folder of a made-up set of three classes; one training image is grayscale."""
    rng, annotations = np.random.default_rng(0), []
    for label, wnid in enumerate(WNIDS):
        for number in range(train_each):
            write(folder, f"train/{wnid}/images/{wnid}_{number}.JPEG", jpeg(rng))
        write(folder, f"train/{wnid}/{wnid}_boxes.txt", f"{wnid}_0.JPEG\t0\t0\t9\t9\n")
        for number in range(held_out_each):
            file = f"val_{number * len(WNIDS) + label}.JPEG"
            write(folder, f"val/images/{file}", jpeg(rng))
            annotations.append(f"{file}\t{wnid}\t0\t32\t44\t62\n")
    write(folder, GRAY, jpeg(rng, (64, 64)))
    write(folder, "val/val_annotations.txt", "".join(sorted(annotations)))
    write(folder, "test/images/test_0.JPEG", jpeg(rng))
    write(folder, "wnids.txt", "\n".join(WNIDS) + "\n")
    write(folder, "words.txt", WORDS)
    return folder


def pack(root: Path, compression: int = zipfile.ZIP_STORED) -> Path:
    """Replace the folder by a zip beside it, in the official layout, which has entries for folders as well."""
    path = root.parent / f"{NAME}.zip"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in [root, *sorted(root.rglob("*"))]:
            archive.write(file, file.relative_to(root.parent))
    shutil.rmtree(root)
    return path


def as_folder(root: Path) -> Path:
    return root


FORMS = pytest.mark.parametrize("form", [as_folder, pack], ids=["folder", "zip"])
Form = Callable[[Path], Path]


def module(root: Path, cache: str = "cache", **kwargs: Any) -> TinyImageNetDataModule:
    """On the made-up set, with its cache beside the data folder."""
    arguments: dict[str, Any] = {"check_zip": False, "cache_dir": str(root.parent.parent / cache)} | kwargs
    return TinyImageNetDataModule(str(root.parent), **arguments)


def error_of(data: TinyImageNetDataModule) -> str:
    """What `prepare_data` says about the files."""
    with pytest.raises(DataError) as caught:
        data.prepare_data()
    return str(caught.value)


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder, with the contents of the files."""
    paths = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


def cache_file(data: TinyImageNetDataModule) -> Path:
    """The one file that the module keeps."""
    (path,) = data.cache_dir.iterdir()
    return path


def decoded(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def no_network(*_: Any, **__: Any) -> None:
    raise URLError("no network")


def no_download(*_: Any, **__: Any) -> None:
    pytest.fail("went to the network")


# Whole sets.


@FORMS
def test_rows_are_training_images_by_class_and_then_the_validation_images(root: Path, form: Form) -> None:
    files = [root / f"train/{wnid}/images/{wnid}_{number}.JPEG" for wnid in WNIDS for number in range(TRAIN_EACH)]
    files += [root / f"val/images/val_{number}.JPEG" for number in range(HELD_OUT)]
    expected = np.stack([decoded(file) for file in files])
    arrays = module(form(root)).arrays
    assert arrays.num_train == TRAIN
    assert arrays.images.dtype == np.uint8
    assert np.array_equal(arrays.images, expected)
    assert arrays.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [0, 1, 2] * 2


def test_folder_and_zip_give_equal_arrays(root: Path) -> None:
    folder = module(root, cache="of_folder")
    expected, fingerprint = folder.arrays, folder.fingerprint
    packed = module(pack(root), cache="of_zip")
    assert not packed.cache_dir.exists()
    assert np.array_equal(packed.arrays.images, expected.images)
    assert np.array_equal(packed.arrays.labels, expected.labels)
    assert packed.arrays.num_train == expected.num_train
    assert packed.arrays.class_names == expected.class_names
    assert packed.fingerprint == fingerprint


def test_splits_are_the_training_and_validation_images(root: Path) -> None:
    splits = module(root).splits
    assert splits["train"].tolist() == list(range(TRAIN))
    assert sorted([*splits["val"].tolist(), *splits["test"].tolist()]) == list(range(TRAIN, TRAIN + HELD_OUT))
    assert len(splits["val"]) == len(splits["test"]) == HELD_OUT // 2


def test_batch_belongs_to_its_index(root: Path) -> None:
    data = module(root, batch_size=8)
    images, labels, index = next(iter(data.train_dataloader()))
    assert np.array_equal(images.numpy(), data.arrays.images[index.numpy()])
    assert np.array_equal(labels.numpy(), data.arrays.labels[index.numpy()])


def test_classes_are_named_by_words_txt_or_else_by_wnid(root: Path) -> None:
    assert module(root).class_names == ("n03", "goldfish, Carassius auratus", "bullfrog")


def test_grayscale_image_has_three_equal_channels(root: Path) -> None:
    image = module(root).arrays.images[TRAIN_EACH + 1]
    assert image.max() > image.min()
    assert np.array_equal(image[0], image[1])
    assert np.array_equal(image[0], image[2])


def test_part_of_the_images_is_enough(root: Path) -> None:
    """Images that are listed but not there are left out, as are those of classes that are not listed."""
    (root / CORRUPT).unlink()
    (root / "val/images/val_1.JPEG").unlink()
    write(root, "train/n99/images/n99_0.JPEG", b"never read")
    with open(root / "val/val_annotations.txt", "a") as file:
        file.write("\nval_99.JPEG\tn99\t0\t0\t9\t9\n")
    data = module(root)
    assert (data.arrays.num_train, len(data.arrays.images)) == (TRAIN - 1, TRAIN + HELD_OUT - 2)
    assert data.arrays.labels[TRAIN - 1 :].tolist() == [0, 2, 0, 1, 2]


def test_home_is_expanded_in_data_dir_and_cache_dir(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(root.parent.parent))
    data = TinyImageNetDataModule(os.path.join("~", "data"), cache_dir=os.path.join("~", "cache"))
    assert len(data.arrays.images) == TRAIN + HELD_OUT
    assert cache_file(data).parent == root.parent.parent / "cache"


# The cache.


@FORMS
def test_nothing_is_written_outside_cache_dir(
    root: Path, form: Form, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file is: the array."""
    source = form(root)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    before = tree(tmp_path)
    data = module(source)
    data.prepare_data()
    path = cache_file(data)
    path.unlink()
    data.cache_dir.rmdir()
    assert path.suffix == ".npy"
    assert tree(tmp_path) == before


def test_cache_dir_is_in_data_dir_unless_given(root: Path) -> None:
    data = module(root, cache_dir=None)
    data.prepare_data()
    assert cache_file(data).parent == root.parent / "certvae-cache"


@FORMS
def test_second_time_uses_the_cache(root: Path, form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    source = form(root)
    expected = module(source).arrays
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("decoded again"))
    again = module(source).arrays
    assert np.array_equal(again.images, expected.images)
    assert np.array_equal(again.labels, expected.labels)


def test_folder_and_zip_share_the_cache(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = module(root).arrays.images
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("decoded again"))
    assert np.array_equal(module(pack(root)).arrays.images, expected)


def test_cache_is_used_by_every_subset(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fingerprint = module(root).fingerprint
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("decoded again"))
    assert module(root, subset=2, split_seed=3).fingerprint == fingerprint


def test_cache_is_not_used_with_one_image_more(root: Path) -> None:
    module(root).prepare_data()
    write(root, "train/n01/images/n01_9.JPEG", jpeg(np.random.default_rng(1)))
    arrays = module(root).arrays
    assert len(arrays.images) == TRAIN + HELD_OUT + 1
    assert np.array_equal(arrays.images[TRAIN_EACH * 2], decoded(root / "train/n01/images/n01_9.JPEG"))


def test_cache_is_not_used_with_an_image_of_another_file_size(root: Path) -> None:
    file = root / "val/images/val_0.JPEG"
    before = module(root).arrays.images[TRAIN]
    write(root, "val/images/val_0.JPEG", jpeg(np.random.default_rng(2)) + b"another size")
    assert not np.array_equal(before, decoded(file))
    assert np.array_equal(module(root).arrays.images[TRAIN], decoded(file))


def truncated(content: bytes) -> bytes:
    return content[:-1000]


def without_end_of_header(content: bytes) -> bytes:
    return content.replace(b"}", b" ", 1)


@pytest.mark.parametrize(
    "damage",
    [truncated, without_end_of_header, lambda _: b"", lambda _: b"not an array", lambda _: b"PK\x03\x04"],
    ids=["truncated", "header", "empty", "other", "like_a_zip"],
)
def test_damaged_cache_is_named_and_made_again_once_deleted(root: Path, damage: Callable[[bytes], bytes]) -> None:
    data = module(root)
    expected, path = data.arrays.images, cache_file(data)
    path.write_bytes(damage(path.read_bytes()))
    message = error_of(module(root))
    assert f"the cache {path} is damaged" in message
    assert "delete it" in message
    path.unlink()
    assert np.array_equal(module(root).arrays.images, expected)


@pytest.mark.parametrize("other", [np.zeros((2, 3, 64, 64), np.uint8), np.zeros((18, 3, 64, 64), np.float32)])
def test_cache_of_another_shape_or_type_is_made_again(root: Path, other: np.ndarray) -> None:
    data = module(root)
    expected, path = data.arrays.images, cache_file(data)
    np.save(path, other)
    assert np.array_equal(module(root).arrays.images, expected)
    assert np.array_equal(np.load(path), expected)


def test_a_cache_with_an_altered_pixel_is_named(root: Path) -> None:
    data = module(root)
    path = cache_file(data) if len(data.arrays.images) else None
    assert path is not None
    content = bytearray(path.read_bytes())
    content[-100] ^= 1  # the last of the pixels are before the digest of 64 letters
    path.write_bytes(content)
    assert "its pixels are not those that were kept" in error_of(module(root))


def test_a_cache_without_a_digest_is_made_again(root: Path) -> None:
    data = module(root)
    expected, path = data.arrays.images, cache_file(data)
    np.save(path, 255 - expected)
    assert np.array_equal(module(root).arrays.images, expected)
    assert np.array_equal(np.load(path), expected)


# Missing and damaged files.


def test_zip_with_another_md5_is_refused_by_default(root: Path) -> None:
    path = pack(root)
    message = error_of(TinyImageNetDataModule(str(root.parent)))
    assert f"{path} ({path.stat().st_size} bytes) does not have the official md5 {tiny_imagenet.MD5}" in message


def test_zip_with_the_official_md5_is_accepted_by_default(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pack(root)
    monkeypatch.setattr(tiny_imagenet, "MD5", hashlib.md5(path.read_bytes()).hexdigest())
    assert len(TinyImageNetDataModule(str(root.parent)).arrays.images) == TRAIN + HELD_OUT


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.999])
def test_truncated_zip_is_named(root: Path, keep: float) -> None:
    path = pack(root)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    assert f"{path} is not a whole zip file" in error_of(module(root))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("name", [CORRUPT, "wnids.txt"])
def test_damaged_file_in_a_zip_is_named(root: Path, name: str, compression: int) -> None:
    """Stored it has the wrong CRC-32; compressed it cannot be unpacked at all."""
    path = pack(root, compression)
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(f"{NAME}/{name}")
    with open(path, "r+b") as file:
        file.seek(info.header_offset + 30 + len(info.filename))  # 30 bytes of header come before the name
        file.write(b"\xff" * info.compress_size)
    assert f"{path}: the file {name} is damaged" in error_of(module(root))


@FORMS
@pytest.mark.parametrize("damage", [lambda data: data[:-200], lambda _: b"", lambda data: b"\0" * len(data)])
def test_corrupt_image_is_named_and_nothing_is_cached(root: Path, form: Form, damage: Callable[[bytes], bytes]) -> None:
    write(root, CORRUPT, damage((root / CORRUPT).read_bytes()))
    source = form(root)
    data = module(source)
    message = error_of(data)
    assert str(source) in message
    assert f"the image {CORRUPT} is damaged" in message
    assert not data.cache_dir.exists()


def test_image_whose_header_claims_a_giant_is_named(root: Path) -> None:
    """Pillow refuses it with an exception of its own."""
    content = bytearray((root / CORRUPT).read_bytes())
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = b"\xff\x00\xff\x00"
    write(root, CORRUPT, bytes(content))
    assert f"the image {CORRUPT} is damaged" in error_of(module(root))


@FORMS
def test_image_of_another_size_is_named_with_both_sizes(root: Path, form: Form) -> None:
    write(root, CORRUPT, jpeg(np.random.default_rng(1), (32, 48, 3)))
    assert f"the image {CORRUPT} must be 64 x 64, got 48 x 32" in error_of(module(form(root)))


@FORMS
def test_class_without_images_is_named(root: Path, form: Form) -> None:
    shutil.rmtree(root / "train/n02/images")
    assert "no training images for classes ['n02']" in error_of(module(form(root)))


def test_set_without_classes_is_refused(root: Path) -> None:
    write(root, "wnids.txt", "\n")
    assert "no training images for classes at all" in error_of(module(root))


@FORMS
@pytest.mark.parametrize("name", ["wnids.txt", "words.txt", "val/val_annotations.txt"])
def test_missing_list_is_named(root: Path, form: Form, name: str) -> None:
    (root / name).unlink()
    source = form(root)
    assert f"{source} lacks {name}" in error_of(module(source))


@pytest.mark.parametrize("name", ["wnids.txt", "words.txt", "val/val_annotations.txt"])
def test_list_that_is_not_text_is_named(root: Path, name: str) -> None:
    write(root, name, b"\xff\xfe\x00")
    assert f"{root}: the file {name} is damaged" in error_of(module(root))


@pytest.mark.parametrize("line", ["val_0.JPEG", "val_0.JPEG\tn98\t0\t0\t9\t9"])
def test_bad_annotation_is_quoted(root: Path, line: str) -> None:
    """One that is cut short, and one of a class that is not in the set."""
    with open(root / "val/val_annotations.txt", "a") as file:
        file.write(line + "\n")
    message = error_of(module(root))
    assert "val/val_annotations.txt" in message
    assert repr(line) in message


def test_set_without_validation_images_is_refused(root: Path) -> None:
    shutil.rmtree(root / "val/images")
    assert "none of the images that val/val_annotations.txt lists" in error_of(module(root))


# The download.


def test_missing_set_says_which_file_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.urlopen", no_download)
    message = error_of(TinyImageNetDataModule(str(tmp_path)))
    assert f"neither {tmp_path / NAME} nor {tmp_path / NAME}.zip is there" in message
    assert f"put {NAME}.zip (md5 {tiny_imagenet.MD5}) from {tiny_imagenet.URL} into {tmp_path}" in message


def test_download_without_network_says_which_file_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    message = error_of(TinyImageNetDataModule(str(tmp_path), download=True))
    assert "Tiny-ImageNet could not be downloaded" in message
    assert "no network" in message
    assert f"put {NAME}.zip (md5 {tiny_imagenet.MD5}) from {tiny_imagenet.URL} into {tmp_path}" in message


@FORMS
def test_download_is_not_tried_where_the_set_is_there(root: Path, form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    form(root)
    monkeypatch.setattr("urllib.request.urlopen", no_download)
    module(root, download=True).prepare_data()


@pytest.mark.parametrize("left", [None, 100])
def test_download_fetches_the_zip_and_replaces_a_part_of_it(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int | None
) -> None:
    """A part is what an earlier download that was cut short leaves behind."""
    content = pack(root).read_bytes()
    target = tmp_path / "new"
    if left is not None:
        write(target, f"{NAME}.zip", content[:left])
    monkeypatch.setattr(tiny_imagenet, "MD5", hashlib.md5(content).hexdigest())
    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, **_: url)
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", lambda url, path: Path(path).write_bytes(content))
    data = TinyImageNetDataModule(str(target), download=True)
    data.prepare_data()
    assert (target / f"{NAME}.zip").read_bytes() == content
    assert len(data.arrays.images) == TRAIN + HELD_OUT


# The real images, or a part of them.


@pytest.fixture(scope="module")
def real(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyImageNetDataModule:
    if not (data_dir / NAME).is_dir():
        pytest.skip(f"CERTVAE_DATA_DIR holds no unpacked folder {NAME}")
    return TinyImageNetDataModule(str(data_dir), cache_dir=str(tmp_path_factory.mktemp("cache")))


def test_real_set_is_the_whole_or_the_part_of_12000_and_4000(real: TinyImageNetDataModule) -> None:
    sizes = real.arrays.num_train, len(real.arrays.images) - real.arrays.num_train
    assert sizes in {(12_000, 4_000), (100_000, 10_000)}
    assert len(real.splits["val"]) == len(real.splits["test"]) == sizes[1] // 2


def test_real_set_has_200_named_classes_of_equal_size(real: TinyImageNetDataModule) -> None:
    assert real.image_shape == (3, 64, 64)
    assert real.num_classes == len(set(real.class_names)) == 200
    assert "goldfish, Carassius auratus" in real.class_names
    assert not any(name.startswith("n0") for name in real.class_names)
    counts = np.bincount(real.arrays.labels[: real.arrays.num_train], minlength=200)
    assert counts.tolist() == [real.arrays.num_train // 200] * 200


def test_real_rows_are_the_images_of_their_class(real: TinyImageNetDataModule, data_dir: Path) -> None:
    """The first image that the annotations list, and one of every 20th class's, read by Pillow alone."""
    folder, arrays = data_dir / NAME, real.arrays
    wnids = (folder / "wnids.txt").read_text().split()
    file, wnid = (folder / "val/val_annotations.txt").read_text().split("\t")[:2]
    assert arrays.labels[arrays.num_train] == wnids.index(wnid)
    assert np.array_equal(arrays.images[arrays.num_train], decoded(folder / "val/images" / file))
    for label in range(0, 200, 20):
        row = int(np.flatnonzero(arrays.labels == label)[0])
        first = min((folder / "train" / wnids[label] / "images").iterdir())
        assert np.array_equal(arrays.images[row], decoded(first))
