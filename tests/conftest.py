"""Shared inputs of the tests."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from torch import Tensor

# The same examples in each run; HYPOTHESIS_PROFILE=default looks for new ones.
settings.register_profile("certvae", derandomize=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "certvae"))
torch.set_num_threads(1)  # the networks of the tests are small; more threads only wait for each other


def random_probs(rows: int, components: int, seed: int, sharpness: float = 2.0) -> Tensor:
    """Random rows of probabilities, float64, shape ``(rows, components)``."""
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(rows, components, generator=generator, dtype=torch.float64)).softmax(dim=1)


def random_logits(rows: int, components: int, seed: int, scale: float = 2.0) -> Tensor:
    """Random logits, float64, shape ``(rows, components)``."""
    generator = torch.Generator().manual_seed(seed + 10_000)
    return scale * torch.randn(rows, components, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the real data sets; skips where it is not given."""
    folder = os.environ.get("CERTVAE_DATA_DIR")
    if not folder:
        pytest.skip("CERTVAE_DATA_DIR is not set, so there are no real CIFAR-100 and Tiny-ImageNet files to test on")
    return Path(folder)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The quick tests need not read a module of slow ones: a third of the time of the collection."""
    if config.option.markexpr != "not slow" or collection_path.suffix != ".py":
        return None
    return True if "\npytestmark = pytest.mark.slow\n" in collection_path.read_text() else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that read a whole real data set, or a whole run of a protocol, are slow."""
    for item in items:
        if {"data_dir", "finished"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
