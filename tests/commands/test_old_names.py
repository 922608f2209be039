"""A YAML of an earlier version is refused by every command in one sentence that says which name became which."""

import pydoc
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from certvae.cli import main
from certvae.commands.certify import CertifyOptions, certify_checkpoint
from certvae.commands.lightning import RENAMED
from certvae.commands.runs import Run
from tests.commands.test_cli import EXPERIMENTS
from tests.runs import digits_teacher

SENTENCE = (
    "has names of an earlier version of certvae: write `test_fraction` instead of `certificate_fraction`, "
    "`certvae.models.ELBO` instead of `certvae.objectives.ELBO`, `certvae.models.VAE` instead of `certvae.vae.VAE`.\n"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A short run with today's names, and then a YAML with old ones."""
    folder = tmp_path_factory.mktemp("old")
    teacher = digits_teacher(10).save(folder / "teacher.safetensors")
    values = yaml.safe_load((EXPERIMENTS / "digits" / "full.yaml").read_text().replace("runs/digits/full", str(folder)))
    values["model"]["init_args"]["teacher"] = str(teacher)
    values["data"]["init_args"]["test_fraction"] = 0.5
    made = Run(folder, values, "", teacher)
    made.write_config()
    assert main(["fit", "--config", str(made.config), "--trainer.max_epochs=1", "--data.subset=200"]) == 0
    options = CertifyOptions(permutations=0, channel_samples=1)
    certify_checkpoint(made.checkpoint, teacher, made.config, options).save(folder / "certificate.json")
    made.config.write_text(yaml.safe_dump(as_before(values)))
    shutil.copyfile(made.config, folder / "config.yaml")
    return made


def as_before(values: dict[str, Any]) -> dict[str, Any]:
    values["model"]["class_path"] = "certvae.vae.VAE"
    values["model"]["init_args"]["objective"]["class_path"] = "certvae.objectives.ELBO"
    values["data"]["init_args"]["certificate_fraction"] = values["data"]["init_args"].pop("test_fraction")
    return values


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--config {}", "--config={}"])
@pytest.mark.parametrize("command", ["fit", "test"])
def test_lightning_commands_refuse_it(run: Run, command: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, *option.format(run.config).split(" ")]) == 1
    assert capsys.readouterr().err == f"certvae: ValueError: {run.config} {SENTENCE}"


@pytest.mark.slow
def test_certify_and_verify_refuse_it(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = ["--ckpt", str(run.checkpoint), "--teacher", str(run.teacher), "--config", str(run.config)]
    assert main(["certify", *inputs, "--output", str(tmp_path / "certificate.json")]) == 1
    assert capsys.readouterr().err == f"certvae: ValueError: the run's YAML {SENTENCE}"
    assert main(["verify", str(run.folder / "certificate.json"), *inputs]) == 1
    assert SENTENCE.rstrip("\n") in " ".join("".join(capsys.readouterr()).split())


@pytest.mark.slow
def test_the_report_leaves_the_images_out_and_says_why(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(run.folder), "--output", str(tmp_path / "report.html")]) == 0
    assert SENTENCE.rstrip(".\n") in capsys.readouterr().out


@pytest.mark.parametrize("new", [new.rstrip(".") for new in RENAMED.values() if "." in new])
def test_every_new_name_is_there(new: str) -> None:
    assert pydoc.locate(new) is not None


def test_names_of_other_packages_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.yaml"
    data = {"class_path": "theirs.Data", "init_args": {"certificate_fraction": 0.5}}
    path.write_text(yaml.safe_dump({"data": data}))
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(path)])
    assert "earlier version" not in capsys.readouterr().err
