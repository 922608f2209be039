"""Usual remedies against collapse, without alignment, under the same teacher and the same raw witness.

    python experiments/baselines/study.py --data_dir data --output_dir runs/baselines
    python experiments/baselines/study.py --quick --output_dir runs/baselines_quick

For each seed: a teacher search, then every YAML of this folder as a change to base.yaml (``--quick``: to quick.yaml, on
scikit-learn's digits). The networks, the witness and the number of steps are the same, and the alignment weight is 0,
so that only the objective differs. What is done is kept; tables and figure are made of what is there.

Beside the certificate stand what users look at, and a linear probe of the mean codes for the teacher's component and
for the label, fitted on training rows and scored on the rows that are kept for certificates. A good probe with a
negative raw margin is the finding, and no contradiction: the code is informative, but nothing fixed reads it.
"""

import argparse
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from matplotlib.figure import Figure
from pytorch_lightning.cli import LightningCLI
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from certvae.certificate import Certificate
from certvae.cli import run_lightning
from certvae.figures import save_figure
from certvae.files import write_atomic

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
PROBED = 10_000  # training rows that the probe is fitted on, at most


def settings(sweep: bool) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name of a run, its YAML, and changes to its objective."""
    for name in BASELINES:
        yield name, name, {}
        if sweep and name in SWEEPS:
            argument, values = SWEEPS[name]
            yield from ((f"{name}_{value:g}", name, {argument: value}) for value in values)


def overlay(base: Any, changes: Any) -> Any:
    """A YAML's values with those of another laid over them, as the command line does with two ``--config``."""
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
    """Complete values of a baseline; an encoder that is wrapped is that of the base."""
    base = yaml.safe_load((CONFIGS / ("quick.yaml" if quick else "base.yaml")).read_text())
    values = overlay(base, yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()))
    innermost = values["model"]["init_args"]["encoder"]
    while "encoder" in innermost["init_args"]:
        innermost = innermost["init_args"]["encoder"]
    innermost.update(base["model"]["init_args"]["encoder"])
    return values


def configure(folder: Path, seed: int, name: str, changes: dict[str, Any], given: argparse.Namespace) -> Path:
    """Write the complete YAML of a run."""
    values = compose(name, given.quick)
    text = yaml.safe_dump(values, sort_keys=False).replace("runs/baselines/run", str(folder))
    values = yaml.safe_load(text)
    values["seed_everything"] = seed
    trainer, arguments = values["trainer"], values["model"]["init_args"]
    arguments["teacher"] = str(folder.parent / "search" / "teacher.safetensors")
    arguments["objective"]["init_args"].update(changes)
    if given.observation_std is not None and arguments["observation_std"] != "optimal":
        arguments["observation_std"] = given.observation_std
    _set_data(values, given)
    trainer["max_epochs"] = given.max_epochs or trainer["max_epochs"]
    trainer["enable_progress_bar"] = False
    label = {"class_path": "certvae.callbacks.StatusLine", "init_args": {"label": f"seed {seed} {folder.name:<18}"}}
    trainer["callbacks"].append(label)
    return write_atomic(folder / "run.yaml", yaml.safe_dump(values, sort_keys=False))


def _set_data(values: dict[str, Any], given: argparse.Namespace) -> None:
    if not given.quick:
        values["data"]["init_args"]["data_dir"] = given.data_dir
    if given.subset is not None:
        values["data"]["init_args"]["subset"] = given.subset


def search(folder: Path, seed: int, given: argparse.Namespace) -> None:
    """Search the seed's teacher, unless it is there."""
    if (folder / "teacher.safetensors").is_file():
        return
    dataset = "digits" if given.quick else "cifar100"
    text = (CONFIGS.parent / dataset / "search.yaml").read_text().replace(f"runs/{dataset}/search", str(folder))
    values = yaml.safe_load(text)
    values["seed_everything"] = seed
    values["trainer"]["enable_progress_bar"] = False
    _set_data(values, given)
    run_lightning(["fit", "--config", str(write_atomic(folder / "run.yaml", yaml.safe_dump(values)))])


def run(folder: Path, path: Path) -> None:
    """Fit, going on where an earlier call stopped; certify on the kept rows; probe."""
    if (folder / "probe.json").is_file():
        return
    cli = run_lightning(["fit", "--config", str(path), "--ckpt_path", "last"])
    cli.trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)
    errors = {"mean_squared_error": float(cli.trainer.callback_metrics["test/mean_squared_error"])}
    write_atomic(folder / "probe.json", json.dumps(errors | probe(cli), indent=2) + "\n")


def probe(cli: LightningCLI) -> dict[str, float]:
    """Accuracies of logistic regressions on standardised mean codes, and of the most frequent class."""
    train, kept = codes(cli, "train"), codes(cli, "test")
    found = {}
    for number, name in enumerate(("component", "label"), start=1):
        regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
        found[f"{name}_accuracy"] = float(regression.fit(train[0], train[number]).score(kept[0], kept[number]))
        found[f"{name}_most_frequent"] = float(np.mean(kept[number] == np.bincount(train[number]).argmax()))
    return found


@torch.no_grad()
def codes(cli: LightningCLI, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean codes, the teacher's most probable component and the label of a split's first rows."""
    cli.model.eval()
    teacher, parts, rows = cli.model.teacher.to(cli.model.device), [], 0
    for batch in cli.datamodule.loader(split):
        images, labels, index = cli.datamodule.on_after_batch_transfer([part.to(cli.model.device) for part in batch], 0)
        parts.append((cli.model(images).mean.double(), teacher(images, index).argmax(dim=1), labels))
        rows += len(labels)
        if rows >= PROBED:
            break
    means, components, labels = (torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True))
    return means, components, labels


def measured(folder: Path, seed: int) -> dict[str, Any]:
    """One line of the table, on the kept rows; active units and mutual information on the last validation's."""
    certificate = Certificate.load(folder / "certificate_test.json")
    probed = json.loads((folder / "probe.json").read_text())
    with open(folder / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row.get("diagnostics/active_units")]
    return {
        "seed": seed,
        "baseline": folder.name,
        "status": str(certificate.status),
        "teacher_information": round(certificate.teacher_information, 3),
        "margin": round(certificate.margin, 3),
        "margin_lower": round(certificate.margin_lower, 3),
        "margin_upper": round(2 * certificate.margin - certificate.margin_lower, 3),
        "channel_margin": round(certificate.channel_margin or 0.0, 3),
        "rate": round(certificate.rate or 0.0, 3),
        "active_units": int(float(rows[-1]["diagnostics/active_units"])),
        "mutual_information": round(float(rows[-1]["diagnostics/mutual_information"]), 3),
        **{name: round(value, 4) for name, value in probed.items()},
    }


HEADINGS = (
    "baseline | status | raw margin [90 % interval] | channel margin | rate | active units | mutual information | "
    "squared error | probe: component | probe: label"
)


def table(lines: list[dict[str, Any]]) -> str:
    """The lines as Markdown."""
    rows = [f"| {HEADINGS} |", "|" + "---|" * (HEADINGS.count("|") + 1)]
    for line in lines:
        interval = f"{line['margin']:+.2f} [{line['margin_lower']:+.2f}, {line['margin_upper']:+.2f}]"
        figures = (
            f"{line['baseline']} ({line['seed']})",
            line["status"],
            interval,
            f"{line['channel_margin']:+.2f}",
            f"{line['rate']:.2f}",
            str(line["active_units"]),
            f"{line['mutual_information']:.2f}",
            f"{line['mean_squared_error']:.4f}",
            f"{line['component_accuracy']:.2f} (of {line['component_most_frequent']:.2f})",
            f"{line['label_accuracy']:.2f} (of {line['label_most_frequent']:.2f})",
        )
        rows.append(f"| {' | '.join(figures)} |")
    return "\n".join(rows) + "\n"


def figure(lines: list[dict[str, Any]]) -> Figure:
    """Probe accuracy and mutual information against the raw margin; filled where the certificate holds."""
    drawn = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = drawn.subplots(1, 2)
    names = list(dict.fromkeys(line["baseline"] for line in lines))
    for line in lines:
        number = names.index(line["baseline"])
        style = {
            "color": f"C{number % 10}",
            "marker": "os^Dv"[number // 10 % 5],
            "fillstyle": "full" if line["status"] == "CERTIFIED" else "none",
            "linestyle": "none",
            "label": line["baseline"] if line["seed"] == lines[0]["seed"] else None,
        }
        left.plot(line["margin"], line["component_accuracy"], **style)
        right.plot(line["margin"], line["mutual_information"], **style)
    left.set(ylabel="probe: accuracy for the teacher's component")
    right.set(ylabel="mutual information of input and code (nats)")
    for axes in (left, right):
        axes.axvline(0, color="black", linewidth=1, linestyle="--")
        axes.set_xlabel("raw-witness margin (nats)")
    drawn.legend(*left.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    return drawn


def report(folder: Path, seeds: list[int], sweep: bool) -> None:
    """Tables and figure of the runs that are complete."""
    places = [(folder / f"seed{seed}" / name, seed) for seed in seeds for name, _, _ in settings(sweep)]
    lines = [measured(place, seed) for place, seed in places if (place / "probe.json").is_file()]
    if not lines:
        return
    text = "\n".join([",".join(lines[0]), *(",".join(str(value) for value in line.values()) for line in lines)])
    write_atomic(folder / "baselines.csv", text + "\n")
    write_atomic(folder / "baselines.md", table(lines))
    save_figure(figure(lines), folder / "baselines.png")
    print(table(lines))


def main() -> None:
    """Run what is not done yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/baselines"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", help="names of the runs, such as vae free_bits")
    parser.add_argument("--sweep", action="store_true", help="also the other weights of beta_vae and info_vae")
    parser.add_argument("--observation_std", type=float, help="instead of the YAML's; larger collapses more")
    parser.add_argument("--max_epochs", type=int, help="instead of the YAML's")
    parser.add_argument("--subset", type=int, help="at most this many rows of each split")
    parser.add_argument("--quick", action="store_true", help="scikit-learn's digits, a few seconds a run")
    given = parser.parse_args()
    for seed in given.seeds:
        search(given.output_dir / f"seed{seed}" / "search", seed, given)
        for name, file, changes in settings(given.sweep):
            if given.only is None or name in given.only:
                folder = given.output_dir / f"seed{seed}" / name
                run(folder, configure(folder, seed, file, changes, given))
        report(given.output_dir, given.seeds, given.sweep)


if __name__ == "__main__":
    main()
