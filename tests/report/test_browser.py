"""The page in a real browser: everything shows, nothing is asked for, nothing is complained of."""

from pathlib import Path

import pytest

from tests.report.browser import Page, browser

pytestmark = pytest.mark.slow

SIZES = """
[...document.querySelectorAll("figure svg, figure img")].map(shown => {
  const box = shown.getBoundingClientRect();
  const loaded = shown.tagName !== "IMG" || shown.naturalWidth > 0
  return [box.width, box.height, loaded, box.left >= 0 && box.right <= innerWidth]
})
"""
TEXT_SIZES = """
[...document.querySelectorAll("figure svg text")].map(text => text.getBoundingClientRect().height)
"""


def check(page: Page, path: Path, width: int, scheme: str) -> None:
    page.open(path, width, scheme)
    assert page.complaints() == []
    assert [url for url in page.requests() if not url.startswith("data:")] == [path.as_uri()]
    sizes = page.evaluate(SIZES)
    assert len(sizes) == 7 + 3 + 10 + 3 * 3  # figures, of components one for each phase, examples, pictures
    assert all(wide > 150 and high > 15 and loaded and inside for wide, high, loaded, inside in sizes)
    assert min(page.evaluate(TEXT_SIZES)) > 9
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_every_figure_shows_at_every_width_and_in_both_schemes(report: Path, tmp_path: Path) -> None:
    with browser(tmp_path / "profile") as page:
        for width in (1400, 390):
            for scheme in ("light", "dark"):
                check(page, report, width, scheme)
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 21, 25)"
        lines = 'new Set([...document.querySelectorAll("#margin svg path")].map(p => getComputedStyle(p).stroke)).size'
        dark = page.evaluate(lines)
        page.open(report, 390, "dark", media="print")
        assert page.evaluate("getComputedStyle(document.body).color") == "rgb(28, 29, 34)"
        assert page.evaluate(lines) == dark > 4
        assert len(page.call("Page.printToPDF", printBackground=True)["data"]) > 50_000


def test_the_keyboard_reaches_links_table_and_details(report: Path, tmp_path: Path) -> None:
    reached = []
    with browser(tmp_path / "profile") as page:
        page.open(report, 390)
        for _ in range(40):
            for kind in ("keyDown", "keyUp"):
                page.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
            reached.append(page.evaluate("document.activeElement.className || document.activeElement.tagName"))
            if len(reached) == 1:
                assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    assert reached[0] == "skip"
    assert {"A", "scroll", "SUMMARY"} <= set(reached)


def test_without_a_browser_the_reason_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tests.report.browser import find_browser

    monkeypatch.setenv("CERTVAE_BROWSER", "/some/browser")
    assert find_browser() == "/some/browser"
    monkeypatch.delenv("CERTVAE_BROWSER")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(pytest.skip.Exception, match="install chromium, or name one in CERTVAE_BROWSER"):
        find_browser()
