"""Coverage of the lower bounds, false certificates, the permutation test, and repeated looks.

python experiments/statistics/coverage.py [--quick] [--seed 0] [--output experiments/results/statistics]

The full study takes less than 10 minutes on 2 CPU cores, ``--quick`` less than 1.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from chart import draw
from coverage_cells import SIZES, coverage_cells, number_of_cells
from looks import look_cells, number_of_look_cells
from null_models import null_models
from permutation_cells import permutation_cells
from repetitions import METHODS
from rich.console import Console
from rich.progress import track
from threadpoolctl import threadpool_limits
from verdict import summarize

from certvae.certificate.figures import save_figure
from certvae.io.files import csv_text, write_atomic
from experiments.drawing import read_table

Rows = list[dict[str, Any]]
DRAWN = ("coverage", "permutation", "looks")
_RESULTS = Path(__file__).parents[1] / "results" / "statistics"


def main() -> None:
    """Run the study, write its tables and figure, and print the verdict."""
    arguments = _arguments()
    started = perf_counter()
    torch.set_num_threads(1)  # several threads are very slow if another process is busy
    threadpool_limits(1)
    if arguments.redraw:
        save_figure(draw({name: read_table(arguments.output / f"{name}.csv") for name in DRAWN}), _figure(arguments))
        return
    repetitions, tests, models = (200, 40, 200) if arguments.quick else (4000, 2000, 10_000)
    seed = arguments.seed
    tables = {
        "coverage": _collect(coverage_cells(seed, repetitions), number_of_cells(), "coverage"),
        "permutation": _collect(permutation_cells(seed, tests), len(SIZES) * (tests + 1), "permutation test"),
        "looks": _collect(look_cells(seed, repetitions), number_of_look_cells(), "repeated looks"),
        "null_models": _count(track(null_models(seed, models), "null models", total=models)),
    }
    tables["summary"] = _summary(tables)
    for name, rows in tables.items():
        write_atomic(arguments.output / f"{name}.csv", csv_text(rows[0], rows))
    save_figure(draw(tables), _figure(arguments))
    _print(tables["summary"], perf_counter() - started)


def _figure(arguments: argparse.Namespace) -> Path:
    return Path(arguments.output) / "coverage.png"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repetitions, to see that it runs")
    parser.add_argument("--redraw", action="store_true", help="only redraw the figure from existing tables")
    parser.add_argument("--seed", type=int, default=0, help="of every random draw")
    parser.add_argument("--output", type=Path, default=_RESULTS, help="folder of the tables and the figure")
    return parser.parse_args()


def _collect(cells: Iterator[list[dict[str, Any]]], total: int, title: str) -> Rows:
    return [row for rows in track(cells, title, total=total) for row in rows]


def _count(models: Iterable[dict[str, Any]]) -> Rows:
    """False certificates of each method by witness, size and number of components."""
    counts: dict[tuple[Any, ...], dict[str, int]] = defaultdict(lambda: dict.fromkeys(("models", *METHODS), 0))
    for model in models:
        cell = counts[model["witness"], model["n"], model["K"]]
        cell["models"] += 1
        for method in METHODS:
            cell[method] += model[method]
    return [dict(zip(("witness", "n", "K"), key, strict=True)) | counts[key] for key in sorted(counts)]


def _summary(tables: dict[str, Rows]) -> Rows:
    lines = []
    for method in METHODS:
        cells = [row for row in tables["coverage"] if row["method"] == method]
        nulls = [row for row in cells if row["null"]]
        lines.append(summarize("bound above the margin", method, cells, "errors", "repetitions"))
        lines.append(summarize("false certificate", method, nulls, "certified", "repetitions"))
    varying = [row for row in tables["permutation"] if not row["witness"].endswith("constant")]
    constant = [row for row in tables["permutation"] if row["witness"].endswith("constant")]
    for witness, rows in (("independent witness rejected", varying), ("constant witness rejected", constant)):
        lines.append(summarize(witness, "permutation", rows, "rejections", "repetitions"))
    for schedule in ("spending", "none"):
        for method in METHODS:
            keys = {"schedule": schedule, "method": method}
            rows = [row for row in tables["looks"] if all(row[key] == value for key, value in keys.items())]
            lines.append(summarize("any error in 50 looks", f"{method}, {schedule}", rows, "errors", "runs"))
    return lines + [_null_line(tables["null_models"], method) for method in METHODS]


def _null_line(cells: Rows, method: str) -> dict[str, Any]:
    """All null models in one line, as the number of false certificates is small or zero."""
    total = {"models": sum(row["models"] for row in cells), method: sum(row[method] for row in cells)}
    return summarize("null model certified", method, [{"witness": "all", **total}], method, "models")


def _print(lines: Rows, seconds: float) -> None:
    console = Console(soft_wrap=True, highlight=False)
    for line in lines:
        found = f"largest error {line['largest_error']:.4f}, {line['where']}"
        console.print(f"{line['method']}: {line['question']}: {found}")
        exceeding = [cell for cell in line["exceeding"].split(" | ") if cell]
        color = "red" if exceeding else "green"
        console.print(f"  [{color}]{len(exceeding)} of {line['cells']} cells exceed 5 % beyond simulation error")
        for cell in exceeding:
            console.print(f"    {cell}")
    console.print(f"{seconds:.0f} s")


if __name__ == "__main__":
    main()
