"""The protocol on real digits: what the README promises of the demo, and that it goes on where it stopped."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from rich.console import Console

from certvae import Certificate
from certvae.certificate.history import read_history
from certvae.cli import main
from certvae.commands.protocol import PHASES, Protocol, run_protocol
from certvae.commands.runs import RunError
from certvae.commands.summary import _code, summary_table
from certvae.commands.tables import terminal_table
from tests.commands.test_cli import EXPERIMENTS
from tests.runs import digits_teacher

pytestmark = pytest.mark.slow

DIGITS = str(EXPERIMENTS / "digits.yaml")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    assert main(["protocol", DIGITS, "--output_dir", str(folder)]) == 0
    return folder


def test_full_and_rescue_are_certified_and_no_align_is_not(demo: Path) -> None:
    phases = json.loads((demo / "summary.json").read_text())["seeds"]["0"]["phases"]
    assert phases["full"]["status"] == phases["rescue"]["status"] == "CERTIFIED"
    assert phases["no_align"]["status"] == "NOT_CERTIFIED"
    assert phases["no_align"]["witness_information"] < 0.02
    assert -0.3 < phases["no_align"]["margin"] < phases["no_align"]["safety_margin"]


def test_the_summary_has_every_field_of_every_certificate(demo: Path) -> None:
    summary = json.loads((demo / "summary.json").read_text())
    assert summary["dataset"] == "digits"
    seed = summary["seeds"]["0"]
    assert seed["teacher"]["num_components"] == 10
    for phase in PHASES:
        certificate = Certificate.load(demo / "seed0" / phase / "certificate_test.json")
        assert certificate.to_dict().items() <= seed["phases"][phase].items()
        assert certificate.num_samples == 300
    lines = (demo / "summary.csv").read_text().splitlines()
    assert len(lines) == 1 + 3


def test_every_table_has_reading_and_both_sides_of_what_the_code_carries(demo: Path) -> None:
    with open(demo / "summary.csv") as file:
        lines = list(csv.DictReader(file))
    text = (demo / "summary.md").read_text().splitlines()
    printed = terminal(json.loads((demo / "summary.json").read_text()))
    assert text[0].split(" | ")[2:4] == ["status", "reading"]
    for line, phase, row in zip(lines, PHASES, text[2:5], strict=True):
        c = Certificate.load(demo / "seed0" / phase / "certificate_test.json")
        assert c.information is not None
        code = f"{c.information.lower:.2f} to {c.information.upper:.2f}"
        assert (line["reading"], line["code"]) == (c.reading, code)
        assert float(line["information_lower"]) == c.information.lower
        assert f" | {c.reading} | " in row
        assert f" | {code} | " in row
        assert re.search(rf"{phase} +{c.status} +{c.reading} .* {code} ", printed)
    assert "components" not in lines[0]


def test_at_80_columns_no_cell_of_the_table_is_cut(demo: Path) -> None:
    assert "…" not in terminal(json.loads((demo / "summary.json").read_text()), width=80)


def terminal(summary: dict[str, Any], width: int = 120) -> str:
    with (console := Console(width=width, color_system=None)).capture() as printed:
        console.print(summary_table(summary, width))
    return printed.get()


def test_a_code_without_known_sides_is_a_dash_and_one_without_limit_has_no_upper_side() -> None:
    assert _code({"information_lower": None, "information_upper": None}) is None
    assert _code({"information_lower": 0.5, "information_upper": None}) == "at least 0.50"


@pytest.mark.parametrize(("reading", "color"), [("ALIGNED", "green"), ("INFORMATIVE", "cyan"), ("COLLAPSED", "red")])
def test_readings_have_colors_of_their_own(reading: str, color: str) -> None:
    table = terminal_table("one", [{"status": "VACUOUS", "reading": reading}], {"a": "{status}", "b": "{reading}"})
    assert [list(column.cells) for column in table.columns] == [["[yellow]VACUOUS[/]"], [f"[{color}]{reading}[/]"]]


def test_the_summary_says_which_phases_are_as_expected_and_where_it_was_made(demo: Path) -> None:
    text = (demo / "summary.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("- ")] == [
        "- holds: full is certified in every seed.",
        "- holds: no_align is not certified in every seed.",
        "- holds: rescue is certified in every seed.",
    ]
    assert f"Made by `certvae protocol {DIGITS} --seeds 0`, trained at commit " in text
    assert str(demo) not in text


def test_the_figure_is_drawn(demo: Path) -> None:
    with Image.open(demo / "margin.png") as image:
        assert image.size[0] > 800
        assert len(image.convert("RGB").resize((80, 50)).getcolors(4000) or []) > 50


def test_every_phase_leaves_its_yaml_checkpoint_metrics_and_certificate(demo: Path) -> None:
    for phase in PHASES:
        folder = demo / "seed0" / phase
        for name in ("run.yaml", "checkpoints/last.ckpt", "metrics.csv", "certificate_test.json", "run.json"):
            assert (folder / name).is_file(), name
        assert len(read_history(folder / "certificates_val.jsonl")) == 40


def test_a_second_run_keeps_what_is_done(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in demo.rglob("*.ckpt")}
    assert main(["protocol", DIGITS, "--output_dir", str(demo)]) == 0
    assert capsys.readouterr().out.count("done before, kept") == 4
    assert {path: path.stat().st_mtime_ns for path in demo.rglob("*.ckpt")} == before


def test_a_folder_with_other_settings_is_refused(demo: Path) -> None:
    protocol = Protocol.read(DIGITS, output_dir=str(demo), max_epochs=3)
    with pytest.raises(RunError, match="holds a run with other settings"):
        run_protocol(protocol)


def test_a_killed_protocol_goes_on_and_loses_no_epoch(tmp_path: Path) -> None:
    """SIGKILL in the middle of a phase; the second run resumes that phase from its last checkpoint."""
    arguments = ["protocol", DIGITS, "--output_dir", str(tmp_path), "--max_epochs", "30"]
    process = subprocess.Popen([sys.executable, "-m", "certvae.cli", *arguments], stdout=subprocess.DEVNULL)
    history = tmp_path / "seed0" / "full" / "certificates_val.jsonl"
    deadline = time.monotonic() + 600  # a busy machine takes long to get there
    while not (history.is_file() and history.read_text().count("schema") >= 5) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    seen = history.read_text().count("schema")
    assert 5 <= seen < 30
    assert main(arguments) == 0
    assert history.read_text().count("schema") <= 30 + 1, "at most the epoch that was cut short is run twice"
    assert [item.provenance["epoch"] for item in read_history(history)] == list(range(30))


def test_another_teacher_for_a_finished_run_is_refused(demo: Path, tmp_path: Path) -> None:
    """Also where the file has the same name: its contents count."""
    teacher = tmp_path / "teacher.safetensors"
    teacher.write_bytes((demo / "seed0" / "search" / "teacher.safetensors").read_bytes())
    options = {"teachers": (teacher,), "max_epochs": 1, "output_dir": str(tmp_path / "runs"), "targets": "table"}
    run_protocol(Protocol.read(DIGITS, **options))
    digits_teacher(10).save(teacher)
    with pytest.raises(RunError, match="holds a run with other settings"):
        run_protocol(Protocol.read(DIGITS, **options))


def test_a_certified_model_loses_its_margin_where_alignment_is_taken_away(demo: Path) -> None:
    """The optional phase is added to a finished run, which keeps the others."""
    protocol = Protocol.read(DIGITS, output_dir=str(demo))
    wider = replace(protocol, phases={**protocol.phases, "ablate": EXPERIMENTS / "digits" / "ablate.yaml"})
    phases = run_protocol(wider)["seeds"]["0"]["phases"]
    assert list(phases) == ["full", "no_align", "rescue", "ablate"]
    assert phases["full"]["status"] == "CERTIFIED"
    assert phases["ablate"]["status"] == "NOT_CERTIFIED"


def test_fixed_targets_and_given_teachers(demo: Path, tmp_path: Path) -> None:
    """A table of targets from a given teacher, without a search."""
    values = yaml.safe_load(Path(DIGITS).read_text())
    values["phases"] = {name: str(EXPERIMENTS / file) for name, file in values["phases"].items()}
    path = tmp_path / "fixed.yaml"
    path.write_text(yaml.safe_dump({**values, "targets": "table"}))
    teacher = demo / "seed0" / "search" / "teacher.safetensors"
    options = ["--teachers", str(teacher), "--max_epochs", "2", "--output_dir", str(tmp_path / "runs")]
    assert main(["protocol", str(path), *options]) == 0
    summary = json.loads((tmp_path / "runs" / "summary.json").read_text())
    certificate = summary["seeds"]["0"]["phases"]["full"]
    assert certificate["provenance"]["teacher"]["kind"] == "target_table"
    reference = json.loads((demo / "summary.json").read_text())["seeds"]["0"]["phases"]["full"]
    assert certificate["teacher_information"] == pytest.approx(reference["teacher_information"], abs=1e-6)


def test_a_trained_head_in_every_phase_by_one_line(tmp_path: Path) -> None:
    """With the phases that a YAML may leave out; a head that was never aligned stays constant."""
    names = ("search", *PHASES, "guarded", "prefit")
    values = yaml.safe_load(Path(DIGITS).read_text()) | {"witness": "head"}
    values["phases"] = {name: str(EXPERIMENTS / "digits" / f"{name}.yaml") for name in names}
    path = tmp_path / "head.yaml"
    path.write_text(yaml.safe_dump(values))
    teacher = digits_teacher(10).save(tmp_path / "teacher.safetensors")
    options = {"teachers": (teacher,), "max_epochs": 2, "output_dir": str(tmp_path / "runs")}
    phases = run_protocol(Protocol.read(path, **options))["seeds"]["0"]["phases"]
    assert list(phases) == list(names[1:])
    assert phases["no_align"]["witness_information"] == pytest.approx(0, abs=1e-9)
    assert phases["no_align"]["escape_force"] == 0
    assert min(phases[name]["escape_force"] for name in ("full", "rescue", "guarded", "prefit")) > 0
    assert "--witness head" in (tmp_path / "runs" / "summary.md").read_text()
    with open(tmp_path / "runs" / "seed0" / "prefit" / "metrics.csv") as file:
        fitted = next(row for row in csv.DictReader(file) if row["prefit/margin_after"])
    assert float(fitted["prefit/margin_after"]) > max(float(fitted["prefit/margin_before"]), 0)


@pytest.mark.parametrize("path", [None, "mean", "sample"])
@pytest.mark.parametrize(("dataset", "shipped"), [("cifar100", "sample"), ("digits", "mean")])
@pytest.mark.parametrize(("witness", "arguments"), [("head", {}), ("perceptron", {"hidden": 64})])
def test_all_phases_align_what_is_asked_for_and_a_head_has_one_temperature_that_fits(
    path: str | None, dataset: str, shipped: str, witness: str, arguments: dict[str, Any]
) -> None:
    protocol = Protocol.read(EXPERIMENTS / f"{dataset}.yaml", alignment_path=path, witness=witness)
    expected = arguments | ({"temperature": 0.1} if (path or shipped) == "sample" else {})
    for name in protocol.names:
        model = protocol.run(name, 0).values["model"]["init_args"]
        assert model["alignment_path"] == (path or shipped)
        assert model["witness"].get("init_args", {}) == expected


def test_faulty_protocols_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("dataset: x\n")
    with pytest.raises(ValueError, match="must hold dataset, phases, output_dir"):
        Protocol.read(path)
    phases = dict.fromkeys(("search", *PHASES), "x.yaml")
    values = {"dataset": "x", "phases": phases, "output_dir": "runs"}
    for change, message in (
        ({"phases": {"search": "x.yaml"}}, "`phases` must name the YAML of"),
        ({"targets": "all"}, "`targets` must be 'mixture' or 'table'"),
        ({"seeds": []}, "`seeds` must hold at least one seed"),
        ({"witness": "oracle"}, "`witness` must be one of simplex, head, perceptron, got 'oracle'"),
    ):
        path.write_text(yaml.safe_dump({**values, **change}))
        with pytest.raises(ValueError, match=message):
            Protocol.read(path)
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(ValueError, match="`teachers` must be one for each of 2 seeds, got 1"):
        Protocol.read(path, seeds=(0, 1), teachers=(Path("a"),))
    with pytest.raises(ValueError, match="`alignment_path` must be 'mean' or 'sample', got 'both'"):
        Protocol.read(path, alignment_path="both")
    with pytest.raises(SystemExit):
        main(["protocol", DIGITS, "--max_epochs", "0"])
