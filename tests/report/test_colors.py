"""Contrast by WCAG 2.2, level AA, in the light and in the dark."""

import re
from pathlib import Path

import pytest

from certvae.report.colors import DARK, LIGHT, NON_TEXT, TEXT

STYLE = (Path(__file__).parents[2] / "certvae" / "report" / "style.css").read_text()


def luminance(color: str) -> float:
    channels = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_that_of_the_definition() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
def test_text_and_lines_stand_out_from_both_backgrounds(scheme: dict[str, str]) -> None:
    for background in ("ground", "surface"):
        for name in TEXT:
            assert contrast(scheme[name], scheme[background]) >= 4.5, (name, background)
        for name in NON_TEXT:
            assert contrast(scheme[name], scheme[background]) >= 3, (name, background)


def test_both_schemes_have_the_same_names_and_the_page_no_other_color() -> None:
    assert LIGHT.keys() == DARK.keys()
    used = set(re.findall(r"var\(--([a-z0-9]+)", STYLE)) - {"mark", "columns"}
    assert used <= LIGHT.keys()
    assert not re.search("#[0-9a-fA-F]{3,8}\\b|rgb|hsl", STYLE)
    text = set(re.findall(r"[ {]color: var\(--([a-z]+)\)", STYLE)) - {"mark"}
    assert text <= set(TEXT)
