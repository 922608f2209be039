"""The margin itself, which makes no statement about other rows."""

from certvae.theory.bounds.base import Bound, Claim, Evidence, check_numbers, register

__all__ = ["Plugin", "plugin_bound"]


def plugin_bound(margin: float) -> float:
    """The margin itself: exact for these rows, with no statement about others.

    Raises:
        TypeError: if it is not a number.
        ValueError: if it is not finite.
    """
    return check_numbers(margin, 0.5, 1)[0]


@register
class Plugin(Bound):
    """:func:`plugin_bound`."""

    name = "plugin"
    sentence = "The method 'plugin' describes its rows alone and says nothing about other inputs."

    confidence_text = "for these inputs alone, exactly,"

    def lower(self, evidence: Evidence, alpha: float) -> float:
        return plugin_bound(evidence.margin)

    def claims(self, evidence: Evidence, alpha: float, lower: float) -> list[Claim]:
        return [("margin_lower = margin", lower == evidence.margin)]
