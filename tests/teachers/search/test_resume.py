"""A teacher search goes on from any checkpoint to the same teacher, bit for bit; a resumed command keeps its files."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from pytorch_lightning import Callback, LightningModule, Trainer

from certvae import TeacherSearch
from certvae.callbacks import LastCheckpoint
from certvae.cli import main
from certvae.datamodules import DigitsDataModule
from certvae.teachers.search import passes
from certvae.teachers.search.module import TeacherSearchError
from certvae.teachers.search.selection import SelectionCriteria
from certvae.theory.row_sample import RowSample
from tests.commands.test_cli import SHORT_SEARCH, WIDE_CRITERIA, shipped
from tests.runs import digits_teacher, small_vae, trainer

pytestmark = pytest.mark.slow

PASSES = 2 + 1 + 3 + 1


class StoppedError(Exception):
    """What an outside force does to a run."""


class Stop(Callback):
    """Save a checkpoint and stop the run in an epoch.

    Args:
        epoch: the epoch.
        hook: ``"validation_end"``, or ``"train_batch_end"`` at its second batch.
        save_to: where to save; default: nothing is saved here.
    """

    def __init__(self, epoch: int, hook: str, save_to: Path | None = None) -> None:
        self.epoch, self.hook, self.save_to = epoch, hook, save_to

    def on_train_batch_end(self, run: Trainer, pl_module: LightningModule, *arguments: Any) -> None:
        if arguments[2] == 1:
            self._reached(run, "train_batch_end")

    def on_validation_end(self, run: Trainer, pl_module: LightningModule) -> None:
        self._reached(run, "validation_end")

    def _reached(self, run: Trainer, hook: str) -> None:
        if (run.current_epoch, hook) == (self.epoch, self.hook):
            if self.save_to is not None:
                run.save_checkpoint(self.save_to)
            raise StoppedError


def search(
    folder: Path, resume: str | Path | None = None, data: Any = None, stop: Stop | None = None, **changes: Any
) -> TeacherSearch:
    options: dict[str, Any] = {"components": (4, 6), "covariances": ("diagonal", "spherical"), "temperatures": (2.0,)}
    options |= {"initializations": 1, "pca_dim": 6, "pca_passes": 2, "em_iterations": 3, "sample_size": 200}
    module = TeacherSearch(**{**options, "seed": 0, "output_dir": str(folder), **changes})
    torch.manual_seed(7 if resume is None else 8)  # the order of the rows
    run = trainer(
        folder,
        max_epochs=-1,
        callbacks=[*([stop] if stop else []), LastCheckpoint(folder / "checkpoints")],
        enable_checkpointing=True,
    )
    run.fit(module, datamodule=data or DigitsDataModule(batch_size=300), ckpt_path=resume)
    return module


@pytest.fixture(scope="module", autouse=True)
def streamed() -> Iterator[None]:
    """A search that keeps no projected row, and passes over the data for each EM iteration."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "MOST_KEPT", 0)
        yield


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The teacher file of a search that was never stopped."""
    folder = tmp_path_factory.mktemp("search")
    search(folder)
    return (folder / "teacher.safetensors").read_bytes()


@pytest.mark.parametrize("epoch", range(1, PASSES))
def test_a_search_stopped_in_any_pass_finds_the_same_teacher(tmp_path: Path, epoch: int, expected: bytes) -> None:
    """Stopped in the middle of a pass, it does the pass again: principal components, starts, mixtures, evaluation."""
    with pytest.raises(StoppedError):
        search(tmp_path, stop=Stop(epoch, "train_batch_end"))
    search(tmp_path, "last")
    assert (tmp_path / "teacher.safetensors").read_bytes() == expected


@pytest.mark.parametrize("epoch", range(PASSES))
def test_a_checkpoint_after_validation_keeps_the_sums_of_the_pass(tmp_path: Path, epoch: int, expected: bytes) -> None:
    """There the pass has seen all rows, and has not ended. Lightning then deals the rows of later passes otherwise."""
    with pytest.raises(StoppedError):
        search(tmp_path, stop=Stop(epoch, "validation_end", tmp_path / "here.ckpt"))
    found = search(tmp_path, tmp_path / "here.ckpt").teacher
    assert found is not None
    for name, value in safetensors.torch.load(expected).items():
        assert torch.allclose(value, {**found.tensors(), "average": found.measured_average()}[name], atol=1e-11), name


@pytest.mark.parametrize("epoch", [2, 3])
def test_rows_that_are_kept_give_the_same_teacher_also_when_stopped(
    tmp_path: Path, epoch: int, expected: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while they are gathered, and in the pass that is left after it."""
    monkeypatch.setattr(passes, "MOST_KEPT", 2**20)
    with pytest.raises(StoppedError):
        search(tmp_path, stop=Stop(epoch, "train_batch_end"))
    found = search(tmp_path, "last").teacher
    assert found is not None
    for name, value in safetensors.torch.load(expected).items():
        assert torch.allclose(value, {**found.tensors(), "average": found.measured_average()}[name], atol=1e-11), name


def test_a_search_that_was_done_writes_its_teacher_again_without_a_pass(tmp_path: Path, expected: bytes) -> None:
    search(tmp_path)
    for name in ("teacher.safetensors", "candidates.csv"):
        (tmp_path / name).unlink()
    again = search(tmp_path, "last", stop=Stop(PASSES, "train_batch_end"))
    assert (tmp_path / "teacher.safetensors").read_bytes() == expected
    assert (tmp_path / "candidates.csv").is_file()
    assert again.teacher is not None
    assert any(row.chosen for row in again.rows)


def test_criteria_that_none_meets_may_be_widened_for_the_last_pass_only(tmp_path: Path, expected: bytes) -> None:
    with pytest.raises(TeacherSearchError, match="none of 4 candidates meets the criteria"):
        search(tmp_path, criteria=SelectionCriteria(max_energy=1e-3))
    search(tmp_path, "last")
    assert (tmp_path / "teacher.safetensors").read_bytes() == expected


def test_a_search_with_other_settings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        search(tmp_path, stop=Stop(4, "train_batch_end"))
    for changes, message in (
        ({"components": (4,)}, r"other settings: `components` was \(4, 6\), is \(4,\)\. Take the settings back"),
        ({"seed": 1, "floor": 0.1}, r"`floor` was 0\.01, is 0\.1; `seed` was 0, is 1"),
    ):
        with pytest.raises(TeacherSearchError, match=message):
            search(tmp_path, "last", **changes)


def test_a_search_does_not_go_on_with_other_data(tmp_path: Path) -> None:
    class Inverted(DigitsDataModule):
        def load(self) -> Any:
            arrays = super().load()
            return replace(arrays, images=255 - arrays.images)

    with pytest.raises(StoppedError):
        search(tmp_path, stop=Stop(4, "train_batch_end"))
    with pytest.raises(TeacherSearchError, match="the checkpoint is of a search on data with fingerprint"):
        search(tmp_path, "last", Inverted(batch_size=300))
    with pytest.raises(TeacherSearchError, match="this pass read 1000 rows, the first one 1197"):
        search(tmp_path, "last", DigitsDataModule(batch_size=300, subset=1000))


def test_checkpoints_that_a_search_cannot_go_on_from_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        search(tmp_path, stop=Stop(4, "train_batch_end", tmp_path / "middle.ckpt"))
    with pytest.raises(TeacherSearchError, match="saved in the middle of a pass"):
        search(tmp_path, tmp_path / "middle.ckpt")
    run = trainer(tmp_path)
    run.fit(small_vae(), datamodule=DigitsDataModule())
    run.save_checkpoint(tmp_path / "vae.ckpt")
    with pytest.raises(TeacherSearchError, match="the checkpoint holds no teacher search"):
        search(tmp_path, tmp_path / "vae.ckpt")


def test_a_sample_gathered_from_processes_counts_a_row_once() -> None:
    """Two that have seen the same rows keep as many different ones as one does."""
    rows, index = torch.randn(50, 3, dtype=torch.float64), torch.arange(50)
    sample = RowSample(20, seed=0)
    for part in (slice(0, 30), slice(25, 50)):
        sample.add(rows[part], index[part])
    gathered = sample.gather(lambda values: torch.stack([values, values]))
    assert torch.equal(gathered.rows, sample.rows)
    assert len(gathered.rows) == 20


def test_a_resumed_command_keeps_the_metrics_of_its_first_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning's CSVLogger deletes the file that it finds."""
    monkeypatch.chdir(tmp_path)
    digits_teacher().save("runs/digits/search/teacher.safetensors")
    command = ["fit", "--config", shipped("digits", "full"), "--trainer.enable_progress_bar=false"]
    assert main([*command, "--trainer.max_epochs=2"]) == 0
    folder = Path("runs/digits/full")
    first = (folder / "metrics.csv").read_text()
    for epochs in (3, 4):
        assert main([*command, f"--trainer.max_epochs={epochs}", "--ckpt_path=last"]) == 0
    assert (folder / "metrics-1.csv").read_text() == first
    assert (folder / "metrics-2.csv").read_text() != (folder / "metrics.csv").read_text()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert {"seed_everything", "trainer", "model", "data"} <= set(config)
    assert config["ckpt_path"] == "last"


def test_shipped_searches_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = [
        "fit",
        "--config",
        shipped("digits", "search"),
        "--trainer.enable_progress_bar=false",
        "--data.subset=300",
    ]
    assert main([*command, *SHORT_SEARCH, WIDE_CRITERIA]) == 0
    teacher = Path("runs/digits/search/teacher.safetensors")
    content = teacher.read_bytes()
    teacher.unlink()
    assert main([*command, *SHORT_SEARCH, WIDE_CRITERIA, "--ckpt_path=last"]) == 0
    assert teacher.read_bytes() == content
