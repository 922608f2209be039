"""How fast an iteration of EM is beside scikit-learn's, in turn, on the same rows, from the same start.

    python experiments/cost/search.py --rows 50000 --dim 64 --components 100

Both fit a diagonal mixture in float64: eleven iterations here; ten, and two E steps, there. scikit-learn's
`GaussianMixture` has all rows at once; ours reads them in blocks, as a search does. Each line is one pair: seconds of
an iteration, the ratio, and the difference of the mean log-likelihoods after the last iteration, in nats. The rows are
drawn from a mixture. With a lower `--separation` its clusters overlap more.
"""

import argparse
import os
import time
import warnings
from collections.abc import Callable
from statistics import median

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from certvae.teachers.search.em import MixtureEM
from certvae.teachers.search.passes import BLOCK

ITERATIONS, FLOOR = 10, 1e-6


def drawn(rows: int, dim: int, components: int, separation: float) -> Tensor:
    """Rows of a mixture of unit variance, float64, shape ``(rows, dim)``."""
    generator = torch.Generator().manual_seed(0)
    centers = separation * torch.randn(components, dim, generator=generator, dtype=torch.float64)
    own = centers[torch.randint(components, (rows,), generator=generator)]
    return own + torch.randn(rows, dim, generator=generator, dtype=torch.float64)


def timed(work: Callable[[], float]) -> tuple[float, float]:
    """Seconds, and what came."""
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


def ours(rows: Tensor, start: MixtureEM) -> float:
    """Mean log-likelihood of a row in nats after the iterations."""
    mixture = MixtureEM.from_state_dict(start.state_dict(), torch.zeros_like(start.sums))
    for _ in range(ITERATIONS + 1):  # a step knows the likelihood before it
        for batch in rows.split(BLOCK):
            mixture.accumulate(batch)
        mixture.step(mixture.sums)
    return mixture.log_likelihood


def sklearns(rows: Tensor, start: MixtureEM) -> float:
    """The same by scikit-learn, whose fit ends with one more E step."""
    mixture = GaussianMixture(
        len(start.means),
        covariance_type="diag",
        tol=0.0,
        reg_covar=FLOOR,
        max_iter=ITERATIONS,
        weights_init=start.log_weights.exp().numpy(),
        means_init=start.means.numpy(),
        precisions_init=(1 / start.variances).numpy(),
        init_params="random",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return float(mixture.fit(rows.numpy()).score(rows.numpy()))


def main() -> None:
    """Run the pairs and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--components", type=int, default=100)
    parser.add_argument("--separation", type=float, default=0.3)
    parser.add_argument("--pairs", type=int, default=3)
    given = parser.parse_args()
    rows = drawn(given.rows, given.dim, given.components, given.separation)
    start = MixtureEM.from_sample(rows[:5000], given.components, "diagonal", 0, FLOOR)
    ratios = []
    for pair in range(given.pairs):
        sides = [ours, sklearns] if pair % 2 == 0 else [sklearns, ours]
        found = {side: timed(lambda side=side: side(rows, start)) for side in sides}  # type: ignore[misc]
        seconds = {side: found[side][0] / (ITERATIONS + 1) for side in sides}
        ratios.append(seconds[sklearns] / seconds[ours])
        print(
            f"pair {pair}: ours {seconds[ours]:.3f} s, scikit-learn {seconds[sklearns]:.3f} s, ratio {ratios[-1]:.2f}, "
            f"log-likelihoods differ by {abs(found[ours][1] - found[sklearns][1]):.1e}, load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
    print(f"median ratio {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
