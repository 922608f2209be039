"""The margin by teacher component: names, order and one line of text."""

from reprlib import repr as short
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from certvae.certificate.certificate import Certificate

__all__ = ["best_and_worst", "component_names", "components_line", "cut_name", "kept_components", "lost_components"]

MOST = 40  # components that fit in a figure
LONGEST = 100  # characters of a name


def component_names(certificate: "Certificate") -> list[str]:
    """A name for each component: the teacher's from the provenance, else ``component 3`` or ``class 3``.

    Numbers start at 0, as in ``certificate.components``: class 3 has label 3.

    Raises:
        ValueError: if ``component_names`` in the provenance is not one printable text for each component.
    """
    stated, count = (
        certificate.provenance.get("component_names"),
        len(certificate.components) or certificate.num_components,
    )
    if stated is None:
        teacher = certificate.provenance.get("teacher")
        word = "class" if isinstance(teacher, dict) and teacher.get("kind") == "labels" else "component"
        return [f"{word} {number}" for number in range(count)]
    if not (isinstance(stated, list | tuple) and len(stated) == count and all(_is_name(name) for name in stated)):
        raise ValueError(
            f"`component_names` in the provenance must be {count} printable texts of 1 to {LONGEST} characters, got "
            f"{short(stated)}."
        )
    return list(stated)


def _is_name(name: object) -> bool:
    return isinstance(name, str) and name.isprintable() and 1 <= len(name) <= LONGEST


def cut_name(name: str, longest: int = 28) -> str:
    """The name, cut to ``longest`` characters."""
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def kept_components(certificate: "Certificate") -> list[int]:
    """The components with a margin above 0: the witness predicts them better than the average teacher."""
    return [place for place, part in enumerate(certificate.components) if part.margin > 0]


def lost_components(certificate: "Certificate") -> list[int]:
    """The components with a margin below 0: the average teacher predicts them better than the witness."""
    return [place for place, part in enumerate(certificate.components) if part.margin < 0]


def best_and_worst(certificate: "Certificate", most: int = MOST) -> tuple[list[int], list[int]]:
    """The components sorted by margin, highest first; if there are more than ``most``, half of it from each end."""
    parts = certificate.components
    order = sorted(range(len(parts)), key=lambda place: (-parts[place].margin, place))
    return (order, []) if len(order) <= most else (order[: most // 2], order[-(most // 2) :])


def components_line(certificate: "Certificate") -> str:
    """Summary of the components, such as ``7 of 10 above 0; least: class 3 (-0.19 of 0.18), ...``."""
    names, parts = component_names(certificate), certificate.components
    best, worst = best_and_worst(certificate)
    least = ", ".join(
        f"{cut_name(names[place])} ({parts[place].margin:.2g} of {parts[place].information:.2g})"
        for place in (worst or best)[:-4:-1]
    )
    return f"{len(kept_components(certificate))} of {len(parts)} above 0; least: {least}"
