"""The certificates of a run, one line for each validation, in a file that survives restarts."""

import json
from pathlib import Path

from certvae.certificate.certificate import Certificate, check_fields
from certvae.io.untrusted import parse_json, read_limited

__all__ = ["append_history", "read_history"]

HISTORY_LIMIT = 2**28  # bytes; 100,000 validations


def append_history(path: Path, certificate: Certificate) -> None:
    """Append a certificate as one line of JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        # The newline first: a line that a kill cut short then does not swallow this one.
        file.write("\n" + json.dumps(certificate.to_dict(), allow_nan=False))


def read_history(path: Path) -> list[Certificate]:
    """Certificates by look, the number of a run's validation: an epoch may have several, and several be at one step.

    A run that goes back, by a restart or from the start, replaces the looks that it takes again and all later ones; a
    line cut short by a kill is dropped.

    Raises:
        FileNotFoundError: if there is no such regular file.
        ValueError: naming a line that is whole but no certificate of a look, or if the file is too large.
        OSError: if it may not be read.
    """
    history: list[tuple[int, Certificate]] = []
    for number, line in enumerate(read_limited(path, HISTORY_LIMIT, "history").split(b"\n"), start=1):
        try:
            certificate = Certificate.from_dict(parse_json(line))
            check_fields(certificate)
            look = certificate.provenance.get("look")
            if isinstance(look, bool) or not isinstance(look, int):
                raise ValueError("its provenance names no look")
        except json.JSONDecodeError:
            if line and not line.startswith(b"{"):
                raise ValueError(f"{path} is no history: line {number} does not begin as a certificate.") from None
            continue
        except ValueError as error:
            raise ValueError(f"{path} is no history: line {number}: {error}") from None
        while history and history[-1][0] >= look:
            history.pop()
        history.append((look, certificate))
    return [certificate for _, certificate in history]
