"""``precision: auto`` never chooses what is slow on a CPU, and works wherever Lightning's own values do."""

from typing import Any

import pytest
import torch
import yaml

from certvae.commands.precision import AutoPrecisionTrainer, choose_precision
from experiments.study import EXPERIMENTS


@pytest.mark.parametrize("accelerator", ["cpu", "mps"])
def test_it_is_float32_without_a_cuda_gpu(accelerator: str) -> None:
    assert choose_precision(accelerator) == "32-true"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("accelerator", ["auto", "gpu", "cuda"])
def test_it_is_bfloat16_on_a_gpu_that_multiplies_it(accelerator: str) -> None:
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    assert choose_precision(accelerator) == ("bf16-mixed" if native else "32-true")


@pytest.mark.parametrize(
    ("given", "used"), [("auto", "32-true"), ("bf16-mixed", "bf16-mixed"), (64, "64-true"), (None, "32-true")]
)
def test_the_trainer_takes_it_beside_lightnings_own(given: Any, used: str) -> None:
    trainer = AutoPrecisionTrainer(accelerator="cpu", precision=given, logger=False, enable_checkpointing=False)
    assert trainer.precision == used


def test_every_run_on_images_uses_it() -> None:
    paths = (
        path for name in ("cifar100", "tiny_imagenet", "baselines") for path in (EXPERIMENTS / name).glob("*.yaml")
    )
    trainers = {path: yaml.safe_load(path.read_text()).get("trainer", {}) for path in paths}
    precisions = {path: settings["precision"] for path, settings in trainers.items() if "precision" in settings}
    assert len(precisions) >= 15
    others = {path for path, precision in precisions.items() if precision != "auto"}
    assert others == {EXPERIMENTS / "baselines" / "quick.yaml"}  # the digits: seconds on any processor
