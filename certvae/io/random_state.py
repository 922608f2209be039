"""Saving and restoring the random states of torch, numpy and Python."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["kept_random_state", "random_state", "set_random_state"]


def random_state(device: torch.device | str = "cpu") -> dict[str, Any]:
    """The random states of torch (CPU and ``device``), numpy and Python, as values that a checkpoint can hold."""
    device = torch.device(device)
    state = np.random.get_state(legacy=False)  # noqa: NPY002
    assert isinstance(state, dict)
    return {
        "torch": torch.get_rng_state(),
        "device": None if device.type == "cpu" else [device.type, torch.get_device_module(device).get_rng_state()],
        "numpy": _plain(state),
        "python": random.getstate(),
    }


def set_random_state(state: dict[str, Any], device: torch.device | str = "cpu") -> None:
    """Restore the states from :func:`random_state`. A device of another type keeps its current state."""
    device = torch.device(device)
    torch.set_rng_state(state["torch"].cpu())
    if state["device"] is not None and state["device"][0] == device.type:
        torch.get_device_module(device).set_rng_state(state["device"][1].cpu())
    np.random.set_state(state["numpy"])  # noqa: NPY002
    random.setstate(state["python"])


@contextmanager
def kept_random_state(seed: int | None = None) -> Iterator[None]:
    """Context manager or decorator that restores all random states on exit.

    CUDA's state is included if CUDA is in use.

    Args:
        seed: seed inside the context; None: continue from the current states.
    """
    device = "cuda" if torch.cuda.is_initialized() else "cpu"
    state = random_state(device)
    try:
        if seed is not None:
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            random.seed(seed)
        yield
    finally:
        set_random_state(state, device)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
