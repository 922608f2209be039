"""Safe reading of untrusted files: limits on size and content, and one clear error."""

import io
import json
import math
import pickletools
import re
import stat
from pathlib import Path, PurePosixPath
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import yaml

__all__ = ["check_torch_file", "open_zip", "own_path", "parse_json", "parse_yaml", "read_limited", "regular_file"]

JSON_DEPTH = 32  # ours have 5 levels; copying, comparing and writing recurse, and would fail at 1,000
ZIP_DIRECTORY = 2**25  # bytes; Tiny-ImageNet's 120,000 members take a third; in memory they take ten times as much
YAML_NODES = 10**5  # with aliases and merge keys expanded; the longest YAML of a run has about 300
# Hashes of whole numbers are known: their remainder modulo 2^61 - 1. Dict keys with equal hashes take quadratic time,
# so the number of large integers is limited. Hashes of strings are secret.
LARGE, MOST_LARGE = 2**61 - 1, 1000
PICKLE_LIMIT = 2**23  # bytes without tensors; enough for 12,000 parameters with Adam's two moments

_DTYPES = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64 complex128"
_STORAGES = "Double Float Half BFloat16 Long Int Short Char Byte Bool ComplexFloat ComplexDouble"
# These copy their arguments, so only a few are allowed, for schedulers and shapes.
_COPYING = {"collections Counter", "__builtin__ set", "torch Size"}
MOST_COPIES = 16
# `weights_only` allows more names; among them, `bytearray` and `UntypedStorage` can allocate gigabytes.
_NAMES = {
    *_COPYING,
    "collections OrderedDict",
    "torch device",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
    *(f"torch {name}" for name in _DTYPES.split()),
    *(f"torch {name}Storage" for name in _STORAGES.split()),
}
_OWN = "if it is your own, keep only its `state_dict` in a new file"
_VALUES = re.compile("NONE|NEWTRUE|NEWFALSE|LONG1|BIN(INT[12]?|FLOAT|UNICODE)|SHORT_BINSTRING")


def regular_file(path: str | Path, limit: int, what: str = "file") -> Path:
    """Check that a path is a regular file of at most ``limit`` bytes; returns the path.

    Raises:
        FileNotFoundError: if it does not exist, or is a folder, a pipe or a device.
        ValueError: if it is larger.
    """
    path = Path(path)
    if not path.is_file():
        what_is_there = "it is not a regular file" if path.exists() else "there is no such file"
        if path.is_dir():
            what_is_there = "it is a folder; give the file in it"
        raise FileNotFoundError(f"no {what} at {path}: {what_is_there}.")
    if path.stat().st_size > limit:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes; a {what} may have at most {limit:,}.")
    return path


def read_limited(path: str | Path, limit: int, what: str = "file") -> bytes:
    """Read a regular file of at most ``limit`` bytes.

    Raises:
        FileNotFoundError: if there is no such regular file.
        ValueError: if it is larger.
        OSError: if it cannot be read.
    """
    with open(regular_file(path, limit, what), "rb") as file:
        return file.read(limit)


def own_path(path: Path, folder: Path) -> Path:
    """Check that a path does not lead out of ``folder`` by a link; returns the path.

    Raises:
        ValueError: if it does. The message names the link's target.
    """
    target = path.resolve()
    if not target.is_relative_to(folder.resolve()):
        raise ValueError(f"{path} is a link to {target}, outside {folder}, and is not read: copy the file there.")
    return path


def parse_yaml(text: str | bytes) -> Any:
    """Parse a YAML of plain values with at most ``YAML_NODES`` values, aliases and merge keys expanded.

    Raises:
        yaml.YAMLError: if it is not a YAML of plain values.
        ValueError: if it has too many values, too many large integers, or contains itself.
        RecursionError: if it is nested too deeply.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_nodes(node)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _check_nodes(root: yaml.Node) -> None:
    sizes: dict[int, int] = {}
    large = [0]

    def measure(node: yaml.Node) -> int:
        known = sizes.get(id(node))
        if known is not None:
            return known
        sizes[id(node)] = YAML_NODES + 1  # stays until the size is known, so a node that contains itself is too large
        parts = [] if isinstance(node, yaml.ScalarNode) else node.value
        children = [child for part in parts for child in (part if isinstance(part, tuple) else (part,))]
        sizes[id(node)] = size = min(1 + sum(map(measure, children)), YAML_NODES + 1)
        if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":int"):
            large[0] += len(node.value) > 18
            if len(node.value) > 100 or large[0] > MOST_LARGE:
                raise ValueError("it has whole numbers that are too large, or too many of them")
        return size

    if measure(root) > YAML_NODES:
        raise ValueError(f"it has more than {YAML_NODES:,} values, with its aliases written out")


def parse_json(text: str | bytes) -> Any:
    """Parse strict JSON in UTF-8: finite numbers, unique keys, at most ``JSON_DEPTH`` levels.

    Raises:
        json.JSONDecodeError: if it is not JSON, or is truncated.
        ValueError: if a number is not finite, a key occurs twice, or the nesting is too deep.
    """
    try:
        text = text.decode() if isinstance(text, bytes) else text
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {JSON_DEPTH} levels") from None
    level = [value]
    for _ in range(JSON_DEPTH):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
    if level:
        raise ValueError(f"it is nested deeper than {JSON_DEPTH} levels")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key occurs twice in an object")
    return values


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is not finite")
    return value


class _DirectoryLimit(io.FileIO):
    """A file that limits the size of a single read. ``ZipFile`` reads its whole directory in one read."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > ZIP_DIRECTORY:
            raise BadZipFile(f"its directory has more than {ZIP_DIRECTORY:,} bytes")
        return super().read(size) or b""

    def __del__(self) -> None:
        self.close()  # ZipFile does not close a file object that it was given


def open_zip(path: str | Path, limit: int) -> ZipFile:
    """Open a zip after checks: plain files and folders only, unique names, no overlapping members.

    Nothing is extracted. Read a member by ``archive.open(info).read(info.file_size)``, which never unpacks more bytes
    than the header states.

    Args:
        path: a regular file.
        limit: largest total size of all members in bytes, unpacked.

    Raises:
        BadZipFile: if it is not a zip, is damaged, exceeds the limit, or a check fails.
        OSError: if it cannot be read.
    """
    file = _DirectoryLimit(path)
    try:
        archive = ZipFile(file)
    except Exception as error:  # zipfile raises half a dozen types for a damaged directory
        raise BadZipFile(str(error) or type(error).__name__) from None
    infos = archive.infolist()
    for info in infos:
        _check_member(info)
    if len({info.filename.casefold() for info in infos}) < len(infos):
        raise BadZipFile("two of its members have the same name")
    if sum(info.compress_size for info in infos) > Path(path).stat().st_size:
        raise BadZipFile("its members overlap")
    if sum(info.file_size for info in infos) > limit:
        raise BadZipFile(f"its members have more than {limit:,} bytes, unpacked")
    return archive


def _check_member(info: ZipInfo) -> None:
    name, kind = PurePosixPath(info.filename), stat.S_IFMT(info.external_attr >> 16)
    stored = info.compress_type == ZIP_STORED
    for fault, holds in (
        ("is outside its folder", name.is_absolute() or ".." in name.parts or "\\" in info.filename),
        ("is a link or a device", kind not in (0, stat.S_IFREG, stat.S_IFDIR)),
        ("is encrypted", bool(info.flag_bits & 1)),
        ("is neither stored nor deflated", not stored and info.compress_type != ZIP_DEFLATED),
        ("is stored uncompressed with two different sizes", stored and info.compress_size != info.file_size),
    ):
        if holds:
            raise BadZipFile(f"its member {info.filename[:100]!r} {fault}")


def check_torch_file(path: Path, limit: int) -> None:
    """Reject a file for which ``torch.load`` would need far more time or memory than the file's size suggests.

    Args:
        path: a regular file.
        limit: largest total size of its members in bytes.

    Raises:
        BadZipFile: if it is not a zip as ``torch.save`` writes it.
        ValueError: if its pickle uses names or structures that plain values and tensors do not need.
    """
    with open(path, "rb") as file:
        if file.read(4) != b"PK\3\4":
            raise BadZipFile("it is not in the zip format of torch.save")
    with open_zip(path, limit) as archive:
        infos = archive.infolist()
        if any(info.compress_type != ZIP_STORED for info in infos):
            raise BadZipFile("a member is compressed, which torch.save never does")
        # torch ignores case in names of members: 'data/ab' and 'data/aB' would each be read.
        odd = [name for name in archive.namelist() if "/data/" in name and not re.fullmatch("[^/]+/data/[0-9]+", name)]
        if odd:
            raise BadZipFile(f"the member {odd[0][:100]!r} is not one that torch.save writes")
        _check_pickle(_pickle_of(archive))


def _pickle_of(archive: ZipFile) -> bytes:
    found = [info for info in archive.infolist() if info.filename.endswith("/data.pkl")]
    if len(found) != 1 or found[0].file_size > PICKLE_LIMIT:
        raise BadZipFile(f"it must have one member data.pkl of at most {PICKLE_LIMIT:,} bytes")
    return archive.open(found[0]).read(found[0].file_size)


def _check_pickle(pickled: bytes) -> None:
    """Reject a pickle that uses more names than tensors need, or that could take excessive time or memory.

    Only hashing and the few functions in ``_NAMES`` read an existing object. So a nested tuple may not be used twice
    (its hash can take exponential time), and an ``OrderedDict`` must be created empty. Keys of a dict may not be
    tuples, and only a limited number may be large integers, because such keys can all have the same hash.

    Raises:
        ValueError: if a check fails. The message names the finding.
    """
    memo: dict[Any, str] = {}
    stack = _Kinds()
    last, copies, large, listed = "", 0, 0, 0
    for code, arg, _ in pickletools.genops(pickled):
        if code.name in ("BINPUT", "LONG_BINPUT"):
            memo[arg] = last
            continue
        again = code.name in ("BINGET", "LONG_BINGET")
        kind = memo.get(arg, "") if again else _kind(code.name, arg, stack)
        copies += kind in _COPYING or code.name == "BUILD"
        large += isinstance(arg, int) and kind == "value" and abs(arg) >= LARGE
        if again and kind == "TUPLE":
            raise ValueError(f"it uses a long or nested tuple twice; {_OWN}")
        if copies > MOST_COPIES or (last == "collections OrderedDict" and kind != "EMPTY_TUPLE"):
            raise ValueError(f"it copies objects more than tensors need; {_OWN}")
        # `set` and `Counter` take their members from a list.
        listed += stack.hard_keys(code.name, ("APPEND", "APPENDS"), 1)
        members = listed if copies else 0
        if max(large, members) > MOST_LARGE or stack.hard_keys(code.name, ("SETITEM", "SETITEMS"), 2):
            raise ValueError(f"its dicts have keys that tensors by name do not need; {_OWN}")
        if kind != "PROTO":
            stack.step(code, kind)
            last = kind


class _Kinds:
    """The kinds of the objects on a pickle's stack."""

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self.marks: list[int] = []

    def top(self, count: int | None = None) -> list[str]:
        """The kinds of the last ``count`` objects, or of all objects since the last mark."""
        start = (self.marks[-1] if self.marks else 0) if count is None else len(self.kinds) - count
        return self.kinds[max(start, 0) :]

    def hard_keys(self, name: str, fills: tuple[str, str], step: int) -> int:
        """Number of tuples that an instruction in ``fills`` adds to a list, or to a dict as keys; otherwise 0."""
        if name not in fills:
            return 0
        return sum(kind in ("TUPLE", "flat") for kind in self.top(step if name == fills[0] else None)[::step])

    def step(self, code: pickletools.OpcodeInfo, kind: str) -> None:
        """Apply an instruction to the stack: remove its arguments, and add its result."""
        if code.name == "MARK":
            self.marks.append(len(self.kinds))
            return
        count = len(code.stack_before)
        if pickletools.markobject in code.stack_before:
            count = code.stack_before.index(pickletools.markobject)
            del self.kinds[self.marks.pop() if self.marks else 0 :]
        kept = self.kinds[max(len(self.kinds) - count, 0) :]
        del self.kinds[max(len(self.kinds) - count, 0) :]
        # An instruction that fills an object leaves it on the stack; any other leaves its result.
        filled = code.name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD")
        self.kinds += (kept[:1] or [""]) if filled else [kind] * len(code.stack_after)


def _kind(name: str, arg: Any, stack: _Kinds) -> str:
    """The kind that an instruction puts on the stack: an allowed name, ``value``, or ``flat`` (a short tuple)."""

    if name == "GLOBAL" and arg not in _NAMES:
        raise ValueError(f"it names {str(arg)[:100]!r}, which plain values and tensors do not need; {_OWN}")
    if name == "GLOBAL":
        return str(arg)
    if name.startswith("TUPLE"):
        parts = stack.top(None if name == "TUPLE" else int(name[5:]))
        return "flat" if len(parts) <= 8 and parts == ["value"] * len(parts) else "TUPLE"
    return "value" if _VALUES.fullmatch(name) else name
