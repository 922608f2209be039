"""Margin under growing KL weights, with and without alignment, up to a weight at which the plain VAE collapses.

    python -m experiments.stress.study --data_dir data
    python -m experiments.stress.study --quick

Only the KL weight beta and the alignment weight differ between the runs of a seed. Every term is a sum over a row, so
the effect of a KL weight depends on the observation variance s2. It is set to ``s2 = lambda_max / 16``, with the
largest eigenvalue of the data's covariance from the teacher's card. In the linear theory (Lucas et al., 2019,
https://arxiv.org/abs/1911.02469) a plain VAE keeps the principal components whose eigenvalue exceeds ``beta * s2`` and
collapses fully where ``beta * s2 > lambda_max``: the weights 1, 2, 4 and 8 are then at 1/16 to 1/2 of that point, and
32 is at twice of it. The alignment weight is the same at every KL weight.
"""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from certvae.commands.tables import Line, Results
from certvae.teachers import TeacherCard
from experiments.drawing import FIRST, SECOND, legend_below, new_figure, styled
from experiments.study import Study, study_parser

__all__ = ["main", "observation_std"]

KL_WEIGHTS = (1.0, 2.0, 4.0, 8.0, 32.0)
COLLAPSE_AT = 16.0  # the KL weight at which the linear theory's plain VAE loses its last component
ALIGNMENT_WEIGHT = 320.0
LOOKS = {True: FIRST, False: SECOND}
WORDS = {True: "aligned", False: "plain, weight 0"}
COLUMNS = {
    "seed": "{seed}",
    "KL weight": "{kl_weight:g}",
    "beta s2 / lambda_max": "{collapse_ratio:.3g}",
    "aligned": "{aligned}",
    "status": "{status}",
    "margin [90 % interval]": "{margin:+.3f} [{margin_lower:+.3f}, {margin_upper:+.3f}]",
    "at least, betting": "{proven_lower:+.3f}",
    "reading": "{reading}",
    "code carries": "{information_lower:.3f} to {information_upper:.3f}",
    "channel margin": "{channel_margin:+.3f}",
    "calibrated": "{calibrated_channel_margin:+.3f}",
    "rate": "{rate:.3f}",
    "squared error": "{mean_squared_error:.4f}",
    "witness information": "{witness_information:.4f}",
}


def observation_std(card: TeacherCard) -> float:
    """The standard deviation of a pixel at which full collapse of a plain VAE is predicted at KL weight 16.

    Raises:
        ValueError: if the card does not hold the largest eigenvalue.
    """
    if not card.largest_eigenvalue:
        raise ValueError("the teacher's card has no `largest_eigenvalue`; search it with certvae.TeacherSearch.")
    return float(f"{math.sqrt(card.largest_eigenvalue / COLLAPSE_AT):.3g}")


def measure(study: Study, seed: int, kl_weight: float, aligned: bool) -> Line:
    """Run one setting and return its line of the table."""
    card = study.teacher(seed).card
    std = observation_std(card)
    changes = {
        "model.objective.beta": kl_weight,
        "model.observation_std": std,
        "model.alignment_weight": ALIGNMENT_WEIGHT if aligned else 0.0,
    }
    run = study.run(seed, f"kl{kl_weight:g}_{'aligned' if aligned else 'plain'}", changes)
    assert card.largest_eigenvalue is not None
    ratio = round(kl_weight * std**2 / card.largest_eigenvalue, 4)
    setting = {"seed": seed, "kl_weight": kl_weight, "aligned": aligned, "collapse_ratio": ratio}
    return {**setting, "observation_std": std, **run.line()}


PANELS = {
    "margin": "raw-witness margin, nats",
    "rate": "rate, nats",
    "witness_information": "witness information, nats",
    "mean_squared_error": "squared error of a pixel",
}


@styled
def draw(lines: Sequence[Line]) -> Figure:
    """Four panels against the KL weight: a thin line for each seed, filled marks where it is certified."""
    counts = {aligned: [line for line in lines if line["aligned"] is aligned] for aligned in LOOKS}
    certified = {aligned: sum(line["status"] == "CERTIFIED" for line in chosen) for aligned, chosen in counts.items()}
    title = (
        f"Growing KL weight: {certified[True]} of {len(counts[True])} runs certified with alignment, "
        f"{certified[False]} of {len(counts[False])} without"
    )
    figure, panels = new_figure(title, 9.5, 7, 2, 2)
    for axes, (name, label) in zip(panels, PANELS.items(), strict=True):
        for aligned in LOOKS:
            _draw_runs(axes, name, [line for line in lines if line["aligned"] is aligned])
        _draw_axes(axes, name, label, lines)
    legend_below(
        figure,
        (
            *((f"{word} (filled: certified)", LOOKS[aligned].style(aligned)) for aligned, word in WORDS.items()),
            ("full collapse predicted right of it", {"color": "0.35", "linestyle": ":"}),
        ),
        3,
    )
    return figure


def _draw_runs(axes: Axes, name: str, lines: Sequence[Line]) -> None:
    for seed in sorted({line["seed"] for line in lines}):
        chosen = [line for line in lines if line["seed"] == seed]
        weights, values = [line["kl_weight"] for line in chosen], [line[name] for line in chosen]
        look = LOOKS[chosen[0]["aligned"]]
        axes.plot(weights, values, color=look.color, linestyle=look.line, linewidth=1)
        for line in chosen:
            marks = look.style(line["status"] == "CERTIFIED") | {"linestyle": ""}
            axes.plot(line["kl_weight"], line[name], zorder=3, **marks)


def _draw_axes(axes: Axes, name: str, label: str, lines: Sequence[Line]) -> None:
    axes.axvline(COLLAPSE_AT, color="0.35", linestyle=":")
    weights = sorted({line["kl_weight"] for line in lines})
    axes.set(xscale="log", xlabel="KL weight", title=label)
    axes.set_xticks(weights, [f"{weight:g}" for weight in weights])
    axes.minorticks_off()
    if name == "margin":
        axes.axhline(0, color="black", linewidth=1)
    elif name != "mean_squared_error":
        axes.set_yscale("symlog", linthresh=1e-2)
        axes.set_ylim(-2e-3, 2 * max(line[name] for line in lines))
        axes.yaxis.set_major_formatter("{x:g}")


def claims(lines: Sequence[Line]) -> dict[str, bool]:
    """The claims of the study, and whether they hold."""
    aligned, plain = ([line for line in lines if line["aligned"] is value] for value in (True, False))
    collapsed, alive = ([line for line in plain if (line["collapse_ratio"] > 1) is value] for value in (True, False))
    shown = {
        "with alignment every run is certified": all(line["status"] == "CERTIFIED" for line in aligned),
        "without it none is": all(line["status"] == "NOT_CERTIFIED" for line in plain),
        "without it no channel margin is positive": all(line["channel_margin"] <= 0 for line in plain),
    }
    if collapsed:
        shown["where a plain VAE collapses, its witness information and its rate are below 0.02 nats"] = all(
            max(line["witness_information"], line["rate"]) < 0.02 for line in collapsed
        )
    if alive:
        shown["at smaller KL weights its rate is above 0.02 nats"] = all(line["rate"] > 0.02 for line in alive)
    return shown


def main(args: Sequence[str] | None = None) -> list[Line]:
    """Run the remaining runs, write table and figure, and return the table's lines."""
    parser = study_parser("stress", __doc__)
    parser.add_argument("--kl_weights", type=float, nargs="+", help="instead of 1 2 4 8 32")
    given = parser.parse_args(args)
    study, lines = Study("stress", given, seeds=range(5)), []
    for seed in study.seeds:
        for kl_weight in given.kl_weights or KL_WEIGHTS:
            lines += [measure(study, seed, kl_weight, aligned) for aligned in (True, False)]
    study.report(Results(lines, COLUMNS, claims(lines), {"stress": draw(lines)}))
    return lines


if __name__ == "__main__":
    main()
