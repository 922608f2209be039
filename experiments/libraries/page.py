"""Write the page 'Where it has been tried' from the tables of the libraries' scripts.

    python -m experiments.libraries.page                                      # what is committed
    python -m experiments.libraries.page build/libraries docs/tried.md        # what a job has measured

``<script>.csv`` holds the newest releases, ``<script>_oldest.csv`` the oldest supported ones. ``attempts.csv`` holds
how many scripts a reader of the pages wrote for each model; no job measures it: it is always the committed one.
"""

import csv
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from experiments.libraries.comparison import Row, read_rows

__all__ = ["ATTEMPTS", "page", "read_tables", "write_page"]

ROOT = Path(__file__).parents[2]
RESULTS, PAGE = ROOT / "experiments" / "results" / "libraries", ROOT / "docs" / "tried.md"
ATTEMPTS = RESULTS / "attempts.csv"
HEAD = """# Where it has been tried

Models of released libraries, each trained for two epochs on a few hundred rows, watched and not watched. A nightly
job runs `experiments/libraries` at the newest release of each library and at the oldest one that is supported, and
opens an issue when a line no longer holds. `python -m experiments.libraries.page` writes this page from its tables.

| column | meaning |
|---|---|
| lines | added to a script of the library |
| margin | of the certificate with the labels as teacher, nats |
| rate | of the code, nats; of a quantizer the entropy of its indices; empty for a code without noise |
| off by | largest relative difference of both from numbers computed anew |
| Lightning | difference of the margin from `Trainer.validate` on the model, nats; empty where Lightning trains it |
| weights | whether training ends at the same bits with certvae and without |
| seconds | of training, watched and not watched |

The numbers are computed anew in numpy, from codes that the library's own calls give. The difference of a margin is
relative to the margin, or to the teacher information where this is larger: a margin is what is left of it. A line
holds if that is at most 1e-7, Lightning's at most 1e-9, and the weights are the same. A verdict is that of a short
training. It says nothing about the library.
"""
ATTEMPTS_HEAD = """
## Attempts

A reader who had only the pages [Your model](your-model.md), [Other libraries](libraries.md), [scvi-tools](scvi.md),
[Text](text.md), [Codebooks](codebooks.md), [Python](python.md) and the README wrote a script for each model, which
trains it for a few steps and watches it with the labels as teacher. Scripts are counted up to the first that runs,
names the code that the library draws and gets the right labels. Mistakes in the use of the library itself do not
count. Most scripts of the first table follow a block of a page; no page named a model of the second at that time.
Pages and messages have been mended since where an attempt failed."""
COLUMNS = (
    "library",
    "model",
    "lines",
    "verdict",
    "margin",
    "rate",
    "off by",
    "Lightning",
    "weights",
    "seconds",
    "holds",
)


def page(newest: Iterable[Row], oldest: Iterable[Row], attempts: Sequence[dict[str, str]]) -> str:
    """The page of two tables, and of how many attempts a reader needed."""
    tables = ["## Newest releases\n", _table(newest), "\n## Oldest supported releases\n", _table(oldest)]
    return "\n".join([HEAD, *tables, _attempts(attempts), ""])


def _attempts(rows: Sequence[dict[str, str]]) -> str:
    """The section of attempts: models that came to the same share a line."""
    lines = [ATTEMPTS_HEAD]
    for named, title in (("yes", "Models that a page names or a table above holds"), ("no", "Other models")):
        chosen = [row for row in rows if row["named"] == named]
        first = [row for row in chosen if row["attempts"] == "1"]
        lines += [f"\n### {title}: {len(first)} of {len(chosen)} at the first attempt\n", *_attempts_table(chosen)]
    return "\n".join(lines)


def _attempts_table(rows: Iterable[dict[str, str]]) -> list[str]:
    groups: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        library = f"{row['library']} {row['version']}"
        groups.setdefault((library, row["attempts"], row["failed"]), []).append(row["model"])
    lines = [
        f"| {library} | {', '.join(models)} | {attempts} | {failed} |"
        for (library, attempts, failed), models in groups.items()
    ]
    return ["| library | models | attempts each | what failed |", "|---|---|---|---|", *lines]


def _table(rows: Iterable[Row]) -> str:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    return "\n".join(lines + ["| " + " | ".join(_cells(row)) + " |" for row in rows])


def _cells(row: Row) -> list[str]:
    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    weights = {True: "same", False: "**differ**", None: ""}[row.weights_equal]
    return [
        f"{row.library} {row.version}",
        row.model,
        str(row.lines),
        row.error.replace("|", "/") or row.verdict,
        number(row.margin, ".4f"),
        number(row.rate, ".4f"),
        number(row.difference, ".0e"),
        number(row.lightning_difference, ".0e"),
        weights,
        " / ".join(number(value, ".1f") for value in (row.seconds, row.seconds_alone) if value is not None),
        "yes" if row.holds else "**no**",
    ]


def read_tables(folder: Path = RESULTS) -> dict[str, list[Row]]:
    """The tables of the scripts in a folder, by name."""
    return {path.stem: read_rows(path) for path in sorted(folder.glob("*.csv")) if path.name != ATTEMPTS.name}


def write_page(folder: Path = RESULTS, target: Path = PAGE) -> None:
    """Write the page of a folder's tables."""
    tables = read_tables(folder)
    newest = [row for name, rows in tables.items() if not name.endswith("_oldest") for row in rows]
    oldest = [row for name, rows in tables.items() if name.endswith("_oldest") for row in rows]
    with open(ATTEMPTS, newline="", encoding="utf-8") as file:
        attempts = list(csv.DictReader(file))
    target.write_text(page(newest, oldest, attempts))


if __name__ == "__main__":
    write_page(*map(Path, sys.argv[1:]))
