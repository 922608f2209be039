"""CIFAR-100 files from strangers: each bad one ends in a DataError; nothing but the official archive is unpacked."""

import io
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torchvision.datasets import CIFAR100

from certvae.datamodules import CIFAR100DataModule, DataError, cifar100
from tests.untrusted import NO_FILES, SCRAPS, Box, Planted, box, sparse

__all__ = ["box"]

Write = Callable[[Path], Any]


def tar_with(*names: str, link: str | None = None) -> bytes:
    """A tar with members that would land elsewhere."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"evil"))
        if link is not None:
            info = tarfile.TarInfo(f"{CIFAR100.base_folder}/train")
            info.type, info.linkname = tarfile.SYMTYPE, link
            tar.addfile(info)
    return content.getvalue()


TARS = {
    "outside": tar_with("../evil", "../../evil", "../../../evil"),
    "absolute": tar_with("/certvae-evil"),
    "link": tar_with(link="../../../kept"),
    "as the official one": tar_with(*(f"{CIFAR100.base_folder}/{name}" for name in ("train", "test", "meta"))),
    "no tar": b"evil",
}


def offline(url: str, **_: Any) -> str:
    raise OSError("no network")


@pytest.mark.parametrize("fetched", [False, True], ids=["found", "fetched"])
@pytest.mark.parametrize("name", TARS)
def test_an_archive_with_another_md5_is_never_unpacked(
    box: Box, monkeypatch: pytest.MonkeyPatch, name: str, fetched: bool
) -> None:
    path = box.path / CIFAR100.filename
    path.write_bytes(TARS[name])
    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", (lambda url, **_: url) if fetched else offline)
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", lambda _, path: Path(path).write_bytes(TARS[name]))
    monkeypatch.setattr(tarfile.TarFile, "extractall", lambda *_, **__: pytest.fail("unpacked"))
    with box.refuses(DataError):
        CIFAR100DataModule(str(box.path), download=True).prepare_data()
    with box.refuses(DataError):
        CIFAR100DataModule(str(box.path)).prepare_data()
    assert list(box.path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["train", "test", "meta"])
@pytest.mark.parametrize("bad", ["code", "code of protocol 0", "large", *NO_FILES, *SCRAPS])
def test_files_that_are_not_cifars_are_never_unpickled(box: Box, name: str, bad: str) -> None:
    code = Planted(box.marker)
    plans: dict[str, Write] = {
        "code": lambda path: path.write_bytes(pickle.dumps(code)),
        "code of protocol 0": lambda path: path.write_bytes(pickle.dumps(code, protocol=0)),
        "large": sparse(cifar100.FILE_LIMIT + 2**40),
    }
    folder = box.path / CIFAR100.base_folder
    folder.mkdir()
    for other in ("train", "test", "meta"):
        plans["code"](folder / other)
    (folder / name).unlink()
    {**plans, **NO_FILES, **SCRAPS}[bad](folder / name)
    with box.refuses(DataError):
        _ = CIFAR100DataModule(str(box.path)).arrays


@pytest.mark.parametrize("target", [CIFAR100.filename, CIFAR100.base_folder, f"{CIFAR100.base_folder}/train"])
@pytest.mark.parametrize("way", ["link", "pipe"])
def test_a_download_does_not_write_through_links_or_pipes(
    box: Box, monkeypatch: pytest.MonkeyPatch, target: str, way: str
) -> None:
    path = box.path / target
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(box.root / "kept") if way == "link" else os.mkfifo(path)
    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, **_: url)
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", lambda _, path: Path(path).write_bytes(b"evil"))
    with box.refuses(DataError):
        CIFAR100DataModule(str(box.path), download=True).prepare_data()
