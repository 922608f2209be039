"""Redraw the studies' figures from the committed tables: `python -m experiments.figures`.

Two figures have other commands: ``python experiments/statistics/coverage.py --redraw`` draws the figure of the bounds,
and ``make demo`` draws the curve of the digits.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from certvae.certificate.figures import save_figure
from certvae.commands.tables import Line
from experiments.baselines import study as baselines
from experiments.cost import certify as cost
from experiments.drawing import read_table
from experiments.escape import study as escape
from experiments.guard import study as guard
from experiments.mnist import study as mnist
from experiments.path import study as path
from experiments.prefit import study as prefit
from experiments.protocol import study as protocol
from experiments.statistics import estimators
from experiments.stress import study as stress
from experiments.view import study as view
from experiments.witnesses import study as witnesses

__all__ = ["FIGURES", "draw"]

RESULTS = Path(__file__).parent / "results"
# Table and drawing function of each figure, by its name without suffix.
FIGURES: dict[str, tuple[str, Callable[[Sequence[Line]], Figure]]] = {
    "cifar100/cifar100": ("cifar100/cifar100", partial(protocol.draw, dataset="CIFAR-100")),
    "tiny_imagenet/tiny_imagenet": ("tiny_imagenet/tiny_imagenet", partial(protocol.draw, dataset="Tiny-ImageNet")),
    "baselines/baselines": ("baselines/baselines", baselines.draw),
    "baselines_collapsed/baselines_collapsed": ("baselines_collapsed/baselines_collapsed", baselines.draw),
    "stress/stress": ("stress/stress", stress.draw),
    "path/path": ("path/path", path.draw),
    "view/view": ("view/view", view.draw),
    "mnist/mnist": ("mnist/mnist", mnist.draw),
    "guard/guard": ("guard/guard", guard.draw),
    **{
        f"{name}/{name}": (f"{name}/{name}", witnesses.draw)
        for name in ("witnesses_cifar100", "witnesses_tiny_imagenet", "witnesses_digits")
    },
    "prefit_digits/prefit_digits": ("prefit_digits/prefit_digits", prefit.draw),
    "statistics/estimators": ("statistics/estimators", estimators.draw),
    "cost/certify": ("cost/certify", cost.draw),
    "escape_quick/escape": ("escape_quick/escape_looks", escape.draw),
}


def draw(name: str) -> Figure:
    """A figure by its name in :data:`FIGURES`."""
    table, function = FIGURES[name]
    return function(read_table(RESULTS / f"{table}.csv"))


if __name__ == "__main__":
    for figure in FIGURES:
        print(save_figure(draw(figure), RESULTS / f"{figure}.png"))
