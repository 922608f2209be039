"""What is found in a folder, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from certvae import Certificate
from certvae.certificate.certificate import digest
from certvae.certificate.claims import ClaimsError
from certvae.cli import main
from certvae.report import read_runs
from certvae.report.runs import read_run


def test_phases_come_by_seed_and_then_in_the_order_of_training(demo: Path) -> None:
    shutil.copytree(demo / "seed0", demo / "seed10")
    shutil.copytree(demo / "seed0", demo / "seed2")
    run = read_run(demo, "demo")
    names = ("full", "no_align", "rescue")
    assert [(phase.seed, phase.name) for phase in run.phases] == [(s, n) for s in ("0", "2", "10") for n in names]
    assert [phase.seed for phase in run.shown] == ["0", "0", "0"]
    assert run.dataset == "digits"


def test_a_rescue_starts_where_its_weights_come_from(demo: Path) -> None:
    starts = {phase.name: phase.start for phase in read_run(demo, "demo").phases}
    assert starts == {"full": 0, "no_align": 0, "rescue": 2}


def test_a_published_certificate_comes_before_that_of_the_test_rows_and_of_the_validation_rows(demo: Path) -> None:
    folder = demo / "seed0" / "full"
    assert read_run(folder, "full").phases[0].path == folder / "certificate_test.json"
    assert read_run(folder, "full").phases[0].split == "test"
    shutil.move(folder / "certificate_test.json", demo / "kept.json")
    watched = read_run(folder, "full").phases[0]
    assert (watched.path, watched.split) == (folder / "certificate_val.json", "val")
    published = Certificate.load(demo / "kept.json")
    published.provenance = {"options": {"split": "test"}}
    published.save(folder / "certificate.json")
    assert read_run(folder, "full").phases[0].path == folder / "certificate.json"
    assert read_run(folder, "full").phases[0].split == "test"


def test_a_history_alone_is_enough(foreign: Path) -> None:
    for path in foreign.glob("*.json"):
        path.unlink()
    phase = read_run(foreign, "theirs").phases[0]
    assert phase.certificate == phase.history[-1]
    assert phase.path == foreign / "certificates_val.jsonl"
    assert phase.split == "val"


def test_each_callback_of_a_fit_is_a_phase_of_its_own(foreign: Path) -> None:
    shutil.copy(foreign / "certificates_val.jsonl", foreign / "strings_val.jsonl")
    assert [phase.name for phase in read_run(foreign, "theirs").phases] == ["theirs", "string"]


def test_folders_of_one_name_are_told_apart_by_their_paths(demo: Path) -> None:
    others = demo.parent / "other" / "demo"
    shutil.copytree(demo, others)
    assert [run.name for run in read_runs([demo, others])] == [str(demo), str(others)]
    assert [run.name for run in read_runs([demo / "seed0" / "full", others])] == ["full", "demo"]


def test_the_teacher_beside_a_moved_run_comes_before_the_one_that_its_yaml_names(demo: Path) -> None:
    phase = read_run(demo, "demo").phases[0]
    named = phase.teacher
    assert named is not None
    assert named.parent != demo / "seed0" / "search"
    (demo / "seed0" / "search").mkdir()
    shutil.copy(named, demo / "seed0" / "search")
    assert phase.teacher == demo / "seed0" / "search" / named.name


def test_of_several_checkpoints_only_the_last_one_is_taken(demo: Path) -> None:
    phase = read_run(demo, "demo").phases[0]
    assert phase.checkpoint == phase.folder / "checkpoints" / "last.ckpt"
    shutil.move(phase.checkpoint, phase.folder / "checkpoints" / "one.ckpt")
    (phase.folder / "checkpoints" / "previous.ckpt").write_bytes(b"")
    assert phase.checkpoint is None


def test_a_folder_without_a_run_is_refused_with_what_was_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path / "none")]) == 1
    assert "no folder at" in capsys.readouterr().err
    (tmp_path / "file.json").write_text("")
    assert main(["report", str(tmp_path / "file.json")]) == 1
    assert "it is a file; give the folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "certificates_val.jsonl").write_text("")
    assert main(["report", str(tmp_path)]) == 1
    assert "neither seed<n>/<phase>/certificates_val.jsonl" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.html"))


def test_an_altered_certificate_is_refused(demo: Path) -> None:
    path = demo / "seed0" / "full" / "certificate_test.json"
    path.write_text(path.read_text().replace('"margin": ', '"margin": 1'))
    with pytest.raises(ValueError, match="was altered since it was saved"):
        read_run(demo, "demo")


def test_a_certificate_that_contradicts_itself_is_refused(demo: Path) -> None:
    path = demo / "seed0" / "no_align" / "certificate_test.json"
    values = replace(Certificate.load(path), margin_lower=1.5).to_dict()
    path.write_text(json.dumps({**values, "sha256": digest(values)}))
    with pytest.raises(ClaimsError, match="it contradicts itself: .* does not hold"):
        read_run(demo, "demo")


@pytest.mark.parametrize("text", ["[" * 1000, "{", '{"dataset": 1e999}'])
def test_a_summary_that_is_none_is_refused(demo: Path, text: str) -> None:
    (demo / "summary.json").write_text(text)
    with pytest.raises(ValueError, match="is no summary of a protocol"):
        read_run(demo, "demo")


@pytest.mark.parametrize(
    "name", ["certificates_val.jsonl", "certificate_test.json", "certificate_val.json", "certificate.json"]
)
def test_a_link_out_of_the_folder_is_not_read(foreign: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    if name == "certificate_val.json":
        (foreign / "certificate_test.json").unlink()
    outside = foreign.parent / "outside"
    (foreign / name).rename(outside) if (foreign / name).exists() else outside.write_text("secret")
    (foreign / name).symlink_to(outside)
    assert main(["report", str(foreign)]) == 1
    said = capsys.readouterr().err
    assert f"is a link to {outside.resolve()}, outside {foreign}" in said
    assert "secret" not in said
    assert not (foreign / "report.html").exists()


def test_a_link_to_another_folder_is_not_followed_and_one_within_is(foreign: Path) -> None:
    root = foreign.parent / "root"
    (root / "seed0").mkdir(parents=True)
    (root / "seed0" / "full").symlink_to(foreign)
    with pytest.raises(ValueError, match="is a link to .*, outside"):
        read_run(root, "root")
    (root / "seed0" / "full").unlink()
    foreign.rename(root / "kept")
    (root / "seed0" / "full").symlink_to(root / "kept")
    assert [phase.name for phase in read_run(root, "root").phases] == ["kept", "kept"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.yaml", "last.ckpt", "teacher.safetensors"])
def test_what_images_need_is_no_link_out_of_the_folder(foreign: Path, name: str) -> None:
    (foreign.parent / "outside").write_text("secret: 1")
    (foreign / name).symlink_to(foreign.parent / "outside")
    assert main(["report", str(foreign)]) == 0
    page = (foreign / "report.html").read_text()
    assert "secret: 1" not in page
    assert "is not read: copy the file there" in page
