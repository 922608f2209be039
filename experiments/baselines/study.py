"""Usual remedies against collapse, without alignment, under the same teacher and the same raw witness.

    python -m experiments.baselines.study --data_dir data
    python -m experiments.baselines.study --quick

For each seed: a teacher search, then every YAML of this folder as a change to base.yaml (``--quick``: to quick.yaml, on
scikit-learn's digits). Data, teacher, witness and the number of optimizer steps are the same, and the alignment weight
is 0.

The table shows the certificate, its reading, the information bracket, the fitted reader, the usual signs of collapse,
and a linear probe of the mean codes for the teacher's component and for the label. The probe is fitted on training rows
and scored on the rows reserved for certificates. A good probe with a negative raw margin is not a contradiction: the
code is informative, but a fixed witness cannot read it. An ``--observation_std`` above the data's largest eigenvalue
collapses the models.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from matplotlib.figure import Figure
from pytorch_lightning.cli import LightningCLI
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from certvae.commands.tables import Line, Results
from certvae.theory.contrast import aggregate_information
from certvae.theory.posterior import Posterior
from experiments.drawing import FIRST, legend_below, new_figure, styled
from experiments.study import Study, study_parser

__all__ = ["BASELINES", "compose", "main"]

CONFIGS = Path(__file__).parent
BASELINES = (
    "vae",
    "beta_vae",
    "kl_annealing",
    "cyclical_annealing",
    "capacity",
    "free_bits",
    "delta_vae",
    "bn_vae",
    "skip_vae",
    "info_vae",
    "sigma_vae",
    "vamp_prior",
    "lagging",
)
SWEEPS = {"beta_vae": ("beta", (2.0, 4.0, 8.0)), "info_vae": ("mmd_weight", (10.0, 1000.0))}
PROBED = 10_000  # largest number of training rows for the probe, rounded up to a batch
COMPARED = 512  # reserved rows, evenly spaced, for the estimate of mutual information
COLUMNS = {
    "baseline": "{baseline}",
    "seed": "{seed}",
    "reading": "{reading}",
    "status": "{proven_status}",
    "code carries": "{information_lower:.2f} to {information_upper:.2f}",
    "raw margin (at least)": "{proven_margin:+.3f} ({proven_lower:+.3f})",
    "fitted reader: mean, draw": "{fitted_mean:+.3f}, {fitted_draw:+.3f}",
    "probe callback": "{probe_margin:+.3f}",
    "excludes 0": "{excludes_zero}",
    "channel margin": "{channel_margin:+.2f}",
    "calibrated": "{calibrated_channel_margin:+.3f}",
    "rate": "{rate:.2f}",
    "active units": "{active_units:.0f}",
    "mutual information": "{mutual_information:.2f}",
    "squared error (of constant)": "{mean_squared_error:.4f} ({constant_squared_error:.4f})",
    "probe: component (most frequent)": "{component_accuracy:.2f} ({component_most_frequent:.2f})",
    "probe: label (most frequent)": "{label_accuracy:.2f} ({label_most_frequent:.2f})",
}


def settings(sweep: bool) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name of a run, its YAML, and changes to its objective."""
    for name in BASELINES:
        yield name, name, {}
        if sweep and name in SWEEPS:
            argument, values = SWEEPS[name]
            yield from ((f"{name}_{value:g}", name, {f"model.objective.{argument}": value}) for value in values)


def overlay(base: Any, changes: Any) -> Any:
    """The values of a YAML, overridden by those of another, as with two ``--config`` options."""
    if not (isinstance(base, dict) and isinstance(changes, dict)):
        return changes
    if changes.get("class_path", base.get("class_path")) != base.get("class_path"):
        return changes
    merged = dict(base)
    for key, value in changes.items():
        if key.endswith("+"):
            merged[key[:-1]] = [*base[key[:-1]], *value]
        else:
            merged[key] = overlay(base.get(key), value)
    return merged


def compose(name: str, quick: bool) -> dict[str, Any]:
    """Complete values of a baseline; a wrapped encoder is that of the base."""
    base = yaml.safe_load((CONFIGS / ("quick.yaml" if quick else "base.yaml")).read_text())
    values: dict[str, Any] = overlay(base, yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()))
    innermost = values["model"]["init_args"]["encoder"]
    while "encoder" in innermost["init_args"]:
        innermost = innermost["init_args"]["encoder"]
    innermost.update(base["model"]["init_args"]["encoder"])
    return values


def measure(study: Study, seed: int, name: str, values: dict[str, Any], changes: dict[str, Any]) -> Line:
    """Run one baseline and return its line of the table."""
    std = study.given.observation_std
    if std is not None and values["model"]["init_args"]["observation_std"] != "optimal":
        changes = {**changes, "model.observation_std": std}
    line = study.run(seed, name, changes, base=values, measure=usual_signs).line()
    excludes = "yes, below" if line["margin_upper"] < 0 else "yes, above" if line["margin_lower"] > 0 else "no"
    return {"baseline": name, "seed": seed, "excludes_zero": excludes, **line}


def usual_signs(cli: LightningCLI) -> dict[str, Any]:
    """Active units and mutual information of the reserved rows; accuracies of the probe and of the majority class."""
    probe = cli.trainer.callback_metrics.get("probe/margin", torch.tensor(torch.nan))
    train, kept = (codes(cli, split, rows) for split, rows in (("train", PROBED), ("test", None)))
    spaced = torch.linspace(0, len(kept.component) - 1, min(COMPARED, len(kept.component))).long()
    found: dict[str, Any] = {
        "probe_margin": float(probe),
        "rate": float(kept.rate.mean()),
        "active_units": int((kept.posterior.mean.var(dim=0) >= 0.01).sum()),
        "mutual_information": float(aggregate_information(Posterior(*(part[spaced] for part in kept.posterior)))),
    }
    for name in ("component", "label"):
        answers, truth = getattr(train, name).numpy(), getattr(kept, name).numpy()
        regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
        regression.fit(train.posterior.mean.numpy(), answers)
        found[f"{name}_accuracy"] = float(regression.score(kept.posterior.mean.numpy(), truth))
        found[f"{name}_most_frequent"] = float(np.mean(truth == np.bincount(answers).argmax()))
    return found


class Codes(NamedTuple):
    """Posterior (float64), rate in nats, most probable component and label of some rows."""

    posterior: Posterior
    rate: Tensor
    component: Tensor
    label: Tensor


@torch.no_grad()
def codes(cli: LightningCLI, split: str, limit: int | None) -> Codes:
    """Codes of a split's first rows, or of all; the rate is the divergence from the model's own prior, in nats."""
    model, parts, rows = cli.model, [], 0
    model.teacher.cpu()  # training moved it, and it is not a submodule that moves with the model
    for batch in cli.datamodule.loader(split):
        images, label, index = cli.datamodule.on_after_batch_transfer(batch, 0)
        posterior = model(images)
        rate = model.prior.kl(posterior, posterior.row_draws(index, 1, 0)[0]).sum(dim=1)
        parts.append((*posterior, rate, model.teacher(images, index).argmax(dim=1), label))
        rows += len(label)
        if limit is not None and rows >= limit:
            break
    mean, log_variance, rate, component, label = (torch.cat(part) for part in zip(*parts, strict=True))
    return Codes(Posterior(mean.double(), log_variance.double()), rate.double(), component, label)


PANELS = {
    "margin": "margin, nats",
    "rate": "rate, nats",
    "mean_squared_error": "squared error",
    "component_accuracy": "accuracy of a probe",
}


@styled
def draw(lines: Sequence[Line]) -> Figure:
    """Draw a row for each baseline and a mark for each seed: margin, rate, squared error and probe accuracy."""
    names = list(dict.fromkeys(line["baseline"] for line in lines))
    certified = sum(line["status"] == "CERTIFIED" for line in lines)
    constant = lines[0]["constant_squared_error"]
    better = sum(line["mean_squared_error"] < 0.95 * constant for line in lines)
    counts = f"{certified} of {len(lines)} runs certified, {better} beat the best constant image"
    title = f"{len(names)} baselines without alignment: {counts}"
    figure, panels = new_figure(title, 9.5, 1.6 + 0.32 * len(names), 1, len(PANELS), sharey=True)
    for axes, (value, label) in zip(panels, PANELS.items(), strict=True):
        for line in lines:
            marks = FIRST.style(line["status"] == "CERTIFIED") | {"linestyle": ""}
            axes.plot(line[value], names.index(line["baseline"]), **marks)
        axes.set(title=label, ylim=(len(names) - 0.5, -0.5))
        axes.grid(axis="y", color="0.88")
        axes.tick_params(axis="x", labelsize=10)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].axvline(0, color="black", linewidth=1.2)
    panels[1].set_xscale("symlog", linthresh=1)
    panels[1].set_xlim(-0.2, 3 * max(line["rate"] for line in lines) + 1)
    panels[1].xaxis.set_major_formatter("{x:g}")
    panels[2].axvline(constant, color="0.35", linestyle=":")
    panels[3].axvline(lines[0]["component_most_frequent"], color="0.35", linestyle=":")
    marks = {"linestyle": ""}
    legend_below(
        figure,
        (
            ("certified", FIRST.style() | marks),
            ("not certified", FIRST.style(filled=False) | marks),
            ("without the input: the best constant", {"color": "0.35", "linestyle": ":"}),
        ),
        3,
    )
    return figure


def claims(lines: Sequence[Line]) -> dict[str, bool]:
    """The claims of the study, and whether they hold."""
    certified = [line for line in lines if line["status"] == "CERTIFIED"]
    negative = [line for line in lines if line["margin_upper"] < 0]
    alive = [line for line in negative if line["mutual_information"] > 1]
    probed = [line for line in alive if line["component_accuracy"] > 2 * line["component_most_frequent"]]
    faithful = [line for line in negative if line["mean_squared_error"] < line["constant_squared_error"] / 2]
    return {
        f"without alignment at most one run in ten is certified, by chance ({len(certified)} of {len(lines)})": (
            10 * len(certified) <= len(lines)
        ),
        **readings(lines),
        "no channel margin is positive": all(line["channel_margin"] <= 0 for line in lines),
        "some raw margins are below 0 although the code holds over 1 nat, and a probe is twice as good as the most "
        f"frequent class ({len(probed)} runs)": len(probed) > 0,
        f"some raw margins are below 0 at less than half of the constant's squared error ({len(faithful)} runs)": (
            len(faithful) > 0
        ),
    }


def readings(lines: Sequence[Line]) -> dict[str, bool]:
    """The expected readings, and whether the runs have them."""
    sharp = [line for line in lines if line["mean_squared_error"] < 0.9 * line["constant_squared_error"]]
    blind = [line for line in lines if line["rate"] < 0.02]
    return {
        f"every run whose code helps to reconstruct, by a tenth of the constant's error, is read as INFORMATIVE or "
        f"ALIGNED ({len(sharp)} runs)": all(line["reading"] in ("INFORMATIVE", "ALIGNED") for line in sharp),
        f"every run with a rate below 0.02 nats is read as COLLAPSED ({len(blind)} runs)": all(
            line["reading"] == "COLLAPSED" for line in blind
        ),
    }


def collapsed_claims(lines: Sequence[Line]) -> dict[str, bool]:
    """The claims of the study at an observation variance above the data's largest eigenvalue."""
    plain = [line for line in lines if line["baseline"] == "vae"]
    return {
        f"the plain VAE is read as COLLAPSED ({len(plain)} runs)": all(
            line["reading"] == "COLLAPSED" for line in plain
        ),
        **readings(lines),
        "no run is certified": all(line["proven_status"] != "CERTIFIED" for line in lines),
    }


def main(args: Sequence[str] | None = None) -> list[Line]:
    """Run the remaining runs, write table and figure, and return the table's lines."""
    parser = study_parser("baselines", __doc__)
    parser.add_argument("--only", nargs="+", metavar="RUN", help="names of the runs, such as vae free_bits")
    parser.add_argument("--sweep", action="store_true", help="also the other weights of beta_vae and info_vae")
    parser.add_argument("--observation_std", type=float, help="instead of the YAML's; larger collapses more")
    given = parser.parse_args(args)
    runs = [run for run in settings(given.sweep) if given.only is None or run[0] in given.only]
    if not runs:
        names = ", ".join(name for name, _, _ in settings(given.sweep))
        parser.error(f"--only must name one of {names}; got {' '.join(given.only)}")
    collapsed = given.observation_std is not None
    study = Study("baselines", given, results="baselines_collapsed" if collapsed else None)
    lines = [
        measure(study, seed, name, compose(file, given.quick), changes)
        for seed in study.seeds
        for name, file, changes in runs
    ]
    lines.sort(key=lambda line: [name for name, _, _ in runs].index(line["baseline"]))
    study.report(
        Results(lines, COLUMNS, (collapsed_claims if collapsed else claims)(lines), {study.results: draw(lines)})
    )
    return lines


if __name__ == "__main__":
    main()
