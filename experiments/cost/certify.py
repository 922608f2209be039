"""What a certificate costs against rows and components.

    python -m experiments.cost.certify --csv experiments/results/cost/certify.csv
    python -m experiments.figures

`certify` has all rows at once; `stream` gives the same rows to the metric in batches of 10,000, which is what a
callback does, in memory that does not grow. Each line is the best of three runs: seconds, and rows a second.
"""

import argparse
import csv
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from certvae import certify
from certvae.certificate.metric import CertificateMetric
from certvae.certificate.settings import CertificateSettings
from experiments.drawing import FIRST, SECOND, THIRD, legend_below, new_figure, styled

BATCH, REPEATS = 10_000, 3
NAMES = ("what", "method", "components", "rows", "seconds", "rows_a_second", "load")
METHODS = ("normal", "betting", "bernstein")
PANELS = (*(("certify", method) for method in METHODS), ("stream", "normal"))
LOOKS = {10: FIRST, 100: SECOND, 1000: THIRD}
Line = tuple[str, str, int, int, float, float, float]


def drawn(rows: int, components: int) -> tuple[Tensor, Tensor]:
    """Teacher and witness logits, float64, shape ``(rows, K)``."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(rows, components, generator=generator, dtype=torch.float64)
    teacher = 0.99 * logits.softmax(dim=1) + 0.01 / components
    return teacher, logits + torch.randn(logits.shape, generator=generator)


def at_once(rows: int, components: int, method: str) -> Callable[[], object]:
    """A certificate of rows in memory."""
    teacher, witness = drawn(rows, components)
    return lambda: certify(teacher, witness, method=method, teacher_floor=0.01, witness_floor=0.001)


def streamed(rows: int, components: int) -> Callable[[], object]:
    """A certificate of rows that come in batches: one batch again and again."""
    teacher, witness = drawn(BATCH, components)

    def work() -> object:
        metric = CertificateMetric(components, CertificateSettings(method="normal"))
        for _ in range(rows // BATCH):
            metric.update(teacher, witness)
        return metric.compute()

    return work


def best(work: Callable[[], object]) -> float:
    """Seconds of the fastest of a few runs."""
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def lines() -> Iterator[Line]:
    """What is measured, smallest first."""
    for method in METHODS:
        for components in (10, 100, 1000):
            for rows in (1_000, 10_000, 100_000):
                if rows * components <= 10**7:
                    yield _line("certify", method, components, rows, at_once(rows, components, method))
    for components, most in ((10, 10**7), (24, 10**7), (100, 10**6), (1000, 10**5)):
        for rows in (most // 10, most):
            yield _line("stream", "normal", components, rows, streamed(rows, components))


def _line(what: str, method: str, components: int, rows: int, work: Callable[[], object]) -> Line:
    seconds = best(work)
    return what, method, components, rows, seconds, rows / seconds, os.getloadavg()[0]


@styled
def draw(lines: Sequence[Mapping[str, Any]]) -> Figure:
    """Seconds against rows: a panel for each bound and one for streamed rows, a line for each number of components."""
    figure, panels = new_figure("A certificate's cost grows as its rows", 9.5, 3.6, 1, 4, sharex=True, sharey=True)
    for axes, (what, method) in zip(panels, PANELS, strict=True):
        for components, look in LOOKS.items():
            chosen = [line for line in lines if (line["what"], line["method"]) == (what, method)]
            sizes = [(line["rows"], line["seconds"]) for line in chosen if line["components"] == components]
            axes.plot(*zip(*sizes, strict=True), **look.style())
        axes.set(xscale="log", yscale="log", title=method if what == "certify" else "streamed", xlabel="rows")
    panels[0].set_ylabel("seconds")
    legend_below(figure, [(f"{components:,} components", look.style()) for components, look in LOOKS.items()], 3)
    return figure


def main() -> None:
    """Measure, and print a line for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, default=Path(os.devnull), help="a table to write, too")
    given = parser.parse_args()
    with given.csv.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(NAMES)
        for line in lines():
            values = [f"{value:.4g}" if isinstance(value, float) else value for value in line]
            writer.writerow(values)
            file.flush()
            print(*values, flush=True)


if __name__ == "__main__":
    main()
