"""Lower bounds against the tasks of the benchmark `bmi`, whose mutual information is known.

    python -m experiments.statistics.tasks
    python -m experiments.statistics.tasks --seeds 2 --rows 500      # to see that it runs

A task gives pairs of an input ``x`` and a code ``y``: Gaussian, Student and uniform noise, sparse and dense
interactions, and each of them after maps that bend the space. The teacher is a mixture of ``x``, the witness a reader
of ``y``; both are fitted on other rows. The table shows, as means over seeds, the margin by ``betting`` on the rows
that remain, the margin of the fitted reader on these rows, and the bracket where ``y`` given ``x`` is Gaussian. By data
processing, none of the lower sides may exceed the true information more often than its level allows.

`bmi` needs numpy below 2 and an older jax, so give it an environment of its own::

    pip install . benchmark-mi "jax<0.4.34" "jaxlib<0.4.34"

Source: Czyz, Grabowski, Vogt, Beerenwinkel and Marx, 2023, *Beyond Normal: On the Evaluation of Mutual Information
Estimators*, https://arxiv.org/abs/2306.11078.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from scipy.stats import binom
from sklearn.mixture import GaussianMixture
from torch import Tensor

from certvae import CertificateSettings, certify, information_bracket
from certvae.certificate.fitted_margin import fitted_margin
from certvae.commands.tables import Line, Results, commit, origin
from certvae.theory.fitted_reader import FittedReader

RESULTS = Path(__file__).parents[1] / "results" / "statistics"
COMPONENTS, FLOOR, ERROR = 8, 0.01, 0.05
SIDES = ("margin_lower", "fitted_lower", "bracket_lower", "bracket_upper")
COLUMNS = {
    "task": "{task}",
    "truth": "{truth:.3f}",
    "margin (at least)": "{margin:.3f} ({margin_lower:.3f})",
    "fitted reader (at least)": "{fitted:.3f} ({fitted_lower:.3f})",
    "bracket": "{bracket}",
    "missed: margin": "{margin_lower_misses} of {seeds}",
    "fitted reader": "{fitted_lower_misses} of {seeds}",
    "bracket, lower": "{bracket_lower_misses}",
    "bracket, upper": "{bracket_upper_misses}",
}


def halves(task: Any, rows: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Two samples of pairs, float64: to fit on, and to certify on."""
    x, y = (torch.from_numpy(np.array(part, dtype=np.float64)) for part in task.sample(2 * rows, seed))
    yield from zip(x.split(rows), y.split(rows), strict=True)


def teacher(fitted_on: Tensor, x: Tensor, seed: int) -> Tensor:
    """Probabilities of the components of a mixture, at least ``FLOOR / K``, shape ``(N, K)``."""
    center, scale = fitted_on.median(dim=0).values, fitted_on.quantile(0.75, dim=0) - fitted_on.quantile(0.25, dim=0)
    near, rows = (((part - center) / scale).clamp(-10, 10).numpy() for part in (fitted_on, x))
    mixture = GaussianMixture(COMPONENTS, covariance_type="diag", reg_covar=1e-3, random_state=seed).fit(near)
    return (1 - FLOOR) * torch.from_numpy(mixture.predict_proba(rows)) + FLOOR / COMPONENTS


def posterior(task: Any, x: Tensor) -> tuple[Tensor, Tensor] | None:
    """Mean and log-variance of ``y`` given ``x``, rotated to independent coordinates; None if it is not Gaussian.

    A rotation of the code does not change its information.
    """
    if not task.id.startswith("multinormal-"):
        return None
    covariance, size = torch.from_numpy(np.array(task.sampler._covariance, dtype=np.float64)), x.shape[1]
    regression = torch.linalg.solve(covariance[:size, :size], covariance[:size, size:])
    variances, rotation = torch.linalg.eigh(covariance[size:, size:] - covariance[size:, :size] @ regression)
    mean = x @ regression @ rotation
    return mean, variances.log().expand_as(mean)


def measure(task: Any, rows: int, seed: int) -> Line:
    """Margins and bounds of one sample."""
    (x, y), (new_x, new_y) = halves(task, rows, seed)
    probabilities = teacher(x, new_x, seed)
    witness = FittedReader.fit(y, teacher(x, x, seed))
    certificate = certify(probabilities, witness(new_y), teacher_floor=FLOOR)
    fitted = fitted_margin(probabilities, new_y, None, CertificateSettings(teacher_floor=FLOOR))
    assert fitted is not None
    found: Line = {"margin": certificate.margin, "margin_lower": certificate.margin_lower}
    found |= {"fitted": fitted.mean, "fitted_lower": fitted.lower, "bracket_lower": None, "bracket_upper": None}
    code = posterior(task, new_x)
    if code is not None:
        bracket = information_bracket(*code, seed=seed)
        found |= {"bracket_lower": bracket.lower, "bracket_upper": bracket.upper}
    return found


def line(task: Any, rows: int, seeds: int) -> Line:
    """A line of the table: means over seeds, and how many sides miss the truth."""
    runs, truth = [measure(task, rows, seed) for seed in range(seeds)], float(task.mutual_information)
    found: Line = {"task": task.id, "truth": round(truth, 5), "seeds": seeds, "rows": rows}
    for name in runs[0]:
        known = runs[0][name] is not None
        found[name] = round(fmean(run[name] for run in runs), 5) if known else None
    for name in SIDES:
        over = [
            run[name] < truth if name == "bracket_upper" else run[name] > truth for run in runs if run[name] is not None
        ]
        found[f"{name}_misses"] = sum(over) if over else None
    sides = found["bracket_lower"], found["bracket_upper"]
    found["bracket"] = None if sides[0] is None else f"[{sides[0]:.3f}, {sides[1]:.3f}]"
    return found


def claims(lines: Sequence[Line]) -> dict[str, bool]:
    """What the levels promise, and whether the lines show it."""

    def within(name: str) -> bool:
        misses = [(item[f"{name}_misses"], item["seeds"]) for item in lines if item[f"{name}_misses"] is not None]
        return all(missed <= binom.ppf(1 - ERROR / len(misses), seeds, ERROR) for missed, seeds in misses)

    names = {
        "margin_lower": "does the margin's lower bound exceed the truth",
        "fitted_lower": "does the fitted reader's",
        "bracket_lower": "does the bracket's",
        "bracket_upper": "is the bracket's upper side below the truth",
    }
    return {
        f"in no task {words} more often than in 5 %, as far as the seeds tell": within(name)
        for name, words in names.items()
    }


def main(arguments: Sequence[str] | None = None) -> list[Line]:
    """Measure every task, write the table, and return its lines."""
    from bmi.benchmark import BENCHMARK_TASKS

    given = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    started, made_at, lines = time.process_time(), commit(), []
    for task in BENCHMARK_TASKS.values():
        lines.append(line(task, given.rows, given.seeds))
        print(*(f"{name} {value}" for name, value in lines[-1].items()), flush=True)
    seconds = time.process_time() - started
    command = ["python", "-m", "experiments.statistics.tasks"]
    made = origin(command, {name: getattr(given, name) for name in ("seeds", "rows")}, f"at commit {made_at}", seconds)
    Results(lines, COLUMNS, claims(lines), {}).write(given.output_dir, "tasks", made)
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="samples of each task; default 10")
    parser.add_argument("--rows", type=int, default=2000, help="to certify on, and as many to fit on; default 2,000")
    parser.add_argument("--output_dir", type=Path, default=RESULTS)
    return parser


if __name__ == "__main__":
    main()
