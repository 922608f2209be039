"""The sweep and the workspace of Weights & Biases that are shipped."""

from itertools import cycle
from pathlib import Path
from runpy import run_path

import pytest
import yaml

from certvae.cli import main
from certvae.monitoring.loggers import LOGGED
from tests.runs import digits_teacher
from tests.wandb_file import finished, offline, run_files  # noqa: F401

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SWEEP = ROOT / "experiments" / "sweep.yaml"


def sweep_arguments() -> list[list[str]]:
    """The argument lists that ``wandb agent`` makes of the sweep, so many that each value is in one."""
    sweep = yaml.safe_load(SWEEP.read_text())
    assert sweep["metric"] == {"name": "certificate/margin_lower", "goal": "maximize"}
    (beta, betas), (weight, weights) = sweep["parameters"].items()
    assert (beta.rpartition(".")[2], weight.rpartition(".")[2]) == ("beta", "alignment_weight")
    place = sweep["command"].index("${args}")
    assert sweep["command"][: place + 1][:2] == ["${env}", "${program}"]
    fixed = [str(ROOT / word) if word.endswith(".yaml") else word for word in sweep["command"][2:place]]
    pairs = zip(betas["values"], cycle(weights["values"]), strict=False)
    assert len(betas["values"]) >= len(weights["values"])
    return [[*fixed, f"--{beta}={one}", f"--{weight}={other}"] for one, other in pairs]


def test_every_command_of_the_sweep_parses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in sweep_arguments():
        with pytest.raises(SystemExit, match="0"):
            main([*arguments, "--print_config"])
        config = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
        assert config["objective"]["init_args"]["beta"] == float(arguments[-2].partition("=")[2])
        assert config["alignment_weight"] == float(arguments[-1].partition("=")[2])


def test_a_command_of_the_sweep_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    digits_teacher(10).save("runs/digits/search/teacher.safetensors")
    short = ["--trainer.max_epochs=1", "--data.subset=320", "--trainer.enable_progress_bar=false"]
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))  # Lightning's logger would write to the current folder
    assert main([*sweep_arguments()[-1], *short]) == 0
    (file,) = run_files(tmp_path)
    assert len(file.column("certificate/margin_lower")) == 1
    assert len(file.column("images/reconstructions")) == 1


def test_the_workspace_shows_keys_that_are_logged() -> None:
    pytest.importorskip("wandb_workspaces", reason="wandb-workspaces is not installed")
    made = run_path(str(ROOT / "experiments" / "wandb_workspace.py"))["workspace"]("somebody", "certvae")
    panels = [panel for section in made.sections for panel in section.panels]
    lines = [line for panel in panels for line in getattr(panel, "y", ())]
    assert set(lines) <= {f"certificate/{name}" for name in LOGGED}
    pictures = [key for panel in panels for key in getattr(panel, "media_keys", ())]
    assert pictures == ["certificate/curve", "images/reconstructions", "images/samples"]
