"""What the guard costs: its weight against fixed weights, on the whole CIFAR-100, and a rescue by the guard alone.

    python experiments/guard/study.py --data_dir data --output_dir runs/guard

For each seed: a teacher search; a run with the guard; five runs with fixed weights; a collapsed run (weight 0); and a
run with the guard from the collapsed weights. Every run has the networks, the KL weight and the number of epochs of
experiments/cifar100/guard.yaml. What is done is kept; the table and the figure are made of what is there.
"""

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from matplotlib.figure import Figure

from certvae.certificate.certificate import Certificate
from certvae.certificate.figures import save_figure
from certvae.certificate.history import read_history
from certvae.commands.lightning import run_lightning
from certvae.io.files import write_atomic

CONFIGS = Path(__file__).parent.parent / "cifar100"
WEIGHTS = (40.0, 80.0, 160.0, 320.0, 640.0)
SETTLED = 4  # validations, from the last, over which a run's numbers are averaged
COLUMNS = (
    "seed",
    "run",
    "epochs",
    "margin_lower",
    "margin",
    "mean_squared_error",
    "rate",
    "last_weight",
    "first_at_target",
    "stays",
)


def settings(quick: bool) -> Iterator[tuple[str, float, str | None]]:
    """Name, fixed weight and the run whose weights are taken, in the order in which they run; 0 with a guard."""
    yield "guard", 0.0, None
    yield "no_align", 0.0, None
    yield "guard_rescue", 0.0, "no_align"
    for weight in WEIGHTS[2:3] if quick else WEIGHTS:
        yield f"fixed_{weight:g}", weight, None


def configure(folder: Path, seed: int, name: str, weight: float, source: str | None, given: argparse.Namespace) -> Path:
    """Write the complete YAML of a run."""
    values = yaml.safe_load((CONFIGS / "guard.yaml").read_text().replace("runs/cifar100/guard", str(folder)))
    values["seed_everything"] = seed
    values["data"]["init_args"].update({"data_dir": given.data_dir} | ({"subset": 4000} if given.quick else {}))
    arguments = values["model"]["init_args"]
    arguments["teacher"] = str(folder.parent / "search" / "teacher.safetensors")
    arguments["alignment_weight"] = weight
    if source is not None:
        arguments["init_weights_from"] = str(folder.parent / source / "checkpoints" / "last.ckpt")
    if not name.startswith("guard"):
        trainer = values["trainer"]
        trainer["callbacks"] = [item for item in trainer["callbacks"] if not item["class_path"].endswith("Guard")]
    values["trainer"]["enable_progress_bar"] = False
    label = {"class_path": "certvae.callbacks.StatusLine", "init_args": {"label": f"seed {seed} {name}"}}
    values["trainer"]["callbacks"].append(label)
    return write_atomic(folder / "run.yaml", yaml.safe_dump(values, sort_keys=False))


def search(folder: Path, seed: int, given: argparse.Namespace) -> None:
    """Search the seed's teacher, unless it is there."""
    if (folder / "teacher.safetensors").is_file():
        return
    values = yaml.safe_load((CONFIGS / "search.yaml").read_text().replace("runs/cifar100/search", str(folder)))
    values["seed_everything"] = seed
    values["trainer"]["enable_progress_bar"] = False
    values["data"]["init_args"].update({"data_dir": given.data_dir} | ({"subset": 4000} if given.quick else {}))
    run_lightning(["fit", "--config", str(write_atomic(folder / "run.yaml", yaml.safe_dump(values)))])


def run(folder: Path, path: Path) -> None:
    """Fit, going on where an earlier call stopped, and certify on the kept rows."""
    if (folder / "certificate_test.json").is_file():
        return
    cli = run_lightning(["fit", "--config", str(path), "--ckpt_path", "last"])
    cli.trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)


def measured(folder: Path, seed: int, name: str, target: float) -> dict[str, Any]:
    """One line of the table; margins and error are means over the last validations, which differ by chance."""
    history = read_history(folder / "certificates_val.jsonl")
    with open(folder / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    errors = [row["val/mean_squared_error"] for row in rows if row.get("val/mean_squared_error")]
    weights = [row["certificate/guard_weight"] for row in rows if row.get("certificate/guard_weight")]
    at_target = [certificate.margin_lower >= target for certificate in history]
    last: Certificate = history[-1]
    bounds, margins = ([getattr(item, name) for item in history] for name in ("margin_lower", "margin"))
    first = at_target.index(True) + 1 if any(at_target) else None
    return {
        "seed": seed,
        "run": name,
        "epochs": len(history),
        "margin_lower": round(_settled(bounds), 4),
        "margin": round(_settled(margins), 4),
        "mean_squared_error": round(_settled([float(error) for error in errors]), 5),
        "rate": round(last.rate or 0.0, 3),
        "last_weight": round(float(weights[-1]), 1) if weights else None,
        "first_at_target": first,
        "stays": first is not None and all(at_target[first - 1 :]),
    }


def _settled(values: list[float]) -> float:
    return fmean(values[-SETTLED:])


def figure(lines: list[dict[str, Any]], folder: Path, target: float) -> Figure:
    """Left: the bound against epochs; right: reconstruction error against the bound."""
    drawn = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = drawn.subplots(1, 2)
    colors = {"guard": "#0072B2", "guard_rescue": "#009E73", "no_align": "#D55E00"}
    for line in lines:
        name, path = line["run"], folder / f"seed{line['seed']}" / line["run"] / "certificates_val.jsonl"
        bounds = [certificate.margin_lower for certificate in read_history(path)]
        color = colors.get(name, "0.7")
        label = name if line["seed"] == lines[0]["seed"] and name in colors else None
        left.plot(range(1, len(bounds) + 1), bounds, color=color, marker="o", markersize=3, label=label)
        right.plot(line["margin_lower"], line["mean_squared_error"], "o", color=color, label=label)
        if name.startswith("fixed") and line["seed"] == lines[0]["seed"]:
            place = (line["margin_lower"], line["mean_squared_error"])
            right.annotate(name.removeprefix("fixed_"), place, textcoords="offset points", xytext=(4, 4), fontsize=8)
    left.axhline(target, color="black", linewidth=1, linestyle="--")
    right.axvline(target, color="black", linewidth=1, linestyle="--")
    left.set(
        xlabel="epoch",
        ylabel="lower bound of the margin (nats)",
        title="dashed: the guard's target; gray: fixed weights",
    )
    right.set(
        xlabel="lower bound of the margin (nats)",
        ylabel="mean squared error of a pixel",
        title=f"means of the last {SETTLED} epochs",
    )
    left.legend(loc="lower center", bbox_to_anchor=(0.5, 0.07), ncols=3, frameon=False)
    return drawn


def report(folder: Path, seeds: list[int], quick: bool) -> None:
    """Table and figure of the runs that are complete."""
    target = yaml.safe_load((CONFIGS / "guard.yaml").read_text())["trainer"]["callbacks"][1]["init_args"]["target"]
    places = [(seed, name, folder / f"seed{seed}" / name) for seed in seeds for name, _, _ in settings(quick)]
    lines = [
        measured(place, seed, name, target)
        for seed, name, place in places
        if (place / "certificate_test.json").is_file()
    ]
    text = "\n".join([",".join(COLUMNS), *(",".join(str(line[name]) for name in COLUMNS) for line in lines)])
    write_atomic(folder / "guard.csv", text + "\n")
    print(text)
    save_figure(figure(lines, folder, target), folder / "guard.png")


def main() -> None:
    """Run what is not done yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/guard"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", help="names of the runs, such as guard no_align fixed_160")
    parser.add_argument("--quick", action="store_true", help="4,000 images of each split and one fixed weight")
    given = parser.parse_args()
    for seed in given.seeds:
        search(given.output_dir / f"seed{seed}" / "search", seed, given)
        for name, weight, source in settings(given.quick):
            if given.only is None or name in given.only:
                folder = given.output_dir / f"seed{seed}" / name
                run(folder, configure(folder, seed, name, weight, source, given))
        report(given.output_dir, given.seeds, given.quick)


if __name__ == "__main__":
    main()
