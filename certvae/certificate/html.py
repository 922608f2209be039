"""A certificate as a small table of HTML, for notebooks. Colors are those of the page around it."""

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from certvae.certificate.certificate import Certificate

__all__ = ["certificate_html"]

CELL = 'style="text-align: left; padding: 0.1em 1em 0.1em 0; vertical-align: top"'


def certificate_html(certificate: "Certificate") -> str:
    """Reading, status, every number in words, and what to do.

    Args:
        certificate: whatever its status.

    Returns:
        HTML in which all text is escaped.
    """
    c, diagnosis = certificate, certificate.diagnose()
    rows = [(str(c.reading), c.reading.meaning), (str(c.status), c.status.meaning)]
    rows += [(name, said.strip()) for name, said in c.lines()]
    rows += [("leak", finding) for finding in c.leaks]
    rows += [("rows", f"{c.num_samples:,}, of {c.num_components} components")]
    rows += [("found", diagnosis.finding), ("to do", diagnosis.cure)]
    cells = "".join(f"<tr><th {CELL}>{escape(name)}</th><td {CELL}>{escape(said)}</td></tr>" for name, said in rows)
    return f"<table>{cells}</table>"
