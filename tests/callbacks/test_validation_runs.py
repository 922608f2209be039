"""Which validations are measured, on which rows: intervals, limits, several dataloaders, stand-alone runs, batches."""

import json
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning import Trainer
from pytorch_lightning.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader

from certvae import Certificate, Status
from certvae.callbacks import CertificateCallback
from certvae.datamodules import DigitsDataModule
from tests.plain_vae import UserVAE, expected, fit, images, measured, plain_loader, watch
from tests.runs import digits_teacher, small_vae, trainer

pytestmark = pytest.mark.slow


def history(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "certificates_val.jsonl").read_text().splitlines()
    return [json.loads(line)["provenance"] for line in lines if line]


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({"val_check_interval": 0.25}, [2, 4, 6, 8, 10, 12, 14, 16]),
        ({"val_check_interval": 6, "check_val_every_n_epoch": None}, [6, 12]),
        ({"check_val_every_n_epoch": 2}, [16]),
        ({"accumulate_grad_batches": 3}, [3, 6]),
        ({"val_check_interval": 0.25, "accumulate_grad_batches": 8}, [0, 0, 0, 1, 1, 1, 1, 2]),
    ],
)
def test_every_look_of_a_fit_is_one_line_of_the_history(
    tmp_path: Path, arguments: dict[str, Any], steps: list[int]
) -> None:
    """Looks are numbered, because neither epoch nor step tells them apart."""
    callback = watch(save_dir=tmp_path)
    runner = trainer(tmp_path, max_epochs=2, callbacks=[callback], **arguments)
    runner.fit(UserVAE(), plain_loader(batch_size=12), plain_loader())
    lines = history(tmp_path)
    assert [line["global_step"] for line in lines] == steps
    assert [line["look"] for line in lines] == list(range(1, len(steps) + 1))
    assert callback.looks == len(steps)
    assert measured(callback).status is not Status.PARTIAL


@pytest.mark.parametrize(
    ("limit", "rows"),
    [
        ({"limit_val_batches": 2}, 64),
        ({"limit_val_batches": 0.4}, 32),
        ({"overfit_batches": 2}, 64),
        ({"fast_dev_run": True}, 32),
        ({"fast_dev_run": 2}, 64),
    ],
)
def test_a_set_cut_short_is_partial(tmp_path: Path, limit: dict[str, Any], rows: int) -> None:
    callback = watch()
    fit(tmp_path, callback, **limit)
    assert measured(callback).status is Status.PARTIAL
    assert measured(callback).num_samples == rows
    assert f"only {rows // 32} of 3 batches, {rows} of 90 rows" in measured(callback).line()
    assert callback.best_margin is None


@pytest.mark.parametrize("limit", [{"overfit_batches": 1.0}, {"overfit_batches": 3}, {"limit_val_batches": 99}])
def test_a_limit_that_cuts_nothing_leaves_a_verdict(tmp_path: Path, limit: dict[str, Any]) -> None:
    """``overfit_batches`` limits the validation set, which stays the user's own."""
    callback = watch()
    fit(tmp_path, callback, **limit)
    assert measured(callback).status is Status.NOT_CERTIFIED
    assert measured(callback).num_samples == 90


def test_barebones_logs_nothing_and_still_measures(tmp_path: Path) -> None:
    callback = watch()
    model = UserVAE()
    runner = Trainer(accelerator="cpu", barebones=True, max_epochs=1, callbacks=[callback], default_root_dir=tmp_path)
    runner.fit(model, plain_loader(), plain_loader())
    assert measured(callback).margin == pytest.approx(expected(model).margin, abs=1e-5)
    assert "certificate/margin" not in runner.callback_metrics


LOADERS: dict[str, Any] = {
    "list": lambda: [plain_loader(40), plain_loader(90)],
    "dict": lambda: {"a": plain_loader(40), "b": plain_loader(90)},
    "combined": lambda: CombinedLoader({"a": plain_loader(40), "b": plain_loader(90)}, "sequential"),
    "nested": lambda: {"a": [plain_loader(40), plain_loader(90)], "b": plain_loader(20)},
}


@pytest.mark.parametrize(
    ("collection", "which", "rows"),
    [("list", 0, 40), ("list", 1, 90), ("dict", "b", 90), ("dict", 1, 90), ("combined", "b", 90), ("nested", 1, 90)],
)
def test_one_of_several_dataloaders_is_measured(tmp_path: Path, collection: str, which: int | str, rows: int) -> None:
    callback = watch(dataloader=which)
    runner, model = fit(tmp_path, callback, loaders=LOADERS[collection](), num_sanity_val_steps=2)
    found = expected(model, plain_loader(rows))
    assert measured(callback).num_samples == rows
    assert float(runner.callback_metrics["certificate/margin"]) == pytest.approx(found.margin, abs=1e-5)
    runner.validate(model, LOADERS[collection](), verbose=False)
    runner.test(model, LOADERS[collection](), verbose=False)
    assert float(runner.callback_metrics["test_certificate/margin"]) == pytest.approx(found.margin, abs=1e-5)


@pytest.mark.parametrize("options", [{}, {"check_val_every_n_epoch": 2}, {"num_sanity_val_steps": 2}])
@pytest.mark.parametrize(("collection", "which"), [("list", 2), ("list", "b"), ("dict", "c"), ("list", -1)])
def test_a_wrong_dataloader_is_refused_before_the_first_step(
    tmp_path: Path, collection: str, which: int | str, options: dict[str, Any]
) -> None:
    class Untrained(UserVAE):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            raise AssertionError("training began")

    runner = trainer(tmp_path, callbacks=[watch(dataloader=which)], **options)
    message = f"`dataloader={which!r}` is none of the 2 dataloaders"
    with pytest.raises(ValueError, match=message):
        runner.fit(Untrained(), plain_loader(), LOADERS[collection]())
    for run in (runner.validate, runner.test):
        with pytest.raises(ValueError, match=message):
            run(UserVAE(), LOADERS[collection](), verbose=False)


@pytest.mark.parametrize("options", [{}, {"check_val_every_n_epoch": 2}, {"limit_val_batches": 0}])
def test_a_run_without_validation_rows_is_refused_before_the_first_step(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    """Nothing would ever be measured."""
    empty: Any = [] if "limit_val_batches" not in options else images(4)
    loader = DataLoader(empty, batch_size=2)
    for loaders in (None, loader):
        with pytest.raises(ValueError, match="the validation set is empty or missing"):
            trainer(tmp_path, callbacks=[watch()], **options).fit(UserVAE(), plain_loader(), loaders)
    if "limit_val_batches" not in options:
        with pytest.raises(ValueError, match="the validation set is empty or missing"):
            fit(tmp_path, watch(dataloader=1), loaders=[plain_loader(), loader], **options)


@pytest.mark.parametrize("mode", ["sequential", "max_size"])
def test_a_dataloader_that_gives_no_row_alone_is_refused(tmp_path: Path, mode: Any) -> None:
    empty = DataLoader([], batch_size=2)  # type: ignore[arg-type, var-annotated]
    loaders = CombinedLoader([plain_loader(), empty if mode == "sequential" else plain_loader()], mode)
    model = UserVAE()
    model.validation_step = lambda batch, batch_idx, dataloader_idx=0: None  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="the measured dataloader gave no row"):
        trainer(tmp_path, callbacks=[watch(dataloader=1)]).validate(model, loaders, verbose=False)


def test_the_first_epoch_without_a_validation_trains_as_ever(tmp_path: Path) -> None:
    callback = watch()
    runner, _ = fit(tmp_path, callback, max_epochs=3, check_val_every_n_epoch=3)
    assert runner.global_step == 9
    assert callback.looks == 1


def scaled(data: DigitsDataModule, split: str) -> DataLoader[Any]:
    return DataLoader([data.on_after_batch_transfer(batch, 0) for batch in data.loader(split)], batch_size=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("inference_mode", [True, False])
@pytest.mark.parametrize("with_datamodule", [True, False])
def test_validate_and_test_alone_and_after_a_fit(tmp_path: Path, with_datamodule: bool, inference_mode: bool) -> None:
    callback = CertificateCallback(digits_teacher(), save_dir=tmp_path)
    runner = trainer(tmp_path, callbacks=[callback], inference_mode=inference_mode)
    model, data = small_vae(digits_teacher(), alignment_weight=20.0), DigitsDataModule(batch_size=100, subset=200)
    data.setup("fit")
    val: Any = {"datamodule": data}
    test: Any = {"datamodule": data}
    if not with_datamodule:
        val, test = ({"dataloaders": scaled(data, split)} for split in ("val", "test"))
    (alone,) = runner.validate(model, verbose=False, **val)
    (alone_test,) = runner.test(model, verbose=False, **test)
    runner.fit(model, datamodule=DigitsDataModule(batch_size=100, subset=200))
    state = callback.state_dict() | {"looks": callback.looks + 1}
    seen = float(runner.callback_metrics["certificate/margin"])
    (after,) = runner.validate(model, verbose=False, **val)
    (after_test,) = runner.test(model, verbose=False, **test)
    assert alone["certificate/margin"] != after["certificate/margin"] == pytest.approx(seen, abs=1e-6)
    assert alone_test["test_certificate/margin"] != after_test["test_certificate/margin"]
    assert Certificate.load(tmp_path / "certificate_val.json").margin == after["certificate/margin"]
    assert Certificate.load(tmp_path / "certificate_test.json").margin == after_test["test_certificate/margin"]
    assert [line["epoch"] for line in history(tmp_path)] == [0]
    assert callback.state_dict() == state


def test_predict_needs_nothing_of_the_callback(tmp_path: Path) -> None:
    """Not even a teacher, a submodule of the given name, or data that the teacher fits."""
    callback = CertificateCallback(latents="no.such")
    model = UserVAE()
    predicted = trainer(tmp_path, callbacks=[callback]).predict(model, plain_loader())
    assert predicted is not None
    assert len(predicted) == 3
    assert callback.certificate is None
