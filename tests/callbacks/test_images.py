"""Pictures of reconstructions and samples, read back from TensorBoard's files."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor
from torch.distributions import Bernoulli, Independent

from certvae.callbacks import CertificateCallback
from certvae.callbacks.images import ReconstructionImages, as_grid
from certvae.datamodules import DigitsDataModule
from certvae.models.priors import VampPrior
from certvae.reading.latents import LatentCapture
from tests.commands.test_cli import EXPERIMENTS
from tests.plain_vae import UserVAE, plain_loader, watch
from tests.runs import digits_teacher, small_vae, trainer

pytest.importorskip("tensorboard", reason="tensorboard is not installed")
from pytorch_lightning.loggers import TensorBoardLogger

RECONSTRUCTIONS, SAMPLES = "images/reconstructions", "images/samples"


def data() -> DigitsDataModule:
    return DigitsDataModule(batch_size=64, subset=128)


def fit(folder: Path, callback: Any = None, model: Any = None, epochs: int = 1, **options: Any) -> Any:
    """Train with TensorBoard; gives the model."""
    model, callbacks = model or small_vae(), [callback or ReconstructionImages()]
    options = {"logger": TensorBoardLogger(folder, "tb", ""), **options}
    trainer(folder, max_epochs=epochs, callbacks=callbacks, **options).fit(model, datamodule=data())
    return model.eval()


def pictures(folder: Path, key: str) -> list[tuple[int, np.ndarray]]:
    """Step and pixels of each picture."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder / "tb"))
    board.Reload()
    events = board.Images(key) if key in board.Tags()["images"] else []
    return [(event.step, np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))) for event in events]


def same(seen: np.ndarray, expected: np.ndarray) -> bool:
    """Whether two pictures are equal up to rounding."""
    return seen.shape == expected.shape and int(np.abs(seen.astype(int) - expected).max()) <= 1


def validation_rows(rows: int = 8) -> Tensor:
    module = data()
    return torch.from_numpy(module.arrays.images[module.splits["val"][:rows].numpy()]).float() / 255


@pytest.mark.slow
@torch.no_grad()
def test_inputs_stand_above_what_the_decoder_makes_of_their_codes(tmp_path: Path) -> None:
    model, inputs = fit(tmp_path), validation_rows()
    ((step, seen),) = pictures(tmp_path, RECONSTRUCTIONS)
    assert step == 2
    assert same(seen, as_grid(torch.cat([inputs, model.decoder(model(inputs).mean)]), 8))


@torch.no_grad()
@pytest.mark.parametrize("prior", [None, VampPrior(pseudo_inputs=3)])
def test_samples_are_decoded_draws_of_the_prior(tmp_path: Path, prior: Any) -> None:
    model = fit(tmp_path, model=small_vae(prior=prior))
    ((_, seen),) = pictures(tmp_path, SAMPLES)
    torch.manual_seed(0)
    assert same(seen, as_grid(model.decoder(model.prior.draws_like(torch.zeros(8, 6))), 8))


@pytest.mark.parametrize(("every", "epochs"), [(2, [0, 2, 3]), (3, [0, 3]), (0, [])])
def test_every_so_many_epochs_and_the_last_are_shown(tmp_path: Path, every: int, epochs: list[int]) -> None:
    fit(tmp_path, ReconstructionImages(every, rows=2), epochs=4, num_sanity_val_steps=1)
    for key in (RECONSTRUCTIONS, SAMPLES):
        assert [step // 2 - 1 for step, _ in pictures(tmp_path, key)] == epochs


def test_several_validations_of_an_epoch_show_one_picture(tmp_path: Path) -> None:
    fit(tmp_path, val_check_interval=0.5)
    assert len(pictures(tmp_path, SAMPLES)) == 1


def test_trained_weights_are_bit_equal_with_and_without_pictures(tmp_path: Path) -> None:
    watched, plain = (fit(tmp_path / str(n), ReconstructionImages(n), epochs=3) for n in (1, 0))
    assert len(pictures(tmp_path / "1", SAMPLES)) == 3
    for (name, value), other in zip(watched.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(value, other), name


def test_a_logger_without_pictures_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No hook is put in place, no image is decoded."""

    def refused(*_: Any) -> None:
        raise AssertionError("work for a picture that nothing shows")

    monkeypatch.setattr(LatentCapture, "attach", refused)
    monkeypatch.setattr(ReconstructionImages, "_show", refused)
    for logger in (CSVLogger(tmp_path), False):
        fit(tmp_path, ReconstructionImages(1, latents="encoder"), epochs=2, logger=logger)


def test_a_vae_shows_nothing_that_it_was_not_asked_for(tmp_path: Path) -> None:
    runner = trainer(tmp_path, logger=TensorBoardLogger(tmp_path, "tb", ""))
    runner.fit(small_vae(), datamodule=data())
    assert pictures(tmp_path, SAMPLES) == []


@pytest.mark.parametrize("name", ["digits", "cifar100", "tiny_imagenet"])
def test_every_shipped_run_of_a_vae_names_the_pictures(name: str) -> None:
    runs = [yaml.safe_load(path.read_text()) for path in (EXPERIMENTS / name).glob("*.yaml")]
    runs = [run for run in runs if run["model"]["class_path"] == "certvae.VAE"]
    assert len(runs) >= 3
    for run in runs:
        shown = [item["class_path"] for item in run["trainer"]["callbacks"]]
        assert shown.count("certvae.callbacks.ReconstructionImages") == 1


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("order", [1, -1])
def test_a_foreign_module_names_its_code_beside_a_certificate(tmp_path: Path, order: int) -> None:
    """Both callbacks catch the same submodule; neither sees the other's calls."""
    torch.manual_seed(0)
    model, callbacks = UserVAE("distribution"), [watch(), ReconstructionImages(latents="encoder")][::order]
    runner = trainer(tmp_path, logger=TensorBoardLogger(tmp_path, "tb", ""), callbacks=callbacks)
    runner.fit(model, plain_loader(), plain_loader())
    inputs = next(iter(plain_loader()))[0][:8]
    decoded = model.decoder(model.encoder(inputs).mean).view_as(inputs)
    ((_, seen),) = pictures(tmp_path, RECONSTRUCTIONS)
    assert same(seen, as_grid(torch.cat([inputs, decoded]), 8))


@torch.no_grad()
def test_a_decoder_may_be_a_function_and_give_a_distribution(tmp_path: Path) -> None:
    def decode(pl_module: Any, codes: Tensor) -> Independent[Bernoulli]:
        return Independent(Bernoulli(logits=pl_module.decoder(codes)), 3)

    model, inputs = fit(tmp_path, ReconstructionImages(decoder=decode)), validation_rows()
    ((_, seen),) = pictures(tmp_path, RECONSTRUCTIONS)
    assert same(seen, as_grid(torch.cat([inputs, model.decoder(model(inputs).mean).sigmoid()]), 8))


def test_inputs_that_are_no_images_are_warned_of(tmp_path: Path) -> None:
    pictured = ReconstructionImages(images=lambda batch: batch[0].flatten(1))
    with pytest.warns(UserWarning, match="shows inputs of shape .* got \\(8, 64\\), so there are no pictures"):
        fit(tmp_path, pictured)
    assert pictures(tmp_path, SAMPLES) == []


def test_a_decoder_is_needed(tmp_path: Path) -> None:
    with pytest.raises(AttributeError, match="missing"):
        fit(tmp_path, ReconstructionImages(decoder="missing"))


@pytest.mark.slow
def test_validate_alone_shows_pictures(tmp_path: Path) -> None:
    callbacks = [CertificateCallback(), ReconstructionImages()]
    runner = trainer(tmp_path, logger=TensorBoardLogger(tmp_path, "tb", ""), callbacks=callbacks)
    runner.validate(small_vae(digits_teacher()), datamodule=data(), verbose=False)
    assert len(pictures(tmp_path, RECONSTRUCTIONS)) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"every_n_epochs": -1}, "`every_n_epochs` must be at least 0, got -1"), ({"rows": 0}, "`rows` must be at least")],
)
def test_bad_arguments_are_rejected(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReconstructionImages(**arguments)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_is_8_bit_rgb_clipped_and_enlarged(channels: int) -> None:
    images = torch.stack([torch.full((channels, 8, 8), value) for value in (-1.0, 0.5, 2.0)])
    grid = as_grid(images, columns=3)
    assert grid.shape == (52, 152, 3)
    assert grid.dtype == np.uint8
    assert [grid[25, column, 0] for column in (25, 75, 125)] == [0, 128, 255]
    assert as_grid(torch.rand(2, channels, 64, 64), columns=1).shape == (134, 68, 3)
