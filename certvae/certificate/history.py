"""The history file of a run: one certificate a line for each validation; it survives restarts."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from certvae.certificate.certificate import Certificate, check_fields
from certvae.certificate.curve import Curve
from certvae.io.untrusted import parse_json, read_limited

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["History", "append_history", "read_history"]

HISTORY_LIMIT = 2**28  # bytes; 100,000 validations


class History(list[Certificate]):
    """The certificates of a run's validations, in order."""

    def plot(self, ax: "Axes | None" = None) -> "tuple[Figure, Axes]":
        """Plot the alignment loss over the epochs, with the certified region below the teacher information.

        Args:
            ax: axes to draw in; default: a new figure.

        Raises:
            ValueError: if there is no certificate.
        """
        from certvae.certificate.figures import certificate_figure, shown_axes

        if not self:
            raise ValueError("a history must hold at least one certificate to be drawn, got none.")
        curve = Curve(self[-1].safety_margin)
        for number, certificate in enumerate(self):
            curve.add(certificate, certificate.provenance.get("epoch", number))
        axes = shown_axes() if ax is None else ax
        return certificate_figure(curve, "alignment loss against the threshold", axes), axes


def append_history(path: Path, certificate: Certificate) -> None:
    """Append a certificate as one line of JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        # The newline comes first, so that this line is separate from one that a kill cut short.
        file.write("\n" + json.dumps(certificate.to_dict(), allow_nan=False))


def read_history(path: str | Path) -> History:
    """Read the certificates of a run, ordered by look (the number of the validation).

    A run that restarts replaces the looks that it repeats and all later ones. A line that a kill cut short is dropped.

    Raises:
        FileNotFoundError: if there is no such regular file.
        ValueError: if a complete line is not a certificate with a look, or the file is too large. The message names the
            line.
        OSError: if it cannot be read.
    """
    history: list[tuple[int, Certificate]] = []
    for number, line in enumerate(read_limited(path, HISTORY_LIMIT, "history").split(b"\n"), start=1):
        try:
            certificate = Certificate.from_dict(parse_json(line))
            check_fields(certificate)
            look = certificate.provenance.get("look")
            if isinstance(look, bool) or not isinstance(look, int):
                raise ValueError("its provenance has no look")
        except json.JSONDecodeError:
            if line and not line.startswith(b"{"):
                raise ValueError(f"{path} is not a history: line {number} is not a certificate.") from None
            continue
        except ValueError as error:
            raise ValueError(f"{path} is not a history: line {number}: {error}") from None
        while history and history[-1][0] >= look:
            history.pop()
        history.append((look, certificate))
    return History(certificate for _, certificate in history)
