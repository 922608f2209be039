"""A linear VAE beside its theory: the rate of each coordinate, where it collapses, and the information bracket.

    python -m experiments.statistics.linear

The data are Gaussian with known variances along rotated axes. :class:`certvae.VAE` with networks of depth 0 is trained
on them at several KL weights, by the Trainer and from a random start. At the optimum the coordinates of the code carry
``log(variance / weight) / 2`` nats each where the variance is above the KL weight, and nothing elsewhere (the page
*Mathematics*; Lucas et al., 2019, https://arxiv.org/abs/1911.02469). There the rate is the information, so that the
bracket must hold their sum.
"""

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer, seed_everything
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from certvae import VAE, information_bracket
from certvae.commands.tables import Line, Results, commit, origin
from certvae.models.networks import MLPDecoder, MLPEncoder
from certvae.models.objectives import ELBO

RESULTS = Path(__file__).parents[1] / "results" / "statistics"
VARIANCES = (8.0, 4.0, 2.0, 1.0, 0.5, 0.25)
WEIGHTS = (0.35, 0.7, 1.4, 3.0, 6.0, 7.5, 8.5, 16.0)
ROWS, BATCH, EPOCHS = 4000, 500, 1200
COLUMNS = {
    "KL weight": "{weight:g}",
    "rates by theory": "{rates_expected}",
    "rates": "{rates}",
    "sum by theory": "{expected:.4f}",
    "sum": "{rate:.4f}",
    "bracket": "[{lower:.4f}, {upper:.4f}]",
}


def data() -> Tensor:
    """Rows whose sample covariance has exactly the variances as eigenvalues, shape ``(ROWS, 6)``."""
    generator = torch.Generator().manual_seed(0)
    dim = len(VARIANCES)
    rows = torch.randn(ROWS, dim, generator=generator, dtype=torch.float64)
    rows = rows - rows.mean(dim=0)
    white = rows @ torch.linalg.inv(torch.linalg.cholesky(rows.T @ rows / ROWS)).T
    rotation = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64)).Q
    return (white * torch.tensor(VARIANCES, dtype=torch.float64).sqrt() @ rotation).float()


def trained(rows: Tensor, weight: float, epochs: int) -> VAE:
    """A linear VAE with an observation variance of 1."""
    seed_everything(0, verbose=False)
    shape, dim = (rows.shape[1],), rows.shape[1]
    model = VAE(
        MLPEncoder(shape, dim, depth=0),
        MLPDecoder(shape, dim, depth=0),
        objective=ELBO(weight),
        observation_std=1.0,
        learning_rate=0.01,
        learning_rate_schedule="cosine",
    )
    quiet: Any = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    loader = DataLoader(TensorDataset(rows), BATCH, shuffle=True)
    Trainer(max_epochs=epochs, accelerator="cpu", **quiet).fit(model, loader)
    return model.eval()


@torch.no_grad()
def line(rows: Tensor, weight: float, epochs: int) -> Line:
    """The rates of a trained VAE beside those of the theory."""
    posterior = trained(rows, weight, epochs)(rows)
    mean, log_variance = posterior.mean, posterior.log_variance
    rates = ((mean**2 + log_variance.exp() - 1 - log_variance) / 2).mean(dim=0).sort(descending=True).values.tolist()
    expected = [max(0.0, math.log(variance / weight) / 2) for variance in VARIANCES]
    bracket = information_bracket(mean, log_variance)
    return {
        "weight": weight,
        "rates_expected": " ".join(f"{value:.3f}" for value in expected),
        "rates": " ".join(f"{value:.3f}" for value in rates),
        "largest_difference": max(abs(one - other) for one, other in zip(rates, expected, strict=True)),
        "expected": sum(expected),
        "rate": sum(rates),
        "lower": bracket.lower,
        "upper": bracket.upper,
    }


def claims(lines: Sequence[Line]) -> dict[str, bool]:
    """What the theory says, and whether the lines say it too."""
    collapsed = [(item["rate"] < 0.01) == (item["weight"] >= VARIANCES[0]) for item in lines]
    return {
        "every coordinate's rate is within 0.03 nats of the theory's": all(
            item["largest_difference"] <= 0.03 for item in lines
        ),
        "the code collapses if and only if the KL weight is above the largest variance": all(collapsed),
        "the bracket holds the information of the theory": all(
            item["lower"] <= item["expected"] + 0.01 and item["expected"] - 0.01 <= item["upper"] for item in lines
        ),
    }


def main(args: Sequence[str] | None = None) -> list[Line]:
    """Train all, write the table, and return its lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--output_dir", type=Path, default=RESULTS)
    given = parser.parse_args(args)
    started, rows, made_at = time.perf_counter(), data(), commit()
    lines = []
    for weight in WEIGHTS:
        lines.append(line(rows, weight, given.epochs))
        print(*(f"{name} {value}" for name, value in lines[-1].items()), flush=True)
    made = origin(
        ["python", "-m", "experiments.statistics.linear"],
        {"epochs": given.epochs if given.epochs != EPOCHS else None},
        f"trained at commit {made_at}",
        time.perf_counter() - started,
    )
    Results(lines, COLUMNS, claims(lines), {}).write(given.output_dir, "linear", made)
    return lines


if __name__ == "__main__":
    main()
