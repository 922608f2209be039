"""The last checkpoint: always one that is whole, and a run that goes on from it equals one that was never stopped."""

import errno
import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from certvae import VAE
from certvae.callbacks import CertificateCallback, CheckpointError, LastCheckpoint
from certvae.callbacks.last_checkpoint import is_whole
from certvae.datamodules import DigitsDataModule
from certvae.io.random_state import random_state, set_random_state
from tests.runs import digits_teacher, small_vae, trainer

pytestmark = pytest.mark.slow


class Draw(Callback):
    """Draws from every stream at every batch."""

    def __init__(self) -> None:
        self.drawn: list[tuple[float, ...]] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.drawn.append((float(torch.rand(())), random.random(), float(np.random.random())))  # noqa: NPY002


def fit(
    folder: Path, epochs: int, resume: str | None = None, workers: int = 0, last: bool = True, extra: Any = ()
) -> tuple[VAE, Trainer, CertificateCallback]:
    teacher = digits_teacher()
    module = small_vae(teacher, alignment_weight=5.0)
    measured = CertificateCallback(teacher=teacher, spending=True)
    callbacks = [measured, *extra, *([LastCheckpoint(folder)] if last else [])]
    for generator in (torch.manual_seed, random.seed, np.random.seed):
        generator(1 if resume is None else 2)
    run = trainer(folder, max_epochs=epochs, callbacks=callbacks, enable_checkpointing=bool(callbacks[1:]))
    run.fit(module, datamodule=DigitsDataModule(batch_size=200, num_workers=workers), ckpt_path=resume)
    return module, run, measured


def epoch_of(path: Path) -> int:
    return torch.load(path, weights_only=True)["epoch"]


def same_weights(one: VAE, other: VAE) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(left, right) for left, right in pairs)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_goes_on_equals_one_that_was_never_stopped(tmp_path: Path, workers: int) -> None:
    """Bit for bit: weights, metrics, certificate, looks, and what is drawn from torch, numpy and Python."""
    draws = [Draw(), Draw(), Draw()]
    whole, run, measured = fit(tmp_path / "whole", 4, workers=workers, extra=draws[:1])
    fit(tmp_path / "parts", 2, workers=workers, extra=draws[1:2])
    parts, again, measured_again = fit(tmp_path / "parts", 4, "last", workers=workers, extra=draws[2:])
    assert same_weights(whole, parts)
    assert run.callback_metrics == again.callback_metrics
    assert measured.certificate == measured_again.certificate
    assert measured.state_dict() == measured_again.state_dict()
    assert measured_again.looks == 4
    assert draws[1].drawn + draws[2].drawn == draws[0].drawn


def test_keeping_checkpoints_changes_no_weight(tmp_path: Path) -> None:
    assert same_weights(fit(tmp_path / "with", 2)[0], fit(tmp_path / "without", 2, last=False)[0])


def test_the_last_two_epochs_are_kept_and_nothing_else(tmp_path: Path) -> None:
    fit(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    fit(tmp_path, 3, "last")
    assert {path.name: epoch_of(path) for path in tmp_path.iterdir()} == {"last.ckpt": 2, "previous.ckpt": 1}


def test_a_new_run_in_the_folder_does_not_fall_back_to_the_old_one(tmp_path: Path) -> None:
    fit(tmp_path, 3)
    fit(tmp_path, 1)
    assert {path.name: epoch_of(path) for path in tmp_path.iterdir()} == {"last.ckpt": 0}


def test_without_any_checkpoint_a_resumed_run_starts_anew(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="no last checkpoint available"):
        assert fit(tmp_path, 1, "last")[1].current_epoch == 1


def test_a_damaged_or_missing_last_checkpoint_falls_back_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also beside another checkpoint callback in the folder, for which Lightning would take the newest file."""
    whole = fit(tmp_path / "whole", 3)[0]
    for damage in (lambda path: path.write_bytes(path.read_bytes()[:-100]), Path.unlink):
        folder = tmp_path / damage.__name__
        fit(folder, 2)
        damage(folder / "last.ckpt")
        other = ModelCheckpoint(folder, monitor="certificate/margin", mode="max")
        capsys.readouterr()
        parts = fit(folder, 3, "last", extra=[other])[0]
        lines = [line for line in capsys.readouterr().err.splitlines() if "going on from" in line]
        assert len(lines) == 1
        assert lines[0].endswith(f"going on from {folder / 'previous.ckpt'}.")
        assert same_weights(whole, parts)


def test_two_damaged_checkpoints_are_named_in_one_error(tmp_path: Path) -> None:
    fit(tmp_path, 2)
    for name in ("last.ckpt", "previous.ckpt"):
        (tmp_path / name).write_bytes(bytes(1000))
    with pytest.raises(CheckpointError, match=r"damaged: .*last\.ckpt and .*previous\.ckpt\. Delete the folder"):
        fit(tmp_path, 3, "last")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "previous.ckpt"]


def test_what_is_taken_to_be_whole_loads_as_it_was_saved(tmp_path: Path) -> None:
    """Overwritten at random places; bytes that no checksum covers, such as dates, change no value."""
    path, weights = tmp_path / "one.ckpt", torch.arange(2000.0)
    torch.save({"weights": weights, "epoch": 3}, path)
    content, generator, whole = path.read_bytes(), random.Random(0), 0
    assert is_whole(path)
    for _ in range(300):
        place = generator.randrange(len(content))
        path.write_bytes(content[:place] + generator.randbytes(4) + content[place + 4 :])
        if is_whole(path):
            whole += 1
            loaded = torch.load(path, weights_only=True)
            assert loaded["epoch"] == 3
            assert torch.equal(loaded["weights"], weights)
    assert whole < 100
    assert not is_whole(tmp_path / "missing.ckpt")


def test_another_number_of_processes_warns_and_goes_on(tmp_path: Path) -> None:
    fit(tmp_path, 1)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    checkpoint["certvae.random_state"] *= 2
    torch.save(checkpoint, tmp_path / "last.ckpt")
    with pytest.warns(UserWarning, match="streams of 2 processes, but 1 resume"):
        assert fit(tmp_path, 2, "last")[1].current_epoch == 2


def test_checkpoints_of_other_callbacks_still_load(tmp_path: Path) -> None:
    """Those that Lightning wrote without this callback have no random states."""
    fit(tmp_path, 1, last=False, extra=[ModelCheckpoint(tmp_path, "last")])
    assert fit(tmp_path, 2, "last")[1].current_epoch == 2


def test_testing_a_checkpoint_leaves_the_streams_alone(tmp_path: Path) -> None:
    module, run, _ = fit(tmp_path, 1)
    after = []
    for checkpoint in (None, "best"):
        torch.manual_seed(5)
        run.test(module, datamodule=DigitsDataModule(), ckpt_path=checkpoint, verbose=False)
        after.append(torch.get_rng_state())
    assert torch.equal(*after)


def test_every_stream_goes_on_after_a_round_trip_through_a_file(tmp_path: Path) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def draw() -> list[float]:
        drawn: list[Any] = [torch.rand(()), torch.rand((), device=device), random.gauss(0, 1), np.random.normal()]  # noqa: NPY002
        return [float(value) for value in drawn]

    draw()  # a normal draw leaves a second one in store
    torch.save(random_state(device), tmp_path / "state")
    expected = draw()
    draw()
    set_random_state(torch.load(tmp_path / "state", weights_only=True), device)
    assert draw() == expected


def test_a_state_of_another_kind_of_device_keeps_that_devices_stream() -> None:
    state = random_state()
    state["device"] = ["cuda", torch.zeros(16, dtype=torch.uint8)]
    torch.rand(()), random.random(), np.random.random()  # noqa: NPY002
    set_random_state(state, "cpu")
    restored = random_state()
    assert restored["device"] is None
    assert torch.equal(restored["torch"], state["torch"])
    assert restored["numpy"] == state["numpy"]
    assert restored["python"] == state["python"]


def test_trying_a_run_writes_nothing(tmp_path: Path) -> None:
    teacher = digits_teacher()
    run = trainer(tmp_path, callbacks=[LastCheckpoint(tmp_path / "new")], enable_checkpointing=True, fast_dev_run=True)
    run.fit(small_vae(teacher), datamodule=DigitsDataModule())
    assert not (tmp_path / "new").exists()


def test_folders_that_cannot_be_written_are_refused_before_the_first_epoch(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`dirpath` must be a folder on a local disk, got s3://bucket/run"):
        LastCheckpoint("s3://bucket/run")
    (tmp_path / "file").touch()
    draw = Draw()
    with pytest.raises(CheckpointError, match="checkpoints cannot be written to `dirpath="):
        fit(tmp_path / "file" / "below", 1, extra=[draw])
    assert not draw.drawn


class FullDisk(TorchCheckpointIO):
    """Has no room for the second epoch's checkpoint."""

    def save_checkpoint(self, checkpoint: dict[str, Any], *arguments: Any, **options: Any) -> None:
        if checkpoint["epoch"] == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().save_checkpoint(checkpoint, *arguments, **options)


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before_whole(tmp_path: Path) -> None:
    callback = LastCheckpoint(tmp_path)
    run = trainer(tmp_path, max_epochs=2, callbacks=[callback], enable_checkpointing=True, plugins=[FullDisk()])
    with pytest.raises(CheckpointError, match=r"last\.ckpt was not written: .*No space left on device"):
        run.fit(small_vae(), datamodule=DigitsDataModule())
    assert is_whole(callback.last)
    assert epoch_of(callback.last) == 0


class Folders(TorchCheckpointIO):
    """Writes a checkpoint as a folder, as sharded strategies do."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        Path(path).mkdir()
        super().save_checkpoint(checkpoint, Path(path) / "part")

    def load_checkpoint(self, path: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        return super().load_checkpoint(Path(path) / "part", *arguments, **options)


def test_checkpoints_may_be_folders(tmp_path: Path) -> None:
    for epochs in (3, 5):
        callback = LastCheckpoint(tmp_path)
        run = trainer(tmp_path, max_epochs=epochs, callbacks=[callback], enable_checkpointing=True, plugins=[Folders()])
        run.fit(small_vae(), datamodule=DigitsDataModule(), ckpt_path=None if epochs == 3 else "last")
    assert {path.name: epoch_of(path / "part") for path in tmp_path.iterdir()} == {"last.ckpt": 4, "previous.ckpt": 3}
    assert callback.resumed_at == 3


def test_processes_that_find_different_checkpoints_are_refused(tmp_path: Path) -> None:
    """As of nodes whose folder is on disks of their own."""
    other: Any = SimpleNamespace(
        ckpt_path=None,
        default_root_dir=tmp_path,
        strategy=SimpleNamespace(broadcast=lambda own: "last.ckpt", reduce_boolean_decision=lambda own, all: own),
    )
    with pytest.raises(CheckpointError, match="the first from 'last.ckpt', this one from 'none'. Put `dirpath="):
        LastCheckpoint(tmp_path / "checkpoints")._check_agreement(other)


def requeue(folder: Path, number: int, source: Path) -> Path:
    """The checkpoint of a requeue, newer than all others."""
    path = folder / f"hpc_ckpt_{number}.ckpt"
    path.write_bytes(source.read_bytes())
    later = source.stat().st_mtime + number
    os.utime(path, (later, later))
    return path


def test_last_is_the_checkpoint_of_a_requeue_where_that_is_newer_and_whole_and_of_this_run(tmp_path: Path) -> None:
    fit(tmp_path, 1)
    last, asked = LastCheckpoint(tmp_path), cast(Any, SimpleNamespace(default_root_dir=tmp_path))
    requeue(tmp_path, 9, last.last)
    path = requeue(tmp_path, 10, last.last)
    assert last._find_last_checkpoints(asked) == {str(path)}
    assert LastCheckpoint(tmp_path / "elsewhere")._find_last_checkpoints(asked) == set()
    path.write_bytes(path.read_bytes()[:1000])
    assert last._find_last_checkpoints(asked) == {str(last.last)}
    os.utime(requeue(tmp_path, 11, last.last), (0, 0))
    assert last._find_last_checkpoints(asked) == {str(last.last)}


def test_a_path_that_hides_the_checkpoint_of_a_requeue_gets_a_warning(tmp_path: Path) -> None:
    fit(tmp_path, 1)
    requeue(tmp_path, 1, tmp_path / "last.ckpt")
    begin = tmp_path / "begin.ckpt"
    begin.write_bytes((tmp_path / "last.ckpt").read_bytes())
    with pytest.warns(UserWarning, match="hides .*hpc_ckpt_1.ckpt, which SLURM's requeue left"):
        fit(tmp_path, 2, str(begin))
