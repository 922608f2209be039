"""Measures how often a lower bound exceeds the population's margin, and how often it certifies."""

from collections.abc import Iterator
from itertools import product

import numpy as np
from populations import NULL, SHARPNESS, WITNESSES, make_population
from repetitions import METHODS, Repetitions, draw_counts

__all__ = ["COMPONENTS", "SIZES", "coverage_cells", "number_of_cells"]

SIZES = (50, 200, 1000, 10_000)
COMPONENTS = (2, 10, 100)
_ROUNDING = 1e-12


def number_of_cells() -> int:
    """Cells of the grid."""
    return len(SIZES) * len(COMPONENTS) * len(SHARPNESS) * len(WITNESSES)


def coverage_cells(seed: int, repetitions: int) -> Iterator[list[dict[str, object]]]:
    """One list of results, a row for each method, for each cell of the grid."""
    cells = product(SIZES, COMPONENTS, SHARPNESS, WITNESSES)
    for number, (size, components, teacher, witness) in enumerate(cells):
        rng = np.random.default_rng([seed, 1, number])
        population = make_population(rng, components, teacher, witness)
        sets = Repetitions(population, draw_counts(rng, population, size, repetitions))
        sets.check(0)
        cell = {"n": size, "K": components, "teacher": teacher, "witness": witness}
        yield [{**cell, **_result(sets, method, witness)} for method in METHODS]


def _result(sets: Repetitions, method: str, witness: str) -> dict[str, object]:
    truth, lower = sets.lower(method)
    return {
        "method": method,
        "null": witness in NULL,
        "repetitions": len(lower),
        "population_margin": round(truth, 6),
        "errors": int((lower > truth + _ROUNDING).sum()),
        "certified": int((lower > 0).sum()),
        "mean_gap": round(float(truth - lower.mean()), 6),
    }
