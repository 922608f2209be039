"""Margin against energy, and the mean path against the channel, over scales, priors and alignment paths.

    python -m experiments.path.study --data_dir data
    python -m experiments.path.study --quick

Left: the margin of the closed-form code ``t mu*(T(x))`` of the simplex witness on the kept rows, the most that any
code can have at an energy (see :mod:`experiments.path.theory`), and trained models at their own energy, times the
square of the scale, which makes all scales comparable. A model above the frontier would be a bug: ``headroom`` is at
least 0.

Right: margins of the same models on the mean path and on the channel ``z ~ q(z|x)`` that the decoder receives, raw and
calibrated (scale and prior weight fitted on training rows, scored on kept ones). ``flattery`` is the raw margin less
the calibrated channel margin: what the raw certificate states beyond what the calibrated witness finds in the channel.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from certvae.commands.tables import Line, Results
from experiments.path.theory import Point, frontier, most_margin, path
from experiments.study import Study, study_parser

__all__ = ["main"]

SCALES = (1.0, 2.0, 4.0, 8.0)
FRACTIONS = [number / 20 for number in range(31)]
PRICES = [10 ** (-number / 4) for number in range(-4, 17)]
COLORS = {"mean": "#D55E00", "sample": "#0072B2"}
MARKERS = {"with": "o", "without": "s"}
COLUMNS = {
    "seed": "{seed}",
    "scale": "{scale:g}",
    "prior": "{prior}",
    "aligned on": "{alignment_path}",
    "status": "{status}",
    "margin [90 % interval]": "{margin:+.3f} [{margin_lower:+.3f}, {margin_upper:+.3f}]",
    "channel margin": "{channel_margin:+.3f}",
    "calibrated": "{calibrated_channel_margin:+.3f}",
    "rate": "{rate:.3f}",
    "energy x scale^2": "{scaled_energy:.3f}",
    "headroom": "{headroom:.3f}",
    "flattery": "{flattery:+.3f}",
    "squared error": "{mean_squared_error:.4f}",
}


class Theory:
    """The curves of one seed's teacher on the kept rows.

    Args:
        study: whose teacher and rows.
        seed: of the teacher.

    Attributes:
        paths: with and without the prior, the points at :data:`FRACTIONS`.
        frontiers: the points at :data:`PRICES`.
    """

    def __init__(self, study: Study, seed: int) -> None:
        teacher = study.teacher(seed)
        rows, average = kept_answers(study, seed), teacher.measured_average()
        priors: dict[str, Tensor | None] = {"with": average, "without": None}
        self.paths = {name: path(rows, prior, FRACTIONS) for name, prior in priors.items()}
        self.frontiers = {name: frontier(rows, prior, PRICES) for name, prior in priors.items()}

    def headroom(self, prior: str, energy: float, margin: float) -> float:
        """How far a margin stays below the most that a code of this energy (at scale 1) can have; nats."""
        return most_margin(energy, PRICES, self.frontiers[prior]) - margin


@torch.no_grad()
def kept_answers(study: Study, seed: int) -> Tensor:
    """The teacher's answers on the rows kept for certificates, float64, shape ``(N, K)``."""
    teacher = study.teacher(seed)
    return torch.cat([teacher(images, index) for images, index in study.batches("test")]).double()


def measure(study: Study, seed: int, theory: Theory, setting: dict[str, Any]) -> Line:
    """Run one setting, and its line of the table."""
    scale, prior, alignment_path = setting["scale"], setting["prior"], setting["alignment_path"]
    changes = {
        "model.witness_scale": scale,
        "model.witness_prior": prior == "with",
        "model.alignment_path": alignment_path,
    }
    run = study.run(seed, f"scale{scale:g}_{prior}_{alignment_path}", changes)
    line, energy = run.line(), run.energy * scale**2
    found = {
        "scaled_energy": energy,
        "headroom": theory.headroom(prior, energy, run.certificate.margin),
        "flattery": line["margin"] - line["calibrated_channel_margin"],
    }
    return {"seed": seed, **setting, **line, **{key: round(value, 5) for key, value in found.items()}}


def draw(lines: Sequence[Line], theory: Theory) -> Figure:
    """Left: margin against energy, of the first seed, whose teacher the curves belong to; right: against the scale."""
    figure = Figure(figsize=(12, 6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_energy(left, [line for line in lines if line["seed"] == lines[0]["seed"]], theory)
    _draw_scales(right, lines)
    top = max(line["teacher_information"] for line in lines)
    for axes in (left, right):
        axes.axhline(0, color="black", linewidth=1)
        axes.set_ylim(-0.5 * top, 1.1 * top)  # raw channel margins may fall far below
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    return figure


def _draw_energy(axes: Axes, lines: Sequence[Line], theory: Theory) -> None:
    for prior, style in (("with", "-"), ("without", "--")):
        _curve(axes, theory.paths[prior][1:], "black", style, f"closed-form code, t to 1.5, {prior} prior")
        _curve(axes, theory.frontiers[prior], "#009E73", style, f"the most of any code, {prior} prior")
    for line in lines:
        color, marker = COLORS[line["alignment_path"]], MARKERS[line["prior"]]
        axes.plot(line["scaled_energy"], line["margin"], marker, color=color, markersize=5)
        place = (line["scaled_energy"], line["margin"])
        axes.annotate(f"{line['scale']:g}", place, textcoords="offset points", xytext=(4, -8), fontsize=7)
    for alignment_path, color in COLORS.items():
        axes.plot([], [], "o", color=color, label=f"aligned on the {alignment_path} (number: scale)")
    axes.plot([], [], "s", color="0.5", label="squares: without prior")
    axes.set(xscale="log", xlabel="energy of the code x scale^2 (nats)", ylabel="raw-witness margin (nats)")
    axes.set_xlim(left=0.05)


def _curve(axes: Axes, points: Sequence[Point], color: str, style: str, label: str) -> None:
    energies, margins = zip(*points, strict=True)
    axes.plot(energies, margins, color=color, linestyle=style, linewidth=1.2, label=label)


def _draw_scales(axes: Axes, lines: Sequence[Line]) -> None:
    """Of the runs with a prior; those without stand in the table."""
    shown = {"margin": "-", "channel_margin": ":", "calibrated_channel_margin": "--"}
    chosen = [line for line in lines if line["prior"] == "with"]
    for alignment_path, color in COLORS.items():
        for number, seed in enumerate(sorted({line["seed"] for line in chosen})):
            mine = [line for line in chosen if line["alignment_path"] == alignment_path and line["seed"] == seed]
            for name, style in shown.items():
                label = f"{name.replace('_', ' ')}, aligned on the {alignment_path}" if number == 0 else None
                values = [line[name] for line in mine]
                axes.plot([line["scale"] for line in mine], values, style, color=color, marker=".", label=label)
    axes.set(xscale="log", xlabel="scale of the witness", ylabel="margin (nats), with prior")
    scales = sorted({line["scale"] for line in chosen})
    axes.set_xticks(scales, [f"{scale:g}" for scale in scales])
    axes.minorticks_off()


def claims(lines: Sequence[Line]) -> dict[str, bool]:
    """What the study is to show."""
    smallest, largest = (find(line["scale"] for line in lines) for find in (min, max))

    def average(name: str, scale: float, alignment_path: str) -> float:
        return fmean(line[name] for line in lines if (line["scale"], line["alignment_path"]) == (scale, alignment_path))

    return {
        "no model has more margin than the frontier allows at its energy": all(
            line["headroom"] >= -1e-6 for line in lines
        ),
        "no calibrated channel margin exceeds the rate": all(
            line["calibrated_channel_margin"] <= line["rate"] for line in lines
        ),
        f"aligned on the mean, scale {largest:g} flatters more than scale {smallest:g}": (
            average("flattery", largest, "mean") > average("flattery", smallest, "mean")
        ),
        f"at scale {largest:g}, alignment on draws brings more into the channel than alignment on the mean": (
            average("calibrated_channel_margin", largest, "sample")
            > average("calibrated_channel_margin", largest, "mean")
        ),
    }


def main(args: Sequence[str] | None = None) -> list[Line]:
    """Run what is not done yet, write table and figure, and return the table's lines."""
    parser = study_parser("path", __doc__)
    parser.add_argument("--scales", type=float, nargs="+", help="instead of 1 2 4 8")
    parser.add_argument("--priors", nargs="+", choices=("with", "without"), help="instead of both")
    given = parser.parse_args(args)
    study, lines, theories = Study("path", given), [], {}
    settings = [
        {"scale": scale, "prior": prior, "alignment_path": alignment_path}
        for prior in given.priors or ("with", "without")
        for scale in given.scales or SCALES
        for alignment_path in COLORS
    ]
    for seed in study.seeds:
        theories[seed] = Theory(study, seed)
        lines += [measure(study, seed, theories[seed], setting) for setting in settings]
    study.report(Results(lines, COLUMNS, claims(lines), {"path": draw(lines, theories[study.seeds[0]])}))
    return lines


if __name__ == "__main__":
    main()
