"""A page as a list of its elements, by Python's own parser: nothing that a browser would add or mend."""

from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "img", "br"}


class Elements(HTMLParser):
    """Elements of a page in their order.

    Attributes:
        found: tag and attributes of each element.
        text: all text outside of style.
        open: elements that were begun and not ended.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.text, self.open = "", list[str]()
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def all(self, *tags: str) -> list[dict[str, str]]:
        """Attributes of the elements with one of the tags."""
        return [attributes for tag, attributes in self.found if tag in tags]


def elements(path: Path) -> Elements:
    """The elements of a file."""
    return Elements(path.read_text())
