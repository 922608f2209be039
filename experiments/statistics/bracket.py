"""Measures how often the information bracket contains the true value, for linear Gaussian codes.

    python -m experiments.statistics.bracket --jobs 2
    python -m experiments.statistics.bracket --quick --repetitions 20   # 10 seconds, to see that it runs

``x`` is standard normal, and the code is ``z = sqrt(1 - v) x + sqrt(v) noise``, so that ``I(X; Z) = -d/2 log v``
exactly and the aggregate posterior is the standard normal prior. Each repetition draws new rows and takes two brackets
of them: one by the default method under that prior, and one by ``method="normal"`` under a prior that does not fit (all
codes are moved by 1.5 in each coordinate, which does not affect the lower sides). A miss is a lower side above the true
value or an upper side below it.

The study resumes where it stopped: the table in ``--output_dir`` holds the number of repetitions of each cell, and all
cells get more of them in turn. ``--minutes`` ends it earlier.
"""

import argparse
import csv
import itertools
import math
import time
from collections.abc import Sequence
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import binom

from certvae import information_bracket
from certvae.commands.tables import Line, Results, commit, origin
from certvae.io.files import csv_text, write_atomic

RESULTS = Path(__file__).parents[1] / "results" / "statistics"
NATS, DIMS, ROWS = (0.01, 0.1, 1.0, 4.0, 10.0, 40.0), (1, 4, 32, 256), (500, 4000)
BLOCK, ERROR, SHIFT, ROUNDS = 500, 0.05, 1.5, 20
MISSES = ("lower", "upper", "either", "misfit_upper", "normal_lower")
MEANS = ("lower", "upper", "misfit_upper", "normal_lower", "rows_lower", "rows_upper", "lower_estimate")
COUNTS = ("dim", "rows", "block", "repetitions", *(f"{name}_misses" for name in MISSES))
SHOWN = ("nats", "dim", "rows", "repetitions", "lower_misses", "upper_misses")
COLUMNS = {
    "nats": "{nats:g}",
    "dimension": "{dim}",
    "rows": "{rows:,}",
    "repetitions": "{repetitions:,}",
    "mean [lower, upper]": "[{mean_lower:.4f}, {mean_upper:.4f}]",
    "width": "{width:.4f}",
    "lower missed": "{lower_misses}",
    "upper missed": "{upper_misses}",
    "either": "{either_misses}",
    "mean normal lower": "{mean_normal_lower:.4f}",
    "normal missed": "{normal_lower_misses}",
    "mean upper, other prior": "{mean_misfit_upper:.4f}",
    "missed, other prior": "{misfit_upper_misses}",
    "mean [rows_lower, rows_upper]": "[{mean_rows_lower:.4f}, {mean_rows_upper:.4f}]",
}


class Cell(NamedTuple):
    """A setting to repeat: information in nats, coordinates of the code, rows."""

    nats: float
    dim: int
    rows: int


def cells(quick: bool = False) -> list[Cell]:
    """All cells, or three small ones."""
    if quick:
        return [Cell(0.1, 4, 200), Cell(1.0, 1, 200), Cell(40.0, 32, 200)]
    return [Cell(nats, dim, rows) for rows in ROWS for dim in DIMS for nats in NATS]


def measure(cell: Cell, repetition: int) -> Line:
    """The bounds of one data set, and which of them miss."""
    start = time.process_time()
    rng = np.random.default_rng([round(1000 * cell.nats), cell.dim, cell.rows, repetition])
    log_variance = -2 * cell.nats / cell.dim
    mean = torch.from_numpy(math.sqrt(-math.expm1(log_variance)) * rng.standard_normal((cell.rows, cell.dim)))
    spread = torch.full_like(mean, log_variance)
    settings: dict[str, Any] = {"block": BLOCK, "seed": repetition, "confidence": 1 - ERROR}
    found = information_bracket(mean, spread, **settings)
    other = information_bracket(mean + SHIFT, spread, method="normal", **settings)
    values = {name: float(getattr(found, name)) for name in MEANS if hasattr(found, name)}
    values |= {"misfit_upper": other.upper, "normal_lower": other.lower}
    missed = {name: int(values[name] > cell.nats) for name in ("lower", "normal_lower")}
    missed |= {name: int(values[name] < cell.nats) for name in ("upper", "misfit_upper")}
    missed["either"] = max(missed["lower"], missed["upper"])
    line: Line = {f"{name}_misses": missed[name] for name in MISSES} | {f"mean_{name}": values[name] for name in MEANS}
    return line | {"seconds": time.process_time() - start}


def extended(line: Line, more: Sequence[Line]) -> Line:
    """A line of the table with further repetitions."""
    before, after = line["repetitions"], line["repetitions"] + len(more)
    grown = dict(line, repetitions=after)
    for name in MISSES:
        grown[f"{name}_misses"] += sum(one[f"{name}_misses"] for one in more)
    for name in MEANS:
        total = before * line[f"mean_{name}"] + sum(one[f"mean_{name}"] for one in more)
        grown[f"mean_{name}"] = round(total / after, 6)
    grown["seconds"] = round(line["seconds"] + sum(one["seconds"] for one in more), 2)
    grown["width"] = round(grown["mean_upper"] - grown["mean_lower"], 6)
    return grown


def empty(cell: Cell) -> Line:
    """A line of the table without any repetition."""
    zeros = [*(f"{name}_misses" for name in MISSES), *(f"mean_{name}" for name in MEANS), "width", "seconds"]
    return {**cell._asdict(), "block": min(BLOCK, cell.rows), "repetitions": 0} | dict.fromkeys(zeros, 0)


def read_lines(path: Path) -> list[Line]:
    """The table of an earlier call; empty if there is none."""
    if not path.is_file():
        return []
    with open(path, newline="") as file:
        lines = [{name: float(text) for name, text in row.items()} for row in csv.DictReader(file)]
    return [line | {name: int(line[name]) for name in COUNTS} for line in lines]


def allowed(line: Line, count: int) -> int:
    """The misses up to which simulation explains them at 5 %, at 5 % over ``count`` cells (Bonferroni)."""
    return int(binom.ppf(1 - ERROR / count, line["repetitions"], ERROR))


def claims(lines: Sequence[Line]) -> dict[str, bool]:
    """The claims of the study, and whether they hold."""

    def within(name: str) -> bool:
        return all(line[f"{name}_misses"] <= allowed(line, len(lines)) for line in lines)

    return {
        "the proved lower side never misses": not any(line["lower_misses"] for line in lines),
        "in no cell does the upper side miss in more than 5 %, as far as the repetitions tell": within("upper"),
        "nor does the bracket as a whole": within("either"),
        "nor the upper side under a prior that does not fit": within("misfit_upper"),
        "nor the lower side by `normal`": within("normal_lower"),
        "over all cells the upper side misses in at most 5 %, under either prior": all(
            sum(line[f"{name}_misses"] for line in lines) <= ERROR * sum(line["repetitions"] for line in lines)
            for name in ("upper", "misfit_upper")
        ),
    }


def main(arguments: Sequence[str] | None = None) -> list[Line]:
    """Fill the table, cell after cell and round after round, and write it after each."""
    given = _parser().parse_args(arguments)
    wanted = cells(given.quick)
    folder: Path = given.output_dir or (Path("runs/bracket_quick") if given.quick else RESULTS)
    known = {Cell(line["nats"], line["dim"], line["rows"]): line for line in read_lines(folder / "bracket.csv")}
    lines = [known.get(cell, empty(cell)) for cell in wanted]
    end = time.monotonic() + 60 * given.minutes
    with get_context("spawn").Pool(given.jobs, torch.set_num_threads, (1,)) as pool:
        for number, place in itertools.product(range(1, ROUNDS + 1), range(len(wanted))):
            cell, line = wanted[place], lines[place]
            todo = range(line["repetitions"], math.ceil(given.repetitions * number / ROUNDS))
            if todo and cell.rows in (given.rows or [cell.rows]) and time.monotonic() < end:
                lines[place] = extended(line, list(pool.imap(partial(measure, cell), todo)))
                write_atomic(folder / "bracket.csv", csv_text(line, lines))
                print(*(f"{name} {lines[place][name]}" for name in SHOWN), flush=True)
    _write([line for line in lines if line["repetitions"]], given, folder)
    return lines


def _write(lines: Sequence[Line], given: argparse.Namespace, folder: Path) -> None:
    command, seconds = ["python", "-m", "experiments.statistics.bracket"], sum(line["seconds"] for line in lines)
    made = origin(command, {"quick": given.quick}, f"at commit {commit()}", seconds)
    made = made.replace("s for the runs in all", "s of processor time in all, one thread a process")
    if any(line["repetitions"] < given.repetitions for line in lines):
        made += f"Stopped before {given.repetitions:,} repetitions a cell; the same command goes on.\n"
    for path in Results(lines, COLUMNS, claims(lines), {}).write(folder, "bracket", made):
        print(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three small cells")
    parser.add_argument("--repetitions", type=int, default=1000, help="of each cell; default 1,000")
    parser.add_argument("--rows", type=int, nargs="+", help="add repetitions only to cells with these numbers of rows")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="start no repetition after this time; 0 only rewrites the table"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--output_dir", type=Path, help="default: experiments/results/statistics")
    return parser


if __name__ == "__main__":
    main()
