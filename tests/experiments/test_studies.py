"""The studies: their quick forms show the signs that the full ones are about, and go on where they stopped."""

import csv
import shutil
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from certvae.certificate.history import read_history
from certvae.commands import tables
from certvae.commands.run_config import set_value
from certvae.commands.runs import RunError
from certvae.commands.tables import markdown
from certvae.teachers import TeacherCard, load_teacher
from experiments import study as harness
from experiments.escape import study as escape_study
from experiments.guard import study as guard_study
from experiments.path import study as path_study
from experiments.prefit import study as prefit_study
from experiments.protocol import study as protocol_study
from experiments.stress import study as stress_study
from experiments.study import Study, study_parser
from experiments.view import study as view_study
from experiments.witnesses import study as witnesses_study

pytestmark = pytest.mark.slow

EPOCHS = ["--quick", "--max_epochs", "12"]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search's folder, for all studies."""
    folder = tmp_path_factory.mktemp("search")
    Study("stress", study_parser("stress", None).parse_args([*EPOCHS, "--output_dir", str(folder)])).teacher(0)
    return folder / "seed0" / "search"


@pytest.fixture(scope="module")
def output(searched: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes a study's folder with the searched teacher in it."""

    def make(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        shutil.copytree(searched, folder / "seed0" / "search", ignore=shutil.ignore_patterns("run.yaml"))
        return folder

    return make


@pytest.fixture(scope="module")
def stress(output: Any) -> tuple[Path, dict[tuple[float, bool], dict[str, Any]]]:
    folder = output("stress")
    lines = stress_study.main([*EPOCHS, "--kl_weights", "1", "32", "--output_dir", str(folder)])
    return folder, {(line["kl_weight"], line["aligned"]): line for line in lines}


def test_only_alignment_keeps_the_certificate_at_a_kl_weight_that_collapses_the_plain_vae(stress: Any) -> None:
    lines = stress[1]
    collapsed, aligned = lines[32.0, False], lines[32.0, True]
    assert collapsed["collapse_ratio"] > 1
    assert collapsed["status"] == "NOT_CERTIFIED"
    assert max(collapsed["rate"], collapsed["witness_information"]) < 0.02
    assert aligned["status"] == "CERTIFIED"
    assert aligned["rate"] > 1
    assert aligned["mean_squared_error"] < collapsed["mean_squared_error"]


def test_the_margin_falls_with_the_kl_weight_and_the_plain_code_is_unread_even_where_it_is_alive(stress: Any) -> None:
    lines = stress[1]
    assert lines[1.0, True]["margin"] > lines[32.0, True]["margin"]
    alive = lines[1.0, False]
    assert alive["collapse_ratio"] < 1
    assert alive["rate"] > 1
    assert alive["status"] == "NOT_CERTIFIED"
    assert alive["witness_information"] > 0.1


def test_a_study_that_is_called_again_runs_nothing_and_gives_the_same_table(
    stress: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder, lines = stress
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*.ckpt")}
    table = (folder / "stress.csv").read_text()
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    again = stress_study.main([*EPOCHS, "--kl_weights", "1", "32", "--output_dir", str(folder), "--results"])
    assert again == list(lines.values())
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*.ckpt")} == before
    assert (folder / "stress.csv").read_text() == table == (tmp_path / "stress_quick" / "stress.csv").read_text()
    assert (tmp_path / "stress_quick" / "stress.png").read_bytes().startswith(b"\x89PNG")


def test_a_killed_study_goes_on_with_the_run_that_is_not_done(stress: Any) -> None:
    folder, lines = stress
    run = folder / "seed0" / "kl32_plain"
    for name in ("run.json", "certificate.json", "checkpoints/last.ckpt"):
        (run / name).unlink()  # so that the last epoch is run again from the checkpoint before
    again = stress_study.main([*EPOCHS, "--kl_weights", "32", "--output_dir", str(folder)])
    assert {**again[1], "seconds": 0} == {**lines[32.0, False], "seconds": 0}
    assert len(read_history(run / "certificates_val.jsonl")) == 12


def test_other_settings_are_refused_and_not_mixed(stress: Any) -> None:
    with pytest.raises(RunError, match="holds a run with other settings"):
        stress_study.main(["--quick", "--max_epochs", "3", "--kl_weights", "32", "--output_dir", str(stress[0])])


def test_a_search_of_other_rows_is_refused(stress: Any) -> None:
    with pytest.raises(RunError, match="search holds a run with other settings"):
        stress_study.main([*EPOCHS, "--subset", "500", "--kl_weights", "32", "--output_dir", str(stress[0])])


def test_runs_of_another_teacher_are_refused(stress: Any) -> None:
    teacher = stress[0] / "seed0" / "search" / "teacher.safetensors"
    before = teacher.read_bytes()
    try:
        other = load_teacher(teacher)
        other.card = replace(other.card, seed=7)
        other.save(teacher)
        with pytest.raises(RunError, match="kl32_aligned holds a run with other settings"):
            stress_study.main([*EPOCHS, "--kl_weights", "32", "--output_dir", str(stress[0])])
    finally:
        teacher.write_bytes(before)


def test_the_table_says_command_commit_machine_and_time_but_no_place(stress: Any) -> None:
    text = (stress[0] / "stress.md").read_text()
    assert "python -m experiments.stress.study --quick --max_epochs 12 --kl_weights" in text
    for word in ("commit ", "cores", "torch", " s for the runs"):
        assert word in text
    assert str(stress[0]) not in text
    with open(stress[0] / "stress.csv") as file:
        assert len(list(csv.DictReader(file))) == text.count("CERTIFIED |")


def test_the_observation_variance_puts_predicted_collapse_at_kl_weight_16() -> None:
    std = stress_study.observation_std(TeacherCard(3, largest_eigenvalue=71.0))
    assert 16 * std**2 == pytest.approx(71, rel=0.01)
    with pytest.raises(ValueError, match="has no `largest_eigenvalue`"):
        stress_study.observation_std(TeacherCard(3))


def test_a_value_that_no_part_of_the_yaml_has_is_refused() -> None:
    values: dict[str, Any] = {"model": {"class_path": "M", "init_args": {"objective": {"class_path": "O"}}}}
    set_value(values, "model.objective.beta", 2.0)
    assert values["model"]["init_args"]["objective"]["init_args"] == {"beta": 2.0}
    with pytest.raises(ValueError, match="there is no 'modle'"):
        set_value(values, "modle.beta", 2.0)


def test_a_markdown_table_has_a_row_for_each_line() -> None:
    table = markdown([{"a": 1.25, "b": "x"}, {"a": 2.0, "b": "y"}], {"first": "{a:+.1f}", "second": "{b}"})
    assert table == "| first | second |\n| --- | --- |\n| +1.2 | x |\n| +2.0 | y |\n"


# Margin against energy.


@pytest.fixture(scope="module")
def paths(output: Any) -> dict[tuple[float, str], dict[str, Any]]:
    arguments = [*EPOCHS, "--scales", "1", "8", "--priors", "with", "--output_dir", str(output("path"))]
    return {(line["scale"], line["alignment_path"]): line for line in path_study.main(arguments)}


def test_a_large_scale_aligned_on_the_mean_flatters_and_the_channel_says_so(paths: Any) -> None:
    flattering, small = paths[8.0, "mean"], paths[1.0, "mean"]
    assert flattering["status"] == "CERTIFIED"
    assert flattering["channel_margin"] < 0
    assert flattering["flattery"] > 1
    assert flattering["flattery"] > 2 * small["flattery"]


def test_alignment_on_draws_and_calibration_mend_the_channel(paths: Any) -> None:
    assert paths[8.0, "mean"]["calibrated_channel_margin"] > paths[8.0, "mean"]["channel_margin"]
    assert paths[8.0, "sample"]["calibrated_channel_margin"] > paths[8.0, "mean"]["calibrated_channel_margin"] + 0.1
    for line in paths.values():
        assert line["calibrated_channel_margin"] <= line["rate"]


def test_no_trained_model_has_more_margin_than_the_frontier_allows(paths: Any) -> None:
    assert all(line["headroom"] >= -1e-6 for line in paths.values())
    assert all(line["margin"] <= line["teacher_information"] for line in paths.values())


# Teacher and encoder that see different views.


@pytest.fixture(scope="module")
def views(output: Any) -> dict[str, dict[str, Any]]:
    arguments = [*EPOCHS, "--views", "noise:0.25", "noise:2", "--output_dir", str(output("view"))]
    return {f"{line['view']}{line['strength']:g}": line for line in view_study.main(arguments)}


def test_the_stronger_the_view_the_more_margin_it_costs(views: Any) -> None:
    assert views["clean0"]["cost"] == 0
    assert views["clean0"]["own_margin"] == pytest.approx(views["clean0"]["teacher_information"], abs=1e-4)
    assert 0.05 < views["noise0.25"]["cost"] < views["noise2"]["cost"]
    assert 0.05 < views["noise0.25"]["teacher_gap"] < views["noise2"]["teacher_gap"]


def test_an_encoder_trained_on_bad_views_does_better_than_the_teacher_on_them(views: Any) -> None:
    assert views["noise2"]["own_margin"] < 0 < views["noise2"]["margin"]
    assert views["noise2"]["own_margin"] < views["noise2"]["calibrated_margin"]


def test_margins_stay_below_what_data_processing_allows(views: Any) -> None:
    assert views["noise2"]["at_most"] < views["noise0.25"]["at_most"]
    for line in views.values():
        assert line["margin_lower"] <= line["at_most"]
        assert line["gap_at_most"] == pytest.approx(
            line["teacher_information"] - max(line["margin"], line["calibrated_margin"], line["own_margin"]), abs=1e-4
        )
        assert line["own_lower"] <= line["calibrated_margin"] <= line["at_most"] + 1e-4


def test_a_study_in_a_folder_without_git_still_says_where_it_ran(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tables, "HERE", tmp_path)
    given = Namespace(quick=True, seeds=None, output_dir=tmp_path, data_dir="data", results=False)
    assert "commit unknown (no git checkout), " in Study("stress", given)._origin()


def test_the_guard_reaches_its_target_and_stays_there(output: Any) -> None:
    folder = output("guard")
    runs = ["guard", "no_align", "guard_rescue"]
    lines = guard_study.main([*EPOCHS, "--only", *runs, "--output_dir", str(folder), "--strict"])
    assert [line["run"] for line in lines] == runs
    assert list(lines[0]) == ["seed", "run", *guard_study.NUMBERS]
    guarded, collapsed, rescued = lines
    assert guarded["last_weight"] > 0
    assert guarded["stays"]
    assert rescued["stays"]
    assert collapsed["first_at_target"] is collapsed["last_weight"] is None
    with pytest.raises(SystemExit):
        guard_study.main(["--quick", "--only", "nothing", "--output_dir", str(folder)])


# The protocol, certified as one would certify it.


@pytest.fixture(scope="module")
def protocol(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("protocol")
    return folder, protocol_study.main(["--quick", "--max_epochs", "30", "--output_dir", str(folder), "--strict"])


def test_full_and_rescue_are_certified_by_both_bounds_and_no_align_is_constant(protocol: Any) -> None:
    phases = {line["phase"]: line for line in protocol[1]}
    for name in ("full", "rescue"):
        assert phases[name]["status"] == phases[name]["bernstein_status"] == "CERTIFIED"
        assert phases[name]["bernstein_lower"] < phases[name]["margin_lower"] < phases[name]["margin"]
    assert phases["no_align"]["status"] == "NOT_CERTIFIED"
    assert phases["no_align"]["witness_information"] < 0.02
    assert "does not hold" not in (protocol[0] / "digits.md").read_text()


def test_a_phase_that_was_trained_on_is_certified_again(protocol: Any) -> None:
    folder, lines = protocol
    arguments = ["--quick", "--max_epochs", "30", "--output_dir", str(folder)]
    certificate = folder / "seed0" / "full" / "certificate_normal.json"
    kept = certificate.stat().st_mtime_ns
    assert protocol_study.main(arguments) == lines
    assert certificate.stat().st_mtime_ns == kept
    trained, other = (folder / "seed0" / name / "checkpoints" / "last.ckpt" for name in ("full", "no_align"))
    before = trained.read_bytes()
    try:
        shutil.copyfile(other, trained)
        assert protocol_study.main(arguments)[0]["margin"] == lines[1]["margin"]
    finally:
        trained.write_bytes(before)


def test_a_claim_that_does_not_hold_is_said_and_with_strict_ends_with_an_error(
    stress: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, lines = stress
    wrong = [{**line, "status": "NOT_CERTIFIED"} for line in lines.values()]
    assert stress_study.claims(wrong)["with alignment every run is certified"] is False
    assert all(stress_study.claims(list(lines.values())).values())
    monkeypatch.setattr(stress_study, "claims", lambda lines: {"water is dry": False})
    with pytest.raises(SystemExit, match="not everything that the study claims holds"):
        stress_study.main([*EPOCHS, "--kl_weights", "1", "32", "--output_dir", str(folder), "--strict"])
    assert "- **does not hold**: water is dry." in (folder / "stress.md").read_text()


def test_the_quick_forms_of_path_and_view_claim_what_holds(paths: Any, views: Any) -> None:
    assert all(path_study.claims(list(paths.values())).values())
    assert all(view_study.claims(list(views.values())).values())


def test_the_study_of_witnesses_claims_for_each_witness_what_the_protocol_claims() -> None:
    phases = ("full", "no_align", "rescue", "ablate", "guarded", "prefit")
    lines = [{"witness": name, "phase": phase, "proven_status": "CERTIFIED"} for name in "ab" for phase in phases]
    found = witnesses_study.claims(lines)
    assert len(found) == 12
    assert [name for name, holds in found.items() if not holds] == [
        f"{witness}, {phase} is not certified in every seed" for witness in "ab" for phase in ("no_align", "ablate")
    ]


def test_the_studies_of_prefit_and_escape_say_what_does_not_hold() -> None:
    fitted = {"aligned": True, "margin_before": -0.1, "margin_after": 0.5, "proven_status": "CERTIFIED"}
    assert all(prefit_study.claims([fitted]).values())
    assert not any(prefit_study.claims([{**fitted, "margin_after": -0.1, "proven_status": "VACUOUS"}]).values())
    escaped = {"run": "simplex_low", "certified_step": 4, "first_force": 0.1}
    assert all(escape_study.claims([escaped]).values())
    assert not any(escape_study.claims([{**escaped, "certified_step": None, "first_force": 0.0}]).values())
