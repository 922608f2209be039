"""Compares the information bracket with estimators of torch-mist (InfoNCE, SMILE, CLUB) and mutinfo (KSG).

    python -m experiments.statistics.estimators
    python -m experiments.statistics.estimators --quick      # half a minute, to see that it runs

The codes are those of ``experiments/statistics/bracket.py``: linear Gaussian, so the true value is known. The other
estimators see only pairs of input and drawn code, as designed. The learned ones train on four fifths of the rows, with
a tenth of these for early stopping, and are evaluated on the last fifth in one batch. KSG uses all rows and one
neighbor. The bracket reads mean and log-variance of all rows. All settings are the defaults of torch-mist and mutinfo,
except two hidden layers of 128, the iterations and the patience below. All amounts of information use the same draws of
a seed. The study resumes where it stopped.

torch-mist 0.2.17 requires numpy below 2 but runs with newer versions, so install it without its requirements::

    pip install --no-deps torch-mist==0.2.17 pyro-ppl pyro-api opt-einsum hydra-core omegaconf \\
        antlr4-python3-runtime==4.9.3 scikit-learn joblib threadpoolctl pandas python-dateutil tqdm

mutinfo is not on the package index::

    pip install --no-deps git+https://github.com/VanessB/mutinfo@0a346635c60151b7573a1b9d3ed6edae4e81f646

Sources: van den Oord et al., 2018, https://arxiv.org/abs/1807.03748 (InfoNCE); Song and Ermon, 2020,
https://arxiv.org/abs/1910.06222 (SMILE); Cheng et al., 2020, https://arxiv.org/abs/2006.12013 (CLUB); Federici et al.,
https://pypi.org/project/torch-mist; Kraskov et al., 2004, https://arxiv.org/abs/cond-mat/0305641 (KSG); Butakov, https://github.com/VanessB/mutinfo.
"""

import argparse
import csv
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from matplotlib.figure import Figure
from scipy.stats import binom
from torch import Tensor

from certvae import information_bracket
from certvae.commands.tables import Line, Results, commit, origin
from certvae.io.files import csv_text, write_atomic
from experiments.drawing import FIRST, SECOND, THIRD, Look, legend_below, new_figure, styled

RESULTS = Path(__file__).parents[1] / "results" / "statistics"
NATS, SEEDS, BRACKET_SEEDS, DIM, ROWS = (0.05, 1.0, 5.0, 20.0), range(3), range(20), 16, 4000
LEARNED = {"infonce": "InfoNCE", "smile": "SMILE", "club": "CLUB"}
OTHERS = LEARNED | {"ksg": "KSG"}
METHODS = ("bracket", *OTHERS)
LOOKS = {
    "bracket": FIRST,
    "infonce": SECOND,
    "smile": THIRD,
    "club": Look("0.35", "D", "-."),
    "ksg": Look("0.35", "v", "--"),
}
CAP = math.log(1000)  # 4,000 rows in blocks of at most 1,024
TRAINING: dict[str, Any] = {"hidden_dims": [128, 128], "max_iterations": 1000, "patience": 3, "batch_size": 128}
COLUMNS = {
    "nats": "{nats:g}",
    "bracket [lower, upper]": "{bracket}",
    "holds": "{held}",
    "its L_B": "{lower_estimate}",
    **{name: f"{{{method}}}" for method, name in OTHERS.items()},
}


def code(nats: float, rows: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Input, mean, log-variance and one draw of a code that carries so many nats; each of shape ``(rows, DIM)``."""
    generator = torch.Generator().manual_seed(seed)
    log_variance = -2 * nats / DIM
    x, noise = torch.randn(2, rows, DIM, generator=generator, dtype=torch.float64)
    mean = math.sqrt(-math.expm1(log_variance)) * x
    return x, mean, torch.full_like(mean, log_variance), mean + math.exp(log_variance / 2) * noise


def bracket(nats: float, rows: int, seed: int) -> Line:
    """The bracket of all rows; its value is the lower estimate."""
    _, mean, log_variance, _ = code(nats, rows, seed)
    found = information_bracket(mean, log_variance, seed=seed)
    return {"value": found.lower_estimate, "lower": found.lower, "upper": found.upper}


def learned(method: str, nats: float, rows: int, seed: int, iterations: int) -> Line:
    """Value in nats of a learned estimator of torch-mist on held-out rows."""
    from torch_mist import estimate_mi

    x, _, _, z = (part.float() for part in code(nats, rows, seed))
    torch.manual_seed(seed)
    fitted = 4 * rows // 5
    parts: dict[str, Any] = {
        "data": {"x": x[:fitted], "y": z[:fitted]},
        "test_data": {"x": x[fitted:], "y": z[fitted:]},
        "evaluation_batch_size": rows - fitted,
    }
    settings = TRAINING | {"max_iterations": iterations}
    found = estimate_mi(estimator=method, verbose=False, logger=False, **parts, **settings)
    return {"value": float(found), "lower": None, "upper": None}


def nearest_neighbors(nats: float, rows: int, seed: int) -> Line:
    """Value in nats of mutinfo's estimator by nearest neighbors, on all rows."""
    from mutinfo.estimators.knn import KSG

    x, _, _, z = (part.numpy() for part in code(nats, rows, seed))
    return {"value": float(KSG()(x, z)), "lower": None, "upper": None}


def measure(method: str, nats: float, rows: int, seed: int, iterations: int) -> Line:
    """A line of the table, with its processor time."""
    if method == "ksg":
        nearest_neighbors(nats, 10, seed)  # imports before the clock starts
    start = time.process_time()
    if method == "bracket":
        found = bracket(nats, rows, seed)
    elif method == "ksg":
        found = nearest_neighbors(nats, rows, seed)
    else:
        found = learned(method, nats, rows, seed, iterations)
    seconds = time.process_time() - start
    rounded = {name: None if value is None else round(value, 5) for name, value in found.items()}
    return {"nats": nats, "seed": seed, "method": method} | rounded | {"seconds": round(seconds, 3)}


def read_lines(path: Path) -> list[Line]:
    """The table of an earlier call; empty if there is none."""
    if not path.is_file():
        return []
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    numbers = [{key: float(text) if text else None for key, text in row.items() if key != "method"} for row in rows]
    return [line | {"seed": int(row["seed"]), "method": row["method"]} for row, line in zip(rows, numbers, strict=True)]


def of_method(lines: Sequence[Line], method: str, nats: float) -> list[Line]:
    """The lines of all seeds."""
    return [line for line in lines if line["method"] == method and line["nats"] == nats]


def holds(line: Line) -> bool:
    """Whether the bracket of this run contains the true value."""
    return bool(line["lower"] <= line["nats"] <= line["upper"])


def error(lines: Sequence[Line], method: str, nats: float) -> float:
    """Root of the mean squared distance from the truth, in nats."""
    return math.sqrt(fmean((line["value"] - nats) ** 2 for line in of_method(lines, method, nats)))


def claims(lines: Sequence[Line]) -> dict[str, bool]:
    """The claims of the study, and whether they hold."""
    brackets = [line for line in lines if line["method"] == "bracket"]
    below = {line["nats"] for line in brackets if line["nats"] < CAP}
    seconds = {name: [line["seconds"] for line in lines if line["method"] == name] for name in METHODS}
    return {
        "at each amount the bracket misses the truth in no more runs than an error of 5 % explains": all(
            sum(not holds(line) for line in brackets if line["nats"] == nats)
            <= binom.ppf(1 - 0.05 / len(NATS), len(of_method(lines, "bracket", nats)), 0.05)
            for nats in {line["nats"] for line in brackets}
        ),
        "where the truth is below the cap of a block, L_B is nearer to it than each other estimate": all(
            error(lines, "bracket", nats) < error(lines, name, nats) for nats in below for name in OTHERS
        ),
        "every run of the bracket takes less processor time than any of the others": all(
            max(seconds["bracket"]) < min(seconds[name]) for name in OTHERS
        ),
    }


def summary(lines: Sequence[Line]) -> Iterator[Line]:
    """Of each amount of information: means over seeds, spread over seeds, processor seconds."""
    for nats in sorted({line["nats"] for line in lines}):
        cells: Line = {"nats": nats}
        for method in METHODS:
            chosen = of_method(lines, method, nats)
            values = [line["value"] for line in chosen]
            spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
            cells[method] = f"{fmean(values):.3f}{spread} ({fmean(line['seconds'] for line in chosen):.1f} s)"
        own = of_method(lines, "bracket", nats)
        sides = [fmean(line[side] for line in own) for side in ("lower", "upper")]
        cells["lower_estimate"], cells["bracket"] = cells["bracket"], f"[{sides[0]:.3f}, {sides[1]:.3f}]"
        cells["held"] = f"{sum(map(holds, own))} of {len(own)}"
        yield cells


@styled
def draw(lines: Sequence[Line]) -> Figure:
    """Every run's value over the truth; the bracket as an interval."""
    title = "The bracket encloses the truth; other estimators fall on either side of it"
    figure, (axes,) = new_figure(title, 9, 5)
    amounts = sorted({line["nats"] for line in lines})
    for place, nats in enumerate(amounts):
        axes.plot([place - 0.42, place + 0.42], [nats] * 2, color="black", linewidth=1)
        for number, (method, look) in enumerate(LOOKS.items()):
            chosen = [line for line in of_method(lines, method, nats) if line["seed"] in SEEDS]
            x = [place - 0.32 + 0.15 * number + 0.03 * line["seed"] for line in chosen]
            if method == "bracket":
                axes.vlines(x, [line["lower"] for line in chosen], [line["upper"] for line in chosen], color=look.color)
            axes.plot(x, [line["value"] for line in chosen], **look.style() | {"linestyle": ""})
    axes.set_yscale("symlog", linthresh=0.1)
    axes.set_xticks(range(len(amounts)), [f"{nats:g} nats" for nats in amounts])
    axes.set_ylabel("estimate, nats")
    axes.yaxis.set_major_formatter("{x:g}")
    words = {"bracket": "bracket: lower side, L_B, upper side", **OTHERS}
    looks = [(words[method], look.style() | {"linestyle": ""}) for method, look in LOOKS.items()]
    legend_below(figure, (*looks, ("truth", {"color": "black", "linewidth": 1})), 3)
    return figure


def main(arguments: Sequence[str] | None = None) -> list[Line]:
    """Measure the missing runs, and write the table after each run."""
    given = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    folder: Path = given.output_dir or (Path("runs/estimators_quick") if given.quick else RESULTS)
    rows, iterations = (500, 50) if given.quick else (ROWS, TRAINING["max_iterations"])
    seeds = {method: range(2) if given.quick else SEEDS for method in OTHERS}
    seeds["bracket"] = range(2) if given.quick else BRACKET_SEEDS
    lines = read_lines(folder / "estimators.csv")
    done = {(line["method"], line["nats"], line["seed"]) for line in lines}
    for key in [(method, nats, seed) for method in METHODS for nats in NATS for seed in seeds[method]]:
        if key not in done:
            lines.append(measure(key[0], key[1], rows, key[2], iterations))
            write_atomic(folder / "estimators.csv", csv_text(lines[0], lines))
            print(lines[-1], flush=True)
    _write(lines, given, folder)
    return lines


def _write(lines: Sequence[Line], given: argparse.Namespace, folder: Path) -> None:
    seconds = sum(line["seconds"] for line in lines)
    command = ["python", "-m", "experiments.statistics.estimators"]
    made = origin(command, {"quick": given.quick}, f"at commit {commit()}", seconds)
    made = made.replace("s for the runs in all", "s of processor time for the runs in all, one thread each")
    Results(list(summary(lines)), COLUMNS, claims(lines), {"estimators": draw(lines)}).write(folder, "estimators", made)
    write_atomic(folder / "estimators.csv", csv_text(lines[0], lines))  # every run, not the summary


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two seeds of 500 rows and 50 iterations")
    parser.add_argument("--output_dir", type=Path, help="default: experiments/results/statistics")
    return parser


if __name__ == "__main__":
    main()
