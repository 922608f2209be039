"""Mistakes that anybody makes once: each is told early, in one message that says what to do."""

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from certvae import Certificate, Reading, Status
from certvae.callbacks import CertificateCallback
from certvae.cli import main
from certvae.commands.protocol import Protocol, _progress
from certvae.datamodules import DigitsDataModule
from certvae.teachers import LabelTeacher
from certvae.terminal import user_errors
from tests.commands.test_cli import EXPERIMENTS
from tests.plain_vae import UserVAE, plain_loader
from tests.runs import digits_teacher, small_vae, trainer


class Counting(UserVAE):
    """Counts the steps that it has trained."""

    steps = 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.steps += 1
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"latents": "encoder:mean,logvar"}, "the part 'mean'"), ({"images": "pixels"}, "`images='pixels'`")],
)
def test_a_wrong_argument_is_told_before_the_first_training_step(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    model = Counting()
    callback = CertificateCallback(digits_teacher(), **{"latents": "encoder", **arguments})
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, callbacks=[callback], num_sanity_val_steps=2).fit(model, plain_loader(), plain_loader())
    assert model.steps == 0


@pytest.mark.slow
def test_rows_of_the_sanity_check_count_for_nothing(tmp_path: Path) -> None:
    certificates = []
    for checks in (0, 2):
        callback = CertificateCallback(digits_teacher(), spending=True)
        run = trainer(tmp_path, callbacks=[callback], num_sanity_val_steps=checks)
        run.fit(small_vae(), datamodule=DigitsDataModule(subset=256))
        assert callback.certificate is not None
        certificates.append(callback.certificate)
    assert certificates[0].num_samples == certificates[1].num_samples
    assert certificates[0].look == certificates[1].look == 1


def test_a_standard_deviation_in_place_of_the_log_variance_is_asked_about(tmp_path: Path) -> None:
    callback = CertificateCallback(
        digits_teacher(), lambda module, batch: (module.encoder(batch[0])[0], torch.full((len(batch[0]), 6), 0.7))
    )
    with pytest.warns(UserWarning, match=r"Is it a standard deviation\? Give \(mean, log_variance\)"):
        trainer(tmp_path, callbacks=[callback]).validate(UserVAE(), plain_loader(), verbose=False)


def test_a_collapsed_posterior_is_not_taken_for_a_standard_deviation(tmp_path: Path) -> None:
    callback = CertificateCallback(
        digits_teacher(), lambda module, batch: (module.encoder(batch[0])[0], torch.full((len(batch[0]), 6), 1e-3))
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*standard deviation.*")
        trainer(tmp_path, callbacks=[callback]).validate(UserVAE(), plain_loader(), verbose=False)
    assert callback.certificate is not None
    assert callback.certificate.rate is not None


def test_a_fit_without_any_validation_says_so(tmp_path: Path) -> None:
    callback = CertificateCallback(digits_teacher(), "encoder")
    with pytest.warns(UserWarning, match="No validation will run in this fit.*`check_val_every_n_epoch=5`"):
        trainer(tmp_path, callbacks=[callback], check_val_every_n_epoch=5).fit(
            UserVAE(), plain_loader(), plain_loader()
        )


def test_what_is_no_teacher_and_what_are_no_batches(tmp_path: Path) -> None:
    callback = CertificateCallback(LabelTeacher, "encoder")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="`teacher` must be a teacher or the path of its file, got <class"):
        trainer(tmp_path, callbacks=[callback]).validate(UserVAE(), plain_loader())
    with pytest.raises(TypeError, match=r"`batches` .* got DigitsDataModule.*its train_dataloader\(\)"):
        LabelTeacher(10).measure(DigitsDataModule(), images=1)  # type: ignore[arg-type]


def test_a_command_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fitt", "--config", "x.yaml"]) == 2
    assert "there is no command 'fitt'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_forgotten_data_dir_can_be_given_afterwards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["protocol", str(EXPERIMENTS / "cifar100.yaml"), "--seeds", "0", "--output_dir", str(tmp_path / "runs")]
    for folder in ("nowhere", "elsewhere"):
        assert main([*command, "--data_dir", str(tmp_path / folder)]) == 1
        told = capsys.readouterr().err
        assert "Name the folder that holds it in `data_dir`" in told
        assert folder in told


DIGITS = EXPERIMENTS / "digits" / "full.yaml"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--trainer.max_epochz=3"], "there is no option --trainer.max_epochz. Did you mean '--trainer.max_epochs'?"),
        (["--model=certvae.VEA"], "there is no certvae.VEA. Did you mean 'VAE'?"),
        (["--model.latent_dm=3"], "certvae.VAE takes no 'latent_dm'."),
        (["--model.alignment_wieght=3"], "certvae.VAE takes no 'alignment_wieght'. Did you mean 'alignment_weight'?"),
        (["--trainer.max_epochs=abc"], "trainer.max_epochs: Expected a <class 'int'>, got 'abc'."),
        (["--model.objective.beta=abc"], "model.objective.beta: Expected a <class 'float'>, got 'abc'."),
        (["--model.encoder=mynet.Encoder"], "there is no module 'mynet' for mynet.Encoder."),
        (
            ["--data=DigitDataModule"],
            "data: 'DigitDataModule' names no class. Write its module too. "
            "Did you mean 'certvae.datamodules.DigitsDataModule'?",
        ),
    ],
)
def test_a_misspelt_argument_is_one_line_with_the_nearest_name(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["fit", "--config", str(DIGITS), *arguments])
    assert capsys.readouterr().err == f"certvae: {line}\n"


def test_a_misspelt_path_or_command_is_one_line_with_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["fit", "--config", str(DIGITS.with_name("fulll.yaml"))])
    assert capsys.readouterr().err.endswith(f"fulll.yaml. Did you mean {str(DIGITS)!r}?\n")
    assert main(["protocol", str(EXPERIMENTS / "digts.yaml")]) == 1
    assert capsys.readouterr().err.endswith(f"digts.yaml. Did you mean {str(EXPERIMENTS / 'digits.yaml')!r}?\n")
    assert main(["protcol"]) == 2
    assert capsys.readouterr().err == "certvae: there is no command 'protcol'. Did you mean 'protocol'?\n"


def test_a_missing_teacher_names_the_search_beside_the_runs_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", str(DIGITS)]) == 1
    assert f"certvae fit --config {DIGITS.with_name('search.yaml')}" in capsys.readouterr().err


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), SystemExit(1)])
def test_ctrl_c_ends_with_status_130_and_one_line(raised: BaseException, capsys: pytest.CaptureFixture[str]) -> None:
    """Lightning turns Ctrl-C into an exit with status 1."""
    with user_errors() as outcome:
        if isinstance(raised, SystemExit):
            raised.__context__ = KeyboardInterrupt()
        raise raised
    assert outcome.status == 130
    assert capsys.readouterr().err == "certvae: interrupted.\n"


def test_ctrl_c_in_a_fit_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("certvae.commands.lightning.run_lightning", stop)
    assert main(["fit", "--config", "mine.yaml"]) == 130
    said = "certvae: interrupted; the same command with `--ckpt_path last` resumes if the YAML names LastCheckpoint."
    assert capsys.readouterr().err == f"{said}\n"


@pytest.mark.slow
def test_a_command_leaves_out_the_hints_of_lightning_although_it_imports_it(tmp_path: Path) -> None:
    """Lightning sets the level of its own logger when it is imported."""
    asked = "import logging, sys; from certvae.cli import main; main(['protocol', 'none.yaml']); "
    told = "print(logging.getLogger('pytorch_lightning').level == logging.WARNING)"
    done = subprocess.run(
        [sys.executable, "-c", asked + told], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "True\n"


def test_a_protocol_downloads_where_it_is_told_to() -> None:
    run = Protocol.read(EXPERIMENTS / "cifar100.yaml", download=True).run("search", 0)
    assert run.values["data"]["init_args"]["download"] is True


def test_classes_in_the_working_directory_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["certify", "--help"])
    assert str(tmp_path) in sys.path


MY_VAE = """
import torch
from pytorch_lightning import LightningModule
from torch import nn


class VAE(LightningModule):
    def __init__(self, latent_dim: int = 10):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 2 * latent_dim))

    def forward(self, images):
        return self.encoder(images).chunk(2, dim=1)
"""
MY_RUN = """
model:
  class_path: my_vae.VAE
data:
  class_path: certvae.datamodules.DigitsDataModule
"""


@pytest.mark.slow
def test_certify_reads_a_class_that_a_user_wrote_in_the_working_directory(tmp_path: Path) -> None:
    """As the installed command does it: -P keeps Python itself from putting the directory on its path."""
    (tmp_path / "my_vae.py").write_text(MY_VAE)
    (tmp_path / "run.yaml").write_text(MY_RUN)
    digits_teacher().save(tmp_path / "teacher.safetensors")
    weights = {"encoder.1.weight": torch.zeros(20, 64), "encoder.1.bias": torch.zeros(20)}
    torch.save({"state_dict": weights}, tmp_path / "my.ckpt")
    files = ["--config=run.yaml", "--ckpt=my.ckpt", "--teacher=teacher.safetensors", "--permutations=0"]
    command = [sys.executable, "-P", "-m", "certvae.cli", "certify", *files]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    certificate = Certificate.load(tmp_path / "certificate.json")
    assert (certificate.status, certificate.reading) == (Status.NOT_CERTIFIED, Reading.COLLAPSED)


def test_a_protocol_says_which_run_begins_and_how_long_all_take() -> None:
    protocol = Protocol.read(EXPERIMENTS / "digits.yaml", seeds=(0, 1))
    assert _progress(protocol, []) == "Run 1 of 8:"
    assert _progress(protocol, [{"seconds": 60.0}, {"seconds": 30.0}]) == "Run 3 of 8, about 0:04:30 left:"
