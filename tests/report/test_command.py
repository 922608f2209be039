"""``certvae report`` on the command line."""

from pathlib import Path

import pytest

from certvae.cli import main
from certvae.report.figures import FORMATS, margin_chart
from certvae.report.runs import read_run

pytestmark = pytest.mark.slow

NAMES = {"margin", "information", "alignment", "path", "channel", "components", "loss", "use"}


def test_it_writes_into_the_run_and_prints_verdict_and_path(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(demo), "--no_images"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[-1] == str(demo / "report.html")
    assert lines[-2].startswith("Of 3 trained models")
    assert (demo / "report.html").read_text().startswith("<!doctype html>")


def test_of_several_runs_it_writes_where_it_is_called(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [str(demo / "seed0" / name) for name in ("full", "rescue")]
    assert main(["report", *folders, "--no_images", "--figures", "figures", "--formats", "svg"]) == 0
    assert (tmp_path / "report.html").is_file()
    assert not list(demo.rglob("report.html"))
    for folder in ("0_full", "1_rescue"):
        written = {path.name for path in (tmp_path / "figures" / folder).iterdir()}
        assert written == {f"{name}.svg" for name in NAMES}


@pytest.mark.parametrize("form", FORMATS)
def test_a_figure_is_the_same_file_each_time(finished: Path, tmp_path: Path, form: str) -> None:
    run = read_run(finished, "demo")
    for folder in ("one", "two"):
        chart = margin_chart(run, [run])
        assert chart is not None
        chart.save(tmp_path / folder, form)
    written = (tmp_path / "one" / f"margin.{form}").read_bytes()
    assert written == (tmp_path / "two" / f"margin.{form}").read_bytes()
    assert written.startswith({"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[form])


def test_an_unknown_format_is_refused(demo: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["report", str(demo), "--figures", "here", "--formats", "gif"])
    assert stop.value.code == 2
