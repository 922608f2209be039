"""The cost of the guard: its weight compared with fixed weights, and a rescue by the guard alone.

    python -m experiments.guard.study --data_dir data
    python -m experiments.guard.study --quick

For each seed: a teacher search, and a run with the guard. For the first seed also five runs with fixed weights; a
collapsed run (weight 0); and a run with the guard from the collapsed weights. Every run has the networks, the KL weight
and the number of epochs of ``experiments/<data set>/guard.yaml``.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from certvae.certificate.history import read_history
from certvae.commands.tables import Line, Results
from experiments.drawing import FIRST, SECOND, THIRD, Look, legend_below, new_figure, styled
from experiments.study import Study, study_parser

__all__ = ["claims", "main"]

WEIGHTS = {"cifar100": (40.0, 80.0, 160.0, 320.0, 640.0), "digits": (4.0,)}
TARGET = 0.5  # nats, the guard's target in both YAMLs
NUMBERS = (
    "epochs",
    "margin_lower",
    "margin",
    "mean_squared_error",
    "rate",
    "last_weight",
    "first_at_target",
    "stays",
)
FIXED = Look("0.45", "D", "")
SETTLED = 4  # last validations over which a run's numbers are averaged
COLUMNS = {
    "seed": "{seed}",
    "run": "{run}",
    "epochs": "{epochs}",
    "margin, at least": "{margin_lower:+.3f}",
    "margin": "{margin:+.3f}",
    "squared error": "{mean_squared_error:.4f}",
    "rate": "{rate:.3f}",
    "last weight": "{last_weight:.1f}",
    "first at target": "{first_at_target}",
    "stays": "{stays}",
}


def settings(study: Study, seed: int) -> Iterator[tuple[str, float, str | None]]:
    """Name, fixed weight (0 with a guard) and the run that gives initial weights, in order of execution."""
    yield "guard", 0.0, None
    if seed == study.seeds[0]:
        yield "no_align", 0.0, None
        yield "guard_rescue", 0.0, "no_align"
        yield from ((f"fixed_{weight:g}", weight, None) for weight in WEIGHTS[study.dataset])


def base(study: Study, guarded: bool) -> dict[str, Any]:
    """The data set's ``guard.yaml``, or the same without the guard."""
    values = study.values("guard")
    if not guarded:
        trainer = values["trainer"]
        trainer["callbacks"] = [item for item in trainer["callbacks"] if not item["class_path"].endswith("Guard")]
    return values


def measure(study: Study, seed: int, name: str, weight: float, source: str | None) -> Line:
    """Run one setting and return its line of the table."""
    changes: dict[str, Any] = {"model.alignment_weight": weight}
    if source is not None:
        changes["model.init_weights_from"] = str(study.place(seed, source) / "checkpoints" / "last.ckpt")
    run = study.run(seed, name, changes, base=base(study, name.startswith("guard")))
    return {"seed": seed, "run": name, **settled(run.folder)}


def settled(folder: Path) -> Line:
    """Results of a run's validations; margins and error are means over the last ones, which vary by chance."""
    history = read_history(folder / "certificates_val.jsonl")
    with open(folder / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    errors, weights = (logged(rows, key) for key in ("val/mean_squared_error", "certificate/guard_weight"))
    at_target = [certificate.margin_lower >= TARGET for certificate in history]
    first = at_target.index(True) + 1 if any(at_target) else None
    return {
        "epochs": len(history),
        "margin_lower": round(fmean(item.margin_lower for item in history[-SETTLED:]), 4),
        "margin": round(fmean(item.margin for item in history[-SETTLED:]), 4),
        "mean_squared_error": round(fmean(errors[-SETTLED:]), 5),
        "rate": round(history[-1].rate or 0.0, 3),
        "last_weight": round(weights[-1], 1) if weights else None,
        "first_at_target": first,
        "stays": first is not None and all(at_target[first - 1 :]),
    }


def logged(rows: Sequence[Mapping[str, str]], key: str) -> list[float]:
    """The values of a key, in order."""
    return [float(row[key]) for row in rows if row.get(key)]


@styled
def draw(lines: Sequence[Line]) -> Figure:
    """Lower bound against the alignment weight, and reconstruction error against the lower bound."""
    guarded = [line for line in lines if line["run"].startswith("guard")]
    held = sum(line["margin_lower"] >= TARGET for line in guarded)
    title = f"The guard finds a weight that holds {TARGET:g} nats in {held} of {len(guarded)} runs"
    figure, (left, right) = new_figure(title, 9.5, 4.6, 1, 2)
    for line in lines:
        (look, filled), weight = _look(line["run"]), _weight(line)
        marks = look.style(filled) | {"linestyle": ""}
        left.plot(weight, line["margin_lower"], **marks)
        right.plot(line["margin_lower"], line["mean_squared_error"], **marks)
        if line["run"].startswith("fixed"):
            place = (line["margin_lower"], line["mean_squared_error"])
            right.annotate(f"{weight:g}", place, textcoords="offset points", xytext=(-8, -4), ha="right", fontsize=10)
    left.axhline(TARGET, color="0.35", linestyle=":")
    right.axvline(TARGET, color="0.35", linestyle=":")
    left.set(title="lower bound of the margin, nats", xlabel="alignment weight at the end", xlim=(-8, 900))
    left.set_xscale("symlog", linthresh=40)
    weights = sorted({_weight(line) for line in lines if not line["run"].startswith("guard")})
    left.set_xticks(weights, [f"{weight:g}" for weight in weights])
    left.minorticks_off()
    right.set(title="squared error of a pixel (number: fixed weight)", xlabel="lower bound of the margin, nats")
    right.margins(0.08)
    shown = {_word(line["run"]): _look(line["run"]) for line in lines}
    entries = [(word, look.style(filled) | {"linestyle": ""}) for word, (look, filled) in shown.items()]
    legend_below(figure, (*entries, ("the guard's target", {"color": "0.35", "linestyle": ":"})), 3)
    return figure


def _look(run: str) -> tuple[Look, bool]:
    """Marker of a run, and whether it is filled."""
    if run.startswith("fixed"):
        return FIXED, True
    return {"guard": (FIRST, True), "guard_rescue": (THIRD, True), "no_align": (SECOND, False)}[run]


def _word(run: str) -> str:
    words = {"guard": "guard", "guard_rescue": "guard, from collapsed weights", "no_align": "no alignment"}
    return words.get(run, "fixed weight")


def _weight(line: Line) -> float:
    if line["run"].startswith("fixed"):
        return float(line["run"].removeprefix("fixed_"))
    return float(line["last_weight"] or 0)


def claims(lines: Sequence[Line]) -> dict[str, bool]:
    """The claims of the study, and whether they hold."""
    guarded = [line for line in lines if line["run"].startswith("guard")]
    collapsed = [line for line in lines if line["run"] == "no_align"]
    shown = {
        f"the guard brings the bound to its target of {TARGET:g} nats and keeps it there, in every seed and from the "
        "collapsed weights": all(line["stays"] and line["margin_lower"] >= TARGET for line in guarded),
    }
    if collapsed:
        shown["without alignment the bound stays below the target"] = not any(
            line["margin_lower"] >= TARGET for line in collapsed
        )
    return shown


def main(args: Sequence[str] | None = None) -> list[Line]:
    """Run the remaining runs, write table and figure, and return the table's lines."""
    parser = study_parser("guard", __doc__)
    parser.add_argument("--only", nargs="+", metavar="RUN", help="names of the runs, such as guard no_align fixed_160")
    given = parser.parse_args(args)
    study = Study("guard", given)
    lines = [
        measure(study, seed, *setting)
        for seed in study.seeds
        for setting in settings(study, seed)
        if given.only is None or setting[0] in given.only
    ]
    if not lines:
        names = ", ".join(name for name, *_ in settings(study, study.seeds[0]))
        parser.error(f"--only must name one of {names}; got {' '.join(given.only)}")
    study.report(Results(lines, COLUMNS, claims(lines), {"guard": draw(lines)}))
    return lines


if __name__ == "__main__":
    main()
