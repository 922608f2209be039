"""The values of a run's YAML, and what a table shows of them."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from certvae.commands.run_config import complete, move_paths, part_of
from certvae.commands.runs import Run, RunError, interruptible
from certvae.commands.tables import Line, markdown, terminal_table
from tests.commands.test_cli import EXPERIMENTS


def values() -> dict[str, Any]:
    return dict(yaml.safe_load((EXPERIMENTS / "digits" / "full.yaml").read_text()))


def test_paths_are_moved_as_wholes_and_with_what_is_below() -> None:
    before = {"a": ["runs/x", "runs/x/last.ckpt", "runs/xy", "in runs/x"], "b": {"c": 1}}
    after = {"a": ["new", "new/last.ckpt", "runs/xy", "in runs/x"], "b": {"c": 1}}
    assert move_paths(before, "runs/x", "new") == after


def test_a_completed_run_is_seeded_and_changed_and_its_yaml_stays_as_it_was() -> None:
    given = values()
    made = complete(given, seed=3, label="here", changes={"model.objective.beta": 7.0, "data.subset": 5})
    assert given == values()
    assert made["seed_everything"] == 3
    assert made["trainer"]["enable_progress_bar"] is False
    assert made["model"]["init_args"]["objective"]["init_args"]["beta"] == 7.0
    assert made["data"]["init_args"]["subset"] == 5
    status = {"class_path": "certvae.callbacks.StatusLine", "init_args": {"label": "here"}}
    assert made["trainer"]["callbacks"] == [*given["trainer"]["callbacks"], status]


def test_a_name_that_leads_nowhere_is_refused() -> None:
    with pytest.raises(ValueError, match="`model.goal.beta` must name a part of the YAML; there is no 'goal'"):
        part_of(values(), "model.goal.beta")


def test_a_run_that_left_nothing_yet_may_change_its_settings(tmp_path: Path) -> None:
    Run(tmp_path, {"seed_everything": 0}, "").write_config()
    Run(tmp_path, {"seed_everything": 1}, "").write_config()
    (tmp_path / "metrics.csv").touch()
    Run(tmp_path, {"seed_everything": 1}, "").write_config()
    with pytest.raises(RunError, match=r"holds a run with other settings than requested \(compare .*run.yaml\)"):
        Run(tmp_path, {"seed_everything": 2}, "").write_config()


def test_the_settings_that_differ_are_named(tmp_path: Path) -> None:
    Run(tmp_path, {"trainer": {"max_epochs": 40}}, "").write_config()
    (tmp_path / "metrics.csv").touch()
    with pytest.raises(RunError, match=r"run.yaml\): trainer.max_epochs is 40 there, not 2\. Give another"):
        Run(tmp_path, {"trainer": {"max_epochs": 2}}, "").write_config()


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(1)])
def test_a_stop_says_how_to_go_on(stop: BaseException) -> None:
    with (
        pytest.raises(RunError, match="runs/x was interrupted; run the same command again"),
        interruptible(Path("runs/x")),
    ):
        raise stop


def test_an_exit_of_the_parser_stays_one() -> None:
    with pytest.raises(SystemExit), interruptible(Path("runs/x")):
        raise SystemExit(2)


def test_what_was_not_measured_is_a_dash() -> None:
    lines: list[Line] = [{"status": "CERTIFIED", "rate": 1.25}, {"status": "NOT_CERTIFIED", "rate": None}]
    columns = {"status": "{status}", "rate": "{rate:+.1f}"}
    assert markdown(lines, columns).splitlines()[2:] == ["| CERTIFIED | +1.2 |", "| NOT_CERTIFIED | - |"]
    with (console := Console(width=60, color_system=None)).capture() as printed:
        console.print(terminal_table("two runs", lines, columns))
    assert [line.split() for line in printed.get().splitlines()[1:]] == [
        ["status", "rate"],
        ["CERTIFIED", "+1.2"],
        ["NOT_CERTIFIED", "-"],
    ]
