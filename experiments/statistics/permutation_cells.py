"""Measures how often the permutation test rejects if the witness does not depend on the input."""

from collections.abc import Iterator
from itertools import product

import numpy as np
import torch
from coverage_cells import COMPONENTS, SIZES
from numpy.typing import NDArray
from populations import ALPHA, NULL, SHARPNESS, Array, make_teacher

from certvae.theory.permutation import permutation_p_value

__all__ = ["PERMUTATIONS", "permutation_cells"]

PERMUTATIONS = 99
Indices = NDArray[np.int64]

_TEACHERS, _WITNESSES = 100, 20
_ROUNDING = 1e-12  # as in the shipped test


def permutation_cells(seed: int, repetitions: int) -> Iterator[list[dict[str, object]]]:
    """An empty list after each repetition, and the results of all cells after the last one of each size.

    The pairings of a repetition are shared by all cells of a size: which teacher row meets which witness row is one
    table of counts, and a cell's scores are that table times the scores of the pairs of types. The first repetition
    of each size is made again by the shipped test, which must give the same p-values.
    """
    cells = list(product(COMPONENTS, SHARPNESS, NULL))
    for size in SIZES:
        rng = np.random.default_rng([seed, 2, size])
        types = [_types(rng, *cell) for cell in cells]
        scores = np.stack([(teacher @ witness.T).ravel() for teacher, witness in types], axis=1)
        rejections = np.zeros(len(cells), dtype=int)
        for repetition in range(repetitions):
            values = _p_values(rng, scores, size, None if repetition else types)
            rejections += values <= ALPHA + _ROUNDING
            yield []
        yield [_result(size, cell, repetitions, int(count)) for cell, count in zip(cells, rejections, strict=True)]


def _types(rng: np.random.Generator, components: int, teacher: str, witness: str) -> tuple[Array, Array]:
    probs = make_teacher(rng, _TEACHERS, components, SHARPNESS[teacher])
    noise = {"best_constant": 0.0, "other_constant": 1.0, "independent": 1.0, "faint": 0.05}[witness]
    shape = (1 if witness == "other_constant" else _WITNESSES, components)
    logits = np.log(probs.mean(axis=0)) + noise * rng.standard_normal(shape)
    answers = torch.as_tensor(logits).log_softmax(dim=1).numpy()
    return probs, np.broadcast_to(answers, (_WITNESSES, components))


def _p_values(rng: np.random.Generator, scores: Array, size: int, types: list[tuple[Array, Array]] | None) -> Array:
    """The p-value of every cell on one data set; with ``types``, compared with the shipped test."""
    teacher, witness = (rng.integers(0, count, size) for count in (_TEACHERS, _WITNESSES))
    seed = int(rng.integers(2**31))
    found = _pairing_tables(teacher, witness, seed) @ scores
    at_least = found[1:] >= found[0] - _ROUNDING * abs(found[0])
    values = (1 + at_least.sum(axis=0)) / (1 + PERMUTATIONS)
    for value, (probs, answers) in zip(values, types or [], strict=False):
        rows = probs[teacher], answers[witness]
        shipped = permutation_p_value(*rows, PERMUTATIONS, torch.Generator().manual_seed(seed))
        if value != shipped:
            raise AssertionError(f"the table of counts gives {value}, the shipped test {shipped}.")
    return values


def _pairing_tables(teacher: Indices, witness: Indices, seed: int) -> Array:
    """How often each pair of types meets in the seen pairing and in each permutation, shape ``(1 + B, pairs)``."""
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(teacher), generator=generator).numpy() for _ in range(PERMUTATIONS)]
    meetings = [witness, *(witness[order] for order in orders)]
    pairs = _TEACHERS * _WITNESSES
    return np.stack([np.bincount(teacher * _WITNESSES + met, minlength=pairs) for met in meetings]).astype(float)


def _result(size: int, cell: tuple[int, str, str], repetitions: int, rejections: int) -> dict[str, object]:
    components, teacher, witness = cell
    place = {"n": size, "K": components, "teacher": teacher, "witness": witness}
    return {**place, "permutations": PERMUTATIONS, "repetitions": repetitions, "rejections": rejections}
