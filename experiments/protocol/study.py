"""The paper's protocol on real data, with certificates as for publication, by several bounds.

    python -m experiments.protocol.study --data_dir data                           # CIFAR-100
    python -m experiments.protocol.study --dataset tiny_imagenet --max_epochs 2 --data_dir data
    python -m experiments.protocol.study --quick                                   # scikit-learn's digits

Runs ``certvae protocol`` on ``experiments/<dataset>.yaml``; then each phase's last checkpoint is certified as by
``certvae certify``, on the rows kept for it, with the ``normal`` bound and with the proven ones, ``betting`` and
``bernstein``, and with the witness calibrated on training rows.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from certvae.callbacks.images import as_grid
from certvae.certificate.certificate import Certificate
from certvae.commands.certify import EncodedCheckpoint, build
from certvae.commands.protocol import Protocol, run_protocol
from certvae.commands.tables import Line, Results
from certvae.io.checkpoints import load_weights
from certvae.io.files import sha256_file, write_atomic
from experiments.drawing import FIRST, SECOND, legend_below, new_figure, styled
from experiments.study import (
    EXPERIMENTS,
    OPTIONS,
    Study,
    errors_on_kept_rows,
    numbers,
    protocol_dataset,
    protocol_parser,
)

__all__ = ["main"]

METHODS = ("normal", "betting", "bernstein")
SAMPLES = 12  # shown samples per phase
SAFETY_MARGIN = 0.05  # nats, of the YAMLs
COLLAPSED = 0.02  # nats of witness information below which the witness counts as constant
COLUMNS = {
    "seed": "{seed}",
    "phase": "{phase}",
    "status": "{status}",
    "`I_T`": "{teacher_information:.3f}",
    "margin": "{margin:+.3f}",
    "at least, normal": "{margin_lower:+.3f}",
    "at least, betting": "{proven_lower:+.3f}",
    "at least, bernstein": "{bernstein_lower:+.3f}",
    "channel margin": "{channel_margin:+.3f}",
    "at least, betting, on draws": "{channel_lower:+.3f}",
    "reading": "{reading}",
    "code carries": "{information_lower:.3f} to {information_upper:.3f}",
    "fitted reader, draw": "{fitted_draw:+.3f}",
    "calibrated": "{calibrated_channel_margin:+.3f}",
    "rate": "{rate:.3f}",
    "`I_S`": "{witness_information:.4f}",
    "squared error (of constant)": "{mean_squared_error:.4f} ({constant_squared_error:.4f})",
    "seconds": "{seconds:.0f}",
}


def certified(folder: Path, teacher: Path) -> list[Certificate]:
    """Certificates of a phase's last checkpoint by each bound, computed once per checkpoint."""
    checkpoint, paths = folder / "checkpoints" / "last.ckpt", [folder / f"certificate_{name}.json" for name in METHODS]
    kept = [Certificate.load(path) for path in paths if path.is_file()]
    digest = sha256_file(checkpoint)
    if len(kept) == len(paths) and all(one.provenance["checkpoint_sha256"] == digest for one in kept):
        return kept
    encoded = EncodedCheckpoint.read(checkpoint, teacher, folder / "run.yaml", OPTIONS)
    made = [encoded.certify(method=name) for name in METHODS]
    for certificate, path in zip(made, paths, strict=True):
        certificate.save(path)
    return made


def fitted(folder: Path, teacher: Path) -> tuple[Any, Any]:
    """A phase's model with its last weights, and its data."""
    model, data = build(folder / "run.yaml", teacher)
    load_weights(model, folder / "checkpoints" / "last.ckpt")
    return model.eval(), data


def errors(folder: Path, teacher: Path, num_components: int) -> dict[str, float]:
    """Squared errors of a phase's last checkpoint on the reserved rows, computed once per checkpoint."""
    path, checkpoint = folder / "errors.json", sha256_file(folder / "checkpoints" / "last.ckpt")
    if path.is_file():
        kept = json.loads(path.read_text())
        if kept.pop("checkpoint_sha256") == checkpoint:
            return dict(kept)
    found = errors_on_kept_rows(*fitted(folder, teacher), num_components)
    write_atomic(path, json.dumps({"checkpoint_sha256": checkpoint, **found}, indent=2) + "\n")
    return found


@torch.no_grad()
def draw_samples(protocol: Protocol, seed: int) -> Figure:
    """A row of decoded draws of the prior for each phase, the same draws in every row."""
    figure = Figure(figsize=(10, 0.95 * len(protocol.names) + 0.3), layout="constrained")
    panels = figure.subplots(len(protocol.names), 1, squeeze=False)[:, 0]
    for axes, phase in zip(panels, protocol.names, strict=True):
        model, _ = fitted(protocol.seed_dir(seed) / phase, protocol.teacher_path(seed))
        torch.manual_seed(0)
        draws = model.prior.draws_like(torch.empty(SAMPLES, model.encoder.latent_dim))
        axes.imshow(as_grid(model.reconstruct(draws), SAMPLES))
        axes.set_ylabel(phase, rotation=0, ha="right", va="center")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    figure.suptitle(f"decoded draws of the prior, seed {seed}", fontsize=10)
    return figure


def measure(protocol: Protocol, seed: int, phase: str) -> Line:
    """One line of the table."""
    folder, teacher = protocol.seed_dir(seed) / phase, protocol.teacher_path(seed)
    normal, betting, bernstein = certified(folder, teacher)
    values = {
        "bernstein_margin": bernstein.margin,
        "bernstein_lower": bernstein.margin_lower,
        "calibrated_channel_margin_lower": normal.calibrated_channel_margin_lower,
        "betting_calibrated_lower": betting.calibrated_channel_margin_lower,
        "bernstein_calibrated_lower": bernstein.calibrated_channel_margin_lower,
        **errors(folder, teacher, normal.num_components),
        "seconds": protocol.run(phase, seed).record["seconds"],
    }
    rounded = {name: round(float(value), 5) for name, value in values.items() if value is not None}
    more = {"bernstein_status": str(bernstein.status), "num_samples": normal.num_samples}
    more["num_components"] = normal.num_components
    return {"seed": seed, "phase": phase, **numbers(normal, betting), **rounded, **more}


@styled
def draw(lines: Sequence[Line], dataset: str) -> Figure:
    """Each seed's margin down to its proven bound by phase, and the phases near 0 enlarged a thousand times."""
    phases = list(dict.fromkeys(line["phase"] for line in lines))
    certified = {
        phase: sum(line["phase"] == phase and line["proven_status"] == "CERTIFIED" for line in lines)
        for phase in phases
    }
    near = [phase for phase in phases if certified[phase] == 0]
    seeds = len({line["seed"] for line in lines})
    counts = ", ".join(f"{phase} {count}" for phase, count in certified.items())
    title = f"{dataset}, certified of {seeds} seeds: {counts}"
    figure, panels = new_figure(title, 9.5, 4.8, 1, 1 + bool(near), width_ratios=[1.6, 1][: 1 + bool(near)])
    _draw_phases(panels[0], phases, [(line, line["proven_lower"], None) for line in lines])
    panels[0].set(title="margin down to its lower bound, nats")
    panels[0].axhline(SAFETY_MARGIN, color="0.35", linestyle=":")
    for place, phase in enumerate(phases):
        most = max(line["teacher_information"] for line in lines if line["phase"] == phase)
        panels[0].plot([place - 0.35, place + 0.35], [most, most], color="0.35", linestyle="-.")
    panels[0].set_ylim(bottom=-0.12)
    if near:
        ends = [(line, line["margin_lower"], line["margin_upper"]) for line in lines if line["phase"] in near]
        _draw_phases(panels[1], near, ends, scale=1000)
        panels[1].set(title="enlarged: thousandths of a nat")
    marks = {"linestyle": ""}
    legend_below(
        figure,
        (
            ("certified", FIRST.style() | marks),
            ("not certified", SECOND.style(filled=False) | marks),
            ("safety margin", {"color": "0.35", "linestyle": ":"}),
            ("teacher information: the most", {"color": "0.35", "linestyle": "-."}),
        ),
        4,
    )
    return figure


def _draw_phases(
    axes: Axes, phases: Sequence[str], ends: Sequence[tuple[Line, float, float | None]], scale: float = 1
) -> None:
    """A mark for each seed on its interval; without an upper end it reaches from the lower one to the margin."""
    seeds = sorted({line["seed"] for line, _, _ in ends})
    for line, low, high in ends:
        x = phases.index(line["phase"]) + 0.6 * ((seeds.index(line["seed"]) + 0.5) / len(seeds) - 0.5)
        certified = line["proven_status"] == "CERTIFIED"
        look, margin = FIRST if certified else SECOND, scale * line["margin"]
        axes.plot([x, x], [scale * low, margin if high is None else scale * high], color=look.color)
        axes.plot(x, margin, **look.style(certified))
    axes.axhline(0, color="black", linewidth=1)
    axes.set_xticks(range(len(phases)), phases)


def claims(lines: Sequence[Line], alignment_path: str | None = None) -> dict[str, bool]:
    """The claims of the study, and whether they hold; of draws it claims nothing where all phases align the mean."""
    phases = {name: [line for line in lines if line["phase"] == name] for name in {line["phase"] for line in lines}}
    statuses = ("status", "proven_status", "bernstein_status")
    shown = {
        f"{name} is certified in every seed, by {', '.join(METHODS[:2])} and {METHODS[2]}": all(
            line[key] == "CERTIFIED" for line in phases[name] for key in statuses
        )
        for name in ("full", "rescue")
    }
    if alignment_path != "mean":
        shown["full and rescue are certified on draws of the code in every seed, by betting"] = all(
            line["channel_lower"] > SAFETY_MARGIN for line in [*phases["full"], *phases["rescue"]]
        )
    shown[f"no_align is not certified and has less than {COLLAPSED} nats of witness information in every seed"] = all(
        line["status"] == "NOT_CERTIFIED" and line["witness_information"] < COLLAPSED for line in phases["no_align"]
    )
    shown["no_align is read as COLLAPSED in every seed"] = all(
        line["reading"] == "COLLAPSED" for line in phases["no_align"]
    )
    if "ablate" in phases:
        shown["ablate, the certified model without alignment from there on, loses its certificate in every seed"] = all(
            line["status"] == "NOT_CERTIFIED" for line in phases["ablate"]
        )
    return shown


def main(args: Sequence[str] | None = None) -> list[Line]:
    """Run the remaining runs, write table and figure, and return the table's lines."""
    parser = protocol_parser("protocol", __doc__)
    given = parser.parse_args(args)
    dataset, results = protocol_dataset(parser, given)
    study = Study("protocol", given, range(5) if dataset == "cifar100" else range(3), results=results)
    protocol = Protocol.read(
        EXPERIMENTS / f"{dataset}.yaml",
        seeds=tuple(study.seeds),
        output_dir=str(study.folder),
        max_epochs=given.max_epochs,
        alignment_path=given.alignment_path,
        data_dir=None if given.quick else given.data_dir,
    )
    run_protocol(protocol)
    lines = [measure(protocol, seed, phase) for seed in study.seeds for phase in protocol.names]
    figures = {
        study.results: draw(lines, dataset),
        "samples": draw_samples(protocol, study.seeds[0]),
    }
    study.count(protocol.run(phase, seed) for seed in study.seeds for phase in ("search", *protocol.names))
    study.report(Results(lines, COLUMNS, claims(lines, given.alignment_path), figures))
    return lines


if __name__ == "__main__":
    main()
