"""Lightning has two import names; our callback and DataModules work under the trainer of either."""

from pathlib import Path
from typing import Any

import pytest
import torch

from certvae import Certificate, Status
from certvae.callbacks import StatusLine
from certvae.datamodules import DigitsDataModule
from tests.plain_vae import UserSteps, UserVAE, expected, measured, plain_loader, watch
from tests.runs import digits_teacher, trainer

pytestmark = pytest.mark.slow

L: Any = pytest.importorskip("lightning.pytorch", reason="the package `lightning` is not installed beside ours")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class TheirVAE(UserSteps, L.LightningModule):
    """A VAE under the other import name."""


class TheirData(L.LightningDataModule):
    """Batches that become floats on the way, as ours do."""

    def train_dataloader(self) -> Any:
        return plain_loader()

    def val_dataloader(self) -> Any:
        return {"short": plain_loader(40), "long": plain_loader()}

    test_dataloader = val_dataloader

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0].clamp(0, 1), batch[1]]


class Digits(DigitsDataModule, L.LightningDataModule):
    """Their trainer asks whether a DataModule is one of theirs; with both as bases, it is."""


def their_trainer(folder: Path, **arguments: Any) -> Any:
    options = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, **arguments}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(accelerator="cpu", default_root_dir=folder, **quiet, **options)


def test_their_trainer_fits_logs_monitors_resumes_validates_and_tests(tmp_path: Path) -> None:
    def parts() -> list[Any]:
        return [
            watch(save_dir=tmp_path, channel_samples=2),
            L.callbacks.ModelCheckpoint(
                tmp_path, "best", "certificate/margin_lower", mode="max", save_last=True, enable_version_counter=False
            ),
            L.callbacks.EarlyStopping("certificate/margin", mode="max", patience=9),
        ]

    first, again = parts(), parts()
    runner = their_trainer(tmp_path, callbacks=first, enable_checkpointing=True, max_epochs=2)
    runner.fit(TheirVAE(), plain_loader(), plain_loader())
    model = TheirVAE()
    runner = their_trainer(tmp_path, callbacks=again, enable_checkpointing=True, max_epochs=3)
    runner.fit(model, plain_loader(), plain_loader(), ckpt_path=first[1].last_model_path)
    margin = expected(model).margin
    assert [callbacks[0].looks for callbacks in (first, again)] == [2, 3]
    assert runner.callback_metrics["certificate/margin"].dtype == torch.float64
    assert float(runner.callback_metrics["certificate/margin"]) == pytest.approx(margin, abs=1e-5)
    assert again[1].best_model_score is not None
    (validated,) = runner.validate(model, plain_loader(), verbose=False)
    (tested,) = runner.test(model, plain_loader(), verbose=False)
    assert validated["certificate/margin"] == pytest.approx(margin, abs=1e-5)
    assert tested["test_certificate/margin"] == pytest.approx(margin, abs=1e-5)
    assert Certificate.load(tmp_path / "certificate_test.json").margin == tested["test_certificate/margin"]
    assert (tmp_path / "certificates_val.jsonl").read_text().count("schema") == 3
    assert len(runner.predict(model, plain_loader())) == 3


def test_their_datamodule_with_named_dataloaders(tmp_path: Path) -> None:
    callback = watch(dataloader="long")
    model, runner = TheirVAE(), their_trainer(tmp_path, callbacks=[callback])
    runner.fit(model, datamodule=TheirData())
    assert measured(callback).margin == pytest.approx(expected(model).margin, abs=1e-5)
    runner.test(model, datamodule=TheirData(), verbose=False)
    assert measured(callback).num_samples == 90
    with pytest.raises(ValueError, match="`dataloader='none'` is none of the 2 dataloaders"):
        their_trainer(tmp_path, callbacks=[watch(dataloader="none")]).fit(model, datamodule=TheirData())


def test_our_datamodule_with_their_base_works_under_both_trainers(tmp_path: Path) -> None:
    callback, data = watch(), Digits(batch_size=64, eval_batch_size=64, subset=100)
    model, runner = TheirVAE(), their_trainer(tmp_path, callbacks=[callback, StatusLine()], max_epochs=2)
    runner.fit(model, datamodule=data)
    rows = [data.on_after_batch_transfer(batch, 0) for batch in data.loader("val")]
    assert measured(callback).margin == pytest.approx(expected(model, rows).margin, abs=1e-5)
    for run, split in ((runner.validate, "val"), (runner.test, "test")):
        run(model, datamodule=data, verbose=False)
        rows = [data.on_after_batch_transfer(batch, 0) for batch in data.loader(split)]
        assert measured(callback).margin == pytest.approx(expected(model, rows).margin, abs=1e-5)
    assert len(runner.predict(model, datamodule=data)) == 2
    trainer(tmp_path, callbacks=[callback]).test(UserVAE(), data, verbose=False)


def test_a_teacher_for_other_data_is_refused_under_their_trainer(tmp_path: Path) -> None:
    callback = watch(teacher=digits_teacher(fingerprint="0" * 64))
    with pytest.raises(ValueError, match="fingerprint 000000000000"):
        their_trainer(tmp_path, callbacks=[callback]).fit(TheirVAE(), datamodule=Digits())


def test_their_combined_loader_and_limits(tmp_path: Path) -> None:
    from lightning.pytorch.utilities import CombinedLoader

    loaders = CombinedLoader({"a": plain_loader(20), "b": plain_loader()}, "sequential")
    for limit, status, rows in ((1.0, Status.NOT_CERTIFIED, 90), (2, Status.PARTIAL, 64)):
        callback = watch(dataloader="b")
        their_trainer(tmp_path, callbacks=[callback], limit_val_batches=limit).fit(TheirVAE(), plain_loader(), loaders)
        assert (measured(callback).status, measured(callback).num_samples) == (status, rows)


def test_their_averaged_weights_are_the_measured_ones(tmp_path: Path) -> None:
    for order in (1, -1):
        callback, model = watch(), TheirVAE()
        averaging = L.callbacks.EMAWeightAveraging(decay=0.9)
        runner = their_trainer(tmp_path, callbacks=[callback, averaging][::order], max_epochs=2)
        runner.fit(model, plain_loader(), plain_loader())
        assert measured(callback).margin == pytest.approx(expected(model).margin, abs=1e-5)


@pytest.mark.parametrize("given", [0, 1])
def test_two_of_one_name_are_refused_under_their_trainer(tmp_path: Path, given: int) -> None:
    class Equipped(TheirVAE):
        def configure_callbacks(self) -> Any:
            return [watch(), watch()]

    with pytest.raises(RuntimeError if given else ValueError, match="more than one stateful|`name` must differ"):
        their_trainer(tmp_path, callbacks=[watch(), watch()] if given else []).fit(
            Equipped(), plain_loader(), plain_loader()
        )


def test_watched_and_unwatched_runs_are_the_same_bits_under_their_trainer(tmp_path: Path) -> None:
    found = []
    for callbacks in ([], [watch(channel_samples=3)]):
        torch.manual_seed(0)
        model = TheirVAE()
        their_trainer(tmp_path, callbacks=callbacks, max_epochs=2).fit(model, plain_loader(), plain_loader())
        found.append((model.state_dict(), torch.get_rng_state()))
    assert all(torch.equal(value, found[1][0][name]) for name, value in found[0][0].items())
    assert torch.equal(found[0][1], found[1][1])


def test_a_function_and_a_whole_compiled_module_under_their_trainer(tmp_path: Path) -> None:
    torch.compiler.reset()
    callback, model = watch(latents=lambda module, batch: module.encoder(module.images(batch))), TheirVAE()
    runner = their_trainer(tmp_path, callbacks=[callback])
    runner.validate(torch.compile(model, backend="eager"), plain_loader(32), verbose=False)
    assert measured(callback).num_samples == 32
