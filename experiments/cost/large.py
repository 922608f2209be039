"""Measures the cost of many rows, components and coordinates by simulation: time, memory and rounding errors.

    python experiments/cost/large.py metric --rows 10000000 --components 10 --csv large.csv
    python experiments/cost/large.py search --rows 1000000 --components 1000
    python experiments/cost/large.py latent --rows 100000 --latent_dim 4096
    python experiments/cost/large.py paper

Rows are drawn batch by batch. At each mark (1, 3, 10, 30 and 100 percent of the rows) the script prints a line with the
rows so far, the processor seconds since the start, the rise of peak memory in MiB, and the largest relative difference
of the sums from sums in extended precision. For the metric, these are the weighted first moments of every feature. For
the search, they are the mass and the first moments of all components together, which equal the number and the sum of
the rows. `paper` prints the bytes that each process sends to each collective, computed from the shapes.
"""

import argparse
import csv
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from certvae.certificate.metric import CertificateMetric
from certvae.certificate.settings import CertificateSettings
from certvae.monitoring.code_sample import CodeSample
from certvae.reading.captured import Captured
from certvae.teachers.search.em import MixtureEM
from certvae.theory.row_sample import RowSample
from certvae.theory.sums import CertificateSums

SHARES = (0.01, 0.03, 0.1, 0.3, 1.0)  # shares of the rows after which a line is printed
DIM = 32  # principal components of the search
Line = tuple[str, int, int, int, float, float, float]
NAMES = ("what", "components", "latent_dim", "rows", "processor_seconds", "peak_mib", "relative_error")


def marks(rows: int, batch: int) -> Iterator[tuple[int, bool]]:
    """The rows after each batch, and whether a mark was passed."""
    left = [round(share * rows) for share in SHARES]
    for done in range(batch, rows + 1, batch):
        passed = bool(left) and done >= left[0]
        left = [mark for mark in left if mark > done]
        yield done, passed


def peak_mib() -> float:
    """Peak memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def metric(rows: int, components: int, batch: int, generator: torch.Generator) -> Iterator[tuple[int, float]]:
    """Rows and relative error at each mark of a certificate's sums; rows differ by their weights."""
    kept = CertificateMetric(components, CertificateSettings(method="normal"))
    logits = 3 * torch.randn(batch, components, generator=generator, dtype=torch.float64)
    teacher, witness = logits.softmax(dim=1), logits + torch.randn(logits.shape, generator=generator)
    entropies, scores = (teacher * part.log_softmax(dim=1) for part in (logits, witness))
    columns = torch.cat([teacher, entropies.sum(dim=1, keepdim=True), scores.sum(dim=1, keepdim=True)], dim=1)
    extended, exact = columns.numpy().astype(np.longdouble), np.zeros(components + 2, dtype=np.longdouble)
    for done, passed in marks(rows, batch):
        weights = 0.5 + torch.rand(batch, generator=generator, dtype=torch.float64)
        kept.update(teacher, witness, weights)
        exact += weights.numpy().astype(np.longdouble) @ extended
        if passed:
            sums = kept.sums().moments[0, 1 : components + 3].numpy()
            yield done, float(np.max(np.abs(sums - exact) / np.abs(exact)))


def search(rows: int, components: int, batch: int, generator: torch.Generator) -> Iterator[tuple[int, float]]:
    """Rows and relative error at each mark of one EM pass."""
    centers = 3 * torch.randn(components, DIM, generator=generator, dtype=torch.float64)
    start = torch.full((components,), 1 / components, dtype=torch.float64).log()
    mixture, exact = MixtureEM(start, centers, torch.ones_like(centers)), np.zeros(DIM, dtype=np.longdouble)
    size, sample = np.zeros(DIM, dtype=np.longdouble), RowSample(4096, seed=0)
    for done, passed in marks(rows, batch):
        own = centers[torch.randint(components, (batch,), generator=generator)]
        features = own + torch.randn(own.shape, generator=generator, dtype=torch.float64)
        mixture.accumulate(features)
        sample.add(features, torch.arange(done - batch, done))
        exact += features.numpy().astype(np.longdouble).sum(axis=0)
        size += np.abs(features.numpy()).astype(np.longdouble).sum(axis=0)
        if passed:
            _, mass, first, _ = mixture.sums.split([2, components, components * DIM, components * DIM])
            moments = np.abs(first.view(components, DIM).sum(dim=0).numpy() - exact) / size
            yield done, max(float(moments.max()), abs(float(mass.sum()) / done - 1))


def latent(rows: int, latent_dim: int, batch: int, generator: torch.Generator) -> Iterator[tuple[int, float]]:
    """Rows at each mark of the sample of codes, with the bracket at its end."""
    sample = CodeSample(4096, seed=0)
    for done, passed in marks(rows, batch):
        mean = torch.randn(batch, latent_dim, generator=generator)
        codes = Captured(mean, torch.full_like(mean, -1.0), (mean**2).sum(dim=1) / 2)
        sample.add([codes], torch.arange(done - batch, done), torch.ones(batch, dtype=torch.bool))
        if passed:
            yield done, 0.0


WAYS: dict[str, Callable[[int, int, int, torch.Generator], Iterator[tuple[int, float]]]] = {
    "metric": metric,
    "search": search,
    "latent": latent,
}


def measure(what: str, rows: int, size: int, batch: int) -> Iterator[Line]:
    """A line at each mark; ``size`` is K, or the coordinates of a code."""
    begun, before = time.process_time(), peak_mib()
    components, latent_dim = (0, size) if what == "latent" else (size, 0)
    for done, error in WAYS[what](rows, size, batch, torch.Generator().manual_seed(0)):
        yield what, components, latent_dim, done, time.process_time() - begun, peak_mib() - before, error


def collective_bytes(components: int, latent_dim: int, candidates: int = 1) -> dict[str, int]:
    """Largest number of bytes that each process sends to each collective of a validation and of an EM pass."""
    width = 2 * latent_dim + 1 + components
    return {
        "sums of a certificate": 8 * CertificateSums.packed_size(components),
        "hashes of the sampled rows": 8 * 4096,
        "sampled rows, of all processes together": 8 * width * min(4096, max(512, 2**22 // width)),
        "rows for the betting bound, of all processes together, at most": 8 * CertificateSettings().max_kept,
        "sums of an EM pass": 8 * candidates * (2 + components * (1 + 2 * DIM)),
    }


def paper() -> None:
    """Print the bytes of each collective."""
    for components, latent_dim in ((10, 64), (100, 64), (1000, 64), (1000, 4096)):
        for name, size in collective_bytes(components, latent_dim).items():
            print(f"K={components}, {latent_dim} coordinates, {name}: {size / 1e6:.3g} MB")


def main() -> None:
    """Measure and print a line for each mark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=(*WAYS, "paper"))
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--components", type=int, default=10)
    parser.add_argument("--latent_dim", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=1000)
    parser.add_argument("--csv", type=Path, default=None, help="a file to which the lines are added")
    given = parser.parse_args()
    if given.what == "paper":
        paper()
        return
    torch.set_num_threads(1)
    size = given.latent_dim if given.what == "latent" else given.components
    for line in measure(given.what, given.rows, size, given.batch):
        print(
            *(
                f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
                for name, value in zip(NAMES, line, strict=True)
            ),
            flush=True,
        )
        if given.csv is not None:
            add(given.csv, line)


def add(path: Path, line: Line) -> None:
    """Append a line to a table; a new table gets a header."""
    head = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([NAMES] * head)
        writer.writerow([f"{value:.4g}" if isinstance(value, float) else value for value in line])


if __name__ == "__main__":
    main()
