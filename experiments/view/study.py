"""Measures the cost in margin if the teacher sees clean images and the encoder sees augmented ones.

    python -m experiments.view.study --data_dir data
    python -m experiments.view.study --quick

Each run has another view in front of its encoder, in training and in the certificate; teacher and reconstruction target
are clean. The table shows its margin and, on the same reserved rows with the same views, two more values (proofs:
:mod:`experiments.view.bounds`). The first is the margin of the teacher's own outputs on the views, raw and calibrated;
these margins are attainable and so bound the exact gap from above. The second is the largest margin that data
processing allows. ``cost`` is the clean run's margin minus that of the run. The bound on the exact gap is estimated by
the teacher information minus the best of the three margins.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from certvae import certify
from certvae.certificate.certificate import Certificate
from certvae.commands.tables import Line, Results
from certvae.theory.calibration import fit_calibration
from experiments.drawing import FIRST, SECOND, THIRD, legend_below, new_figure, styled
from experiments.study import Study, study_parser
from experiments.view.bounds import covariance_of, noise_information
from experiments.view.views import Views

__all__ = ["main"]

VIEWS: dict[str, dict[str, tuple[float, ...]]] = {
    "digits": {"shift": (1.0, 2.0), "noise": (0.25, 0.5, 1.0, 2.0), "color": (0.5, 1.0)},
    "cifar100": {"shift": (2.0, 4.0, 8.0), "noise": (0.1, 0.3, 1.0), "color": (0.2, 0.5, 1.0)},
}
CALIBRATION_ROWS = 4000
COLUMNS = {
    "seed": "{seed}",
    "view": "{view}",
    "strength": "{strength:g}",
    "status": "{status}",
    "margin [90 % interval]": "{margin:+.3f} [{margin_lower:+.3f}, {margin_upper:+.3f}]",
    "at least, betting": "{proven_lower:+.3f}",
    "code carries": "{information_lower:.2f} to {information_upper:.2f}",
    "cost": "{cost:+.3f}",
    "E KL(T(x), T(view))": "{teacher_gap:.3f}",
    "attainable: teacher on views": "{own_margin:+.3f} (at least {own_lower:+.3f})",
    "attainable: calibrated": "{calibrated_margin:+.3f} (at least {calibrated_lower:+.3f})",
    "attainable at most": "{at_most:.3f}",
    "exact gap at most, estimated": "{gap_at_most:.3f}",
    "calibrated channel margin": "{calibrated_channel_margin:+.3f}",
    "squared error": "{mean_squared_error:.4f}",
}


class Answers:
    """The teacher's probabilities on clean rows and on their views.

    Args:
        study: study with the rows.
        seed: seed of the teacher.
        split: ``"train"`` (at most :data:`CALIBRATION_ROWS`) or ``"test"``.
        views: the views, in evaluation mode; None: the clean rows again.
    """

    def __init__(self, study: Study, seed: int, split: str, views: Views | None) -> None:
        teacher, clean, viewed, seen = study.teacher(seed), [], [], 0
        for images, index in study.batches(split):
            clean.append(teacher(images, index))
            viewed.append(clean[-1] if views is None else teacher(views(images), index))
            seen += len(images)
            if split == "train" and seen >= CALIBRATION_ROWS:
                break
        self.clean, self.logits = torch.cat(clean).double(), torch.cat(viewed).double().log()


def attainable(study: Study, seed: int, views: Views | None) -> tuple[Certificate, Certificate]:
    """Margins of the teacher's outputs on views against its outputs on clean rows: raw and calibrated."""
    kept, train = (Answers(study, seed, split, views) for split in ("test", "train"))
    calibration = fit_calibration(train.clean, train.logits[None])
    return certify(kept.clean, kept.logits), certify(kept.clean, calibration(kept.logits))


def measure(study: Study, seed: int, kind: str | None, strength: float, covariance: Tensor) -> Line:
    """Run one view and return its line of the table; ``covariance`` is that of clean training rows."""
    if kind is None:
        run, views = study.run(seed, "clean", {}), None
    else:
        arguments = {"encoder": study.base("model.encoder"), "kind": kind, "strength": strength}
        encoder = {"class_path": "experiments.view.views.ViewEncoder", "init_args": arguments}
        run = study.run(seed, f"{kind}{strength:g}", {"model.encoder": encoder})
        views = Views(kind, strength).eval()
    own, calibrated = attainable(study, seed, views)
    at_most = run.certificate.teacher_information
    if kind == "noise":
        at_most = min(at_most, noise_information(covariance, strength))
    found = {
        "teacher_gap": own.alignment_loss,
        "own_margin": own.margin,
        "own_lower": own.margin_lower,
        "calibrated_margin": calibrated.margin,
        "calibrated_lower": calibrated.margin_lower,
        "gap_at_most": max(0.0, own.teacher_information - max(own.margin, calibrated.margin, run.certificate.margin)),
        "at_most": at_most,
    }
    setting = {"seed": seed, "view": kind or "clean", "strength": strength}
    return {**setting, **run.line(), **{key: round(value, 5) for key, value in found.items()}}


@styled
def draw(lines: Sequence[Line]) -> Figure:
    """Draw margins against the strength of each kind of view."""
    kinds = list(dict.fromkeys(line["view"] for line in lines if line["view"] != "clean"))
    title = "The stronger the view, the less margin the encoder keeps"
    figure, panels = new_figure(title, 9.5, 5, 1, len(kinds), sharey=True)
    for axes, kind in zip(panels, kinds, strict=True):
        _draw_kind(axes, kind, lines)
    panels[0].set_ylabel("margin, nats")
    legend_below(figure, ((style["label"], style) for style in map(dict, SERIES.values())), 2)
    return figure


SERIES: Mapping[str, Mapping[str, Any]] = {
    "margin": {**FIRST.style(), "label": "trained encoder of views"},
    "at_most": {"color": "0.35", "linestyle": "-.", "label": "at most (data processing)"},
    "calibrated_margin": {**SECOND.style(filled=False), "label": "attainable: teacher on views, calibrated"},
    "own_margin": {**THIRD.style(), "label": "attainable: teacher on views"},
}


def _draw_kind(axes: Axes, kind: str, lines: Sequence[Line]) -> None:
    for seed in sorted({line["seed"] for line in lines}):
        chosen = [line for line in lines if line["seed"] == seed and line["view"] in ("clean", kind)]
        strengths = [line["strength"] for line in chosen]
        for name, style in SERIES.items():
            axes.plot(strengths, [line[name] for line in chosen], **style)
        low, high = ([line[f"margin_{end}"] for line in chosen] for end in ("lower", "upper"))
        axes.fill_between(strengths, low, high, color=SERIES["margin"]["color"], alpha=0.2, linewidth=0)
    axes.axhline(0, color="black", linewidth=1)
    top = max(line["teacher_information"] for line in lines)
    axes.set_ylim(-0.5 * top, 1.08 * top)  # margins of the teacher's own outputs may be far below
    axes.set(title=kind, xlabel="strength of the view")


def claims(lines: Sequence[Line]) -> dict[str, bool]:
    """The claims of the study, and whether they hold."""
    kinds = {line["view"] for line in lines} - {"clean"}
    return {
        "no margin's lower bound exceeds what data processing allows": all(
            line["margin_lower"] <= line["at_most"] for line in lines
        ),
        "of each kind of view, the strongest costs the most of weakest and strongest": all(
            _grows([line for line in lines if line["view"] == kind]) for kind in kinds
        ),
        "no trained encoder of views is above the clean one by more than 0.02 nats": all(
            line["cost"] > -0.02 for line in lines
        ),
    }


def _grows(lines: Sequence[Line]) -> bool:
    strengths = sorted({line["strength"] for line in lines})
    costs = [fmean(line["cost"] for line in lines if line["strength"] == each) for each in strengths]
    return len(costs) == 1 or costs[0] < costs[-1]


def main(args: Sequence[str] | None = None) -> list[Line]:
    """Run the remaining runs, write table and figure, and return the table's lines."""
    parser = study_parser("view", __doc__)
    parser.add_argument("--views", nargs="+", help="such as shift:2 noise:0.5, instead of the data set's list")
    given = parser.parse_args(args)
    study, lines = Study("view", given), []
    wanted = [(kind, strength) for kind, values in VIEWS[study.dataset].items() for strength in values]
    if given.views:
        wanted = [(kind, float(strength)) for kind, _, strength in (text.partition(":") for text in given.views)]
    covariance = covariance_of(images for images, _ in study.batches("train"))
    for seed in study.seeds:
        mine = [measure(study, seed, kind, strength, covariance) for kind, strength in [(None, 0.0), *wanted]]
        lines += [{**line, "cost": round(mine[0]["margin"] - line["margin"], 5)} for line in mine]
    study.report(Results(lines, COLUMNS, claims(lines), {"view": draw(lines)}))
    return lines


if __name__ == "__main__":
    main()
