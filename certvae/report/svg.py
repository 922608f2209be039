"""Converts Matplotlib figures to inline SVG with the page's colors and unique ids."""

import re
from io import BytesIO
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

from certvae.report.colors import LIGHT

__all__ = ["STYLE", "inline_svg"]

# Run and phase names come from folders, so a dollar sign does not start a formula.
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "certvae",
    "pdf.fonttype": 42,
    "font.size": 10.5,
    "text.parse_math": False,
    "text.color": LIGHT["ink"],
    "axes.labelcolor": LIGHT["ink"],
    "axes.edgecolor": LIGHT["axis"],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": LIGHT["axis"],
    "ytick.color": LIGHT["axis"],
    "xtick.labelcolor": LIGHT["muted"],
    "ytick.labelcolor": LIGHT["muted"],
    "grid.color": LIGHT["line"],
    "grid.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
}
_NAMESPACE = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_VARIABLES = {color: f"var(--{name})" for name, color in LIGHT.items()}


def inline_svg(figure: Figure, prefix: str, label: str) -> Markup:
    """The figure as an SVG element with a label and without external references.

    Args:
        figure: figure drawn with ``STYLE`` and the colors of ``LIGHT``.
        prefix: prefix of its ids, unique in the page.
        label: text alternative for screen readers.
    """
    content = BytesIO()
    with rc_context(STYLE):
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(content.getvalue())
    for metadata in root.findall(f"{_NAMESPACE}metadata"):
        root.remove(metadata)
    for element in root.iter():
        _rewrite(element, prefix)
    for size in ("width", "height"):
        root.attrib.pop(size)
    root.attrib |= {"role": "img", "aria-label": label}
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # ElementTree escapes its output


def _rewrite(element: ElementTree.Element, prefix: str) -> None:
    element.tag = element.tag.removeprefix(_NAMESPACE)
    link = element.attrib.pop(_LINK, None)
    if link is not None:
        element.set("href", link.replace("#", f"#{prefix}-", 1))
    for name, value in list(element.attrib.items()):
        if name == "id":
            element.set(name, f"{prefix}-{value}")
        elif name in ("style", "clip-path"):
            value = value.replace("url(#", f"url(#{prefix}-")
            element.set(name, re.sub("#[0-9a-f]{6}", lambda found: _VARIABLES.get(found[0], found[0]), value))
