"""What a reader of the report sees first, and what stands beside the margin: phases, settings, losses, the caveat."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from certvae import certify
from certvae.callbacks import CertificateCallback, ReconstructionImages
from certvae.report.images import kept_pictures
from certvae.report.losses import losses_of
from certvae.report.runs import read_run
from certvae.report.settings import settings_of, settings_table
from certvae.report.wording import sentence
from tests.conftest import random_probs
from tests.logged import data
from tests.plain_vae import UserVAE
from tests.report.html_tree import elements
from tests.report.test_page import made
from tests.runs import digits_teacher, trainer

pytestmark = pytest.mark.slow


def test_the_verdict_the_curve_and_what_each_phase_is_come_first(report: Path) -> None:
    page = elements(report)
    first = page.text[: page.text.index("What this does not say")]
    for phase, what in (
        ("full", "trained with alignment from the first epoch"),
        ("no_align", "the same without alignment"),
        ("rescue", "continues from no_align, with alignment"),
    ):
        assert re.search(rf"{phase}, seed 0\s+\w.*?{what}", first, flags=re.DOTALL), phase
    assert "validations in training" in first  # the curve's axis
    assert first.index("validations in training") < first.index("full, seed 0: ")  # before the long cards


def test_settings_that_differ_come_first_and_the_others_are_there_too(demo: Path) -> None:
    run = read_run(demo, "demo")
    table = settings_table(run.phases, [phase.name for phase in run.phases])
    assert table is not None
    assert table.columns == ["full", "no_align", "rescue"]
    configs = [yaml.safe_load((demo / "seed0" / name / "run.yaml").read_text()) for name in table.columns]
    weights = [str(config["model"]["init_args"]["alignment_weight"]) for config in configs]
    assert dict(table.differing)["model.alignment_weight"] == weights
    same = dict(table.same)
    assert same["model"] == "VAE"
    assert same["model.objective"] == "ELBO"
    assert same["trainer.callbacks.CertificateCallback.safety_margin"] == "0.05"
    assert set(same).isdisjoint(dict(table.differing))


def test_a_comparison_begins_with_the_settings_that_differ(demo: Path) -> None:
    other = Path(shutil.copytree(demo, demo.parent / "other"))
    path = other / "seed0" / "full" / "run.yaml"
    path.write_text(path.read_text().replace("batch_size: ", "batch_size: 9"))
    page = made(demo / "seed0" / "full", other / "seed0" / "full", options=("--no_images",))
    assert "data.batch_size" in page.text
    assert page.text.index("data.batch_size") < page.text.index("CERTIFIED")


def test_the_loss_is_that_of_the_table_of_the_run(demo: Path) -> None:
    phase = read_run(demo, "demo").phases[0]
    with open(phase.folder / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["val/loss"]]
    assert losses_of(phase) == [(float(row["epoch"]), float(row["val/loss"])) for row in rows]
    (phase.folder / "metrics.csv").write_text("epoch,val/loss\n0,1e400\n1,nothing\n,3\n2,4.5\n")
    assert losses_of(phase) == [(2.0, 4.5)]


def test_few_rows_by_normal_get_no_percentage() -> None:
    """The method's own caveat: with fewer than 1,000 rows its confidence is not known."""
    for rows, said in ((300, "whose confidence is not known for fewer than 1,000 rows"), (1000, "at about 95")):
        teacher = random_probs(rows, 4, seed=0)
        told = sentence(certify(teacher, teacher.log(), method="normal"), "test")
        assert said in told
        assert ("95" in told) == (rows == 1000)


@pytest.fixture(scope="module")
def of_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What callbacks keep of somebody else's model that a script trains."""
    folder = tmp_path_factory.mktemp("python") / "mine"
    watch = CertificateCallback(digits_teacher(), "encoder", save_dir=folder)
    pictures = ReconstructionImages(latents="encoder", save_dir=folder)
    trainer(folder, callbacks=[watch, pictures]).fit(UserVAE(), datamodule=data())
    return folder


def test_a_run_from_python_has_its_teacher_its_settings_and_its_pictures(of_python: Path) -> None:
    page = made(of_python)
    assert "gaussian mixture" in page.text
    assert "run/batch_size" in page.text
    assert len(page.all("img")) == 2
    assert "The teacher card could not be made" not in page.text
    assert "The images of" not in page.text
    (phase,) = read_run(of_python, "mine").phases
    assert settings_of(phase) | {"run/model": "UserVAE", "run/epochs": "1"} == settings_of(phase)


def test_a_picture_that_is_none_is_left_out_with_the_reason(of_python: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(of_python, tmp_path / "mine"))
    (phase,) = read_run(folder, "mine").phases
    assert [picture.title for picture in kept_pictures(phase)] == ["Reconstructions", "Samples"]
    (folder / "images_samples.png").write_bytes(b"<script>")
    with pytest.raises(ValueError, match="cannot be shown as a picture"):
        kept_pictures(phase)
    Image.fromarray(np.zeros((1, 5000), dtype=np.uint8)).save(folder / "images_samples.png")
    with pytest.raises(ValueError, match="more than 4096 a side"):
        kept_pictures(phase)
    for name in ("samples", "reconstructions"):
        (folder / f"images_{name}.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"give the run ReconstructionImages\(save_dir=...\)"):
        kept_pictures(phase)


def test_settings_of_a_stranger_stay_short_text(of_python: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(of_python, tmp_path / "mine"))
    hostile = {"<b>" + 200 * "x": "\x00<script>", **{str(number): number for number in range(1000)}}
    (folder / "certificate_settings.json").write_text(json.dumps(hostile))
    found = settings_of(read_run(folder, "mine").phases[0])
    assert len(found) == 300
    assert max(map(len, [*found, *found.values()])) <= 80
    assert not made(folder, options=("--no_images",)).all("script")
