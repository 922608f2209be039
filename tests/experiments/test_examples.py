"""Every example runs as it stands, and every Python block of the pages for users does."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from certvae import Certificate, Status
from certvae.certificate.diagnosis import CAUSES
from certvae.certificate.history import read_history

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "experiments" / "examples"


def run(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, Any]:
    """The variables that a script ends with."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    return runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def run_page(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The variables that the blocks of a page end with, run one after the other."""
    monkeypatch.chdir(folder)
    variables: dict[str, Any] = {"__name__": name}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / name).read_text(), flags=re.DOTALL):
        exec(compile(block, name, "exec"), variables)
    return variables


def test_one_callback_watches_a_plain_vae(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It is informative, and not aligned: no certificate."""
    metrics = run("lightning_vae.py", monkeypatch)["trainer"].callback_metrics
    assert metrics["certificate/certified"] == 0
    assert metrics["certificate/rate"] > 4
    assert "NOT_CERTIFIED" in capsys.readouterr().out


def test_the_plain_pytorch_example_is_certified() -> None:
    script = EXAMPLES / "plain_pytorch.py"
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("CERTIFIED")


def test_two_lines_are_all_that_was_added_to_the_plain_vae() -> None:
    lines = (EXAMPLES / "lightning_vae.py").read_text().splitlines()
    others = [line for line in lines if not line.endswith("# new")]
    assert len(lines) - len(others) == 2
    code = "\n".join(others).split('"""', 2)[2]
    assert "certvae" not in code
    compile(code, "lightning_vae.py", "exec")


def test_a_teacher_searched_on_vectors_is_answered_by_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = run("vectors.py", monkeypatch)
    assert seen["watch"].certificate.status is Status.CERTIFIED
    assert seen["teacher"].card.image_shape == (50,)
    assert seen["watch"].certificate.margin_lower > 0.5


@pytest.mark.parametrize(
    ("name", "kept"), [("spatial.py", "with alignment"), ("function_latents.py", "with the guard")]
)
def test_what_is_not_certified_is_with_alignment(
    name: str, kept: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(name, monkeypatch)
    before, after = capsys.readouterr().out.split(f"{kept}:")
    assert "NOT_CERTIFIED: not shown" in before
    assert after.strip().startswith("CERTIFIED")


@pytest.mark.parametrize("model", ["lstm", "transformer"])
def test_a_sentence_vae_is_watched_and_its_decoder_asked(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = run("sentences.py", monkeypatch, "--model", model, "--max_epochs", "1", "--rows", "200", "--guard")
    assert seen["watch"].certificate.information is not None
    assert seen["check"].losses.shuffled > 0


def test_categorical_and_frame_codes_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    world = run("world_model.py", monkeypatch, "--max_epochs", "1")
    assert world["watch"].certificate.rate is not None
    assert world["codebook"].information.upper > 0
    frames = run("frames.py", monkeypatch, "--max_epochs", "1")
    assert frames["watch"].certificate.num_samples == 1000


@pytest.mark.parametrize("library", ["litdata", "webdataset"])
def test_a_vae_on_a_stream_is_certified(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(library, reason=f"the example needs {library}: pip install 'certvae[streams]'")
    run("streams.py", monkeypatch, "--library", library, "--folder", str(tmp_path), "--max_epochs", "6")
    out = capsys.readouterr().out
    assert "CERTIFIED: the latent code" in out
    assert "500 rows, 10 components" in out


@pytest.mark.skipif(not os.environ.get("CERTVAE_TEST_RAY"), reason="Ray starts ten processes: set CERTVAE_TEST_RAY=1")
def test_two_workers_of_ray_train_write_one_certificate(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the example needs Ray: pip install 'certvae[ray]'")
    command = [sys.executable, str(EXAMPLES / "ray_train.py"), "--max_epochs", "2", "--folder", str(tmp_path)]
    subprocess.run(command, check=True, timeout=600)
    assert len(read_history(tmp_path / "certificates_val.jsonl")) == 2
    assert Certificate.load(tmp_path / "certificate_val.json").num_samples == 500


@pytest.mark.parametrize("name", ["lightning_vae.py", "spatial.py", "function_latents.py"])
def test_the_length_of_an_example_can_be_chosen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(name, monkeypatch, "--max_epochs", "1")["trainer"].current_epoch == 1


def test_the_page_for_your_model_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = run_page("your-model.md", tmp_path, monkeypatch)
    assert capsys.readouterr().out.count(": ALIGNED, CERTIFIED (") >= 6
    assert seen["clean"].certificate.margin > seen["noisy"].certificate.margin
    assert (tmp_path / "teacher" / "teacher.safetensors").is_file()


def test_the_page_of_causes_tells_them_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_page("not-certified.md", tmp_path, monkeypatch)
    said = capsys.readouterr().out
    for name, cause in (
        ("plain", "not aligned"),
        ("KL weight 20", "collapsed"),
        ("witness scale 0.05", "witness scale too small"),
        ("witness scale 20", "witness scale too large"),
    ):
        assert f"{name}: {cause}" in said
    assert "ALIGNED: the mean code carries at least" in said


def test_the_causes_of_the_page_and_of_the_code_are_the_same() -> None:
    page = (ROOT / "docs" / "not-certified.md").read_text()
    assert {cause.name for cause in CAUSES} == set(re.findall(r"^\| \*\*(.*?)\*\* \|", page, flags=re.MULTILINE))


@pytest.mark.parametrize("name", ["your-model.md", "not-certified.md"])
def test_every_link_of_a_page_points_to_a_file(name: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "docs" / name).read_text()):
        assert (ROOT / "docs" / target).resolve().exists(), target
