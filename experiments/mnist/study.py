"""MNIST at KL weight 1 with a Bernoulli likelihood: a plain VAE, an aligned one, and one whose code was fitted first.

    python -m experiments.mnist.study --data_dir data

The phases are those of the follow-up's table (arXiv 2605.18224), of which only an early version is quoted in public:
teacher information 2.0189; plain VAE margin -3.68 at a rate of 19.3, aligned +1.318 at 20.2, fitted first +1.269. Its
teacher and networks are not known. So signs and sizes can be compared, not digits.
"""

from collections.abc import Sequence

from matplotlib.figure import Figure

from certvae.commands.tables import Line, Results
from experiments.drawing import FIRST, SECOND, legend_below, new_figure, styled
from experiments.study import Study, study_parser

__all__ = ["PHASES", "PUBLISHED", "claims", "main"]

PHASES = ("plain", "aligned", "prefit")
PUBLISHED = {"plain": (-3.68, 19.3), "aligned": (1.318, 20.2), "prefit": (1.269, None)}  # margin and rate, nats
COLUMNS = {
    "seed": "{seed}",
    "phase": "{phase}",
    "verdict": "{reading}, {proven_status}",
    "`I_T`": "{teacher_information:.3f}",
    "margin": "{margin:+.3f}",
    "at least, betting": "{proven_lower:+.3f}",
    "channel margin": "{channel_margin:+.3f}",
    "fitted reader, draw": "{fitted_draw:+.3f}",
    "code carries": "{information_lower:.2f} to {information_upper:.2f}",
    "rate": "{rate:.2f}",
    "squared error": "{mean_squared_error:.4f}",
}


def measure(study: Study, seed: int, phase: str) -> Line:
    """Run one phase and return its line of the table."""
    changes = {"model.alignment_weight": 0.0} if phase == "plain" else {}
    run = study.run(seed, phase, changes, base=study.values("prefit" if phase == "prefit" else "full"))
    return {"seed": seed, "phase": phase, **run.line()}


def claims(lines: Sequence[Line]) -> dict[str, bool]:
    """The claims of the study, and whether they hold."""
    plain = [line for line in lines if line["phase"] == "plain"]
    aligned = [line for line in lines if line["phase"] != "plain"]
    return {
        "the plain VAE has a margin below 0 with its interval, and reads INFORMATIVE, in every seed": all(
            line["margin_upper"] < 0 and line["reading"] == "INFORMATIVE" for line in plain
        ),
        "the aligned and the fitted code are certified by the proven bound in every seed": all(
            line["proven_status"] == "CERTIFIED" for line in aligned
        ),
    }


@styled
def draw(lines: Sequence[Line]) -> Figure:
    """Margin and rate of each seed by phase, beside the published values."""
    figure, panels = new_figure(
        "MNIST at KL weight 1: margin and rate by phase, beside those of the follow-up", 9, 4.8, 1, 2
    )
    for axes, name, place in zip(panels, ("margin", "rate"), range(2), strict=True):
        for x, phase in enumerate(PHASES):
            found = [line[name] for line in lines if line["phase"] == phase]
            axes.plot([x] * len(found), found, **(FIRST.style() | {"linestyle": ""}))
            published = PUBLISHED[phase][place]
            if published is not None:
                axes.plot(x, published, **(SECOND.style(filled=False) | {"linestyle": ""}))
        axes.axhline(0, color="black", linewidth=1)
        axes.set_xticks(range(len(PHASES)), PHASES)
        axes.set_title(f"{name}, nats")
    marks = {"linestyle": ""}
    legend_below(figure, (("here", FIRST.style() | marks), ("follow-up", SECOND.style(filled=False) | marks)), 2)
    return figure


def main(args: Sequence[str] | None = None) -> list[Line]:
    """Run the remaining runs, write table and figure, and return the table's lines."""
    parser = study_parser("mnist", __doc__)
    given = parser.parse_args(args)
    if given.quick:
        parser.error("this study is about MNIST; leave out --quick, and use --max_epochs and --subset.")
    study = Study("mnist", given, dataset="mnist")
    lines = [measure(study, seed, phase) for seed in study.seeds for phase in PHASES]
    study.report(Results(lines, COLUMNS, claims(lines), {"mnist": draw(lines)}))
    return lines


if __name__ == "__main__":
    main()
