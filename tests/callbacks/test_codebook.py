"""The callback's numbers are the function's, and being watched changes nothing."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.distributions import Independent, Normal, OneHotCategorical
from torch.utils.data import DataLoader

from certvae import codebook_information
from certvae.callbacks import CodebookCallback
from tests.callbacks.test_diagnostics import Nothing
from tests.callbacks.test_unchanged_runs import plain, streams
from tests.plain_vae import fit, plain_loader

pytestmark = pytest.mark.slow
SIZE = 16
KEYS = {"used", "perplexity", "information", "lower", "upper"}


class Quantizer(nn.Module):
    """Nearest entry of a codebook, straight through; gives what ``gives`` says."""

    def __init__(self, gives: str = "map") -> None:
        super().__init__()
        self.gives, self.codebook = gives, nn.Embedding(SIZE, 4)
        nn.init.normal_(self.codebook.weight, std=0.3)

    def forward(self, z: Tensor) -> Any:
        flat = z.permute(0, 2, 3, 1).reshape(-1, 4)
        distances = torch.cdist(flat, self.codebook.weight)
        indices = distances.argmin(dim=1)
        quantized = self.codebook(indices).view(len(z), *z.shape[2:], 4).permute(0, 3, 1, 2)
        loss = ((quantized - z.detach()) ** 2).mean() + 0.25 * ((quantized.detach() - z) ** 2).mean()
        quantized = z + (quantized - z).detach()
        found = {
            "map": indices.view(len(z), *z.shape[2:]),
            "flat": indices,
            "column": indices[:, None],
            "logits": -distances.view(len(z), *z.shape[2:], SIZE).movedim(-1, 1),
            "one_hot": torch.nn.functional.one_hot(indices, SIZE).float(),
            "nan": -distances.view(len(z), -1, SIZE) / 0,
            "normal": Normal(z, 1.0),
            "distribution": Independent(OneHotCategorical(logits=-distances.view(len(z), -1, SIZE)), 1),
        }
        return quantized, loss, found[self.gives]


class VQVAE(LightningModule):
    """A VQ-VAE as people write them: convolution, quantizer, transposed convolution."""

    def __init__(self, gives: str = "map") -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 4, 2, 1))
        self.quantizer = Quantizer(gives)
        self.decoder = nn.Sequential(nn.ConvTranspose2d(4, 8, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 1, 4, 2, 1))

    def step(self, batch: Any) -> Tensor:
        images, _ = batch
        quantized, loss, _ = self.quantizer(self.encoder(images))
        return ((self.decoder(quantized) - images) ** 2).mean() + loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.step(batch)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", self.step(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def of(gives: str) -> Callable[[], VQVAE]:
    return lambda: VQVAE(gives)


@torch.no_grad()
def codes(model: VQVAE, rows: int = 90) -> Any:
    model.eval()
    return model.quantizer(model.encoder(next(iter(plain_loader(rows, rows)))[0]))[2]


def logged(runner: Any, name: str = "codebook") -> dict[str, float]:
    return {key.split("/")[1]: float(value) for key, value in runner.callback_metrics.items() if key.startswith(name)}


@pytest.mark.parametrize("batch_size", [1, 7, 32, 90])
@pytest.mark.parametrize("positions", ["shared", "each"])
def test_the_numbers_are_those_of_the_function(tmp_path: Path, batch_size: int, positions: Any) -> None:
    callback = CodebookCallback("quantizer:2", SIZE, positions=positions, save_dir=tmp_path)
    runner, model = fit(tmp_path, [callback], VQVAE, plain_loader(90, batch_size))
    expected = codebook_information(codes(model), SIZE, positions=positions, kind="indices")
    found = logged(runner)
    assert set(found) == KEYS
    assert found.pop("information") == pytest.approx(expected.estimate, abs=1e-6)
    for key, value in found.items():
        assert value == pytest.approx(getattr(expected, key), abs=1e-5), key
    assert callback.information is not None
    assert callback.information.to_dict() == pytest.approx(expected.to_dict(), abs=1e-9)
    record = json.loads((tmp_path / "codebook_val.jsonl").read_text())
    assert (record["epoch"], record["partial"], record["rows"], record["dead"]) == (0, False, 90, expected.dead)


@pytest.mark.parametrize(
    ("gives", "arguments"), [("logits", {"kind": "logits"}), ("distribution", {}), ("distribution", {"kind": "probs"})]
)
def test_soft_codes_are_read_from_logits_and_from_distributions(
    tmp_path: Path, gives: str, arguments: dict[str, Any]
) -> None:
    callback = CodebookCallback("quantizer:2", SIZE, **arguments)
    _, model = fit(tmp_path, [callback], of(gives))
    found = codes(model)
    logits = found if gives == "logits" else found.base_dist.logits
    assert callback.information is not None
    expected = codebook_information(logits, SIZE, kind="logits").to_dict()
    assert callback.information.to_dict() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("gives", ["flat", "column", "one_hot"])
def test_codes_laid_end_to_end_are_cut_into_rows_with_one_warning(tmp_path: Path, gives: str) -> None:
    """So that padding and the independence of rows are about images, and not about positions."""
    callback, twin = CodebookCallback("quantizer:2", SIZE, axis=-1), CodebookCallback("quantizer:2", SIZE)
    with pytest.warns(UserWarning, match="as 32 rows of 4 codes, row after row") as caught:
        fit(tmp_path, [callback], of(gives), max_epochs=2)
    assert len([item for item in caught if "row after row" in str(item.message)]) == 1
    fit(tmp_path, [twin], of("map"), max_epochs=2)
    assert callback.information is not None
    assert twin.information is not None
    assert callback.information.rows == 90
    assert callback.information.lower == pytest.approx(twin.information.lower)
    assert callback.information.used == twin.information.used


def test_batches_of_any_structure_tell_their_rows() -> None:
    cut = CodebookCallback("quantizer:2", SIZE)._cut_into_rows
    images, flat = torch.zeros(5, 1, 8, 8), torch.zeros(20).long()
    with pytest.warns(UserWarning, match="as 5 rows of 4 codes"):
        assert cut(flat, {"image": images, "step": torch.tensor(3)}).shape == (5, 4)
    for batch in (images, [images, torch.zeros(5)], {"views": [images, images]}):
        assert cut(flat, batch).shape == (5, 4)
        assert cut(flat[:5], batch).shape == (5,)
    assert cut(flat, {"weights": torch.zeros(7), "image": torch.zeros(20, 3)}).shape == (20,)
    assert cut(flat, {"path": "a.png"}).shape == (20,)


def test_one_line_is_printed_when_the_reading_changes_and_it_names_dead_codes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def first(module: Any, batch: Any) -> Tensor:
        return torch.full((len(batch[0]),), 3)

    callbacks = [CodebookCallback(first, SIZE, name="first"), CodebookCallback("quantizer:2", SIZE)]
    fit(tmp_path, callbacks, VQVAE, plain_loader(), max_epochs=3, limit_val_batches=2, num_sanity_val_steps=1)
    lines = [line for line in capsys.readouterr().out.splitlines() if "epoch " in line]
    (line,) = [line for line in lines if "first" in line]
    assert line.startswith("epoch 0: first: 1 of 16 codes used, perplexity 1; the code carries at most ")
    assert line.endswith(
        "64 rows); 15 codes are dead: restart them or take fewer; a part of the validation set is missing"
    )
    assert any("the 4 codes of a row carry" in line for line in lines)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_run_is_the_same_bits_with_and_without_it(tmp_path: Path, precision: str) -> None:
    def noisy(module: Any, batch: Any) -> Any:
        torch.rand(1), np.random.rand()  # noqa: NPY002
        return module.quantizer(module.encoder(batch[0]))[2]

    found = []
    for callbacks in ([], [CodebookCallback("quantizer:2", SIZE)], [CodebookCallback(noisy, SIZE)]):
        np.random.seed(0)  # noqa: NPY002
        runner, model = fit(tmp_path, callbacks, VQVAE, precision=precision, max_epochs=2)
        found.append([plain(model.state_dict()), plain(runner.optimizers[0].state_dict()), streams()])
        assert bool(logged(runner)) == bool(callbacks)
    assert found[0] == found[1] == found[2]


def test_codes_that_are_not_finite_give_a_warning_and_no_numbers_and_training_goes_on(tmp_path: Path) -> None:
    callback = CodebookCallback("quantizer:2", SIZE, kind="logits")
    with pytest.warns(UserWarning, match="epoch [01]: the codes of row 0 are NaN or infinite.* has no numbers for"):
        runner, _ = fit(tmp_path, [callback], of("nan"), max_epochs=2)
    assert runner.current_epoch == 2
    assert (logged(runner), callback.information) == ({}, None)


def test_what_cannot_work_says_why(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"size": 1}, "`size` must be at least 2 entries, got 1"),
        ({"kind": "index"}, "`kind` must be 'indices', 'logits', 'probs' or None, got 'index'"),
        ({"kind": "indices"}, "`size` must be given with kind='indices'"),
        ({"positions": "all"}, "`positions` must be 'shared' or 'each', got 'all'"),
        ({"confidence": 1.0}, "`confidence` must lie between 0 and 1"),
        ({"name": "a/b"}, "`name` must be letters"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            CodebookCallback("quantizer:2", **arguments)
    runs: list[tuple[Any, dict[str, Any], str, str]] = [
        ("quantiser:2", {"size": SIZE}, "map", "`latents='quantiser'` names no submodule"),
        ("quantizer:2", {}, "map", "`size` must be given with indices"),
        ("quantizer:2", {"size": 2}, "map", "`codes` must be indices from 0 to 1 for size=2"),
        ("quantizer:0", {"size": 4}, "map", "must hold non-negative rows that sum to 1"),
        (lambda module, batch: torch.zeros(33, 2).long(), {"size": 4}, "map", "codes of each of the batch's 32 rows"),
    ]
    for latents, arguments, gives, message in runs:
        with pytest.raises(ValueError, match=message):
            fit(tmp_path, [CodebookCallback(latents, **arguments)], of(gives))
    for latents, gives, message in (
        ("quantizer", "map", "got the object tuple of 3. Name the part after a colon, as in 'quantizer:2'"),
        ("quantizer:2", "normal", "got the distribution Normal"),
    ):
        with pytest.raises(TypeError, match=message):
            fit(tmp_path, [CodebookCallback(latents, SIZE)], of(gives))
    with pytest.raises(ValueError, match="gave no row; choose another with `dataloader`"):
        fit(tmp_path, [CodebookCallback("quantizer:2", SIZE)], VQVAE, DataLoader(Nothing()))


def test_a_collapsed_codebook_is_told_from_one_in_use(tmp_path: Path) -> None:
    """The first entry is put where all codes are, the others far away."""
    used, collapsed = CodebookCallback("quantizer:2", SIZE), CodebookCallback("quantizer:2", SIZE)

    def far() -> VQVAE:
        model = VQVAE()
        with torch.no_grad():
            model.quantizer.codebook.weight[1:] += 100.0
        return model

    for callback, make in ((used, VQVAE), (collapsed, far)):
        fit(tmp_path, [callback], make, max_epochs=2)
    assert used.information is not None
    assert collapsed.information is not None
    assert (collapsed.information.used, collapsed.information.lower) == (1, 0)
    assert used.information.used > 2
    assert used.information.perplexity > 2
    assert collapsed.information.upper < used.information.upper <= 4 * math.log(SIZE)
