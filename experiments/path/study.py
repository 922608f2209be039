"""Margin against energy, and the mean path against the channel, over scales, priors and alignment paths.

    python -m experiments.path.study --data_dir data
    python -m experiments.path.study --quick

Left: the margin of the closed-form code ``t mu*(T(x))`` of the simplex witness on the kept rows, the largest margin of
    any code at an energy (see :mod:`experiments.path.theory`), and trained models at their own energy, times the square
    of the scale, which makes all scales comparable. A model above the frontier would be a bug: ``headroom`` is at least
    0.

Right: margins of the same models on the mean path and on the channel ``z ~ q(z|x)`` that the decoder receives, raw and
calibrated (scale and prior weight fitted on training rows, scored on kept ones). ``flattery`` is the raw margin minus
the calibrated channel margin: the part of the raw margin that the calibrated witness does not find in the channel.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from certvae.commands.tables import Line, Results
from experiments.drawing import FIRST, SECOND, THIRD, legend_below, new_figure, styled
from experiments.path.theory import frontier, most_margin, path
from experiments.study import Study, study_parser

__all__ = ["main"]

SCALES = (1.0, 2.0, 4.0, 8.0)
FRACTIONS = [number / 20 for number in range(31)]
PRICES = [10 ** (-number / 4) for number in range(-4, 17)]
LOOKS = {"mean": SECOND, "sample": FIRST}
WORDS = {"mean": "mean", "sample": "draw"}
SERIES = {
    "margin": ("on the mean, raw", FIRST),
    "calibrated_channel_margin": ("on draws, calibrated", SECOND),
    "channel_margin": ("on draws, raw", THIRD),
}
COLUMNS = {
    "seed": "{seed}",
    "scale": "{scale:g}",
    "prior": "{prior}",
    "aligned on": "{alignment_path}",
    "status": "{status}",
    "margin [90 % interval]": "{margin:+.3f} [{margin_lower:+.3f}, {margin_upper:+.3f}]",
    "at least, betting": "{proven_lower:+.3f}",
    "code carries": "{information_lower:.2f} to {information_upper:.2f}",
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
        study: study with the teacher and the rows.
        seed: seed of the teacher.

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
        """Distance in nats of a margin below the largest margin of a code with this energy (at scale 1)."""
        return most_margin(energy, PRICES, self.frontiers[prior]) - margin


@torch.no_grad()
def kept_answers(study: Study, seed: int) -> Tensor:
    """The teacher's probabilities on the rows reserved for certificates, float64, shape ``(N, K)``."""
    teacher = study.teacher(seed)
    return torch.cat([teacher(images, index) for images, index in study.batches("test")]).double()


def measure(study: Study, seed: int, theory: Theory, setting: dict[str, Any]) -> Line:
    """Run one setting and return its line of the table."""
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


@styled
def draw(lines: Sequence[Line]) -> Figure:
    """Draw margin and frontier against energy, with and without prior (above), and margins over scales (below)."""
    title = "Raw margins stay below what their energy allows; alignment on the mean leaves little on draws"
    figure, panels = new_figure(title, 9.5, 8, 2, 2, sharey="row")
    for axes, prior in zip(panels[:2], ("with", "without"), strict=True):
        _draw_energy(axes, [line for line in lines if line["prior"] == prior])
        axes.set(title=f"{prior} prior (number: scale of the witness)", xlabel="energy of the code x scale², nats")
    for axes, aligned_on in zip(panels[2:], LOOKS, strict=True):
        chosen = [line for line in lines if (line["prior"], line["alignment_path"]) == ("with", aligned_on)]
        _draw_scales(axes, chosen)
        axes.set(title=f"aligned on the {WORDS[aligned_on]}, with prior", xlabel="scale of the witness")
    panels[0].set_ylabel("raw-witness margin, nats")
    panels[2].set_ylabel("margin, nats")
    top = max(line["teacher_information"] for line in lines)
    panels[2].set_ylim(-0.25 * top, top)  # raw margins on draws fall far below
    above = (
        *((f"aligned on the {word}", LOOKS[name].style() | {"linestyle": ""}) for name, word in WORDS.items()),
        ("the most of any code", {"color": "0.35", "marker": "_", "linestyle": "-", "linewidth": 0.8}),
    )
    legend_below(figure, (*above, *((label, look.style(look is FIRST)) for label, look in SERIES.values())), 3)
    return figure


def _draw_energy(axes: Axes, lines: Sequence[Line]) -> None:
    """Draw a mark for each model, above it a dash for the largest margin of any code with its energy, and scales."""
    for line in lines:
        x, most = line["scaled_energy"], line["margin"] + line["headroom"]
        axes.plot([x, x], [line["margin"], most], color="0.35", linewidth=0.8, zorder=1)
        axes.plot(x, most, "_", color="0.35", markersize=10)
        axes.plot(x, line["margin"], **LOOKS[line["alignment_path"]].style())
    for aligned_on, scale in dict.fromkeys((line["alignment_path"], line["scale"]) for line in lines):
        group = [line for line in lines if (line["alignment_path"], line["scale"]) == (aligned_on, scale)]
        end, aside, align = (max, 8, "left") if aligned_on == "sample" else (min, -8, "right")
        place = (end(line["scaled_energy"] for line in group), fmean(line["margin"] for line in group))
        axes.annotate(f"{scale:g}", place, (aside, -4), textcoords="offset points", fontsize=10, ha=align)
    axes.axhline(0, color="black", linewidth=1)
    axes.set(xscale="log", xlim=(1, 150), ylim=(-0.05, None))
    axes.xaxis.set_major_formatter("{x:g}")


def _draw_scales(axes: Axes, lines: Sequence[Line]) -> None:
    for seed in sorted({line["seed"] for line in lines}):
        mine = [line for line in lines if line["seed"] == seed]
        for name, (_, look) in SERIES.items():
            axes.plot([line["scale"] for line in mine], [line[name] for line in mine], **look.style(look is FIRST))
    scales = sorted({line["scale"] for line in lines})
    axes.axhline(0, color="black", linewidth=1)
    axes.set(xscale="log")
    axes.set_xticks(scales, [f"{scale:g}" for scale in scales])
    axes.minorticks_off()


def claims(lines: Sequence[Line]) -> dict[str, bool]:
    """The claims of the study, and whether they hold."""
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
    """Run the remaining runs, write table and figure, and return the table's lines."""
    parser = study_parser("path", __doc__)
    parser.add_argument("--scales", type=float, nargs="+", help="instead of 1 2 4 8")
    parser.add_argument("--priors", nargs="+", choices=("with", "without"), help="instead of both")
    given = parser.parse_args(args)
    study, lines, theories = Study("path", given), [], {}
    settings = [
        {"scale": scale, "prior": prior, "alignment_path": alignment_path}
        for prior in given.priors or ("with", "without")
        for scale in given.scales or SCALES
        for alignment_path in LOOKS
    ]
    for seed in study.seeds:
        theories[seed] = Theory(study, seed)
        lines += [measure(study, seed, theories[seed], setting) for setting in settings]
    study.report(Results(lines, COLUMNS, claims(lines), {"path": draw(lines)}))
    return lines


if __name__ == "__main__":
    main()
