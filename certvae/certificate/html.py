"""A certificate as a small HTML table for notebooks, in the colors of the page."""

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from certvae.certificate.certificate import Certificate

__all__ = ["certificate_html"]

CELL = 'style="text-align: left; padding: 0.1em 1em 0.1em 0; vertical-align: top"'


def certificate_html(certificate: "Certificate") -> str:
    """An HTML table with reading, status, all numbers and the diagnosis.

    Args:
        certificate: with any status.

    Returns:
        HTML with all text escaped.
    """
    c, diagnosis = certificate, certificate.diagnose()
    rows = [(str(c.reading), c.reading.meaning), (str(c.status), c.status.meaning)]
    rows += [(name, said.strip()) for name, said in c.lines()]
    rows += [("leak", finding) for finding in c.leaks]
    rows += [("rows", f"{c.num_samples:,}, of {c.num_components} components")]
    rows += [("found", diagnosis.finding), ("to do", diagnosis.cure)]
    cells = "".join(f"<tr><th {CELL}>{escape(name)}</th><td {CELL}>{escape(said)}</td></tr>" for name, said in rows)
    return f"<table>{cells}</table>"
