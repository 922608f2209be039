"""Checkpoints from strangers: each bad one ends in one clear error, runs no code, and costs little."""

import io
import pickle
import stat
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import pytest
import torch
from torch import nn

from certvae.io.checkpoints import CHECKPOINT_LIMIT, CheckpointFileError, load_weights, read_checkpoint
from tests.runs import small_vae
from tests.untrusted import NO_FILES, SCRAPS, Box, Planted, box, slow, sparse, unreadable

__all__ = ["box"]


def model() -> nn.Module:
    return nn.Linear(3, 2)


def saved(content: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def weights(**changes: Any) -> dict[str, Any]:
    """A checkpoint of :func:`model`; a change of None leaves the entry out."""
    state = {**model().state_dict(), **changes}
    return {"state_dict": {key: value for key, value in state.items() if value is not None}}


# A zip of torch.save's, taken apart and put together otherwise.


def repacked(change: Callable[[ZipFile], Any] = lambda _: None, **members: Any) -> bytes:
    """The zip of a good checkpoint with members replaced, and ``change`` made to the archive before it is closed."""
    target = io.BytesIO()
    with ZipFile(io.BytesIO(saved(weights()))) as source, ZipFile(target, "w") as archive:
        for info in source.infolist():
            archive.writestr(info.filename, members.get(Path(info.filename).name, source.read(info)))
        change(archive)
    return target.getvalue()


def with_pickle(pickled: bytes) -> bytes:
    members: dict[str, Any] = {"data.pkl": b"\x80\x02" + pickled}
    return repacked(**members)


def listed(**changes: Any) -> Callable[[ZipFile], None]:
    """Alter what the directory says of the first tensor."""

    def change(archive: ZipFile) -> None:
        info = archive.getinfo("archive/data/0")
        for name, value in changes.items():
            setattr(info, name, value)

    return change


def listed_again(archive: ZipFile) -> None:
    """A thousand names for the bytes of one member."""
    first = archive.getinfo("archive/data/0")
    for number in range(1000):
        info = ZipInfo(f"archive/data/{number + 100}")
        info.header_offset, info.CRC, info.file_size, info.compress_size = first.header_offset, 0, 2**16, 2**16
        archive.filelist.append(info)


def link(archive: ZipFile) -> None:
    info = ZipInfo("archive/link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive.writestr(info, "/etc/passwd")


def named(name: str, content: bytes = b"x") -> Callable[[ZipFile], None]:
    return lambda archive: archive.writestr(name, content)


def huge_directory(path: Path) -> None:
    """40 MiB of directory, which zipfile would turn into 600 MB of entries."""
    sparse(40 * 2**20)(path)
    with open(path, "r+b") as file:
        file.write(b"PK\3\4")
        file.seek(0, io.SEEK_END)
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 9, 9, 40 * 2**20, 0, 0))


# Pickles, by hand: opcodes of protocol 2, as the reader of `weights_only` takes them.


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def wide(value: int) -> bytes:
    return b"\x8a\x10" + value.to_bytes(16, "little", signed=True)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def rebuilt(key: str = "0", numel: int = 6, size: tuple[int, ...] = (2, 3), stride: tuple[int, ...] = (3, 1)) -> bytes:
    """A tensor on a storage."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + number(numel) + b"tQ"
    axes = b"".join(b"(" + b"".join(number(value) for value in values) + b"t" for values in (size, stride))
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(0) + axes + b"\x89ccollections\nOrderedDict\n)RtR"


def state(*entries: bytes) -> bytes:
    return b"}" + text("state_dict") + b"}(" + b"".join(entries) + b"us."


def doubled(times: int) -> bytes:
    """A tuple of two tuples of two tuples ... whose hash takes 2^times steps, as the key of a dict."""
    return b"})q\0" + b"h\0\x86q\0" * times + b"Ns."


COLLIDING = [wide(n * (2**61 - 1)) for n in range(1, 300_000)]  # numbers of one hash
FORGED: dict[str, bytes] = {
    "bytearray of 1 TiB": b"cbuiltins\nbytearray\n" + number(2**40) + b"\x85R.",
    "tensor of 1 TiB": b"ctorch\nFloatTensor\n" + number(2**38) + b"\x85R.",
    "storage of 1 TiB": b"ctorch.storage\nUntypedStorage\n" + number(2**40) + b"\x85R.",
    "tuples 200,000 deep": b")" + b"\x85" * 200_000 + b".",
    "tuple doubled 200 times": doubled(200),
    "dict copied 1000 times": b"}q\0" + b"ccollections\nOrderedDict\nh\0\x85R" * 1000 + b".",
    "sets copied 1000 times": b"]q\0" + b"c__builtin__\nset\nh\0\x85R" * 1000 + b".",
    "state copied 1000 times": b"}q\0" + b"ccollections\nOrderedDict\n)Rh\0b" * 1000 + b".",
    "keys of one hash": b"}(" + b"N".join(COLLIDING) + b"Nu.",
    "keys of one hash, one by one": b"}" + b"Ns".join(COLLIDING) + b"Ns.",
    "keys that are tuples": b"}(" + b"".join(number(n) + b"K\1\x86N" for n in range(9)) + b"u.",
    "keys that are one tuple": b"}K\1K\2\x86q\0NsN0h\0Ns.",
    "members that are tuples": b"c__builtin__\nset\n](" + b"K\1K\2\x86" * 2000 + b"e\x85R.",
    "16 MiB of nothing": b"]" * 2**24 + b".",
    "no end": b"]" * 100,
    "unknown instruction": b"\xff.",
    "global from another module": b"cbuiltins\neval\n" + text("1 + 1") + b"\x85R.",
    "storage larger than its bytes": state(text("weight"), rebuilt(numel=2**40)),
    "storage of negative size": state(text("weight"), rebuilt(numel=-6)),
    "storage that is not there": state(text("weight"), rebuilt(key="77")),
    "storage outside the archive": state(text("weight"), rebuilt(key="../../../../etc/passwd")),
    "tensor larger than its storage": state(text("weight"), rebuilt(size=(20, 30))),
    "tensor with a negative stride": state(text("weight"), rebuilt(stride=(-3, 1))),
    "tensor of 1 TiB on 24 bytes": state(text("weight"), rebuilt(size=(2**38,), stride=(0,))),
}
ARCHIVES: dict[str, Callable[[ZipFile], Any]] = {
    "compressed member": lambda zip: zip.writestr("archive/data/9", bytes(2**26), ZIP_DEFLATED),
    "member of 1 TiB": listed(file_size=2**40, compress_size=2**40),
    "member larger than stored": listed(file_size=2**40),
    "members on the same bytes": listed_again,
    "member twice": named("archive/data/0"),
    "member twice but for its case": named("ARCHIVE/data.PKL"),
    "storage with letters": named("archive/data/aB"),
    "member outside": named("../evil"),
    "absolute member": named("/certvae-evil"),
    "member with backslashes": named("archive\\..\\..\\evil"),
    "link": link,
    "encrypted member": listed(flag_bits=1),
    "two pickles": named("other/data.pkl"),
}
REASONS = {
    **{f"{name} of 1 TiB": "which plain values and tensors do not need" for name in ("bytearray", "tensor", "storage")},
    "tuples 200,000 deep": "holds no `state_dict`",
    "tuple doubled 200 times": "a long or nested tuple twice",
    **{f"{name} copied 1000 times": "it copies objects" for name in ("dict", "sets", "state")},
    **dict.fromkeys(("keys of one hash", "keys of one hash, one by one"), "keys that tensors by name do not need"),
    **dict.fromkeys(("keys that are tuples", "keys that are one tuple"), "keys that tensors by name do not need"),
    "members that are tuples": "keys that tensors by name do not need",
    "16 MiB of nothing": "one member data.pkl of at most",
    "compressed member": "a member is compressed",
    "member of 1 TiB": "its members overlap",
    "member larger than stored": "uncompressed with two different sizes",
    "members on the same bytes": "its members overlap",
    "member twice": "two of its members have the same name",
    "member twice but for its case": "two of its members have the same name",
    "storage with letters": "is not one that torch.save writes",
    "member outside": "is outside its folder",
    "absolute member": "is outside its folder",
    "member with backslashes": "is outside its folder",
    "link": "is a link or a device",
    "encrypted member": "is encrypted",
    "two pickles": "one member data.pkl",
    "in the legacy format": "not in the zip format of torch.save",
    "good, but in the legacy format": "not in the zip format of torch.save",
    "before a zip": "not in the zip format of torch.save",
    "huge directory": "its directory has more than",
    "17 GB": "may have at most",
}


def in_a_tar(code: Planted) -> bytes:
    """The format of torch before 0.1.10."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in ("pickle", "storages", "tensors", "sys_info"):
            info, content = tarfile.TarInfo(name), pickle.dumps(code)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


PLANTED: dict[str, Callable[[Planted], bytes]] = {
    "as state_dict": lambda code: saved({"state_dict": code}),
    "as weight": lambda code: saved(weights(weight=code)),
    "as hyper-parameter": lambda code: saved({**weights(), "hyper_parameters": {"latent_dim": code}}),
    "in the legacy format": lambda code: saved(code, _use_new_zipfile_serialization=False),
    "good, but in the legacy format": lambda _: saved(weights(), _use_new_zipfile_serialization=False),
    "as plain pickle": pickle.dumps,
    "as plain pickle of protocol 0": lambda code: pickle.dumps(code, protocol=0),
    "before a zip": lambda code: pickle.dumps(code) + saved(weights()),
    "as second pickle": lambda code: repacked(named("archive/other.pkl", pickle.dumps(code)), **{"data.pkl": b"N."}),
    "as persistent id": lambda code: with_pickle(pickle.dumps(code, protocol=2)[2:-1] + b"Q."),
    "in a tar": in_a_tar,
}


@pytest.mark.parametrize("kind", PLANTED)
def test_code_in_a_checkpoint_is_not_run(box: Box, kind: str) -> None:
    path = box.path / "last.ckpt"
    path.write_bytes(PLANTED[kind](Planted(box.marker)))
    with box.refuses(CheckpointFileError, REASONS.get(kind, "")):
        small_vae(init_weights_from=path)


@pytest.mark.parametrize("name", slow(FORGED, "tuples 200,000 deep"))
def test_forged_pickles_are_refused(box: Box, name: str) -> None:
    path = box.path / "last.ckpt"
    path.write_bytes(with_pickle(FORGED[name]))
    with box.refuses(CheckpointFileError, REASONS.get(name, "")):
        load_weights(model(), path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", slow(ARCHIVES, "compressed member"))
def test_forged_archives_are_refused(box: Box, name: str) -> None:
    path = box.path / "last.ckpt"
    path.write_bytes(repacked(ARCHIVES[name]))
    with box.refuses(CheckpointFileError, REASONS.get(name, "")):
        load_weights(model(), path)


DAMAGED = {
    "huge directory": huge_directory,
    "first half": lambda path: path.write_bytes(repacked()[: len(repacked()) // 2]),
    "last byte cut off": lambda path: path.write_bytes(repacked()[:-1]),
    "zip without a pickle": lambda path: ZipFile(path, "w").writestr("archive/version", "3"),
    "17 GB": sparse(CHECKPOINT_LIMIT + 1),
    "not readable": unreadable,
}


@pytest.mark.parametrize("name", [*NO_FILES, *SCRAPS, *DAMAGED])
def test_paths_without_a_checkpoint_are_refused(box: Box, name: str) -> None:
    path = box.path / "last.ckpt"
    {**NO_FILES, **SCRAPS, **DAMAGED}[name](path)
    expected = {**dict.fromkeys(NO_FILES, FileNotFoundError), "not readable": PermissionError}
    with box.refuses(expected.get(name, CheckpointFileError), REASONS.get(name, "")):
        load_weights(model(), path)


def test_what_optimizers_and_schedulers_keep_is_read(tmp_path: Path) -> None:
    """Numbers as keys, tuples as values, counters of milestones and nested lists are no attack."""
    network = model()
    optimizer = torch.optim.Adam(network.parameters(), betas=(0.9, 0.99))
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5, 5])
    kept = {"optimizer_states": [optimizer.state_dict()], "lr_schedulers": [scheduler.state_dict()]}
    shapes = {"hyper_parameters": {"shapes": [(1, 2), (3, (4, 5))], "seed": 2**64 - 1, "names": {"a", "b"}}}
    (tmp_path / "last.ckpt").write_bytes(saved({**weights(), **kept, **shapes}))
    load_weights(network, tmp_path / "last.ckpt")
    assert read_checkpoint(tmp_path / "last.ckpt")["hyper_parameters"] == shapes["hyper_parameters"]
