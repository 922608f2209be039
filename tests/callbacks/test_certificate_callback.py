"""The callback: its numbers are the one-shot certificate's, and it changes nothing."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.trainer.states import TrainerFn
from torch import nn
from torch.distributions import Independent, Laplace, MultivariateNormal, Normal, kl_divergence
from torch.utils.data import DataLoader, TensorDataset

from certvae import Certificate, CertificateMetric, CertificateSettings, Reading, Status, certify
from certvae.callbacks import CertificateCallback, Latents
from certvae.callbacks.certificate import LOGGED
from certvae.certificate.diagnosis import grows
from certvae.certificate.history import append_history, read_history
from certvae.datamodules import DigitsDataModule
from certvae.reading.latents import read_latents
from certvae.theory.bounds import spending
from certvae.theory.bracket import information_bracket
from certvae.theory.row_noise import row_normal
from tests.plain_vae import UserVAE, expected, plain_loader, watch
from tests.plain_vae import fit as fit_plain
from tests.runs import digits_teacher, small_vae, trainer


def fit(folder: Path, callback: CertificateCallback, epochs: int = 2, **arguments: Any) -> tuple[Any, Any]:
    model = small_vae(digits_teacher(), alignment_weight=20.0)
    runner = trainer(folder, max_epochs=epochs, callbacks=[callback], **arguments)
    runner.fit(model, datamodule=DigitsDataModule(batch_size=64))
    return runner, model


@pytest.mark.slow
def test_numbers_are_the_one_shot_certificate_of_the_validation_rows(tmp_path: Path) -> None:
    callback = CertificateCallback(channel_samples=3)
    runner, model = fit(tmp_path, callback)
    data = DigitsDataModule()
    images = torch.from_numpy(data.arrays.images[data.splits["val"].numpy()]).float() / 255
    with torch.no_grad():
        posterior = model.eval()(images)
        noise = row_normal(torch.arange(300), 3 * 6).float().view(300, 3, 6)
        draws = [model.witness(posterior.sample(noise[:, draw])) for draw in range(3)]
        rate = posterior.kl_to_standard_normal().sum(dim=1)
        expected = certify(
            model.teacher(images),
            model.witness(posterior.mean),
            teacher_floor=model.teacher.card.floor,
            channel_logits=torch.stack(draws),
            rate=rate,
        )
    of_the_sample = {"information_lower", "information_upper", "fitted_margin", "informative", "collapsed"}
    for name in set(LOGGED) - of_the_sample:
        logged = runner.callback_metrics[f"certificate/{name}"]
        assert float(logged) == pytest.approx(float(getattr(expected, name)), abs=1e-5), name
    assert callback.certificate is not None
    assert callback.certificate.num_samples == 300
    assert callback.certificate.status is expected.status
    for name in of_the_sample:
        assert float(runner.callback_metrics[f"certificate/{name}"]) == getattr(callback.certificate, name), name


def diverging(module: Any, batch: Any) -> torch.Tensor:
    """Mean codes, of which the fourth of a batch is not finite in epoch 1."""
    codes: torch.Tensor = module.encoder.body(module.images(batch))[:, :6].clone()
    if module.current_epoch == 1 and not module.trainer.sanity_checking:
        codes[3] = torch.inf
    return codes


@pytest.mark.slow
def test_an_epoch_that_diverged_has_no_certificate_and_the_run_goes_on(tmp_path: Path) -> None:
    callback = watch(latents=diverging, save_dir=tmp_path)
    said = "epoch 1: the mean of row 3 is inf, not a finite number: the model has diverged. .* the run goes on"
    with pytest.warns(UserWarning, match=said):
        fit_plain(tmp_path, [callback], max_epochs=3)
    assert callback.certificate is not None
    epochs = [item.provenance["epoch"] for item in read_history(tmp_path / "certificates_val.jsonl")]
    assert epochs == [0, 2]
    with pytest.raises(ValueError, match="the mean of row 3"):
        fit_plain(tmp_path, [watch(latents=diverging, on_divergence="raise")], max_epochs=3)


@pytest.mark.slow
def test_an_autoencoder_is_read_by_what_a_reader_finds(tmp_path: Path) -> None:
    """Its code has no noise, so that there is no bracket; unless that is said, a mean alone decides nothing."""
    readings = {}
    for deterministic in (True, False):
        callback = watch(latents=Latents("encoder", deterministic=deterministic), safety_margin=0.01)
        trainer(tmp_path, callbacks=[callback]).validate(UserVAE("mean"), plain_loader(600), verbose=False)
        assert callback.certificate is not None
        assert callback.certificate.information is None
        assert callback.certificate.fitted is not None
        assert callback.certificate.fitted.draw is None
        readings[deterministic] = callback.certificate.reading
    assert readings == {True: Reading.INFORMATIVE, False: Reading.UNDECIDED}


@pytest.mark.slow
def test_logged_values_are_float64_and_can_be_monitored(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, monitor="certificate/margin_lower", mode="max", filename="best")
    stopping = EarlyStopping("certificate/margin", mode="max", patience=5)
    callback = CertificateCallback()
    runner = trainer(tmp_path, max_epochs=2, enable_checkpointing=True, callbacks=[callback, checkpoint, stopping])
    runner.fit(small_vae(digits_teacher(), alignment_weight=20.0), datamodule=DigitsDataModule())
    assert runner.callback_metrics["certificate/margin"].dtype == torch.float64
    assert callback.certificate is not None
    assert float(runner.callback_metrics["certificate/margin"]) == callback.certificate.margin
    assert checkpoint.best_model_score is not None


@pytest.mark.slow
def test_full_alignment_is_certified_and_a_collapsed_code_is_not(tmp_path: Path) -> None:
    for weight, beta, status in ((200.0, 20.0, Status.CERTIFIED), (0.0, 40.0, Status.NOT_CERTIFIED)):
        callback = CertificateCallback()
        model = small_vae(digits_teacher(), alignment_weight=weight, beta=beta)
        trainer(tmp_path, max_epochs=12, callbacks=[callback]).fit(model, datamodule=DigitsDataModule())
        assert callback.certificate is not None
        assert callback.certificate.status is status, str(callback.certificate)


@pytest.mark.slow
def test_the_sanity_check_is_skipped(tmp_path: Path) -> None:
    callback = CertificateCallback(save_dir=tmp_path)
    fit(tmp_path, callback, epochs=2, num_sanity_val_steps=2)
    epochs = [item.provenance["epoch"] for item in read_history(tmp_path / "certificates_val.jsonl")]
    assert epochs == [0, 1]
    assert (tmp_path / "certificates_val.jsonl").read_text().count("schema") == 2


@pytest.mark.slow
def test_one_line_is_printed_when_the_status_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, CertificateCallback(), epochs=4)
    said = capsys.readouterr().out.splitlines()
    lines = [line for line in said if line.startswith("epoch")]
    assert 1 <= len(lines) <= 3
    answers = [line.split(" (")[0].split(": ")[1] for line in lines]
    assert all(one != other for one, other in pairwise(answers))
    assert "margin" in lines[0]
    assert sum(line.startswith("  To do: ") for line in said) >= len(lines)


@pytest.mark.slow
def test_after_the_first_epoch_of_several_the_advice_is_to_train_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for epochs in (1, 2):
        runner = trainer(tmp_path, max_epochs=epochs, callbacks=[CertificateCallback()])
        runner.fit(small_vae(digits_teacher()), datamodule=DigitsDataModule(subset=256))
        said = capsys.readouterr().out
        assert said.count("To do: train on, this is the first epoch") == epochs - 1, said


def noisy(variance: float) -> Certificate:
    """Of a code that is not aligned, in a Gaussian channel that leaves it less the nearer ``variance`` is to 1."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(500, 4, generator=generator, dtype=torch.float64) * (1 - variance) ** 0.5
    information = information_bracket(mean, torch.full_like(mean, variance).log())
    hard = nn.functional.one_hot(torch.arange(500) % 5, 5).double()
    return certify(0.9 * hard + 0.02, torch.zeros(500, 5), information=information)


@pytest.mark.parametrize(
    ("before", "now", "said"), [(None, 0.95, False), (0.95, 0.9, True), (0.9, 0.95, False), (0.99999, 0.9999, False)]
)
def test_where_the_code_carries_more_than_before_the_advice_is_to_train_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], before: float | None, now: float, said: bool
) -> None:
    """A collapsed code may carry more by chance."""
    watch, runner, certificate = CertificateCallback(digits_teacher(), "encoder"), trainer(tmp_path), noisy(now)
    runner.state.fn, model = TrainerFn.FITTING, UserVAE()
    model.trainer = runner
    watch._growing = grows(None if before is None else noisy(before), certificate)
    watch._say(runner, model, certificate, "epoch 1", "val")
    printed = capsys.readouterr().out
    assert "lower the KL weight" in printed
    assert ("train on, the code carries more" in printed) == said


@pytest.mark.slow
def test_state_survives_a_checkpoint_and_goes_on(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, filename="last", enable_version_counter=False)
    first = CertificateCallback(safety_margin=0.01)
    runner = trainer(tmp_path, max_epochs=3, enable_checkpointing=True, callbacks=[first, checkpoint])
    runner.fit(small_vae(digits_teacher(), alignment_weight=200.0), datamodule=DigitsDataModule())
    assert first.first_certified_epoch is not None
    second = CertificateCallback(safety_margin=0.01)
    runner = trainer(tmp_path, max_epochs=4, enable_checkpointing=True, callbacks=[second, checkpoint])
    model = small_vae(digits_teacher(), alignment_weight=200.0)
    runner.fit(model, datamodule=DigitsDataModule(), ckpt_path=tmp_path / "last.ckpt")
    assert second.first_certified_epoch == first.first_certified_epoch
    assert first.best_margin is not None
    assert second.best_margin is not None
    assert second.best_margin >= first.best_margin


@pytest.mark.slow
def test_trainer_test_writes_a_certificate_of_the_test_rows(tmp_path: Path) -> None:
    callback = CertificateCallback(save_dir=tmp_path)
    runner, model = fit(tmp_path, callback)
    results = runner.test(model, datamodule=DigitsDataModule(), verbose=False)
    certificate = Certificate.load(tmp_path / "certificate_test.json")
    assert certificate.margin == results[0]["test_certificate/margin"]
    assert certificate.provenance["stage"] == "test"


def test_validate_alone_works(tmp_path: Path) -> None:
    callback = CertificateCallback()
    trainer(tmp_path, callbacks=[callback]).validate(small_vae(digits_teacher()), DigitsDataModule(), verbose=False)
    assert callback.certificate is not None


@pytest.mark.parametrize("kind", ["mean", "pair", "distribution"])
def test_a_foreign_vae_is_measured_through_a_hook(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    model, callback = UserVAE(kind), CertificateCallback(teacher=digits_teacher(), latents="encoder")
    trainer(tmp_path, callbacks=[callback]).fit(model, plain_loader(), plain_loader())
    assert callback.certificate is not None
    assert callback.certificate.margin == pytest.approx(expected(model).margin, abs=1e-5)
    assert (callback.certificate.channel_margin is None) == (kind == "mean")
    assert not model.encoder._forward_hooks


def test_a_foreign_vae_is_measured_through_a_function(tmp_path: Path) -> None:
    def code(module: Any, batch: Any) -> Any:
        return module.encoder(batch[0].flatten(1))

    callback = CertificateCallback(teacher=digits_teacher(), latents=code, images=lambda batch: batch[0])
    trainer(tmp_path, callbacks=[callback]).fit(UserVAE(), plain_loader(), plain_loader())
    assert callback.certificate is not None
    assert callback.certificate.num_samples == 90


class CallsTwice(UserVAE):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.step(batch)
        self.step(batch)


def test_an_encoder_called_twice_in_a_step_is_not_guessed_at(tmp_path: Path) -> None:
    runner = trainer(tmp_path, callbacks=[CertificateCallback(digits_teacher(), "encoder")])
    with pytest.raises(ValueError, match="was called 2 times in one step"):
        runner.fit(CallsTwice(), plain_loader(), plain_loader())


@pytest.mark.slow
def test_validate_before_fit_leaves_tensors_that_can_be_trained_with(tmp_path: Path) -> None:
    model = small_vae(digits_teacher(), alignment_weight=1.0)
    runner = trainer(tmp_path, callbacks=[CertificateCallback()])
    runner.validate(model, DigitsDataModule(), verbose=False)
    before = [value.detach().clone() for value in model.encoder.parameters()]
    runner.fit(model, datamodule=DigitsDataModule())
    assert not any(map(torch.equal, before, model.encoder.parameters()))


def test_a_distribution_that_is_no_gaussian_gives_its_mean_only() -> None:
    mean, scale = torch.zeros(3, 2), torch.ones(3, 2)
    assert read_latents(Laplace(mean, scale)).rate is None
    assert read_latents(MultivariateNormal(mean, torch.eye(2))).rate is None
    gaussian = read_latents(Independent(Normal(mean, 2 * scale), 1))
    assert gaussian.rate is not None
    expected = kl_divergence(Normal(mean, 2 * scale), Normal(mean, scale)).sum(dim=1)
    assert torch.allclose(gaussian.rate, expected)


def test_hooks_are_removed_after_an_exception(tmp_path: Path) -> None:
    class Failing(UserVAE):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            raise RuntimeError("their own error")

    model = Failing()
    with pytest.raises(RuntimeError, match="their own error"):
        trainer(tmp_path, callbacks=[CertificateCallback(digits_teacher(), "encoder")]).fit(
            model, plain_loader(), plain_loader()
        )
    assert not model.encoder._forward_hooks


@pytest.mark.slow
def test_what_cannot_work_says_why(tmp_path: Path) -> None:
    def run(callback: CertificateCallback, model: LightningModule, *loaders: Any) -> None:
        trainer(tmp_path, callbacks=[callback]).fit(model, *(loaders or (plain_loader(), plain_loader())))

    with pytest.raises(ValueError, match="`teacher` must be a teacher or the path of its file"):
        run(CertificateCallback(), UserVAE())
    with pytest.raises(
        ValueError, match=r"`latents='encoder.bodi'` names no submodule. The nearest are \['encoder.body'"
    ):
        run(CertificateCallback(digits_teacher(), "encoder.bodi"), UserVAE())
    with pytest.raises(ValueError, match="without `latents` the module's step must return a dict"):
        run(CertificateCallback(digits_teacher()), UserVAE())
    with pytest.raises(TypeError, match="`latents` must give a mean tensor"):
        run(CertificateCallback(digits_teacher(), lambda module, batch: "code"), UserVAE())
    with pytest.raises(ValueError, match=r"`latents` must have shape \(B, latent_dim\)"):
        run(CertificateCallback(digits_teacher(), lambda module, batch: batch[0]), UserVAE())
    with pytest.raises(ValueError, match="`on_divergence` must be 'warn' or 'raise', got 'stop'"):
        CertificateCallback(on_divergence="stop")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`images='picture'` is not in the batch"):
        run(CertificateCallback(digits_teacher(), "encoder", images="picture"), UserVAE())
    with pytest.raises(ValueError, match="`latents` gave 3 rows for a batch of 32 inputs"):
        run(CertificateCallback(digits_teacher(), lambda module, batch: torch.zeros(3, 6)), UserVAE())
    model = UserVAE()
    model.unused = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="was not called during this step"):
        run(CertificateCallback(digits_teacher(), "unused"), model)
    with pytest.raises(ValueError, match="`latent_dim` must be at least num_components - 1 = 8, got 6"):
        run(CertificateCallback(digits_teacher(9), "encoder"), UserVAE())


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="`channel_samples` must be at least 0"):
        CertificateCallback(channel_samples=-1)
    with pytest.raises(ValueError, match="`confidence` must be between 0 and 1"):
        CertificateCallback(confidence=2)
    with pytest.raises(ValueError, match="`method` must be one of"):
        CertificateCallback(method="foo")


def test_images_in_another_range_are_refused(tmp_path: Path) -> None:
    images = torch.randn(40, 1, 8, 8)
    loader = DataLoader(TensorDataset(images, torch.zeros(40)), batch_size=20)
    with pytest.raises(ValueError, match=r"made for values in \[0, 1\]"):
        trainer(tmp_path, callbacks=[CertificateCallback(digits_teacher(), "encoder")]).fit(
            UserVAE(), plain_loader(), loader
        )


def test_a_history_cut_short_or_repeated_reads_as_measured_last(tmp_path: Path) -> None:
    path = tmp_path / "certificates_val.jsonl"
    probs = torch.full((4, 2), 0.5)
    for epoch, scale in ((0, 1.0), (1, 1.0), (1, 2.0)):
        certificate = certify(probs, scale * torch.eye(2).repeat(2, 1))
        certificate.provenance = {"epoch": epoch, "look": epoch + 1}
        append_history(path, certificate)
    path.write_text(path.read_text() + '\n{"schema": "certv')
    certificate.provenance = {"epoch": 2, "look": 3}
    append_history(path, certificate)
    history = read_history(path)
    assert len(history) == 3
    assert history[1].alignment_loss > history[0].alignment_loss


@pytest.mark.slow
def test_spent_looks_shrink_the_bound_and_are_kept_in_checkpoints(tmp_path: Path) -> None:
    """Look t has the error 6 alpha / (pi t)^2; a resumed run goes on counting."""
    checkpoint = ModelCheckpoint(tmp_path, filename="last", enable_version_counter=False)
    callback = CertificateCallback(spending=True, save_dir=tmp_path)
    runner = trainer(tmp_path, max_epochs=3, enable_checkpointing=True, callbacks=[callback, checkpoint])
    runner.fit(small_vae(digits_teacher(), alignment_weight=20.0), datamodule=DigitsDataModule())
    again = CertificateCallback(spending=True, save_dir=tmp_path)
    runner = trainer(tmp_path, max_epochs=5, enable_checkpointing=True, callbacks=[again, checkpoint])
    model = small_vae(digits_teacher(), alignment_weight=20.0)
    runner.fit(model, datamodule=DigitsDataModule(), ckpt_path=tmp_path / "last.ckpt")
    assert (callback.looks, again.looks) == (3, 5)
    history = read_history(tmp_path / "certificates_val.jsonl")
    assert [item.look for item in history] == [1, 2, 3, 4, 5]
    assert {item.confidence for item in history} == {0.95}


@pytest.mark.slow
def test_shares_of_all_looks_add_up_to_the_error() -> None:
    assert sum(spending(0.05, look) for look in range(1, 200_000)) == pytest.approx(0.05, rel=1e-4)
    with pytest.raises(ValueError, match="`look` must be at least 1"):
        spending(0.05, 0)


def test_the_bound_at_a_look_is_the_bound_at_its_share() -> None:
    teacher, look = torch.softmax(3 * torch.randn(200, 3, generator=torch.Generator().manual_seed(0)), dim=1), 7
    metric = CertificateMetric(3, CertificateSettings(look=look))
    metric.update(teacher, teacher.log())
    single = certify(teacher, teacher.log(), confidence=1 - spending(0.05, look))
    assert metric.compute().margin_lower == pytest.approx(single.margin_lower, abs=1e-12)
