"""Weights from checkpoints: those of Lightning are read, those that are not the model's are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from certvae.datamodules import DigitsDataModule
from certvae.io.checkpoints import CheckpointFileError, load_weights, read_checkpoint
from tests.io.test_checkpoints_untrusted import model, saved, weights
from tests.runs import small_vae, trainer
from tests.untrusted import Box, box, slow

__all__ = ["box"]

CONTENTS: dict[str, Any] = {
    "no state_dict": {"weights": 1},
    "list": [1, 2],
    "tensor": torch.zeros(3),
    "state_dict is a list": {"state_dict": [torch.zeros(3)]},
    "state_dict is a tensor": {"state_dict": torch.zeros(3)},
    "key is a number": {"state_dict": {1: torch.zeros(3)}},
    "key is a tuple": {"state_dict": {("weight",): torch.zeros(3)}},
    "weight is text": weights(weight="zeros"),
    "weight is a list": weights(weight=[[0.0] * 3] * 2),
    "weight is sparse": weights(weight=torch.eye(2, 3).to_sparse()),
    "weight is on no device": weights(weight=torch.empty(2, 3, device="meta")),
}
MISFITS: dict[str, dict[str, Tensor | None]] = {
    "NaN": {"weight": torch.full((2, 3), torch.nan)},
    "one infinity": {"bias": torch.tensor([0.0, -torch.inf])},
    "too large for float32": {"bias": torch.tensor([0.0, 1e300], dtype=torch.float64)},
    "whole numbers": {"weight": torch.ones(2, 3, dtype=torch.int64)},
    "truth values": {"weight": torch.ones(2, 3, dtype=torch.bool)},
    "complex numbers": {"weight": torch.ones(2, 3, dtype=torch.complex64)},
    "other shape": {"weight": torch.zeros(3, 2)},
    "more axes": {"weight": torch.zeros(1, 2, 3)},
    "expanded to 4 TiB": {"weight": torch.zeros(1, 1).expand(2**20, 2**20)},
    "missing weight": {"bias": None},
    "unknown weight": {"other": torch.zeros(1)},
    "thousands of unknown weights": {f"{n}{'x' * 500}": torch.zeros(1) for n in range(3000)},
}


@pytest.mark.parametrize("name", CONTENTS)
def test_files_without_weights_by_name_are_refused(box: Box, name: str) -> None:
    path = box.path / "last.ckpt"
    path.write_bytes(saved(CONTENTS[name]))
    with box.refuses(CheckpointFileError):
        load_weights(model(), path)


@pytest.mark.parametrize("name", slow(MISFITS, "thousands of unknown weights"))
def test_weights_that_are_not_the_models_are_refused(box: Box, name: str) -> None:
    path, module = box.path / "last.ckpt", model()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    path.write_bytes(saved(weights(**MISFITS[name])))
    with box.refuses(CheckpointFileError):
        load_weights(module, path)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


@pytest.mark.slow
def test_what_lightning_saves_is_read(tmp_path: Path) -> None:
    """With the shared and odd objects of schedulers, groups of parameters and callbacks."""
    vae = small_vae()
    groups = [{"params": list(part.parameters())} for part in (vae.encoder, vae.decoder)]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    plans = [
        torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2]),
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3),
    ]
    vae.configure_optimizers = lambda: ([optimizer], plans)  # type: ignore[method-assign]
    vae.hparams.update({"shape": torch.Size([1, 8, 8]), "names": {"a", "b"}, "dtype": torch.float32})
    keeper = ModelCheckpoint(tmp_path, filename="last", monitor="val/loss", save_top_k=2)
    runner = trainer(tmp_path, max_epochs=2, enable_checkpointing=True, callbacks=[keeper])
    runner.fit(vae, datamodule=DigitsDataModule())
    checkpoint = read_checkpoint(keeper.best_model_path)
    assert checkpoint["hyper_parameters"]["shape"] == (1, 8, 8)
    assert len(checkpoint["lr_schedulers"]) == 2
    load_weights(small_vae(), keeper.best_model_path)


def test_a_mask_with_infinities_of_its_own_is_loaded(tmp_path: Path) -> None:
    module = model()
    module.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    torch.save({"state_dict": module.state_dict()}, tmp_path / "last.ckpt")
    load_weights(module, tmp_path / "last.ckpt")
    module.mask = torch.zeros(2)
    with pytest.raises(CheckpointFileError, match="`mask` holds NaN or infinite values"):
        load_weights(module, tmp_path / "last.ckpt")
