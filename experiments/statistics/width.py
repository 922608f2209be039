"""Width of every bound on real certificates: digits, CIFAR-100 and Tiny-ImageNet, after a protocol's `full` phase.

    python -m experiments.statistics.width --data_dir data

The rows are those reserved for the certificate. The other held-out rows are left out: the teacher search compared its
candidates on them, and every bound needs a teacher fixed before its rows were seen. Existing runs in ``--output_dir``
are not repeated.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from certvae.commands.certify import EncodedCheckpoint
from certvae.commands.protocol import Protocol, find_teacher
from certvae.commands.runs import execute, interruptible
from certvae.io.files import csv_text, write_atomic
from certvae.theory.bounds import BOUNDS
from experiments.study import EXPERIMENTS, OPTIONS

RESULTS = EXPERIMENTS / "results" / "statistics"
DATASETS = ("digits", "cifar100", "tiny_imagenet")
PATHS = ("margin", "channel_margin", "calibrated_channel_margin")
NUMBERS = ("teacher_information", *(name + end for name in PATHS for end in ("", "_lower")), "rate")


def encoded(dataset: str, output_dir: Path, data_dir: str) -> EncodedCheckpoint:
    """The kept rows, encoded by the `full` phase of seed 0, which is run if it is not there."""
    where = None if dataset == "digits" else data_dir
    file = EXPERIMENTS / f"{dataset}.yaml"
    protocol = Protocol.read(file, seeds=(0,), output_dir=str(output_dir / dataset), data_dir=where)
    with interruptible(protocol.output_dir):
        find_teacher(protocol, 0, [])
        run = protocol.run("full", 0)
        execute(run)
    return EncodedCheckpoint.read(run.checkpoint, protocol.teacher_path(0), run.config, OPTIONS)


def lines(dataset: str, rows: EncodedCheckpoint) -> Iterator[dict[str, Any]]:
    """One line for each bound, the same rows for all."""
    for method in BOUNDS:
        certificate = rows.certify(method=method)
        numbers = {name: round(getattr(certificate, name), 4) for name in NUMBERS}
        width = round(certificate.margin - certificate.margin_lower, 4)
        shown = {"dataset": dataset, "method": method, "rows": certificate.num_samples, **numbers, "width": width}
        yield {**shown, "status": str(certificate.status)}


def main() -> None:
    """Train what is not trained yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/width"))
    parser.add_argument("--output", type=Path, default=RESULTS / "width.csv")
    given = parser.parse_args()
    table: list[dict[str, Any]] = []
    for dataset in DATASETS:
        for line in lines(dataset, encoded(dataset, given.output_dir, given.data_dir)):
            print(line, flush=True)
            table.append(line)
    write_atomic(given.output, csv_text(table[0], table))


if __name__ == "__main__":
    main()
