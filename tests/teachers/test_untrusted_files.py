"""Teachers and target tables from strangers: each bad one ends in one clear error, runs no code, and costs little.

The digest in the header is right wherever a test does not say otherwise: whoever forges a file can work it out.
"""

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from certvae import load_teacher
from certvae.io.files import sha256_tensors
from certvae.teachers import TeacherFileError
from certvae.teachers.files import HEADER_LIMIT, TEACHER_LIMIT
from tests.runs import small_vae
from tests.untrusted import NO_FILES, SCRAPS, Box, Planted, box, sparse, unreadable

__all__ = ["box"]

K = 3
CARD = {"num_components": K, "temperature": 2.0, "floor": 0.01, "image_shape": [1, 2, 2], "value_range": [0.0, 1.0]}
AVERAGE = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
MIXTURE: dict[str, Tensor] = {
    "center": torch.zeros(4, dtype=torch.float64),
    "projection": torch.eye(4, 2, dtype=torch.float64),
    "log_weights": torch.zeros(K, dtype=torch.float64),
    "means": torch.ones(K, 2, dtype=torch.float64),
    "variances": torch.ones(K, 2, dtype=torch.float64),
    "average": AVERAGE,
}
TABLE = {"targets": torch.full((5, K), 1 / K), "average": AVERAGE}
NETWORK = {"network.weight": torch.zeros(K, 4), "network.bias": torch.zeros(K), "average": AVERAGE}
KINDS = {"gaussian_mixture": MIXTURE, "target_table": TABLE, "network": NETWORK}


def forged(kind: Any = "gaussian_mixture", card: Any = CARD, tensors: dict[str, Tensor] = MIXTURE) -> bytes:
    """A teacher file with a right digest, whatever it holds."""
    header = {"schema": "certvae.teacher/1", "kind": kind, "card": card}
    header["sha256"] = sha256_tensors(tensors, json.dumps(header, sort_keys=True).encode())
    return save(tensors, {"certvae": json.dumps(header)})


def changed(kind: str, **tensors: Tensor | None) -> bytes:
    """A file of this kind with other tensors; None leaves one out."""
    mixed = {**KINDS[kind], **tensors}
    return forged(kind, CARD, {key: value.contiguous() for key, value in mixed.items() if value is not None})


def raw(header: bytes | str | dict[str, Any], body: bytes = b"", size: int | None = None) -> bytes:
    """A safetensors file by hand; ``size`` is what it says of its header's length."""
    text = json.dumps(header) if isinstance(header, dict) else header
    content = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(content) if size is None else size) + content + body


def entry(shape: Any = (1,), start: int = 0, end: int = 4, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def twice(content: bytes) -> bytes:
    """A file whose header gives the first tensor's entry twice, which safetensors itself would read."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    name = next(key for key in header if key != "__metadata__")
    text = json.dumps(header)[:-1] + f", {json.dumps(name)}: {json.dumps(header[name])}}}"
    return raw(text, content[8 + size :])


def said(text: str) -> bytes:
    """A file whose card is this text, word for word."""
    return save(MIXTURE, {"certvae": text})


HEADERS: dict[str, bytes] = {
    "header longer than the file": raw({"a": entry()}, bytes(4), size=10**6),
    "header of 2^63 bytes": raw({"a": entry()}, bytes(4), size=2**63),
    "header of no bytes": raw(b"", bytes(4)),
    "header is no JSON": raw("{", bytes(4)),
    "header is no UTF-8": raw(b"\xff" * 8),
    "header is a list": raw("[]"),
    "header is a million deep": raw('{"a":' * 10**6),
    "overlapping offsets": raw({"a": entry(end=4), "b": entry(start=2, end=6)}, bytes(6)),
    "same offsets": raw({"a": entry(), "b": entry()}, bytes(4)),
    "offsets behind the end": raw({"a": entry(start=100, end=104)}, bytes(4)),
    "offsets backwards": raw({"a": entry(start=4, end=0)}, bytes(4)),
    "negative offsets": raw({"a": entry(start=-4, end=0)}, bytes(4)),
    "hole between tensors": raw({"a": entry(), "b": entry(start=8, end=12)}, bytes(12)),
    "bytes behind the tensors": raw({"a": entry()}, bytes(400)),
    "negative shape": raw({"a": entry(shape=[-1])}, bytes(4)),
    "shape of 2^62": raw({"a": entry(shape=[2**62])}, bytes(4)),
    "shape whose size overflows": raw({"a": entry(shape=[2**33, 2**33])}, bytes(4)),
    "empty shape of 2^62": raw({"a": entry(shape=[0, 2**62], end=0)}),
    "shape of fractions": raw({"a": entry(shape=[0.5])}, bytes(4)),
    "shape of text": raw({"a": entry(shape="1")}, bytes(4)),
    "unknown type": raw({"a": entry(dtype="PICKLE")}, bytes(4)),
    "type of another size": raw({"a": entry(dtype="F64")}, bytes(4)),
    "one tensor twice": twice(forged()),
    "metadata is a number": raw({"__metadata__": 5}),
    "metadata holds a list": raw({"__metadata__": {"certvae": []}}),
    "no card": save({"a": torch.zeros(1)}),
    "card is no JSON": said("{"),
    "card is text": said('"card"'),
    "card is 100,000 deep": said("[" * 100_000),
    "card is 40 deep": said('{"schema": "certvae.teacher/1", "card": ' + "[" * 40 + "]" * 40 + "}"),
    "card with a key twice": said('{"schema": "certvae.teacher/1", "schema": "certvae.teacher/1"}'),
    "card with NaN": said('{"schema": "certvae.teacher/1", "card": {"num_components": 3, "energy": NaN}}'),
    "card with Infinity": said('{"schema": "certvae.teacher/1", "card": {"num_components": 3, "energy": -Infinity}}'),
    "card with 1e999": said('{"schema": "certvae.teacher/1", "card": {"num_components": 3, "energy": 1e999}}'),
    "card with 5000 digits": said('{"schema": "certvae.teacher/1", "card": {"num_components": %s}}' % ("9" * 5000)),
    "other schema": said('{"schema": ["certvae.teacher/1"]}'),
    "wrong digest": said('{"schema": "certvae.teacher/1", "card": {"num_components": 3}, "sha256": "0"}'),
    "unknown kind": forged("oracle"),
    "kind is a list": forged(["network"]),
    "kind of another's tensors": forged("target_table"),
    "card is a list": forged(card=[1]),
    "card without K": forged(card={}),
}
VALUES: dict[str, list[Any]] = {
    "num_components": [1, 0, -3, 4, 10**9, 10**400, 3.0, "3", True, None, [3]],
    "temperature": [0, -1.0, 1e-9, 1e300, "2", True, None, [2.0]],
    "floor": [-0.1, 1.0, 10**400, "0", False, None],
    "seed": [0.5, "0", True, 10**30],
    "image_shape": [[], [1, 2, 3], [4.0], [True, 4], [-1, -4], [0], ["4"], [1] * 9, 4, "4", [[4]], [2**40, 2**40]],
    "value_range": [[1.0, 0.0], [0.0, 0.0], [0.0], [0.0, 1e300], ["a", "b"], 1.0, "01", [False, True], {}],
    "fingerprint": [5, [], "\x1b[2J", "a" * 3000, {}],
    "choice": [5, ["a"], "two\nlines", "a" * 3000],
    "information_train": [-1.0, 1.2, 10**400, "1", True, [1.0]],
    "information_held_out": [-1.0, 99, "1"],
    "energy": [-1.0, 1e300, "1", False],
    "largest_eigenvalue": [-1.0, 1e300, "1", {}],
}
NAN, INF = torch.nan, torch.inf
TENSORS: dict[str, bytes] = {
    "whole means": changed("gaussian_mixture", means=torch.ones(K, 2, dtype=torch.int64)),
    "truth-valued center": changed("gaussian_mixture", center=torch.ones(4, dtype=torch.bool)),
    "complex projection": changed("gaussian_mixture", projection=torch.ones(4, 2, dtype=torch.complex64)),
    "8-bit variances": changed("gaussian_mixture", variances=torch.ones(K, 2).to(torch.float8_e4m3fn)),
    "means of another K": changed("gaussian_mixture", means=torch.ones(K + 1, 2)),
    "weights of another K": changed("gaussian_mixture", log_weights=torch.zeros(K - 1)),
    "projection of other inputs": changed("gaussian_mixture", projection=torch.eye(5, 2)),
    "center of other images": changed("gaussian_mixture", center=torch.zeros(9), projection=torch.eye(9, 2)),
    "means without an axis": changed("gaussian_mixture", means=torch.tensor(1.0)),
    "no component axis": changed("gaussian_mixture", variances=torch.ones(K)),
    "no dimension": changed(
        "gaussian_mixture", projection=torch.ones(4, 0), means=torch.ones(K, 0), variances=torch.ones(K, 0)
    ),
    "NaN mean": changed("gaussian_mixture", means=torch.full((K, 2), NAN)),
    "infinite center": changed("gaussian_mixture", center=torch.full((4,), -INF)),
    "infinite weight": changed("gaussian_mixture", log_weights=torch.tensor([0.0, 0.0, -INF])),
    "absurd mean": changed("gaussian_mixture", means=torch.full((K, 2), 1e200, dtype=torch.float64)),
    "variance 0": changed("gaussian_mixture", variances=torch.zeros(K, 2)),
    "negative variance": changed("gaussian_mixture", variances=-torch.ones(K, 2)),
    "absurd variance": changed("gaussian_mixture", variances=torch.full((K, 2), 1e-300, dtype=torch.float64)),
    "no means": changed("gaussian_mixture", means=None),
    "tensor too many": changed("gaussian_mixture", other=torch.zeros(1)),
    "tensor named card": changed("gaussian_mixture", card=torch.zeros(1)),
    "tensor named self": changed("gaussian_mixture", self=torch.zeros(1)),
    "negative row": changed("target_table", targets=torch.tensor([[1.5, -0.5, 0.0]])),
    "row that sums to 3": changed("target_table", targets=torch.ones(2, K)),
    "row of zeros": changed("target_table", targets=torch.zeros(2, K)),
    "row half NaN": changed("target_table", targets=torch.tensor([[0.5, 0.5, NAN]])),
    "infinite row": changed("target_table", targets=torch.tensor([[INF, 0.0, 0.0]])),
    "whole rows": changed("target_table", targets=torch.eye(K, dtype=torch.int64)),
    "rows of another K": changed("target_table", targets=torch.full((2, 4), 0.25)),
    "rows without an axis": changed("target_table", targets=torch.full((K,), 1 / K)),
    "no targets": changed("target_table", targets=None),
    "NaN weight": changed("network", **{"network.weight": torch.full((K, 4), NAN)}),
    "infinite bias": changed("network", **{"network.bias": torch.tensor([0.0, 0.0, INF])}),
    "half a weight": changed("network", **{"network.weight": torch.zeros(K, 4, dtype=torch.float16)}),
    "weight of another K": changed("network", **{"network.weight": torch.zeros(K + 1, 4)}),
    "weight without its prefix": changed("network", weight=torch.zeros(K, 4)),
    "no bias": changed("network", **{"network.bias": None}),
    "weight too many": changed("network", **{"network.more": torch.zeros(1)}),
} | {
    f"average of a {kind}, {name}": changed(kind, average=value)
    for kind in KINDS
    for name, value in {
        "too short": AVERAGE[:2],
        "not summing to 1": 2 * AVERAGE,
        "negative": torch.tensor([1.5, -0.25, -0.25]),
        "NaN": torch.full((K,), NAN),
        "infinite": torch.tensor([INF, 0.0, 0.0]),
        "whole": torch.tensor([1, 0, 0]),
        "of rows": AVERAGE.expand(2, K),
    }.items()
}


def flatten() -> nn.Module:
    return nn.Linear(4, K)


REASONS = {
    "header of 2^63 bytes": "its header may have at most",
    "header too long": "its header may have at most",
    "header is a million deep": "nested deeper than",
    "one tensor twice": "a key occurs twice",
    "card with a key twice": "a key occurs twice",
    "card is 40 deep": "nested deeper than",
    "card is 100,000 deep": "nested deeper than",
    "card with NaN": "not finite",
    "card with Infinity": "not finite",
    "card with 1e999": "not finite",
    "wrong digest": "do not have the digest",
    "17 GB": "may have at most",
}


def refused(
    box: Box, write: Callable[[Path], Any], name: str, error: type[Exception] = TeacherFileError, **parts: Any
) -> None:
    """``name`` is of the reason, or of what the message must name."""
    path = box.path / "teacher.safetensors"
    write(path)
    with box.refuses(error, REASONS.get(name, "")):
        load_teacher(path, **parts)


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_that_are_altered_here_are_good(tmp_path: Path, kind: str) -> None:
    (tmp_path / "teacher.safetensors").write_bytes(changed(kind))
    parts: dict[str, Any] = {"network": flatten()} if kind == "network" else {}
    assert load_teacher(tmp_path / "teacher.safetensors", **parts).card.num_components == K


@pytest.mark.parametrize("form", ["pickle", "zip of torch", "legacy file of torch"])
def test_code_in_a_teacher_is_not_run(box: Box, form: str) -> None:
    path, code = box.path / "teacher.safetensors", Planted(box.marker)
    if form == "pickle":
        path.write_bytes(pickle.dumps(code))
    else:
        torch.save(code, path, _use_new_zipfile_serialization=form == "zip of torch")
    with box.refuses(TeacherFileError):
        small_vae(teacher=path)


@pytest.mark.parametrize("name", HEADERS)
def test_false_headers_are_refused(box: Box, name: str) -> None:
    refused(box, lambda path: path.write_bytes(HEADERS[name]), name)


@pytest.mark.parametrize(
    ("name", "value"),
    [pytest.param(name, value, id=f"{name} {str(value)[:20]!r}") for name in VALUES for value in VALUES[name]],
)
def test_absurd_cards_are_refused(box: Box, name: str, value: Any) -> None:
    refused(box, lambda path: path.write_bytes(forged(card={**CARD, name: value})), name)


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_are_no_teacher_are_refused(box: Box, name: str) -> None:
    parts: dict[str, Any] = {"network": flatten()} if b"network" in TENSORS[name] else {}
    refused(box, lambda path: path.write_bytes(TENSORS[name]), name, **parts)


def long_header(path: Path) -> None:
    sparse(HEADER_LIMIT + 100)(path)
    with open(path, "r+b") as file:
        file.write(struct.pack("<Q", HEADER_LIMIT + 1) + b'{"a":')


DAMAGED: dict[str, Callable[[Path], Any]] = {
    "first half": lambda path: path.write_bytes(changed("target_table")[:200]),
    "last byte cut off": lambda path: path.write_bytes(changed("target_table")[:-1]),
    "header too long": long_header,
    "17 GB": sparse(TEACHER_LIMIT + 1),
    "not readable": unreadable,
}


@pytest.mark.parametrize("name", [*NO_FILES, *SCRAPS, *DAMAGED])
def test_paths_without_a_teacher_are_refused(box: Box, name: str) -> None:
    expected = {**dict.fromkeys(NO_FILES, FileNotFoundError), "not readable": PermissionError}
    refused(box, {**NO_FILES, **SCRAPS, **DAMAGED}[name], name, expected.get(name, TeacherFileError))


def test_a_network_is_not_touched_by_weights_that_are_refused(tmp_path: Path) -> None:
    network = flatten()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    path = tmp_path / "teacher.safetensors"
    path.write_bytes(changed("network", **{"network.bias": torch.tensor([0.0, 0.0, NAN])}))
    with pytest.raises(TeacherFileError, match=os.fspath(path)):
        load_teacher(path, network=network)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
