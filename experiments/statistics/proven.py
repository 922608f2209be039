"""Measures the error rate of the proven bounds in adversarial populations.

    python experiments/statistics/proven.py --jobs 2

Three kinds of populations, whose margin is known exactly:

- ``rare``: a witness that is right except on a share ``p`` of the rows, where it is as wrong as its floor allows. Most
    samples show no error, which misleads the bound ``normal``.
- ``coin``: the code is a coin flip independent of the input, and the witness trusts it. Two to five rows.
- ``null``: teacher and witness are drawn independently, with 2 to 200 components.

An error is a lower bound above the population's margin. A false certificate is a lower bound above the default safety
margin although the population's margin is not. Each cell has 10,000 samples; a null witness on 1,000 rows has 1,000.
With 10,000 rows or more, ``betting`` is computed for the first samples and for each in which it may err. About 12
minutes on 16 cores. ``--rows`` measures only the cells with these numbers of rows, and ``--populations`` only those
whose names begin so; the other lines of the table are kept.
"""

import argparse
import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import beta

from certvae.io.files import csv_text, write_atomic
from certvae.theory.betting import bet_schedule
from certvae.theory.bounds import BOUNDS, Evidence
from certvae.theory.scores import OrderedRows, ScoredRows
from certvae.theory.sums import CertificateSums

ALPHA, SAFETY, FULL = 0.05, 0.05, 20
TEACHER_FLOOR, WITNESS_FLOOR = 0.01, 1e-3
METHODS = ("normal", "bernstein", "betting")
RESULTS = Path(__file__).parents[1] / "results" / "statistics" / "proven.csv"


@dataclass(frozen=True)
class Population:
    """Types of rows with their probabilities.

    Attributes:
        name: kind and setting.
        teacher: shape ``(types, K)``.
        witness: shape ``(types, K)``.
        shares: shape ``(types,)``.
    """

    name: str
    teacher: np.ndarray
    witness: np.ndarray
    shares: np.ndarray

    @property
    def margin(self) -> float:
        """Of the population, in nats."""
        mean = self.shares @ self.teacher
        return float(self.shares @ (self.teacher * (np.log(self.witness) - np.log(mean))).sum(axis=1))


def floored(probs: np.ndarray, floor: float) -> np.ndarray:
    """Mixed with the uniform distribution."""
    mixed: np.ndarray = (1 - floor) * probs + floor / probs.shape[1]
    return mixed


def population(name: str, teacher: np.ndarray, witness: np.ndarray, shares: Sequence[float]) -> Population:
    """With both floors."""
    return Population(name, floored(teacher, TEACHER_FLOOR), floored(witness, WITNESS_FLOOR), np.array(shares))


def rare(expected: float, rows: int) -> Population:
    """So many gross errors are expected in a sample."""
    labels, share = np.eye(2)[[0, 1, 0, 1]], expected / rows
    answers = np.eye(2)[[0, 1, 1, 0]]
    return population(f"rare, {expected:g} expected", labels, answers, [(1 - share) / 2] * 2 + [share / 2] * 2)


def coin() -> Population:
    """The witness believes a coin."""
    return population("coin", np.eye(2)[[0, 0, 1, 1]], np.eye(2)[[0, 1, 0, 1]], [0.25] * 4)


def null(components: int) -> Population:
    """30 teacher rows, each with 30 answers that were drawn for none of them."""
    rng = np.random.default_rng(components)
    teacher = np.exp(2 * rng.standard_normal((30, components)))
    teacher = floored(teacher / teacher.sum(axis=1, keepdims=True), TEACHER_FLOOR)
    answers = np.log(teacher.mean(axis=0)) + 0.5 * rng.standard_normal((30, components))
    answers = np.exp(answers) / np.exp(answers).sum(axis=1, keepdims=True)
    pairs = teacher.repeat(30, axis=0), np.tile(answers, (30, 1))
    return population(f"null, K = {components}", *pairs, [1 / 900] * 900)


def cells(most: int) -> Iterator[tuple[Population, int, int]]:
    """Populations, sizes of their samples, and how many samples are drawn: fewer of the large ones."""
    for size in (2, 3, 4, 5):
        yield coin(), size, most
    for size in (100, 1000):
        for components in (2, 5, 10, 24, 50, 100, 200):
            yield null(components), size, most if size == 100 else math.ceil(0.1 * most)
    for size in (1000, 10_000, 100_000):
        for expected in (0.001, 0.1, 1.0, 3.0, 10.0):
            yield rare(expected, size), size, most


def sample_bounds(cell: tuple[Population, int, int]) -> dict[str, float]:
    """Lower bounds of one sample by each method; NaN where it is only known to be below the population's margin."""
    drawn, size, seed = cell
    rng = np.random.default_rng([seed, size, len(drawn.shares)])
    chosen = rng.choice(len(drawn.shares), size=size, p=drawn.shares)
    teacher, answers = torch.from_numpy(drawn.teacher[chosen]), torch.from_numpy(np.log(drawn.witness[chosen]))
    rows = ScoredRows.check(teacher, answers)
    known, ordered = evidence(rows, rows.counted()), rows.counted()
    found = {name: BOUNDS[name].lower(known, ALPHA) for name in METHODS if name != "betting"}
    whole = seed < FULL or size < 10_000 or may_err(drawn, ordered)
    return {**found, "betting": BOUNDS["betting"].lower(known, ALPHA) if whole else math.nan}


def may_err(drawn: Population, rows: OrderedRows) -> bool:
    """Whether the wealth at the population's margin and average teacher, which nobody knows, reaches its goal.

    Without that the bound cannot be above the margin; and the wealth is quick to compute.
    """
    lowest, truth = math.log(WITNESS_FLOOR / drawn.teacher.shape[1]), drawn.margin
    bets = bet_schedule(rows.teacher, rows.scores["mean"], ALPHA, lowest, truth).row_bets(0)
    gains = rows.scores["mean"] - rows.teacher @ torch.from_numpy(np.log(drawn.shares @ drawn.teacher)) - truth
    capped = bets.clamp(max=0.95 / (truth - lowest))
    return float(torch.log1p(capped * gains).sum()) >= -math.log(ALPHA) - 1e-6


def evidence(rows: ScoredRows, ordered: OrderedRows) -> Evidence:
    """What a bound may look at."""
    sums = CertificateSums.of(rows)
    scores = sums.influence("mean")
    numbers = sums.mean(scores), sums.standard_deviation(scores), sums.effective_size, sums.num_components
    floors = TEACHER_FLOOR, WITNESS_FLOOR
    return Evidence(*numbers, *floors, teacher_probs=ordered.teacher, scores=ordered.scores["mean"])


def line(drawn: Population, size: int, bounds: Sequence[dict[str, float]], method: str) -> dict[str, Any]:
    """One row of the table."""
    values, truth = np.array([found[method] for found in bounds]), drawn.margin
    middle = float(np.median([found[method] for found in bounds[:FULL]]))
    errors, count = int((values > truth).sum()), len(values)
    false = int((values > SAFETY).sum()) if truth <= SAFETY else 0
    most = float(beta.ppf(0.975, errors + 1, count - errors)) if errors < count else 1.0
    return {
        "population": drawn.name,
        "rows": size,
        "margin": round(truth, 5),
        "method": method,
        "samples": count,
        "errors": errors,
        "error_rate": round(errors / count, 5),
        "error_rate_at_most": round(most, 5),
        "false_certificates": false,
        "median_gap": round(truth - middle, 5) if math.isfinite(middle) else None,
    }


def kept_lines(path: Path, measured: set[tuple[str, int]]) -> list[dict[str, Any]]:
    """Lines of the table whose cells are not measured again."""
    if not path.is_file():
        return []
    with open(path, newline="") as file:
        return [row for row in csv.DictReader(file) if (row["population"], int(row["rows"])) not in measured]


def main() -> None:
    """Run every cell and write the table after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--rows", type=int, nargs="+", help="only cells with so many rows")
    parser.add_argument("--populations", nargs="+", help="only these, such as 'rare, 3'")
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    chosen = [
        cell
        for cell in cells(given.repetitions)
        if (not given.rows or cell[1] in given.rows)
        and (not given.populations or cell[0].name.startswith(tuple(given.populations)))
    ]
    lines = kept_lines(given.output, {(drawn.name, size) for drawn, size, _ in chosen})
    with get_context("spawn").Pool(given.jobs, torch.set_num_threads, (1,)) as pool:
        for drawn, size, repetitions in chosen:
            work = ((drawn, size, seed) for seed in range(repetitions))
            bounds = list(pool.imap(sample_bounds, work, chunksize=max(1, repetitions // (20 * given.jobs))))
            lines += [line(drawn, size, bounds, method) for method in METHODS]
            for added in lines[-len(METHODS) :]:
                print(added, flush=True)
            write_atomic(given.output, csv_text(lines[0], lines))


if __name__ == "__main__":
    main()
