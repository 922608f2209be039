"""The shipped notebook was executed from its first cell to its last without an error, and shows what it promises."""

import json
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebooks" / "five_minutes.ipynb"


def outputs() -> list[dict[str, Any]]:
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    return [output for cell in cells for output in cell["outputs"]]


def test_the_notebook_leads_from_a_collapsed_code_to_a_certificate_with_figures() -> None:
    shown = outputs()
    assert {output["output_type"] for output in shown} <= {"stream", "execute_result", "display_data"}
    tables = ["".join(output["data"]["text/html"]) for output in shown if "text/html" in output.get("data", {})]
    assert len(tables) == 2
    for table, reading, status in zip(tables, ("COLLAPSED", "ALIGNED"), ("NOT_CERTIFIED", "CERTIFIED"), strict=True):
        assert f">{reading}</th>" in table
        assert f">{status}</th>" in table
    assert sum("image/png" in output.get("data", {}) for output in shown) == 4
