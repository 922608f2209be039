"""The certificates of a run, one line an epoch, in a file that survives restarts."""

import json
from pathlib import Path

from certvae.certificate import Certificate

__all__ = ["append_history", "read_history"]


def append_history(path: Path, certificate: Certificate) -> None:
    """Append a certificate as one line of JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        # The newline first: a line that a kill cut short then does not swallow this one.
        file.write("\n" + json.dumps(certificate.to_dict(), allow_nan=False))


def read_history(path: Path) -> list[Certificate]:
    """Certificates by epoch. A restarted epoch counts once, as last measured; a line cut short by a kill is dropped."""
    by_epoch: dict[int, Certificate] = {}
    for line in path.read_text().splitlines():
        try:
            certificate = Certificate.from_dict(json.loads(line))
        except json.JSONDecodeError:
            continue
        by_epoch[int(certificate.provenance["epoch"])] = certificate
    return [by_epoch[epoch] for epoch in sorted(by_epoch)]
