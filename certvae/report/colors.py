"""The colors of the report, for the CSS variables of the page and for the figures.

Text has a contrast of at least 4.5 : 1 to both backgrounds, lines in figures at least 3 : 1 (WCAG 2.2, AA).
"""

__all__ = ["DARK", "LIGHT", "NON_TEXT", "SERIES", "TEXT", "css_variables"]

LIGHT = {
    "ground": "#fbfbfa",
    "surface": "#ffffff",
    "ink": "#1c1d22",
    "muted": "#575b65",
    "link": "#0b6ba8",
    "good": "#0a7a4b",
    "warn": "#9a5b00",
    "bad": "#b3261e",
    "axis": "#7b7f8a",
    "line": "#d9dbe0",
    "series0": "#0072b2",
    "series1": "#c35500",
    "series2": "#007d5b",
    "series3": "#a8487f",
    "series4": "#5b50c8",
    "series5": "#7a6200",
}
DARK = {
    "ground": "#141519",
    "surface": "#1c1e24",
    "ink": "#ececef",
    "muted": "#a9adb8",
    "link": "#6db7f2",
    "good": "#4ccb91",
    "warn": "#f0b24a",
    "bad": "#ff8a80",
    "axis": "#8b909c",
    "line": "#373a44",
    "series0": "#5ab1f0",
    "series1": "#f08a3c",
    "series2": "#2fc299",
    "series3": "#e59ac6",
    "series4": "#a79cff",
    "series5": "#d8b93a",
}
SERIES = tuple(name for name in LIGHT if name.startswith("series"))
TEXT = ("ink", "muted", "link", "good", "warn", "bad")
NON_TEXT = ("axis", *SERIES)


def css_variables(colors: dict[str, str]) -> str:
    """CSS declarations of the colors, such as ``--ink: #1c1d22;``."""
    return " ".join(f"--{name}: {color};" for name, color in colors.items())
