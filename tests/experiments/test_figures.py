"""The studies' figures: drawn from the committed tables, titled, and readable at half size and in gray."""

from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from experiments.figures import FIGURES, RESULTS, draw

LEAST = 9  # points: 9 pixels at half the size of 150 dots an inch


def series(figure: Figure) -> list[tuple[Any, ...]]:
    """Marker, its filling, and dashes of each entry of the legend."""
    (legend,) = figure.legends
    shown = [
        (line.get_marker(), line.get_markerfacecolor() == "white", line.get_linestyle()) for line in legend.get_lines()
    ]
    assert len(shown) > 1
    return shown


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_drawn_from_its_table_and_needs_neither_color_nor_full_size(name: str) -> None:
    figure = draw(name)
    assert (RESULTS / f"{name}.png").is_file()
    assert len(figure.get_suptitle().split()) > 4
    assert figure.get_size_inches()[0] <= 9.5
    assert len(set(series(figure))) == len(series(figure))
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text) and text.get_text()]
    assert min(float(text.get_fontsize()) for text in texts) >= LEAST


def test_every_picture_that_is_committed_is_on_a_page_of_its_own_in_the_gallery() -> None:
    gallery = RESULTS.parents[1] / "docs" / "gallery"
    pages = {page.name: page.read_text() for page in gallery.glob("*.md") if page.name != "index.md"}
    index = (gallery / "index.md").read_text()
    assert all(text.count("![") == 1 and f"({name})" in index for name, text in pages.items())
    for picture in RESULTS.rglob("*.png"):
        place = f"(../../experiments/results/{picture.relative_to(RESULTS).as_posix()})"
        assert sum(place in text for text in pages.values()) == 1, picture
