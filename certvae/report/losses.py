"""The loss of a fit over its epochs, from the table of Lightning's CSVLogger."""

import csv
import io
import math
from collections.abc import Sequence

from certvae.io.untrusted import read_limited
from certvae.report.figures import Chart, blank, finished, series
from certvae.report.runs import Phase, Run
from certvae.report.wording import number

__all__ = ["loss_chart", "losses_of"]

TABLE_LIMIT = 2**26  # bytes of a metrics.csv
COLUMNS = ("val/loss", "val_loss")  # of certvae.VAE, and the most common name


def losses_of(phase: Phase) -> list[tuple[float, float]]:
    """Epochs and validation losses; empty if no table has both.

    Raises:
        ValueError: if the table is a link out of the run's folder, or too large.
    """
    path = phase.folder / "metrics.csv"
    if not path.is_file():
        return []
    text = read_limited(phase.own(path), TABLE_LIMIT, "table").decode(errors="replace")
    found = []
    for row in csv.DictReader(io.StringIO(text)):
        epoch, loss = _number(row.get("epoch")), next((v for key in COLUMNS if (v := _number(row.get(key)))), None)
        if epoch is not None and loss is not None:
            found.append((epoch, loss))
    return found


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) and abs(value) < 1e12 else None


def loss_chart(run: Run, runs: Sequence[Run]) -> Chart | None:
    """A figure of the validation loss over the epochs of each phase; None if no table has it."""
    losses = [(phase, losses_of(phase)) for phase in run.phases]
    drawn = [(phase, points) for phase, points in losses if points]
    if not drawn:
        return None
    figure, axes = blank()
    for phase, points in drawn:
        series(axes, run, phase, [(phase.start + epoch + 1, loss) for epoch, loss in points])
    scale = [loss for other in runs for phase in other.phases for _, loss in losses_of(phase)]
    room = 0.06 * (max(scale) - min(scale)) or 0.1
    limits = min(scale) - room, max(scale) + room
    axes.set(xlabel="epochs in training", ylabel="validation loss (as the model has it)", ylim=limits)
    finished(figure, axes, run)
    ends = "; ".join(
        f"{phase.label}: from {number(points[0][1])} to {number(points[-1][1])}" for phase, points in drawn
    )
    return Chart("loss", figure, f"Validation loss over training, as the model defines it. {ends}.")
