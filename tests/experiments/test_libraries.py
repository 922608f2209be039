"""What is said of other libraries is what the committed tables hold, and a table tells when a model no longer holds."""

import csv
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from certvae.callbacks import Latents
from experiments.libraries.comparison import Case, Watched, compare, read_rows, watched_loop, write_rows
from experiments.libraries.page import ATTEMPTS, PAGE, RESULTS, read_tables, write_page

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "experiments" / "libraries"
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "libraries.yml").read_text())


def test_the_page_is_written_from_the_committed_tables(tmp_path: Path) -> None:
    write_page(RESULTS, tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text() == PAGE.read_text()


def test_at_least_twenty_released_models_hold() -> None:
    tables = read_tables()
    assert all(row.holds for rows in tables.values() for row in rows)
    newest = [row for name, rows in tables.items() if not name.endswith("_oldest") for row in rows]
    assert len({(row.library, row.model) for row in newest}) >= 20
    assert {"scvi-tools", "diffusers", "pythae", "transformers", "lightning"} <= {row.library for row in newest}


def test_every_model_of_the_tables_has_its_attempts_and_a_failure_its_reason() -> None:
    with open(ATTEMPTS) as file:
        attempts = list(csv.DictReader(file))
    newest = {(row.library, row.model) for name, rows in read_tables().items() if "_oldest" not in name for row in rows}
    assert newest <= {(row["library"], row["model"]) for row in attempts if row["named"] == "yes"}
    assert all((row["attempts"] == "1") == (row["failed"] == "") for row in attempts)
    assert all(int(row["attempts"]) >= 1 for row in attempts)


def test_the_nightly_job_runs_every_script_that_has_a_table_at_both_releases() -> None:
    matrix = WORKFLOW["jobs"]["library"]["strategy"]["matrix"]
    scripts = {path.stem for path in SCRIPTS.glob("*.py")} - {"comparison", "page"}
    assert set(matrix["script"]) == scripts
    assert scripts | {f"{name}_oldest" for name in scripts} == set(read_tables())
    for release in matrix["release"]:
        assert scripts == {path.stem for path in (SCRIPTS / release).glob("*.txt")}, release


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(64, 20), nn.Linear(10, 64)

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.encoder(images.flatten(1)).chunk(2, dim=1)
        return mean, log_variance


def watched(watching: bool, **change: Any) -> Watched:
    model = Small()

    def loss(batch: Any) -> Tensor:
        mean, log_variance = model.posterior(batch[0])
        code = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        return (model.decoder(code) - batch[0].flatten(1)).square().mean()

    latents = Latents(lambda model, batch: model.posterior(batch[0]))
    return replace(watched_loop(model, loss, latents, model.posterior, watching), **change)


@pytest.mark.slow
def test_a_case_holds_and_a_wrong_code_or_other_weights_do_not(tmp_path: Path) -> None:
    row = compare(Case("torch", "small", watched, source=(watched_loop,), outside=1))
    assert row.holds
    assert row.lines == 3
    assert row.lightning_difference is not None
    wrong = compare(Case("torch", "wrong", lambda watching: watched(watching, mean=torch.ones(250, 10))))
    other = compare(Case("torch", "other", lambda watching: watched(watching, **({} if watching else moved()))))
    broken = compare(Case("torch", "broken", lambda watching: watched(watching, no_such=1)))
    assert (wrong.weights_equal, other.weights_equal) == (True, False)
    assert other.difference is not None
    assert other.difference < 1e-7
    assert not any(bad.holds for bad in (wrong, other, broken))
    assert "no_such" in broken.error
    rows = [row, wrong, other, broken]
    write_rows(rows, tmp_path / "table.csv")
    assert read_rows(tmp_path / "table.csv") == rows
    write_page(tmp_path, tmp_path / "page.md")
    said = re.findall(r"^\| torch .* \| (\S+) \|$", (tmp_path / "page.md").read_text(), flags=re.MULTILINE)
    assert said == ["yes", "**no**", "**no**", "**no**"]
    with open(tmp_path / "table.csv") as file:
        assert len(list(csv.DictReader(file))) == 4


def moved() -> dict[str, Any]:
    return {"module": Small()}
