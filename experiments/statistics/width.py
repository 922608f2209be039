"""Width of the bounds on a real certificate: CIFAR-100, all 10,000 held-out rows, after a protocol's `full` phase.

    python experiments/statistics/width.py --data_dir data --run_dir runs/cifar100/seed0

No model was selected on these rows (the last epoch is taken), so both halves of them may be used.
"""

import argparse
import csv
import tempfile
from pathlib import Path

import yaml

from certvae.bounds import METHODS
from certvae.publish import PublishOptions, publish

RESULTS = Path(__file__).parent.parent / "results" / "statistics"


def main() -> None:
    """Publish the certificate by each method and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--run_dir", type=Path, default=Path("runs/cifar100/seed0"))
    parser.add_argument("--output", type=Path, default=RESULTS / "width.csv")
    given = parser.parse_args()
    config = yaml.safe_load((given.run_dir / "full" / "run.yaml").read_text())
    config["data"]["init_args"] |= {"data_dir": given.data_dir, "certificate_fraction": 0.0}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "all_rows.yaml"
        path.write_text(yaml.safe_dump(config))
        for method in METHODS:
            options = PublishOptions(split="val", method=method, permutations=0, calibration_rows=4000)
            files = given.run_dir / "full/checkpoints/last.ckpt", given.run_dir / "search/teacher.safetensors"
            certificate = publish(*files, path, options)
            rows.append(
                {
                    "method": method,
                    "rows": certificate.num_samples,
                    "margin": round(certificate.margin, 4),
                    "margin_lower": round(certificate.margin_lower, 4),
                    "width": round(certificate.margin - certificate.margin_lower, 4),
                    "channel_margin": round(certificate.channel_margin or 0.0, 4),
                    "calibrated_channel_margin": round(certificate.calibrated_channel_margin or 0.0, 4),
                    "rate": round(certificate.rate or 0.0, 4),
                    "status": str(certificate.status),
                }
            )
            print(rows[-1], flush=True)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    with open(given.output, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
