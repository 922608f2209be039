"""On a GPU: the certificate is that of the CPU, in one process and under NCCL, and being watched changes no bit."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule

from certvae import Certificate, Status, certify
from certvae.callbacks import CertificateCallback, CertificateGuard, ProbeCallback
from certvae.datamodules import DigitsDataModule
from tests.conftest import random_logits, random_probs
from tests.plain_vae import measured
from tests.runs import digits_teacher, small_vae, trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
FIELDS = ("margin", "margin_lower", "teacher_information", "witness_information", "channel_margin", "rate")


def train(folder: Path, callbacks: list[Any], **options: Any) -> Any:
    model = small_vae(digits_teacher(), alignment_weight=100.0)
    trainer(folder, accelerator="gpu", devices=1, max_epochs=3, callbacks=callbacks, **options).fit(
        model, datamodule=DigitsDataModule(batch_size=64)
    )
    return model.cpu()


def validated(folder: Path, model: Any, **options: Any) -> Certificate:
    callback = CertificateCallback(channel_samples=4)
    data = DigitsDataModule()
    trainer(folder, devices=1, callbacks=[callback], **options).validate(copy.deepcopy(model), data, verbose=False)
    return measured(callback)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return train(tmp_path_factory.mktemp("gpu"), [])


def test_certify_on_the_gpu_gives_the_numbers_of_the_cpu() -> None:
    teacher, logits = 0.9 * random_probs(5000, 24, 0) + 0.1 / 24, random_logits(5000, 24, 1)
    for method in ("normal", "bernstein", "hoeffding"):
        here, there = (
            certify(teacher.to(device), logits.to(device), method=method, teacher_floor=0.1)
            for device in ("cpu", "cuda")
        )
        assert here.margin_lower == pytest.approx(there.margin_lower, abs=1e-11)
        assert here.margin == pytest.approx(there.margin, abs=1e-12)


def test_rows_that_lie_on_the_gpu_train_the_same_weights_and_come_back(tmp_path: Path) -> None:
    data = DigitsDataModule(batch_size=64, rows_on_device=True)
    devices: set[str] = set()

    class Watch(Callback):
        def on_train_start(self, trainer: Any, pl_module: LightningModule) -> None:
            devices.add(trainer.train_dataloader.dataset.images.device.type)

    weights = []
    for module in (DigitsDataModule(batch_size=64), data):
        model = small_vae(digits_teacher(), alignment_weight=100.0)
        trainer(tmp_path, accelerator="gpu", devices=1, callbacks=[CertificateCallback(), Watch()]).fit(model, module)
        weights.append(torch.nn.utils.parameters_to_vector(model.parameters()).cpu())
    assert devices == {"cpu", "cuda"}
    assert torch.equal(*weights)
    assert next(iter(data.loader("val")))[0].device.type == "cpu"


@pytest.mark.parametrize("options", [{}, {"strategy": "ddp"}], ids=["one process", "nccl"])
def test_the_certificate_of_a_model_on_the_gpu_is_that_on_the_cpu(
    tmp_path: Path, model: Any, options: dict[str, Any]
) -> None:
    """To float32's rounding of the networks."""
    here, there = (
        validated(tmp_path / device, model, accelerator=device, **(options if device == "gpu" else {}))
        for device in ("cpu", "gpu")
    )
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # of NCCL, which later tests on the CPU cannot use
    for name in FIELDS:
        assert getattr(there, name) == pytest.approx(getattr(here, name), abs=2e-5), name
    assert here.status is there.status is Status.CERTIFIED
    assert there.leaks == []


def test_the_encoder_is_checked_on_the_gpu(tmp_path: Path, model: Any) -> None:
    callback = CertificateCallback(check_encoder=True)
    trainer(tmp_path, accelerator="gpu", devices=1, callbacks=[callback]).validate(
        copy.deepcopy(model), DigitsDataModule(), verbose=False
    )
    assert measured(callback).leaks == []


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
def test_being_watched_changes_no_bit_of_the_weights(tmp_path: Path, precision: str) -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        plain = train(tmp_path / "plain", [], precision=precision)
        watched = train(tmp_path / "watched", [CertificateCallback(), ProbeCallback()], precision=precision)
    finally:
        torch.use_deterministic_algorithms(False)
    pairs = zip(plain.state_dict().items(), watched.state_dict().values(), strict=True)
    assert all(torch.equal(value, other) for (_, value), other in pairs)


def test_the_guard_reaches_its_target_on_the_gpu(tmp_path: Path) -> None:
    callback, model = CertificateCallback(), small_vae(digits_teacher(), beta=20.0)
    guard = CertificateGuard(target=0.5, path="mean")
    trainer(tmp_path, accelerator="gpu", devices=1, max_epochs=8, callbacks=[callback, guard]).fit(
        model, datamodule=DigitsDataModule(batch_size=64)
    )
    assert measured(callback).margin_lower > 0.3
