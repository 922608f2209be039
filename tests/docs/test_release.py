"""What is said of the version is said alike everywhere."""

import re
from pathlib import Path

import yaml

import certvae

ROOT = Path(__file__).parents[2]


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == certvae.__version__
    assert f"version = {{{certvae.__version__}}}" in (ROOT / "docs" / "citing.md").read_text()
    for reference in citation["references"]:
        assert reference["url"] in (ROOT / "docs" / "citing.md").read_text()


def test_the_changelog_opens_with_this_version() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert headings[0] == ("Unreleased" if "dev" in certvae.__version__ else certvae.__version__)


def test_every_new_place_that_the_changelog_names_for_this_version_is_there() -> None:
    newest = (ROOT / "CHANGELOG.md").read_text().split("\n## [")[1]
    for new in re.findall(r"^\| `certvae[^|]*\| `(certvae[\w.]*)` \|$", newest, flags=re.MULTILINE):
        path = ROOT / new.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file(), new
