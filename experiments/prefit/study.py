"""How much margin a code fitted to the closed form keeps in training, by KL weight, with and without alignment.

    python -m experiments.prefit.study --data_dir data
    python -m experiments.prefit.study --quick

Every run has the settings of ``experiments/<data set>/prefit.yaml``, but for the KL weight and the alignment weight.
``before`` and ``after`` are margins on training rows around the fit; the rest is of the kept rows after the run.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure

from certvae.commands.tables import Line, Results
from experiments.drawing import FIRST, SECOND, legend_below, new_figure, styled
from experiments.study import Study, study_parser

__all__ = ["KL_WEIGHTS", "claims", "main"]

KL_WEIGHTS = (2.0, 4.0, 8.0)
LOOKS = {True: FIRST, False: SECOND}
STEPS = {"margin_before": "before the fit", "margin_after": "after the fit", "margin": "after training"}
COLUMNS = {
    "seed": "{seed}",
    "KL weight": "{kl_weight:g}",
    "aligned": "{aligned}",
    "before": "{margin_before:+.3f}",
    "after": "{margin_after:+.3f}",
    "status": "{proven_status}",
    "margin": "{proven_margin:+.3f}",
    "at least, betting": "{proven_lower:+.3f}",
    "channel margin": "{channel_margin:+.3f}",
    "rate": "{rate:.3f}",
    "squared error": "{mean_squared_error:.4f}",
}


def measure(study: Study, seed: int, kl_weight: float, aligned: bool) -> Line:
    """Run one setting and return its line of the table."""
    changes = {"model.objective.beta": kl_weight}
    if not aligned:
        changes["model.alignment_weight"] = 0.0
    name = f"kl{kl_weight:g}_{'aligned' if aligned else 'plain'}"
    run = study.run(seed, name, changes, base=study.values("prefit"))
    return {"seed": seed, "run": name, "kl_weight": kl_weight, "aligned": aligned, **fitted(run.folder), **run.line()}


def fitted(folder: Path) -> Line:
    """Margins on training rows before and after the fit."""
    with open(folder / "metrics.csv") as file:
        logged = next(row for row in csv.DictReader(file) if row.get("prefit/margin_after"))
    return {name: round(float(logged[f"prefit/{name}"]), 5) for name in ("margin_before", "margin_after")}


def claims(lines: Sequence[Line]) -> dict[str, bool]:
    """The claims of the study, and whether they hold."""
    aligned = [line for line in lines if line["aligned"]]
    return {
        "the fit raises the margin on training rows in every run": all(
            line["margin_after"] > max(line["margin_before"], 0) for line in lines
        ),
        "with alignment every run is certified by the proven bound": all(
            line["proven_status"] == "CERTIFIED" for line in aligned
        ),
    }


@styled
def draw(lines: Sequence[Line]) -> Figure:
    """Margin before the fit, after it, and after training, means over seeds."""
    title = "A code that was fitted first keeps its margin with alignment, and loses part of it without"
    figure, (axes,) = new_figure(title, 9, 4.8)
    for number, kl_weight in enumerate(sorted({line["kl_weight"] for line in lines})):
        for aligned, look in LOOKS.items():
            chosen = [line for line in lines if (line["kl_weight"], line["aligned"]) == (kl_weight, aligned)]
            margins = [fmean(line[name] for line in chosen) for name in STEPS]
            axes.plot(range(len(STEPS)), margins, **look.style(aligned))
            place = (len(STEPS) - 1, margins[-1])
            offset = (10, 9 - 13 * number if aligned else -4)
            axes.annotate(f"KL weight {kl_weight:g}", place, textcoords="offset points", xytext=offset, fontsize=10)
    axes.axhline(0, color="black", linewidth=1)
    axes.set(ylabel="raw-witness margin, nats", xlim=(-0.15, len(STEPS) - 0.6))
    axes.set_xticks(range(len(STEPS)), STEPS.values())
    looks = ((f"{'with' if aligned else 'without'} alignment", look.style(aligned)) for aligned, look in LOOKS.items())
    legend_below(figure, looks, 2)
    return figure


def main(args: Sequence[str] | None = None) -> list[Line]:
    """Run the remaining runs, write table and figure, and return the table's lines."""
    parser = study_parser("prefit", __doc__)
    parser.add_argument("--kl_weights", type=float, nargs="+", default=list(KL_WEIGHTS))
    given = parser.parse_args(args)
    study = Study("prefit", given)
    lines = [
        measure(study, seed, kl_weight, aligned)
        for seed in study.seeds
        for kl_weight in given.kl_weights
        for aligned in (True, False)
    ]
    study.report(Results(lines, COLUMNS, claims(lines), {"prefit": draw(lines)}))
    return lines


if __name__ == "__main__":
    main()
