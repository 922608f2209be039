"""Taking the weights, and only the weights, out of a checkpoint."""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

__all__ = ["WeightsMismatchError", "load_weights", "read_checkpoint"]


class WeightsMismatchError(ValueError):
    """A checkpoint's weights do not fit the model."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint without running any code in it (``weights_only``), on the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file holds anything but plain values and tensors, or is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} is not a checkpoint that can be read without running code: {first_line}") from None
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"{path} holds no `state_dict`; give a checkpoint that Lightning wrote.")
    weights = checkpoint["state_dict"]
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ValueError(f"{path} holds a `state_dict` that is not tensors by name.")
    return checkpoint


def load_weights(module: nn.Module, path: str | Path) -> None:
    """Load the weights of a checkpoint into a module; every key and shape must fit.

    Raises:
        ValueError: listing missing keys, unexpected keys and shapes that differ.
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
            f"`init_weights_from={path}` does not fit this model; missing keys: {missing}, unexpected keys: "
            f"{unexpected}, other shapes: {shapes}. Use the networks that the checkpoint was trained with."
        )
    module.load_state_dict(given)
