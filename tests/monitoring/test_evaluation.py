"""Only whole sets are judged, looks have one ledger, and encoders are tested where that is asked for."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from certvae import Status
from certvae.callbacks import CertificateCallback
from tests.monitoring.test_encoded_rows import Centering, Convolutional, Numbering
from tests.plain_vae import UserVAE, images, measured, plain_loader, watch
from tests.runs import digits_teacher, trainer


def validated(folder: Path, model: LightningModule, loader: Any, **arguments: Any) -> CertificateCallback:
    callback = watch(**arguments)
    trainer(folder, callbacks=[callback]).validate(model, loader, verbose=False)
    return callback


class Stopping(UserVAE):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        if batch_idx == 1:
            raise StopIteration
        super().validation_step(batch, batch_idx)


class Shorter:
    """Three batches by its length, and one less when it is read."""

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[Any]:
        yield from list(plain_loader())[:2]


class Broken(IterableDataset[Any]):
    """Ninety rows by its length, of which one of two workers gives none."""

    def __len__(self) -> int:
        return 90

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        if worker is None or worker.id == 0:
            yield from ((image, 0) for image in images(45))


CUT: dict[str, Any] = {
    "a step that stops": (Stopping, plain_loader, "only 1 of 3 batches, 32 of 90 rows"),
    "a loader shorter than its length": (UserVAE, Shorter, "only 2 of 3 batches"),
    "a worker that ends early": (UserVAE, lambda: DataLoader(Broken(), 32, num_workers=2), "only 2 of 3 batches"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CUT)
def test_a_set_that_ends_early_is_partial_and_says_how_much_was_seen(
    tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model, loader, said = CUT[case]
    found = measured(validated(tmp_path, model(), loader()))
    assert found.status is Status.PARTIAL
    assert f"PARTIAL ({said}" in capsys.readouterr().out
    assert found.provenance["batches_planned"] == 3
    assert found.provenance["batches_seen"] < 3
    assert found.num_samples == found.provenance["rows_seen"] < 90


def test_rows_that_functions_leave_out_are_missed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def latents(module: Any, batch: Any) -> Tensor:
        return module.encoder.body(batch[0].flatten(1))[1:, :6]

    callback = validated(tmp_path, UserVAE(), plain_loader(), latents=latents, images=lambda batch: batch[0][1:])
    assert measured(callback).status is Status.PARTIAL
    assert measured(callback).provenance["rows_seen"] == 87
    assert "only 3 of 3 batches, 87 of 90 rows" in capsys.readouterr().out


def test_a_whole_set_names_no_counts_which_differ_between_processes(tmp_path: Path) -> None:
    found = measured(validated(tmp_path, UserVAE(), plain_loader(drop_last=True)))
    assert found.status is not Status.PARTIAL
    counts = {key: value for key, value in found.provenance.items() if key.startswith(("rows_", "batches_"))}
    assert counts == {}
    assert found.num_samples == 64


class With(UserVAE):
    """A foreign VAE with somebody's encoder."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder  # type: ignore[assignment]

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        self.encoder(batch[0])


class Wide(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, inputs: Tensor) -> Tensor:
        return self.encoder(inputs).expand(len(inputs), 64 if isinstance(self.encoder, Centering) else 4)


@pytest.mark.slow
@pytest.mark.parametrize("encoder", [Centering(), Numbering()], ids=["batch", "place"])
def test_an_encoder_that_reads_its_batch_is_found_if_asked_for(tmp_path: Path, encoder: nn.Module) -> None:
    for asked in (True, False):
        found = measured(validated(tmp_path, With(Wide(encoder)), plain_loader(), check_encoder=asked))
        assert any(leak.startswith("encoder:") for leak in found.leaks) == asked


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "collapsed"])
def test_an_honest_encoder_is_not_accused(tmp_path: Path, kind: str) -> None:
    found = measured(validated(tmp_path, With(Convolutional(kind)), plain_loader(), check_encoder=True))
    assert found.leaks == []


@pytest.mark.slow
def test_all_looks_at_the_same_rows_share_one_ledger(tmp_path: Path) -> None:
    """Those of fit, validate and test, and of a fresh callback; other rows have their own number."""
    callback = watch(spending=True, save_dir=tmp_path)
    model, runner = UserVAE(), trainer(tmp_path, callbacks=[callback], max_epochs=2)
    runner.fit(model, plain_loader(), plain_loader())
    assert measured(callback).look == 2
    runner.validate(model, plain_loader(), verbose=False)
    assert measured(callback).look == 3
    runner.test(model, plain_loader(), verbose=False)
    assert measured(callback).look == 4
    fresh = validated(tmp_path, model, plain_loader(), spending=True, save_dir=tmp_path)
    assert measured(fresh).look == 5
    fresh = validated(tmp_path, model, plain_loader(80), spending=True, save_dir=tmp_path)
    assert measured(fresh).look == 1
    assert "look 1" in measured(fresh).line()


def test_an_empty_sequential_is_a_witness(tmp_path: Path) -> None:
    """It answers with the code, and is not taken for none."""
    teacher = digits_teacher(6)
    callback = validated(tmp_path, UserVAE("mean"), plain_loader(), teacher=teacher, witness=nn.Sequential())
    assert isinstance(callback.reader.witness, nn.Sequential)
    torch.manual_seed(0)
    assert callback.reader.scale is None
