"""Whether two certificates say the same."""

from dataclasses import asdict
from typing import Any

import pytest

from certvae import Certificate


def assert_same(one: Certificate, other: Certificate, tolerance: float = 1e-10, relative: float = 0.0) -> None:
    """Every field, numbers to a tolerance."""
    _assert_same("certificate", asdict(one), asdict(other), tolerance, relative)


def _assert_same(name: str, one: Any, other: Any, tolerance: float, relative: float) -> None:
    if isinstance(one, dict) and isinstance(other, dict):
        assert set(one) == set(other), name
        for key in one:
            _assert_same(f"{name}.{key}", one[key], other[key], tolerance, relative)
    elif isinstance(one, list) and isinstance(other, list):
        assert len(one) == len(other), name
        for place, (left, right) in enumerate(zip(one, other, strict=True)):
            _assert_same(f"{name}[{place}]", left, right, tolerance, relative)
    elif isinstance(one, float) and isinstance(other, float):
        assert one == pytest.approx(other, abs=tolerance, rel=relative), name
    else:
        assert one == other, name
