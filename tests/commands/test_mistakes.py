"""Mistakes that anybody makes once: each is told early, in one message that says what to do."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from certvae.callbacks import CertificateCallback
from certvae.cli import main
from certvae.datamodules import DigitsDataModule
from certvae.teachers import LabelTeacher
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
