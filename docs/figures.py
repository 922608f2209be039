"""Draw the picture of the front page: the threshold on a line of alignment costs.

python docs/figures.py
"""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

FOLDER = Path(__file__).parent / "images"
INFORMATION, WITNESS, CONSTANTS = 1.92, 0.57, (2.25, 2.5, 2.85)  # nats; the first two are the tutorial's
BLUE, RED, GRAY = "#0072B2", "#D55E00", "0.45"


def threshold() -> Figure:
    """A number line of alignment costs, with the witness left of the threshold and all constants right of it."""
    figure = Figure(figsize=(8, 2.3), layout="constrained")
    axes = figure.subplots()
    axes.axvspan(0, INFORMATION, color=BLUE, alpha=0.08, linewidth=0)
    axes.axvspan(INFORMATION, 3.2, color=RED, alpha=0.08, linewidth=0)
    axes.vlines(INFORMATION, -0.8, 0.92, color="black", linewidth=1.4)
    axes.plot([WITNESS], [0], "o", color=BLUE, markersize=9)
    axes.plot(CONSTANTS, [0] * len(CONSTANTS), "o", color=RED, markersize=6)
    axes.annotate("", (WITNESS, 0.42), (INFORMATION, 0.42), arrowprops={"arrowstyle": "<->", "color": BLUE})
    texts = (
        ((WITNESS + INFORMATION) / 2, 0.52, "margin: nats that the code carries, at least", BLUE),
        (WITNESS, -0.42, "witness: reads the code", BLUE),
        (2.53, -0.42, "answers that ignore the input", RED),
        (INFORMATION, 1.1, "threshold: the best constant answer, $I_T$", "black"),
        (WITNESS, 1.1, "no constant answer is here", GRAY),
    )
    for x, y, text, color in texts:
        axes.text(x, y, text, color=color, ha="center", va="center", fontsize=10)
    axes.set(xlim=(0, 3.2), ylim=(-0.8, 1.4), yticks=[], xlabel="alignment cost, nats")
    axes.spines[["left", "top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    matplotlib.rcParams["svg.hashsalt"] = "certvae"  # the same file each time
    threshold().savefig(FOLDER / "threshold.svg", metadata={"Date": None}, facecolor="white")
