"""Loading the weights of a checkpoint without running any code in it."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from certvae.io.untrusted import check_torch_file, regular_file

__all__ = ["CheckpointFileError", "WeightsMismatchError", "is_diverged", "load_weights", "read_checkpoint"]

CHECKPOINT_LIMIT = 2**34  # bytes; 1.4 billion float32 parameters with Adam's two moments


class CheckpointFileError(ValueError):
    """The file is not a checkpoint, or cannot be read without running code."""


class WeightsMismatchError(CheckpointFileError):
    """The checkpoint's weights do not fit the model."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint without running any code in it (``weights_only``), on the CPU.

    Memory and time are proportional to the file's size, for any content.

    Raises:
        FileNotFoundError: if there is no such regular file.
        CheckpointFileError: if the file contains more than plain values and tensors, is damaged, or is not in the zip
            format of ``torch.save``.
        OSError: if it cannot be read.
    """
    try:
        check_torch_file(regular_file(path, CHECKPOINT_LIMIT, "checkpoint"), CHECKPOINT_LIMIT)
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


def load_weights(module: nn.Module, path: str | Path) -> None:
    """Load the weights of a checkpoint into a module. All keys, shapes and kinds of dtype must match.

    A value that is not finite is accepted only if the module has the same value there, as in a mask.

    Raises:
        FileNotFoundError: if there is no such regular file.
        CheckpointFileError: if it is not a checkpoint; see :func:`read_checkpoint`.
        WeightsMismatchError: if keys are missing or unexpected, shapes or dtypes differ, or a weight is not finite.
            The message lists them.
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
    """Whether ``given`` has NaN or infinite values that ``own`` does not have at the same places."""
    odd = ~given.isfinite()
    return bool(odd.any()) and not torch.equal(given[odd], own.cpu()[odd])
