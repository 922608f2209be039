"""The random streams of a process, as plain values and tensors that a checkpoint can hold."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["kept_random_state", "random_state", "set_random_state"]


def random_state(device: torch.device | str = "cpu") -> dict[str, Any]:
    """The states of torch's generators on the CPU and on ``device``, of numpy's global one and of Python's."""
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
    """Let every stream go on where :func:`random_state` was taken; another kind of device keeps its own."""
    device = torch.device(device)
    torch.set_rng_state(state["torch"].cpu())
    if state["device"] is not None and state["device"][0] == device.type:
        torch.get_device_module(device).set_rng_state(state["device"][1].cpu())
    np.random.set_state(state["numpy"])  # noqa: NPY002
    random.setstate(state["python"])


@contextmanager
def kept_random_state(seed: int | None = None) -> Iterator[None]:
    """Leave every stream at the end as it was at the beginning, whatever is drawn in between.

    Works as a decorator too. CUDA's stream is included once CUDA is in use.

    Args:
        seed: where the streams start in between; None: where they are.
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
