"""The certificate beside what people combine it with: other callbacks, schedulers, tuners, other certificates."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import (
    BatchSizeFinder,
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateFinder,
    ModelCheckpoint,
    RichProgressBar,
    StochasticWeightAveraging,
    TQDMProgressBar,
)
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from certvae import Status
from certvae.callbacks import CertificateCallback
from certvae.datamodules import DigitsDataModule
from tests.plain_vae import ManualVAE, UserVAE, expected, fit, measured, plain_loader, watch
from tests.runs import digits_teacher, small_vae, trainer

pytestmark = pytest.mark.slow


class Witnessed(UserVAE):
    """Trains its own witness and, if asked, normalizes batches."""

    def __init__(self, normalize: bool = False) -> None:
        super().__init__()
        self.witness = nn.Linear(6, 5)
        self.norm = nn.BatchNorm1d(64) if normalize else nn.Identity()
        self.learning_rate = 0.5

    def images(self, batch: Any) -> Tensor:
        return self.norm(super().images(batch))

    def step(self, batch: Any) -> Tensor:
        images = self.images(batch)
        mean, _ = self.encoder(images)
        return ((self.decoder(mean) - images) ** 2).mean() + self.witness(mean).pow(2).mean()


def test_the_certificate_is_of_the_averaged_weights_in_both_orders(tmp_path: Path) -> None:
    """Lightning swaps averages in at the start of a validation, and out at its end; the fit ends with them."""
    found = []
    for order in (1, -1):
        callback = watch()
        _, model = fit(tmp_path, [callback, EMAWeightAveraging(decay=0.9)][::order], Witnessed, max_epochs=3)
        assert measured(callback).margin == pytest.approx(expected(model).margin, abs=1e-5)
        found.append(measured(callback).margin)
    plain = watch()
    fit(tmp_path, [plain], Witnessed, max_epochs=3)
    assert found[0] == found[1]
    assert abs(measured(plain).margin - found[0]) > 1e-3


@pytest.mark.parametrize("normalize", [False, True])
def test_stochastic_weight_averaging_is_measured_as_it_is_validated(tmp_path: Path, normalize: bool) -> None:
    """Lightning validates with the current weights until it moves the average into the module, after the last epoch;
    of a module with batch norm, before one epoch more, which is then validated."""

    class Kept(CertificateCallback):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            own.append(expected(pl_module).margin - measured(self).margin)

    own: list[float] = []
    callback = Kept(digits_teacher(), "encoder", save_dir=tmp_path)
    averaging = StochasticWeightAveraging(0.05, 1)
    _, model = fit(tmp_path, [callback, averaging], lambda: Witnessed(normalize), max_epochs=3)
    assert own == pytest.approx([0.0] * (4 if normalize else 3), abs=1e-5)
    (result,) = trainer(tmp_path, callbacks=[callback]).validate(model, plain_loader(), verbose=False)
    assert result["certificate/margin"] == pytest.approx(expected(model).margin, abs=1e-5)


@pytest.mark.parametrize("monitor", ["certificate/margin_lower", "certificate/rate"])
def test_the_best_checkpoint_is_the_one_with_the_best_bound(tmp_path: Path, monitor: str) -> None:
    class Kept(CertificateCallback):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            values.append(float(trainer.callback_metrics[monitor]))

    values: list[float] = []
    checkpoint = ModelCheckpoint(tmp_path, "{epoch}-{" + monitor + ":.3f}", monitor, mode="max")
    fit(tmp_path, [checkpoint, Kept(digits_teacher(), "encoder")], Witnessed, max_epochs=3, enable_checkpointing=True)
    assert checkpoint.best_model_score is not None
    assert float(checkpoint.best_model_score) == max(values)
    assert f"epoch={values.index(max(values))}-" in checkpoint.best_model_path


def test_early_stopping_on_the_bound_stops_and_goes_on_as_it_should(tmp_path: Path) -> None:
    for threshold, epochs in ((-9.0, 1), (9.0, 3)):
        stopping = EarlyStopping("certificate/margin_lower", mode="max", stopping_threshold=threshold)
        callback = watch()
        fit(tmp_path, [stopping, callback], max_epochs=3)
        assert callback.looks == epochs


@pytest.mark.parametrize(("check_finite", "epochs"), [(True, 1), (False, 3)])
def test_one_row_has_no_bound_which_early_stopping_takes_as_told(
    tmp_path: Path, check_finite: bool, epochs: int
) -> None:
    """The bound is minus infinity, not NaN: EarlyStopping stops there, unless told otherwise; a checkpoint is kept."""
    callback, checkpoint = watch(), ModelCheckpoint(tmp_path, monitor="certificate/margin_lower", mode="max")
    stopping = EarlyStopping("certificate/margin_lower", mode="max", check_finite=check_finite)
    runner = trainer(tmp_path, max_epochs=9, enable_checkpointing=True, callbacks=[callback, stopping, checkpoint])
    runner.fit(UserVAE(), plain_loader(), plain_loader(1))
    assert float(runner.callback_metrics["certificate/margin_lower"]) == -torch.inf
    assert measured(callback).status is Status.VACUOUS
    assert callback.looks == epochs
    assert Path(checkpoint.best_model_path).exists()


def test_a_scheduler_on_the_margin_lowers_the_learning_rate(tmp_path: Path) -> None:
    class Scheduled(UserVAE):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            plateau = ReduceLROnPlateau(optimizer, mode="max", patience=0, threshold=9.0, threshold_mode="abs")
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": plateau, "monitor": "certificate/margin_lower"},
            }

    _, model = fit(tmp_path, watch(), Scheduled, max_epochs=3)
    assert model.optimizers().param_groups[0]["lr"] == pytest.approx(0.1 * 0.1**2)


def test_two_certificates_are_kept_apart_in_logs_files_and_checkpoints(tmp_path: Path) -> None:
    def two() -> list[CertificateCallback]:
        five = CertificateCallback(digits_teacher(5), "encoder", name="five", save_dir=tmp_path)
        return [five, CertificateCallback(digits_teacher(3), "encoder", safety_margin=0.0, name="three")]

    saved = ModelCheckpoint(tmp_path, "last", enable_version_counter=False)
    first = two()
    fit(tmp_path, [*first, saved], max_epochs=2, enable_checkpointing=True)
    second, model = two(), UserVAE()
    runner = trainer(tmp_path, max_epochs=3, enable_checkpointing=True, callbacks=[*second, saved])
    runner.fit(model, plain_loader(), plain_loader(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert [callback.looks for callback in first + second] == [2, 2, 3, 3]
    for callback, components in zip(second, (5, 3), strict=True):
        margin = expected(model, teacher=digits_teacher(components)).margin
        assert float(runner.callback_metrics[f"{callback.name}/margin"]) == pytest.approx(margin, abs=1e-5)
        assert callback.best_margin is not None
    assert second[0].best_margin != second[1].best_margin
    written = ["five_settings.json", "five_teacher.safetensors", "five_val.json", "fives_val.jsonl"]
    assert sorted(path.name for path in tmp_path.glob("five*")) == written


def test_two_certificates_of_one_name_are_refused(tmp_path: Path) -> None:
    """By Lightning when they are given to a trainer, by the callback when they come later, as from a module."""
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `CertificateCallback`"):
        trainer(tmp_path, callbacks=[watch(), watch()])

    class Equipped(UserVAE):
        def configure_callbacks(self) -> Any:
            return [watch(name="a"), watch(name="a")]

    with pytest.raises(ValueError, match="`name` must differ among the CertificateCallbacks of a run, got 'a' twice"):
        trainer(tmp_path).fit(Equipped(), plain_loader(), plain_loader())


@pytest.mark.parametrize("bar", [RichProgressBar, TQDMProgressBar])
def test_the_status_line_goes_with_progress_bars(tmp_path: Path, bar: Any, capsys: pytest.CaptureFixture[str]) -> None:
    callback = watch()
    Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        max_epochs=1,
        callbacks=[callback, bar()],
        default_root_dir=tmp_path,
    ).fit(UserVAE(), plain_loader(), plain_loader())
    assert re.search("epoch 0: [A-Z]+, NOT_CERTIFIED", capsys.readouterr().out)
    assert callback.looks == 1


def test_manual_optimization_is_measured(tmp_path: Path) -> None:
    callback = watch(save_dir=tmp_path)
    _, model = fit(tmp_path, callback, ManualVAE, max_epochs=3)
    assert measured(callback).margin == pytest.approx(expected(model).margin, abs=1e-5)
    assert measured(callback).provenance["global_step"] == 9


def test_trial_runs_of_tuners_are_no_looks(tmp_path: Path) -> None:
    """Lightning leaves all other callbacks out of them; afterwards everything is as if they had not been."""
    callback = CertificateCallback(digits_teacher(), save_dir=tmp_path)
    tuners = [
        LearningRateFinder(num_training_steps=12, early_stop_threshold=None),
        BatchSizeFinder(steps_per_trial=1, init_val=64, max_trials=2),
    ]
    model, data = small_vae(digits_teacher(), alignment_weight=20.0), DigitsDataModule(subset=300)
    trainer(tmp_path, max_epochs=2, callbacks=[callback, *tuners], enable_checkpointing=True).fit(
        model, datamodule=data
    )
    assert callback.looks == 2
    assert measured(callback).num_samples == 300
    assert (tmp_path / "certificates_val.jsonl").read_text().count("schema") == 2
