"""Put a build of the documentation beside the versions that are published already.

    python docs/publish.py build/docs site v1.2.3

``site/v1.2.3`` gets the pages, and ``site/versions.json`` the list that the side bar shows. ``site/index.html`` leads
to the newest release, or to ``main`` while there is none. `.github/workflows/docs.yml` does this.
"""

import json
import re
import shutil
import sys
from pathlib import Path

__all__ = ["publish"]

RELEASE = re.compile(r"v(\d+)\.(\d+)\.(\d+)")
MAIN = "main"


def publish(build: Path, site: Path, version: str) -> list[str]:
    """Put the pages at ``site/version``; returns the versions there, ``main`` first, then releases from new to old.

    Args:
        build: the folder of the built pages.
        site: the folder that is published. It is made where it does not exist.
        version: ``main``, or a tag as ``v1.2.3``.

    Raises:
        ValueError: if ``version`` is neither, or if ``build`` has no ``index.html``.
    """
    if version != MAIN and not RELEASE.fullmatch(version):
        raise ValueError(f"`version` must be '{MAIN}' or a tag like 'v1.2.3', got {version!r}.")
    if not (build / "index.html").is_file():
        raise ValueError(f"`build` must hold index.html, got {build}: `make docs` builds it.")
    shutil.rmtree(site / version, ignore_errors=True)
    shutil.copytree(build, site / version)
    versions = _versions(site)
    (site / "versions.json").write_text(json.dumps(versions) + "\n")
    (site / "index.html").write_text(_to(next((name for name in versions if name != MAIN), MAIN)))
    (site / ".nojekyll").touch()  # GitHub would drop folders that begin with an underscore
    return versions


def _versions(site: Path) -> list[str]:
    releases = [name.name for name in site.iterdir() if RELEASE.fullmatch(name.name)]
    newest_first = sorted(releases, key=lambda name: tuple(map(int, name[1:].split("."))), reverse=True)
    return [MAIN] * (site / MAIN).is_dir() + newest_first


def _to(version: str) -> str:
    return (
        f'<!doctype html>\n<meta charset="utf-8">\n<title>certvae</title>\n'
        f'<meta http-equiv="refresh" content="0; url={version}/">\n<a href="{version}/">certvae {version}</a>\n'
    )


if __name__ == "__main__":
    print(*publish(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
