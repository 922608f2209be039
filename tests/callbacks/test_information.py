"""The callback's numbers are the function's."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from certvae import information_bracket
from certvae.callbacks import InformationCallback
from certvae.datamodules import DigitsDataModule
from certvae.theory.row_noise import row_uniform
from tests.callbacks.test_diagnostics import Nothing
from tests.plain_vae import UserVAE, fit, plain_loader
from tests.runs import small_vae, trainer

pytestmark = pytest.mark.slow
KEYS = {"lower", "upper", "lower_estimate", "upper_estimate", "rate", "cap"}


def logged(runner: Any, name: str = "information") -> dict[str, float]:
    return {key.split("/")[1]: float(value) for key, value in runner.callback_metrics.items() if key.startswith(name)}


@pytest.mark.parametrize(("rows", "batch_size"), [(1000, 32), (1000, 90), (50, 7)])
def test_the_numbers_are_those_of_the_function(tmp_path: Path, rows: int, batch_size: int) -> None:
    callback = InformationCallback("encoder", block=30, rows=rows, save_dir=tmp_path, seed=2)
    runner, model = fit(tmp_path, [callback], None, plain_loader(90, batch_size))
    order = row_uniform(torch.arange(90), 1, 2)[:, 0].argsort()[:rows]
    with torch.no_grad():
        mean, log_variance = model.encoder(next(iter(plain_loader(90, 90)))[0])
    expected = information_bracket(mean[order], log_variance[order], block=30, seed=2)
    found = logged(runner)
    assert set(found) == KEYS
    for key, value in found.items():
        assert value == pytest.approx(getattr(expected, key), abs=1e-4), key
    assert callback.bracket is not None
    record = json.loads((tmp_path / "information_val.jsonl").read_text())
    assert record["rows_upper"] == callback.bracket.rows_upper
    assert (record["epoch"], record["partial"], record["rows"]) == (0, False, min(rows, 90))


def test_our_own_vae_needs_no_name_and_the_sanity_check_counts_for_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runner = trainer(tmp_path, callbacks=[InformationCallback()], num_sanity_val_steps=2, max_epochs=2)
    runner.fit(small_vae(learning_rate=0.0), datamodule=DigitsDataModule(subset=300))
    found = logged(runner)
    assert found["rate"] == pytest.approx(float(runner.callback_metrics["val/rate"]), rel=1e-5)
    lines = [line for line in capsys.readouterr().out.splitlines() if "the code carries" in line]
    assert len(lines) == 1  # nothing changed in the second epoch
    assert lines[0].startswith("epoch 0: the code carries")


def test_a_part_of_the_set_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, [InformationCallback("encoder", name="head")], None, plain_loader(), limit_val_batches=2)
    printed = capsys.readouterr().out
    assert "epoch 0: head: the code carries" in printed
    assert "64 rows); a part of the validation set is missing" in printed


def test_a_code_that_is_only_a_mean_gives_one_warning_and_no_numbers(tmp_path: Path) -> None:
    callback = InformationCallback("encoder")
    with pytest.warns(UserWarning, match="measures nothing: the code is only a mean") as caught:
        runner, _ = fit(tmp_path, [callback], lambda: UserVAE("mean"), max_epochs=3)
    assert len([item for item in caught if "measures nothing" in str(item.message)]) == 1
    assert logged(runner) == {}
    assert callback.bracket is None


def test_what_cannot_work_says_why(tmp_path: Path) -> None:
    for arguments, message in (
        ({"block": 2}, "`block` must be at least 3 rows, got 2"),
        ({"rows": 1}, "`rows` must be at least 2, got 1"),
        ({"confidence": 1.0}, "`confidence` must lie between 0 and 1"),
        ({"name": "a/b"}, "`name` must be letters"),
    ):
        with pytest.raises(ValueError, match=message):
            InformationCallback(**arguments)
    with pytest.raises(ValueError, match="`latents='encoderr'` names no submodule"):
        fit(tmp_path, [InformationCallback("encoderr")])
    with pytest.raises(ValueError, match="gave no row; choose another with `dataloader`"):
        fit(tmp_path, [InformationCallback("encoder")], None, DataLoader(Nothing()))


def test_an_epoch_that_diverged_has_no_bracket_and_the_run_goes_on(tmp_path: Path) -> None:
    def diverging(module: Any, batch: Any) -> Any:
        mean, log_variance = module.encoder(module.images(batch))
        wild = module.current_epoch == 1 and not module.trainer.sanity_checking
        return mean, torch.where(
            torch.arange(len(mean))[:, None] == 2, torch.inf, log_variance
        ) if wild else log_variance

    callback = InformationCallback(diverging, save_dir=tmp_path)
    with pytest.warns(UserWarning, match="epoch 1: the log-variance of row 2 is inf.*the run goes on"):
        fit(tmp_path, [callback], max_epochs=3)
    epochs = [json.loads(line)["epoch"] for line in (tmp_path / "information_val.jsonl").read_text().splitlines()]
    assert epochs == [0, 2]
    assert callback.bracket is not None
