"""Awkward inputs: every way of handing in an array or a number that is not the plain one."""

import re
import traceback
import warnings
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from torch import Tensor

from tests.conftest import random_logits, random_probs

NUMBERS = (0.0, -1.0, 0.05, 0.5, 1.0, 0.95, 1 - 1e-16, 1e308, -1e308, 1e-300, 5e-324, 1e50, 1e-15, 3, 10, 10**400)
STRANGE_NUMBERS: tuple[Any, ...] = (
    *(float("nan"), float("inf"), -float("inf"), True, False, None, "0.5", "", b"1", [], [0.5], {}, 1 + 2j, object),
    *(np.float32(0.25), np.float64(0.5), np.int64(4), np.bool_(True), Fraction(1, 3), Decimal("0.5")),
    *(np.array([0.5, 0.5]), torch.tensor(0.5), torch.tensor(3), torch.tensor([0.5, 0.5])),
)


def _read_only(values: Tensor) -> np.ndarray:
    array = values.numpy().copy()
    array.flags.writeable = False
    return array


def _every_second(values: Tensor) -> Tensor:
    return torch.stack([values, torch.full_like(values, torch.nan)], dim=-1).flatten(-2)[..., ::2]


# The same values, handed in otherwise.
DISGUISES: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda values: values,
    "list": lambda values: values.tolist() if values.numel() else values,
    "list of tensors": lambda values: list(values) if values.numel() else values,
    "numpy": lambda values: values.numpy(),
    "read-only": _read_only,
    "big-endian": lambda values: values.numpy().astype(">f8"),
    "reversed": lambda values: values.numpy()[::-1].copy()[::-1],
    "long double": lambda values: values.numpy().astype(np.longdouble),
    "transposed": lambda values: values.mT.contiguous().mT if values.ndim > 1 else values,
    "fortran": lambda values: np.asfortranarray(values.numpy()),
    "strided": _every_second,
    "requires grad": lambda values: values.clone().requires_grad_(),
    "parameter": torch.nn.Parameter,
    "graph": lambda values: values.clone().requires_grad_() * 1.0,
}
# The values rounded.
NARROW: dict[str, Callable[[Tensor], Any]] = {
    "float32": Tensor.float,
    "float16": Tensor.half,
    "bfloat16": Tensor.bfloat16,
}
# Other things: what is wrong is in the name.
FAULTS: dict[str, Callable[[Tensor], Any]] = {
    "None": lambda values: None,
    "number": lambda values: 0.5,
    "text": lambda values: "probabilities",
    "texts": lambda values: values.numpy().astype(str),
    "object": lambda values: object(),
    "objects": lambda values: values.numpy().astype(object),
    "None inside": lambda values: [[None, 0.5]],
    "dict": lambda values: {"probs": 1.0},
    "set": lambda values: {0.5},
    "dates": lambda values: np.array(["2020-01-01"], dtype="datetime64[D]"),
    "ragged": lambda values: [[0.5, 0.5], [1.0]],
    "huge int": lambda values: [[10**400, 1]],
    "whole": lambda values: values.to(torch.int64),
    "bool": lambda values: values > 0.5,
    "unsigned": lambda values: np.ones(values.shape, dtype=np.uint64),
    "complex": lambda values: values.to(torch.complex128),
    "complex numpy": lambda values: values.numpy().astype(np.complex64),
    "float8": lambda values: values.to(torch.float8_e4m3fn),
    "sparse": lambda values: values.to_sparse(),
    "sparse rows": lambda values: values.to_sparse_csr() if values.ndim == 2 else values.to_sparse(),
    "nested": lambda values: torch.nested.nested_tensor([values.flatten(), values.flatten()]),
    "quantized": lambda values: torch.quantize_per_tensor(values.float(), 0.1, 0, torch.quint8),
    "meta": lambda values: values.to("meta"),
    "one axis less": lambda values: values.flatten(0, 1) if values.ndim > 1 else values.sum(),
    "one axis more": lambda values: values[None],
    "one component": lambda values: values[..., :1],
    "no component": lambda values: values[..., :0],
    "a row less": lambda values: values[:-1],
    "no row": lambda values: values[:0],
    "a row more": lambda values: torch.cat([values, values[-1:]]),
    "a component more": lambda values: torch.cat([values, values[..., -1:]], dim=-1),
    "a component less": lambda values: values[..., :-1],
    "NaN": lambda values: _with_value(values, torch.nan),
    "inf": lambda values: _with_value(values, torch.inf),
    "-inf": lambda values: _with_value(values, -torch.inf),
    "1e308": lambda values: _with_value(values, 1e308),
    "-1e308": lambda values: _with_value(values, -1e308),
    "1e300": lambda values: _with_value(values, 1e300),
    "1e49": lambda values: _with_value(values, 1e49),
    "-1e49": lambda values: _with_value(values, -1e49),
    "5e-324": lambda values: _with_value(values, 5e-324),
    "-0.1": lambda values: _with_value(values, -0.1),
    "twice": lambda values: 2 * values,
    "tiny": lambda values: 1e-300 * values,
    "zero": torch.zeros_like,
    "expanded": lambda values: values[:1].expand(values.shape),
}
WAYS = DISGUISES | NARROW | FAULTS


def _with_value(values: Tensor, value: float) -> Tensor:
    spoiled = values.clone()
    if spoiled.numel():
        spoiled.view(-1)[spoiled.numel() // 2] = value
    return spoiled


@st.composite
def shapes(draw: DrawFn) -> tuple[int, int]:
    """Rows and components."""
    return draw(st.sampled_from([0, 1, 2, 3, 17])), draw(st.sampled_from([2, 2, 3, 5, 150]))


def probabilities(draw: DrawFn, rows: int, components: int) -> Tensor:
    """Rows of probabilities of every kind, float64."""
    seed, kind = (
        draw(st.integers(0, 2**16)),
        draw(st.sampled_from(["random", "sharp", "one-hot", "flat", "same", "1e-300"])),
    )
    if kind == "same":
        return random_probs(1, components, seed).repeat(rows, 1)
    sharpness = {"random": 2.0, "sharp": 300.0, "flat": 1e-9}.get(kind, 2.0)
    probs = random_probs(rows, components, seed, sharpness)
    if kind == "one-hot":
        return torch.nn.functional.one_hot(probs.argmax(dim=1), components).double()
    if kind == "1e-300" and rows:
        probs[:, 0] = 1e-300
        probs[:, 1] += 1 - probs.sum(dim=1)
    return probs


def logits(draw: DrawFn, probs: Tensor) -> Tensor:
    """Logits of every kind for these rows, float64."""
    rows, components = probs.shape
    scale = draw(st.sampled_from([0.0, 1e-7, 1.0, 30.0, 1e5, 1e7]))
    noise = random_logits(rows, components, draw(st.integers(0, 2**16)), scale)
    kind = draw(st.sampled_from(["noise", "teacher", "constant"]))
    if kind == "constant":
        return noise[:1].repeat(rows, 1)
    return noise if kind == "noise" else probs.clamp(min=1e-300).log() + noise


def spoiled(draw: DrawFn, values: Tensor, chance: int = 4) -> Any:
    """The values as they are, or in disguise, or (one time in ``chance``) faulty."""
    names = [*FAULTS] if draw(st.integers(1, chance)) == 1 else [*DISGUISES, *NARROW]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, on making strange tensors
        try:
            return WAYS[draw(st.sampled_from(names))](values)
        except (RuntimeError, ValueError):  # values of this shape or type cannot be handed in so
            return values


def number(draw: DrawFn, *good: Any, chance: int = 4, most: int = 10**401) -> Any:
    """One of the good values, or (one time in ``chance``) any number, none above ``most``, or what is no number."""
    if draw(st.integers(1, chance)) > 1:
        return draw(st.sampled_from(good))
    value = draw(st.sampled_from([*NUMBERS, *STRANGE_NUMBERS]))
    return -value if isinstance(value, int) and value > most else value


def outcome(call: Callable[[], Any], check: Callable[[Any], None]) -> str:
    """``"result"`` if the call gives one that passes the check, or the name of the error that it documents.

    Any other exception, and any warning, is let through: it fails the test.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            result = call()
        except (ValueError, TypeError) as error:
            return _documented(error)
    check(result)
    return "result"


def _documented(error: Exception) -> str:
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    ours = frame.f_globals["__name__"].split(".")[0] == "certvae" and type(error) in (ValueError, TypeError)
    if not ours or not re.search(r"`[a-z]\w*", str(error)):
        raise AssertionError(f"not an error of ours that names an argument: {error!r}") from error
    return type(error).__name__
