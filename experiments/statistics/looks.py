r"""The probability of any error over repeated looks, with and without sharing the error probability.

At look ``t`` the spending rule allows :math:`\alpha_t = 6 \alpha / (\pi^2 t^2)`, which sums to :math:`\alpha` over all
looks. ``fresh`` draws new rows for each look, so errors add up as fast as possible; ``same`` looks at one data set
repeatedly, as with a validation set.
"""

import math
from collections.abc import Iterator
from itertools import product

import numpy as np
from coverage_cells import SIZES
from populations import ALPHA, SHARPNESS, Array, Population, make_teacher, make_witness
from repetitions import METHODS, Repetitions, draw_counts

__all__ = ["LOOKS", "SCENARIOS", "look_cells", "number_of_look_cells", "spent"]

LOOKS = 50
SCENARIOS = ("untrained", "training", "rare")
_ROWS = ("fresh", "same")
_SCHEDULES = ("spending", "none")
_COMPONENTS, _TYPES = 10, 200


def spent(look: int, alpha: float = ALPHA) -> float:
    """The error probability allowed at look ``look``, counted from 1."""
    return 6 * alpha / (math.pi * look) ** 2


def number_of_look_cells() -> int:
    """How many lists :func:`look_cells` gives."""
    return len(SIZES) * len(SCENARIOS) * len(_ROWS)


def look_cells(seed: int, runs: int) -> Iterator[list[dict[str, object]]]:
    """One list of results, a row for each method and schedule, for each size, scenario and kind of rows."""
    for number, (size, scenario, rows) in enumerate(product(SIZES, SCENARIOS, _ROWS)):
        rng = np.random.default_rng([seed, 3, number])
        failed = _failed_runs(rng, size, scenario, rows, runs)
        cell = {"n": size, "K": _COMPONENTS, "teacher": "medium", "witness": scenario, "rows": rows, "looks": LOOKS}
        yield [
            {**cell, "schedule": schedule, "method": method, "runs": runs, "errors": int(runs_failed.sum())}
            for (schedule, method), runs_failed in failed.items()
        ]


def _failed_runs(
    rng: np.random.Generator, size: int, scenario: str, rows: str, runs: int
) -> dict[tuple[str, str], Array]:
    """Whether any look of each run is an error, by schedule and method."""
    teacher = make_teacher(rng, _TYPES, _COMPONENTS, SHARPNESS["medium"])
    failed = {key: np.zeros(runs, dtype=bool) for key in product(_SCHEDULES, METHODS)}
    counts = None
    for look in range(1, LOOKS + 1):
        population = Population(teacher, _witness(rng, teacher, scenario, look))
        if counts is None or rows == "fresh":
            counts = draw_counts(rng, population, size, runs)
        sets = Repetitions(population, counts)
        for schedule, method in failed:
            truth, lower = sets.lower(method, spent(look) if schedule == "spending" else ALPHA)
            failed[schedule, method] |= lower > truth + 1e-12
    return failed


def _witness(rng: np.random.Generator, teacher: Array, scenario: str, look: int) -> Array:
    """The witness at a look: random answers, answers that approach the teacher, or rare gross errors."""
    if scenario == "rare":
        return make_witness(rng, teacher, "rare")
    progress = look / LOOKS if scenario == "training" else 0.0
    mean = np.log(teacher.mean(axis=0))
    logits = mean + progress * (np.log(teacher) - mean) + 0.2 * rng.standard_normal(teacher.shape)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
