"""Width of the bounds on a real certificate: CIFAR-100, the 5,000 rows kept for it, after a protocol's `full` phase.

    python experiments/statistics/width.py --data_dir data --run_dir runs/cifar100/seed0

The other 5,000 held-out rows are left out: the teacher search compared its candidates on them, and every bound needs a
teacher that was fixed before its rows were seen.
"""

import argparse
import tempfile
from pathlib import Path

import yaml

from certvae.commands.certify import CertifyOptions, certify_checkpoint
from certvae.io.files import csv_text, write_atomic
from certvae.theory.bounds import BOUNDS

RESULTS = Path(__file__).parent.parent / "results" / "statistics"
PATHS = ("margin", "channel_margin", "calibrated_channel_margin")
NUMBERS = ("teacher_information", *(name + end for name in PATHS for end in ("", "_lower")), "rate")


def main() -> None:
    """Publish the certificate by each method and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--run_dir", type=Path, default=Path("runs/cifar100/seed0"))
    parser.add_argument("--output", type=Path, default=RESULTS / "width.csv")
    given = parser.parse_args()
    config = yaml.safe_load((given.run_dir / "full" / "run.yaml").read_text())
    config["data"]["init_args"]["data_dir"] = given.data_dir
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.yaml"
        path.write_text(yaml.safe_dump(config))
        for method in BOUNDS:
            options = CertifyOptions(method=method, permutations=0)
            files = given.run_dir / "full/checkpoints/last.ckpt", given.run_dir / "search/teacher.safetensors"
            certificate = certify_checkpoint(*files, path, options)
            numbers = {name: round(getattr(certificate, name), 4) for name in NUMBERS}
            width = round(certificate.margin - certificate.margin_lower, 4)
            shown = {"method": method, "rows": certificate.num_samples, **numbers, "width": width}
            rows.append({**shown, "status": str(certificate.status)})
            print(rows[-1], flush=True)
    write_atomic(given.output, csv_text(rows[0], rows))


if __name__ == "__main__":
    main()
