"""A training step reads nothing from the device: whoever reads a value waits for all the work that is under way.

On the CPU a read is seen as the operator behind ``float(tensor)``, ``tensor.item()``, ``bool(tensor)`` and indexing by
a mask. On PyTorch's `meta` device, which has shapes and no values, a copy to the host fails too.
"""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.utils._python_dispatch import TorchDispatchMode

from certvae.callbacks import AlignmentCallback, CertificateCallback, CertificateGuard, DualController, LaggingInference
from certvae.datamodules import DigitsDataModule
from certvae.models.training_record import TrainingRecord
from tests.plain_vae import UserVAE, plain_loader
from tests.runs import digits_teacher, small_vae, trainer

READS = {"aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::nonzero", "aten::masked_select"}


class NoReads(TorchDispatchMode):
    """Fails where a value of a tensor is needed to go on."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().partition(".")[0] in READS:
            raise AssertionError(f"a step waits for the device: {func}")
        return func(*args, **(kwargs or {}))


class Watched(Callback):
    """Lets no training step read a value, but for the first of a fit or an epoch, which checks the data's range."""

    def __init__(self) -> None:
        self.steps = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = pl_module.training_step

        def training_step(batch: Any, batch_idx: int) -> Any:
            if batch_idx == 0:
                return step(batch, batch_idx)
            self.steps += 1
            with NoReads():
                return step(batch, batch_idx)

        pl_module.training_step = training_step  # type: ignore[method-assign]


@pytest.mark.parametrize("read", [float, bool, lambda value: value[value > 0], lambda value: value.item()])
def test_a_read_is_noticed(read: Any) -> None:
    with NoReads(), pytest.raises(AssertionError, match="waits for the device"):
        read(torch.ones(()))


@pytest.mark.slow
@pytest.mark.parametrize("weight", [0.0, 5.0])
@pytest.mark.parametrize("path", ["mean", "sample"])
def test_a_step_of_the_vae_reads_nothing(tmp_path: Path, weight: float, path: Any) -> None:
    watched, model = Watched(), small_vae(digits_teacher(), alignment_weight=weight, alignment_path=path)
    trainer(tmp_path, max_epochs=2, callbacks=[watched]).fit(model, datamodule=DigitsDataModule())
    assert watched.steps > 10


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["alignment", "guard"])
def test_a_step_with_an_alignment_term_reads_nothing(tmp_path: Path, kind: str) -> None:
    watched = Watched()
    callbacks: dict[str, list[Callback]] = {
        "alignment": [AlignmentCallback(digits_teacher(), "encoder")],
        "guard": [CertificateCallback(digits_teacher(), "encoder"), CertificateGuard(0.1)],
    }
    runner = trainer(tmp_path, max_epochs=3, callbacks=[*callbacks[kind], watched])
    runner.fit(UserVAE(), plain_loader(batch_size=16), plain_loader())
    assert watched.steps == 15


def test_lagging_inference_reads_only_where_it_compares(tmp_path: Path) -> None:
    """Losses are summed on the device; ``check_every`` steps of the encoder lie between two looks at them."""
    lagging = LaggingInference(inner_steps=100, check_every=7)
    lagging.setup(trainer(tmp_path), small_vae(), "fit")
    with NoReads():
        for number in range(6):
            lagging.on_before_optimizer_step(trainer(tmp_path), small_vae(), None)
            lagging.on_train_batch_end(trainer(tmp_path), small_vae(), {"loss": torch.tensor(1.0 + number)}, None, 0)
    assert lagging.state_dict()["_loss"] == 21.0


def test_what_is_kept_on_the_device_needs_no_values() -> None:
    """Neither a read nor a copy to the host is possible on this device."""
    record = TrainingRecord(torch.zeros(1, device="meta"))
    record.add(3, 8, torch.zeros((), device="meta"), torch.zeros((), device="meta"))
    scalar = torch.zeros((), dtype=torch.float64, device="meta")
    assert all(value.device.type == "meta" for value in (*DualController().step(scalar, scalar), record.sums))
    guard, rows = CertificateGuard(0.1), torch.zeros(4, 5, device="meta")
    guard._pursuit.log_weight = scalar
    one_process: Any = type("Alone", (), {"world_size": 1})
    assert guard._weight(one_process, small_vae(), rows, rows, rows[:, 0]).device.type == "meta"
    with pytest.raises((RuntimeError, NotImplementedError)):
        rows.cpu()


def test_the_vae_aligns_without_a_copy_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which knows no such device
    model = small_vae(digits_teacher(), alignment_weight=5.0).to("meta")
    assert model.teacher is not None
    model.teacher.to("meta")
    model._start_record()
    batch = (torch.zeros(8, 1, 8, 8, device="meta"), torch.zeros(8, device="meta"), torch.arange(8, device="meta"))
    assert model.training_step(batch, 1)["loss"].device.type == "meta"
