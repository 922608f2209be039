"""Escape force and margin against steps: from a collapsed checkpoint, and from a start with a low margin.

    python -m experiments.escape.study --data_dir data
    python -m experiments.escape.study --quick

``no_align`` trains without alignment until it has collapsed. ``simplex_collapsed`` and ``head_collapsed`` continue from
these weights with alignment, with the fixed witness and with a linear head. ``simplex_low`` starts from a code fitted
to a tenth of the closed form; its margin is low but not zero. The force is the mean length of the alignment loss's
gradient at a code (:mod:`certvae.theory.escape`). At the head's start it is 0.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from certvae.certificate.history import read_history
from certvae.commands.protocol import alignment_path_of, raw_head
from certvae.commands.tables import Line, Results
from experiments.drawing import FIRST, SECOND, THIRD, legend_below, new_figure, styled
from experiments.study import Study, study_parser

__all__ = ["claims", "main"]

EVERY = {"digits": 4, "cifar100": 25}  # steps between measurements
LOW = 0.1  # fraction of the closed-form code at the low-margin start
LOOKS = {"simplex_collapsed": FIRST, "head_collapsed": SECOND, "simplex_low": THIRD}
WORDS = {
    "simplex_collapsed": "simplex, from collapsed weights",
    "head_collapsed": "linear head, from collapsed weights",
    "simplex_low": "simplex, from a low margin",
}
COLUMNS = {
    "seed": "{seed}",
    "run": "{run}",
    "first look at step": "{first_step}",
    "force there": "{first_force:.4f}",
    "margin there": "{first_margin:+.3f}",
    "certified at step": "{certified_step}",
    "force at the end": "{last_force:.4f}",
    "margin at the end": "{last_margin:+.3f}",
}


def settings(study: Study, seed: int) -> dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """By the name of each run from a low margin: its YAML's values, and what is changed in them."""
    looks = {"trainer.val_check_interval": EVERY[study.dataset]}
    start = {
        witness: {"model.init_weights_from": str(study.place(seed, name) / "checkpoints" / "last.ckpt")}
        for witness, name in (("simplex", "no_align"), ("head", "no_align_head"))
    }
    low = study.values("prefit")
    for item in low["trainer"]["callbacks"]:
        if item["class_path"].endswith("PrefitCallback"):
            item["init_args"]["alpha"] = LOW
    rescue = study.values("rescue")
    return {
        "simplex_collapsed": (rescue, {**looks, **start["simplex"]}),
        "head_collapsed": (rescue, {**looks, **start["head"], "model.witness": head(study)}),
        "simplex_low": (low, looks),
    }


def head(study: Study) -> dict[str, Any]:
    """The linear head, for what the data set's YAMLs align."""
    return raw_head("head", alignment_path_of(study.values("rescue")))


def collapse(study: Study, seed: int) -> None:
    """Train without alignment, with each witness: a checkpoint's weights must fit."""
    base = study.values("no_align")
    study.run(seed, "no_align", {}, base=base)
    study.run(seed, "no_align_head", {"model.witness": head(study)}, base=base)


def measure(study: Study, seed: int, name: str, base: Mapping[str, Any], changes: Mapping[str, Any]) -> Line:
    """Run one setting and return its line of the table."""
    study.run(seed, name, changes, base=base)
    looks = read_history(study.place(seed, name) / "certificates_val.jsonl")
    first, last = looks[0], looks[-1]
    steps = [look.provenance["global_step"] for look in looks if look.certified]
    numbers = {
        "first_force": first.escape_force,
        "first_margin": first.margin,
        "last_force": last.escape_force,
        "last_margin": last.margin,
    }
    assert all(value is not None for value in numbers.values())
    rounded = {key: round(float(value or 0.0), 5) for key, value in numbers.items()}
    found = {"first_step": first.provenance["global_step"], "certified_step": steps[0] if steps else None}
    return {"seed": seed, "run": name, **found, **rounded}


def claims(lines: Sequence[Line]) -> dict[str, bool]:
    """The claims of the study, and whether they hold."""
    simplex = [line for line in lines if line["run"].startswith("simplex")]
    return {
        "every run is certified before its end": all(line["certified_step"] is not None for line in lines),
        "the force of the simplex witness is above 0 at the first look": all(
            line["first_force"] > 0 for line in simplex
        ),
    }


def looks(study: Study, seed: int, name: str) -> list[Line]:
    """Force and margin of each measurement of a run."""
    history = read_history(study.place(seed, name) / "certificates_val.jsonl")
    return [
        {
            "seed": seed,
            "run": name,
            "step": look.provenance["global_step"],
            "escape_force": round(float(look.escape_force or 0.0), 5),
            "margin": round(look.margin, 5),
        }
        for look in history
    ]


@styled
def draw(lines: Sequence[Line]) -> Figure:
    """Force and margin against steps, from the lines of :func:`looks`."""
    title = "The simplex witness pulls a collapsed code at once; a trained head must first leave its start"
    figure, panels = new_figure(title, 9.5, 4.6, 1, 2)
    names = [name for name in LOOKS if any(line["run"] == name for line in lines)]
    for axes, value in zip(panels, ("escape_force", "margin"), strict=True):
        for name in names:
            for seed in sorted({line["seed"] for line in lines}):
                chosen = [line for line in lines if (line["run"], line["seed"]) == (name, seed)]
                every = max(1, len(chosen) // 12)
                values = [line[value] for line in chosen]
                axes.plot([line["step"] for line in chosen], values, **LOOKS[name].style(), markevery=every)
        axes.set(xlabel="step", ylim=(min(-0.05, *axes.get_ylim()), None))
        axes.axhline(0, color="black", linewidth=1)
    panels[0].set(title="mean escape force, nats for each unit of the code")
    panels[1].set(title="raw-witness margin, nats")
    legend_below(figure, ((WORDS[name], LOOKS[name].style()) for name in names), 2)
    return figure


def main(args: Sequence[str] | None = None) -> list[Line]:
    """Run the remaining runs, write table and figure, and return the table's lines."""
    given = study_parser("escape", __doc__).parse_args(args)
    study, lines, seen = Study("escape", given), [], []
    for seed in study.seeds:
        collapse(study, seed)
        for name, (base, changes) in settings(study, seed).items():
            lines.append(measure(study, seed, name, base, changes))
            seen += looks(study, seed, name)
    study.keep("escape_looks", seen)
    study.report(Results(lines, COLUMNS, claims(lines), {"escape": draw(seen)}))
    return lines


if __name__ == "__main__":
    main()
