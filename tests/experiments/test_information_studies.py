"""The studies of the information bracket: their quick forms run, and the committed tables say what the pages quote."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest

from experiments.drawing import read_table
from experiments.statistics import bracket, estimators, tasks

METHODS = estimators.METHODS
ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results" / "statistics"
PAGE = " ".join((ROOT / "docs" / "information.md").read_text().split())
BRACKET = bracket.read_lines(RESULTS / "bracket.csv")
ESTIMATORS = estimators.read_lines(RESULTS / "estimators.csv")
TASKS = read_table(RESULTS / "tasks.csv")


@pytest.mark.parametrize(("study", "lines"), [(bracket, BRACKET), (estimators, ESTIMATORS), (tasks, TASKS)])
def test_a_committed_table_says_of_its_claims_what_its_rows_say(study: Any, lines: list[dict[str, Any]]) -> None:
    name = study.__name__.rpartition(".")[2]
    text = (RESULTS / f"{name}.md").read_text()
    said = [f"- {'holds' if holds else '**does not hold**'}: {claim}." for claim, holds in study.claims(lines).items()]
    assert [line for line in text.splitlines() if line.startswith("- ")] == said
    assert f"Made by `python -m experiments.statistics.{name}" in text
    assert "-dirty" not in text


def test_the_bracket_holds_known_information_in_every_cell() -> None:
    assert [bracket.Cell(line["nats"], line["dim"], line["rows"]) for line in BRACKET] == bracket.cells()
    assert min(line["repetitions"] for line in BRACKET) >= 20
    assert not any(line["lower_misses"] for line in BRACKET)
    for name in ("upper", "either", "misfit_upper"):
        assert all(line[f"{name}_misses"] <= bracket.allowed(line, len(BRACKET)) for line in BRACKET), name
        assert share(name) <= 0.05
    assert all(line["mean_lower"] <= line["nats"] <= line["mean_upper"] for line in BRACKET)


def share(name: str, most_nats: float = 40.0) -> float:
    """Of all repetitions of the cells with at most so many nats, those that missed."""
    chosen = [line for line in BRACKET if line["nats"] <= most_nats]
    return sum(line[f"{name}_misses"] for line in chosen) / sum(line["repetitions"] for line in chosen)


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def test_the_page_quotes_the_table_of_known_information() -> None:
    total = sum(line["repetitions"] for line in BRACKET)
    small = sum(line["repetitions"] for line in BRACKET if line["nats"] <= 1)
    worst = max(line["normal_lower_misses"] / line["repetitions"] for line in BRACKET if line["rows"] == 500)
    assert f"it missed in {percent(share('normal_lower', 1))} of {small:,} repetitions with up to 1 nat" in PAGE
    assert f"at most {percent(worst)} in a cell of 500 rows" in PAGE
    assert f"The proved bound missed in none of {total:,}" in PAGE
    assert (
        f"it missed in {percent(share('upper'))} of {total:,} repetitions, in {percent(share('upper', 1))} of those"
        in PAGE
    )
    assert f"in {percent(share('misfit_upper'))} of those with a prior that does not fit" in PAGE


def test_the_page_quotes_the_comparison() -> None:
    for line in estimators.summary(ESTIMATORS):
        assert " | ".join(text.format(**line) for text in estimators.COLUMNS.values()) in PAGE


def test_the_bracket_lies_around_the_truth_where_other_estimators_do_not() -> None:
    assert all(len(estimators.of_method(ESTIMATORS, *key)) >= 3 for key in itertools.product(METHODS, estimators.NATS))
    assert all(estimators.claims(ESTIMATORS).values())


def misses(side: str) -> tuple[int, int]:
    """Samples of all tasks in which a side is on the wrong side of the truth, and all samples that have it."""
    having = [line for line in TASKS if line[f"{side}_misses"] is not None]
    return sum(line[f"{side}_misses"] for line in having), sum(line["seeds"] for line in having)


def test_no_lower_side_exceeds_the_truth_on_tasks_that_nobody_here_made() -> None:
    assert len(TASKS) == 40
    assert misses("margin_lower") == misses("fitted_lower") == (0, 400)
    assert misses("bracket_lower") == (0, 90)
    assert all(tasks.claims(TASKS).values())


def test_the_page_quotes_the_tasks() -> None:
    assert "in any of the 400 samples" in PAGE
    assert "is below the truth in {} of {}".format(*misses("bracket_upper")) in PAGE
    quoted = [line for line in TASKS if f"| `{line['task']}` |" in PAGE]
    assert len(quoted) == 6
    for line in quoted:
        numbers = " | ".join(f"{line[name]:.3f}" for name in ("truth", "margin", "margin_lower", "fitted_lower"))
        known = line["bracket_lower"] is not None
        sides = f" {line['bracket_lower']:.3f} to {line['bracket_upper']:.3f} |" if known else " |"
        assert f"| `{line['task']}` | {numbers} |{sides}" in PAGE


@pytest.mark.slow
def test_the_tasks_are_measured_where_bmi_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("bmi")
    lines = tasks.main(["--seeds", "1", "--rows", "200", "--output_dir", str(tmp_path)])
    assert len(lines) == len(TASKS)
    assert (tmp_path / "tasks.md").read_text().startswith("| task |")


@pytest.mark.slow
def test_the_study_of_known_information_goes_on_where_it_stopped(tmp_path: Path) -> None:
    arguments = ["--quick", "--jobs", "1", "--output_dir"]
    whole = bracket.main([*arguments, str(tmp_path / "whole"), "--repetitions", "4"])
    for repetitions in ("1", "4"):
        resumed = bracket.main([*arguments, str(tmp_path / "parts"), "--repetitions", repetitions])
    for one, other in zip(whole, resumed, strict=True):
        assert one["repetitions"] == other["repetitions"] == 4
        kept = {key: value for key, value in one.items() if key != "seconds"}
        assert kept == pytest.approx({key: other[key] for key in kept}, abs=1e-5)
    assert (tmp_path / "parts" / "bracket.md").read_text().count("\n| ") == 4


@pytest.mark.slow
def test_the_comparison_runs_where_torch_mist_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("torch_mist")
    lines = estimators.main(["--quick", "--output_dir", str(tmp_path)])
    assert len(lines) == len(METHODS) * len(estimators.NATS) * 2
    assert estimators.main(["--quick", "--output_dir", str(tmp_path)]) == lines


def test_the_codes_of_the_comparison_carry_what_they_say() -> None:
    """By the covariance of many rows: ``I = -d/2 log(1 - r^2)``."""
    x, mean, log_variance, z = estimators.code(2.0, 100_000, 0)
    assert float((mean**2).mean() + log_variance.exp().mean()) == pytest.approx(1, abs=0.01)
    correlation = float((x * z).mean() / (x.std() * z.std()))
    assert -8 * math.log(1 - correlation**2) == pytest.approx(2.0, abs=0.05)
