"""The VAE: its loss is its formula, and what cannot work is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn

from certvae import VAE
from certvae.datamodules import DigitsDataModule
from certvae.io.checkpoints import read_checkpoint
from certvae.models.networks import MLPDecoder, MLPEncoder
from certvae.models.vae import TrainingDivergedError, VacuousTeacherError
from certvae.teachers import TeacherMismatchError
from tests.runs import SHAPE, digits_teacher, small_vae, trainer


def batch(rows: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    data = DigitsDataModule(batch_size=rows)
    return data.on_after_batch_transfer(next(iter(data.loader("train"))), 0)


@pytest.mark.parametrize("path", ["mean", "sample"])
def test_training_loss_is_the_formula_with_per_row_sums(path: Any) -> None:
    teacher = digits_teacher()
    vae = small_vae(teacher, beta=3.0, alignment_weight=7.0, alignment_path=path, observation_std=0.5)
    vae.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    images, labels, index = batch()
    torch.manual_seed(5)
    loss = vae.training_step((images, labels, index), 0)["loss"]
    torch.manual_seed(5)
    mean, log_variance = vae.encoder(images)
    z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
    expected = 0.0
    witness = vae.witness
    assert witness is not None
    for i in range(len(images)):
        error = ((images[i] - vae.decoder(z)[i]) ** 2).sum() / (2 * 0.5**2)
        rate = 0.5 * (mean[i] ** 2 + log_variance[i].exp() - 1 - log_variance[i]).sum()
        target = teacher(images)[i]
        code = mean[i] if path == "mean" else z[i]
        align = (target * (target.log() - witness(code).log_softmax(dim=0))).sum()
        expected += (error + 3 * rate + 7 * align).item() / len(images)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_fixed_teacher_is_in_no_checkpoint_and_never_trained() -> None:
    vae = small_vae(digits_teacher())
    assert all(key.startswith(("encoder.", "decoder.")) for key in vae.state_dict())
    assert sum(parameter.numel() for parameter in vae.parameters()) == sum(v.numel() for v in vae.state_dict().values())


@pytest.mark.slow
def test_a_cosine_schedule_ends_at_zero_with_the_run(tmp_path: Path) -> None:
    runner = trainer(tmp_path, max_epochs=2)
    runner.fit(small_vae(learning_rate_schedule="cosine", learning_rate=0.01), datamodule=DigitsDataModule())
    assert runner.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)
    assert runner.optimizers[0].param_groups[0]["initial_lr"] == 0.01


def test_a_cosine_schedule_needs_to_know_where_the_run_ends(tmp_path: Path) -> None:
    vae = small_vae(learning_rate_schedule="cosine")
    with pytest.raises(ValueError, match="needs to know where the run ends"):
        trainer(tmp_path, max_epochs=-1).fit(vae, datamodule=DigitsDataModule())


def test_a_larger_observation_std_weighs_the_error_less() -> None:
    images, decoded = torch.zeros(1, 4), torch.ones(1, 4)
    assert float(small_vae(observation_std=1.0).distortion(images, decoded)) == 2.0
    assert float(small_vae(observation_std=2.0).distortion(images, decoded)) == 0.5


def test_a_constant_teacher_is_refused_for_alignment_and_watched_without(tmp_path: Path) -> None:
    teacher = digits_teacher(scale=0.0)
    with pytest.raises(VacuousTeacherError, match=r"the teacher is constant: .* \(VACUOUS\)"):
        trainer(tmp_path).fit(small_vae(teacher, alignment_weight=1.0), datamodule=DigitsDataModule())
    trainer(tmp_path).fit(small_vae(teacher), datamodule=DigitsDataModule())


def test_a_teacher_for_other_data_is_refused(tmp_path: Path) -> None:
    teacher = digits_teacher(fingerprint="0" * 64)
    with pytest.raises(TeacherMismatchError, match="fingerprint 000000000000"):
        trainer(tmp_path).fit(small_vae(teacher), datamodule=DigitsDataModule())


class Normalized(DigitsDataModule):
    """Images standardized on the way, as many pipelines do."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        images, labels, index = super().on_after_batch_transfer(batch, dataloader_idx)
        return (images - 0.5) / 0.2, labels, index


def test_images_in_another_range_than_the_teachers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TeacherMismatchError, match=r"made for values in \[0, 1\], got \[-2.5, 2.5\]"):
        trainer(tmp_path).fit(small_vae(digits_teacher(), alignment_weight=1.0), datamodule=Normalized())


def test_an_encoder_that_does_not_say_its_latent_dim_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`encoder` must have an attribute `latent_dim`.*constructor of Linear\."):
        VAE(nn.Linear(64, 12), nn.Linear(6, 64), digits_teacher())


def test_a_latent_too_small_for_the_teacher_is_refused() -> None:
    with pytest.raises(ValueError, match="`latent_dim` must be at least num_components - 1 = 4, got 3"):
        small_vae(digits_teacher(), latent_dim=3)


class Diverging(VAE):
    """Gives a NaN at the third batch of the second epoch."""

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        if self.current_epoch == 1 and batch_idx == 2:
            batch = (batch[0] * float("nan"), *batch[1:])
        return super().training_step(batch, batch_idx)


def test_a_nan_loss_stops_names_the_batch_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    model = Diverging(MLPEncoder(SHAPE, 4, 16, 1), MLPDecoder(SHAPE, 4, 16, 1))
    checkpoint = ModelCheckpoint(tmp_path, filename="last", enable_version_counter=False)
    runner = trainer(tmp_path, max_epochs=3, enable_checkpointing=True, callbacks=[checkpoint])
    with pytest.raises(TrainingDivergedError, match="the loss is nan at epoch 1, batch 2"):
        runner.fit(model, datamodule=DigitsDataModule())
    saved = read_checkpoint(tmp_path / "last.ckpt")
    assert saved["epoch"] == 0
    assert all(bool(value.isfinite().all()) for value in saved["state_dict"].values())


def saved_by(model: VAE, folder: Path) -> Path:
    runner = trainer(
        folder,
        enable_checkpointing=True,
        callbacks=[ModelCheckpoint(folder, filename="last", enable_version_counter=False)],
    )
    runner.fit(model, datamodule=DigitsDataModule())
    return folder / "last.ckpt"


def test_init_weights_from_takes_weights_and_no_hyper_parameter(tmp_path: Path) -> None:
    teacher = digits_teacher()
    path = saved_by(small_vae(teacher, alignment_weight=0.0), tmp_path)
    rescued = small_vae(teacher, alignment_weight=5.0, init_weights_from=path)
    assert rescued.alignment_weight == 5.0
    stored = read_checkpoint(path)["state_dict"]
    assert all(torch.equal(value, stored[key]) for key, value in rescued.state_dict().items())


@pytest.mark.slow
def test_a_path_to_weights_does_not_spoil_the_next_checkpoint(tmp_path: Path) -> None:
    first = saved_by(small_vae(), tmp_path / "a")
    second = saved_by(small_vae(init_weights_from=first), tmp_path / "b")
    assert "init_weights_from" not in read_checkpoint(second)["hyper_parameters"]


def test_init_weights_from_other_networks_lists_the_keys(tmp_path: Path) -> None:
    path = saved_by(small_vae(), tmp_path)
    with pytest.raises(ValueError, match=r"other shapes: \['decoder.body.0.weight: \(32, 9\) here, \(32, 6\) there'"):
        small_vae(latent_dim=9, init_weights_from=path)
    encoder, decoder = MLPEncoder(SHAPE, 6, 32, 2), MLPDecoder(SHAPE, 6, 32, 1)
    with pytest.raises(ValueError, match=r"missing keys: \['encoder.body.3.bias', .* unexpected keys: \[\]"):
        VAE(encoder, decoder, init_weights_from=path)


def test_init_weights_from_a_foreign_pickle_runs_no_code(tmp_path: Path) -> None:
    class Planted:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"state_dict": Planted()}, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match="without running code"):
        small_vae(init_weights_from=tmp_path / "evil.ckpt")
    assert not (tmp_path / "ran").exists()
    (tmp_path / "noise.ckpt").write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match="without running code"):
        small_vae(init_weights_from=tmp_path / "noise.ckpt")
    torch.save({"state_dict": {"a": "b"}}, tmp_path / "words.ckpt")
    with pytest.raises(ValueError, match="is not tensors by name"):
        small_vae(init_weights_from=tmp_path / "words.ckpt")
    torch.save({"weights": 1}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="holds no `state_dict`"):
        small_vae(init_weights_from=tmp_path / "other.ckpt")
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        small_vae(init_weights_from=tmp_path / "none.ckpt")


@pytest.mark.slow
def test_a_checkpoint_loads_back_with_its_parts(tmp_path: Path) -> None:
    teacher = digits_teacher()
    model = small_vae(teacher, alignment_weight=2.0)
    path = saved_by(model, tmp_path)
    loaded = VAE.load_from_checkpoint(
        path, encoder=MLPEncoder(SHAPE, 6, 32, 1), decoder=MLPDecoder(SHAPE, 6, 32, 1), teacher=teacher
    )
    assert loaded.alignment_weight == 2.0
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alignment_weight": -1.0}, "`alignment_weight` must be at least 0"),
        ({"alignment_weight": float("nan")}, "`alignment_weight` must be at least 0"),
        ({"alignment_weight": 1.0}, "needs a `teacher`"),
        ({"alignment_path": "both"}, "`alignment_path` must be 'mean' or 'sample'"),
        ({"observation_std": 0.0}, "`observation_std` must be positive or 'optimal', got 0.0"),
        ({"observation_std": "best"}, "`observation_std` must be positive or 'optimal', got 'best'"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_vae(**arguments)


def test_a_teacher_that_was_never_measured_is_refused() -> None:
    teacher = digits_teacher()
    teacher.average = None
    with pytest.raises(ValueError, match="never measured"):
        small_vae(teacher, alignment_weight=1.0)
