"""Taking the weights, and only the weights, out of a checkpoint."""

import pickletools
import re
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import torch
from torch import Tensor, nn

from certvae.io.files import open_zip, regular_file

__all__ = ["CheckpointFileError", "WeightsMismatchError", "is_diverged", "load_weights", "read_checkpoint"]

CHECKPOINT_LIMIT = 2**34  # bytes; 1.4 billion float32 parameters with Adam's two moments
PICKLE_LIMIT = 2**23  # bytes of the part that is not tensors; 12,000 parameters with Adam's two moments

_DTYPES = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64 complex128"
_STORAGES = "Double Float Half BFloat16 Long Int Short Char Byte Bool ComplexFloat ComplexDouble"
# These copy what they are given, so only a few of them: schedulers, shapes.
_COPYING = {"collections Counter", "__builtin__ set", "torch Size"}
MOST_COPIES = 16
# `weights_only` allows more names; of those, `bytearray` and `UntypedStorage` take gigabytes at a word.
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


class CheckpointFileError(ValueError):
    """A file is not a checkpoint, or not one that can be read without running code."""


class WeightsMismatchError(CheckpointFileError):
    """A checkpoint's weights do not fit the model."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint without running any code in it (``weights_only``), on the CPU.

    Memory and time stay in proportion to the file's size, whatever is in it.

    Raises:
        FileNotFoundError: if there is no such regular file.
        CheckpointFileError: if the file holds anything but plain values and tensors, is damaged, or is not in the zip
            format of ``torch.save``.
        OSError: if it may not be read.
    """
    try:
        _check_file(regular_file(path, CHECKPOINT_LIMIT, "checkpoint"))
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch raises a dozen types for a damaged file
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0][:500]
        raise CheckpointFileError(
            f"{path} is not a checkpoint that can be read without running code: {first_line}"
        ) from None
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise CheckpointFileError(f"{path} holds no `state_dict`; give a checkpoint that Lightning wrote.")
    weights = checkpoint["state_dict"]
    if not isinstance(weights, dict) or not all(isinstance(key, str) and _is_dense(weights[key]) for key in weights):
        raise CheckpointFileError(f"{path} holds a `state_dict` that is not tensors by name.")
    return checkpoint


def _is_dense(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided and value.device.type == "cpu"


def _check_file(path: Path) -> None:
    """Refuse what ``torch.load`` would read, but at a cost out of proportion to the file's size."""
    with open(path, "rb") as file:
        if file.read(4) != b"PK\3\4":
            raise BadZipFile("it is not in the zip format of torch.save")
    with open_zip(path, CHECKPOINT_LIMIT) as archive:
        infos = archive.infolist()
        if any(info.compress_type != ZIP_STORED for info in infos):
            raise BadZipFile("a member is compressed, which torch.save never does")
        # torch finds members by name without regard to case: 'data/ab' and 'data/aB' would each be read.
        odd = [name for name in archive.namelist() if "/data/" in name and not re.fullmatch("[^/]+/data/[0-9]+", name)]
        if odd:
            raise BadZipFile(f"the member {odd[0][:100]!r} is none that torch.save writes")
        _check_pickle(_pickle_of(archive))


def _pickle_of(archive: ZipFile) -> bytes:
    found = [info for info in archive.infolist() if info.filename.endswith("/data.pkl")]
    if len(found) != 1 or found[0].file_size > PICKLE_LIMIT:
        raise BadZipFile(f"it must have one member data.pkl of at most {PICKLE_LIMIT:,} bytes")
    return archive.open(found[0]).read(found[0].file_size)


def _check_pickle(pickled: bytes) -> None:
    """Refuse a pickle that names more than tensors need, or whose parts could multiply when they are read.

    Only hashing, and the few functions in ``_NAMES``, look into an object that was made before: so no tuple in a
    tuple may be used twice (its hash can take for ever), and an ``OrderedDict`` must be made empty.

    Raises:
        ValueError: saying what was found.
    """
    memo: dict[Any, str] = {}
    recent: list[str] = []  # kinds of what was put on the stack since the last mark
    last, copies = "", 0
    for code, arg, _ in pickletools.genops(pickled):
        if code.name in ("BINPUT", "LONG_BINPUT"):
            memo[arg] = last
            continue
        again = code.name in ("BINGET", "LONG_BINGET")
        kind = memo.get(arg, "") if again else _kind(code.name, arg, recent)
        copies += kind in _COPYING or code.name == "BUILD"
        if again and kind == "TUPLE":
            raise ValueError(f"it uses a long or nested tuple twice; {_OWN}")
        if copies > MOST_COPIES or (last == "collections OrderedDict" and kind != "EMPTY_TUPLE"):
            raise ValueError(f"it copies objects more than tensors need; {_OWN}")
        if kind != "PROTO":
            recent, last = [] if kind == "MARK" else [*recent[-8:], kind], kind


def _kind(name: str, arg: Any, recent: list[str]) -> str:
    """What an instruction puts on the stack: a name that is known, ``value``, ``flat`` (a short tuple of values)."""
    if name == "GLOBAL" and arg not in _NAMES:
        raise ValueError(f"it names {str(arg)[:100]!r}, which plain values and tensors do not need; {_OWN}")
    if name == "GLOBAL":
        return str(arg)
    if name.startswith("TUPLE"):
        parts = recent if name == "TUPLE" else recent[-int(name[5:]) :]
        return "flat" if len(parts) <= 8 and parts == ["value"] * len(parts) else "TUPLE"
    return "value" if _VALUES.fullmatch(name) else name


def load_weights(module: nn.Module, path: str | Path) -> None:
    """Load the weights of a checkpoint into a module; every key, shape and kind of number must fit.

    A value that is not finite is let through only where the module has the same one, as in a mask.

    Raises:
        FileNotFoundError: if there is no such regular file.
        CheckpointFileError: if it is not a checkpoint; see :func:`read_checkpoint`.
        WeightsMismatchError: listing missing keys, unexpected keys, shapes and types that differ, or naming a weight
            that is not finite.
    """
    given, own = read_checkpoint(path)["state_dict"], module.state_dict()
    shapes = [
        f"{key}: {tuple(own[key].shape)} here, {tuple(given[key].shape)} there"
        for key in sorted(own.keys() & given.keys())
        if own[key].shape != given[key].shape
    ]
    missing, unexpected = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    if missing or unexpected or shapes:
        raise WeightsMismatchError(
            f"`init_weights_from={path}` does not fit this model; missing keys: {_few(missing)}, unexpected keys: "
            f"{_few(unexpected)}, other shapes: {_few(shapes)}. Use the networks that the checkpoint was trained with."
        )
    for key, value in given.items():
        _check_values(key, value, own[key])
    module.load_state_dict(given)


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"{[name[:100] for name in names[:10]]}{more}"


def _check_values(key: str, given: Tensor, own: Tensor) -> None:
    if given.dtype != own.dtype and not (given.is_floating_point() and own.is_floating_point()):
        raise WeightsMismatchError(f"the checkpoint's `{key}` must be {own.dtype}, got {given.dtype}.")
    if is_diverged(given.to(own.dtype), own):
        raise WeightsMismatchError(f"the checkpoint's `{key}` holds NaN or infinite values: that run had diverged.")


def is_diverged(given: Tensor, own: Tensor) -> bool:
    """Whether a weight is not finite where a fresh module's is, unlike a mask with infinities of its own."""
    odd = ~given.isfinite()
    return bool(odd.any()) and not torch.equal(given[odd], own.cpu()[odd])
