"""The guard keeps a certificate without a hand-set weight, or answers when it is lost."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from certvae.callbacks import CertificateCallback, CertificateGuard, CertificateLostError, DualController
from certvae.datamodules import DigitsDataModule
from certvae.teachers import LabelTeacher
from tests.plain_vae import UserVAE, images, plain_loader
from tests.runs import digits_teacher, small_vae, trainer

pytestmark = pytest.mark.slow

TARGET = 0.4


def fit(folder: Path, guard: CertificateGuard, model: Any = None, epochs: int = 2, **arguments: Any) -> Any:
    model = model or small_vae(digits_teacher(), beta=20.0)
    runner = trainer(folder, max_epochs=epochs, callbacks=[guard, CertificateCallback(save_dir=folder)], **arguments)
    runner.fit(model, datamodule=DigitsDataModule(batch_size=32))
    return model


def collapsed(folder: Path) -> Any:
    """A model with the weights of a collapsed one's checkpoint."""
    certificate = CertificateCallback()
    runner = trainer(folder, max_epochs=4, callbacks=[certificate])
    runner.fit(small_vae(digits_teacher(), beta=20.0), datamodule=DigitsDataModule(batch_size=32))
    assert certificate.certificate is not None
    assert not certificate.certificate.certified
    runner.save_checkpoint(folder / "collapsed.ckpt")
    return small_vae(digits_teacher(), beta=20.0, init_weights_from=folder / "collapsed.ckpt")


def test_a_collapsed_model_is_rescued_and_kept_by_the_guard_alone(tmp_path: Path) -> None:
    guard = CertificateGuard(TARGET, path="mean")
    fit(tmp_path, guard, collapsed(tmp_path), epochs=16)
    watched = guard._watched
    assert isinstance(watched, CertificateCallback)
    assert watched.certificate is not None
    assert TARGET <= watched.certificate.margin_lower <= TARGET + 0.15, str(watched.certificate)
    assert guard.reached


class WithAdam(UserVAE):
    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def test_a_foreign_module_is_guarded_through_its_certificate(tmp_path: Path) -> None:
    certificate, guard = CertificateCallback(digits_teacher(), "encoder"), CertificateGuard(0.2, path="mean")
    model = WithAdam()
    trainer(tmp_path, max_epochs=60, callbacks=[certificate, guard]).fit(model, plain_loader(), plain_loader())
    assert certificate.certificate is not None
    assert certificate.certificate.margin_lower > 0.15
    assert "training_step" not in vars(model)


def guarded(folder: Path, path: Any, epochs: int, resume: Path | None = None) -> tuple[CertificateGuard, Any]:
    """A run that keeps its last checkpoint; everything in it is deterministic."""
    torch.manual_seed(0)
    saving = ModelCheckpoint(folder, filename="last", enable_version_counter=False)
    guard, model = CertificateGuard(0.1, path=path), WithAdam()
    callbacks = [CertificateCallback(digits_teacher(), "encoder"), guard, saving]
    runner = trainer(folder, max_epochs=epochs, enable_checkpointing=True, callbacks=callbacks)
    runner.fit(model, plain_loader(), plain_loader(), ckpt_path=resume)
    return guard, model


@pytest.mark.parametrize("path", ["mean", "draw"])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(tmp_path: Path, path: str) -> None:
    """Weight, average, distance to the bound and what was reached: to the last bit, and so are the model's weights."""
    guarded(tmp_path, path, 15)
    resumed, model = guarded(tmp_path, path, 20, tmp_path / "last.ckpt")
    straight, same = guarded(tmp_path / "new", path, 20)
    seen, expected = resumed.state_dict(), straight.state_dict()
    assert torch.equal(seen.pop("average"), expected.pop("average"))
    assert seen == expected
    assert expected["gap"] > 0
    assert expected["reached"]
    assert resumed.weight_now == straight.weight_now
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in model.state_dict().items())


class Drawing(WithAdam):
    """Decodes a draw, and pays for its rate."""

    def step(self, batch: Any) -> Any:
        images = self.images(batch)
        mean, log_variance = self.encoder(images)
        code = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        rate = (mean**2 + log_variance.exp() - log_variance - 1).sum(dim=1) / 2
        return (10 * (self.decoder(code) - images) ** 2).sum(dim=1).mean() + 60 * rate.mean()


def test_by_default_the_guard_holds_what_the_decoder_receives(tmp_path: Path) -> None:
    """Held by its mean, a collapsing model is certified at a rate near 0, and its draws show nothing."""
    found = {}
    for path in ("mean", "draw"):
        torch.manual_seed(0)
        certificate = CertificateCallback(digits_teacher(), "encoder")
        guard = CertificateGuard(0.2, path="mean") if path == "mean" else CertificateGuard(0.2)
        callbacks = [certificate, guard]
        runner = trainer(tmp_path, max_epochs=60, check_val_every_n_epoch=20, callbacks=callbacks)
        runner.fit(Drawing(), plain_loader(500), plain_loader(500))
        assert certificate.certificate is not None
        found[path] = certificate.certificate
    assert found["mean"].margin_lower > 0.15
    assert found["mean"].channel_margin is not None
    assert found["mean"].channel_margin < 0
    assert found["draw"].channel_margin_lower is not None
    assert found["draw"].channel_margin_lower > 0.15
    assert found["draw"].rate is not None
    assert found["draw"].rate > 0.2


class Bounds(Callback):
    """Keeps the channel margin's bound of each validation."""

    def __init__(self, watched: CertificateCallback) -> None:
        self.watched, self.seen = watched, list[float]()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        assert self.watched.certificate is not None
        assert self.watched.certificate.channel_margin_lower is not None
        self.seen.append(self.watched.certificate.channel_margin_lower)


def test_the_bound_settles_at_the_target_and_does_not_swing(tmp_path: Path) -> None:
    """Against a KL weight of 60 the channel opens and closes within an epoch, faster than averages follow."""
    certificate = CertificateCallback()
    bounds = Bounds(certificate)
    callbacks = [certificate, CertificateGuard(0.25), bounds]
    runner = trainer(tmp_path, max_epochs=40, callbacks=callbacks)
    runner.fit(small_vae(digits_teacher(), beta=60.0), datamodule=DigitsDataModule(batch_size=32))
    assert all(0.15 < bound < 0.5 for bound in bounds.seen[-10:]), bounds.seen


def test_a_code_without_a_log_variance_is_refused_with_the_cure(tmp_path: Path) -> None:
    for answer in ("rescue", "warn"):
        callbacks = [CertificateCallback(digits_teacher(), "encoder"), CertificateGuard(0.2, answer)]
        with pytest.raises(ValueError, match="needs the posterior's log-variance.*'encoder:mu,logvar'.*path='mean'"):
            trainer(tmp_path, callbacks=callbacks).fit(UserVAE("mean"), plain_loader(), plain_loader())
    callbacks = [CertificateCallback(digits_teacher(), "encoder", channel_samples=0), CertificateGuard(0.2)]
    with pytest.raises(ValueError, match=r"does not measure with `channel_samples=0`.*path='mean'"):
        trainer(tmp_path, callbacks=callbacks).fit(UserVAE(), plain_loader(), plain_loader())


class Wide(WithAdam):
    """Large enough to learn labels of pure noise by heart."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder.body = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 12))  # type: ignore[assignment]


@pytest.mark.parametrize("path", ["mean", "draw"])
def test_a_target_that_does_not_generalize_does_not_run_away(tmp_path: Path, path: Any) -> None:
    """Labels without a pattern: the margin rises on training rows only. Once, the weight went up to its bound."""
    labels = torch.randint(0, 4, (400,), generator=torch.Generator().manual_seed(0))
    train, val = (
        DataLoader(TensorDataset(images(400)[part], labels[part]), 32) for part in (slice(128), slice(128, 400))
    )
    certificate = CertificateCallback(LabelTeacher(4).measure(train, images=1), "encoder", images=1)
    torch.manual_seed(0)
    guard = CertificateGuard(0.4, path=path)
    run = trainer(tmp_path, max_epochs=40, callbacks=[certificate, guard])
    with pytest.warns(UserWarning, match="the guard stops raising its weight: the target of 0.4 nats") as caught:
        run.fit(Wide(), train, val)
    assert len([item for item in caught if "stops raising" in str(item.message)]) == 1
    assert guard.weight_now < 20
    assert guard.state_dict()["given_up"]


def reached(on_loss: Any) -> CertificateGuard:
    """A guard that has seen the target reached in an earlier part of the run."""
    guard = CertificateGuard(TARGET, on_loss, path="mean")
    guard.load_state_dict({**guard.state_dict(), "reached": True})
    return guard


def test_a_lost_certificate_is_answered(tmp_path: Path) -> None:
    with pytest.raises(
        CertificateLostError, match="epoch 0: the margin's lower bound, .* below the guard's target of 0.4"
    ):
        fit(tmp_path, reached("raise"))
    with pytest.warns(UserWarning, match="below the guard's target"):
        fit(tmp_path, reached("warn"), epochs=1)
    runner = trainer(tmp_path, max_epochs=5, callbacks=[reached("stop"), CertificateCallback()])
    runner.fit(small_vae(digits_teacher(), beta=20.0), datamodule=DigitsDataModule())
    assert runner.current_epoch == 1


def test_other_answers_than_rescue_leave_training_alone(tmp_path: Path) -> None:
    left = fit(tmp_path, CertificateGuard(TARGET, "warn")).state_dict()
    model = small_vae(digits_teacher(), beta=20.0)
    trainer(tmp_path, max_epochs=2).fit(model, datamodule=DigitsDataModule(batch_size=32))
    assert all((value == left[name]).all() for name, value in model.state_dict().items())


class Controlled:
    """A controller with its state, in plain numbers."""

    def __init__(self, controller: DualController) -> None:
        self.law, self._log_weight = controller, torch.tensor(controller.log_weight, dtype=torch.float64)

    def step(self, deficit: float) -> float:
        self._log_weight, weight = self.law.step(self._log_weight, torch.tensor(deficit, dtype=torch.float64))
        return float(weight)

    @property
    def log_weight(self) -> float:
        return float(self._log_weight)

    @property
    def weight(self) -> float:
        """The weight while nothing is missing."""
        return math.exp(self.log_weight)


def test_the_controller_meets_a_constraint_at_the_least_weight_and_does_not_wind_up() -> None:
    """A quantity that saturates with the weight, ``w / (w + 50)``, is held at 0.5 by the weight 50."""
    controller = Controlled(DualController(high=1e3))
    for _ in range(2000):  # unreachable: the weight waits at its bound
        controller.step(1.0)
    assert math.exp(controller.log_weight) == pytest.approx(1e3)
    weight, seen = controller.weight, []
    for _ in range(1500):
        weight = controller.step((0.5 - weight / (weight + 50)) / 0.5)
        seen.append(weight)
    assert seen[-1] == pytest.approx(50, rel=0.01)
    assert next(step for step, value in enumerate(seen) if value < 100) < 200


@pytest.mark.parametrize(("side", "bound"), [(1.0, 1e3), (-1.0, 1e-2)])
def test_the_weight_leaves_its_bound_at_the_first_step_that_asks_for_it(side: float, bound: float) -> None:
    controller = Controlled(DualController(low=1e-2, high=1e3))
    for _ in range(10_000):
        controller.step(side)
    assert controller.step(side) == pytest.approx(bound)
    for deficit in (1e-3, 0.1, 1.0):
        one = Controlled(DualController(low=1e-2, high=1e3, log_weight=controller.log_weight))
        change = (one.law.rate + one.law.damping) * deficit
        assert one.step(-side * deficit) == pytest.approx(bound * math.exp(-side * change), rel=1e-12)


@given(st.lists(st.floats(allow_nan=False), max_size=50), st.floats(1e-6, 1.0), st.floats(0.0, 100.0))
def test_the_weight_stays_in_its_bounds_whatever_the_deficits(
    deficits: list[float], rate: float, damping: float
) -> None:
    controller = Controlled(DualController(rate, damping, low=0.5, high=20.0))
    for deficit in deficits:
        assert 0.5 * (1 - 1e-12) <= controller.step(deficit) <= 20 * (1 + 1e-12)
        assert 0.5 * (1 - 1e-12) <= controller.weight <= 20 * (1 + 1e-12)


def test_a_deficit_that_is_not_known_counts_as_a_whole_one() -> None:
    unknown, whole = Controlled(DualController()), Controlled(DualController())
    assert unknown.step(math.nan) == whole.step(1.0)
    assert unknown.log_weight == whole.log_weight


def test_the_advice_of_a_guarded_run_is_not_to_add_a_guard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers: tuple[tuple[Any, str], ...] = (
        ("rescue", "the run's guard is at work"),
        ("warn", "CertificateGuard(target="),
    )
    for answer, said in answers:
        fit(tmp_path / answer, CertificateGuard(0.3, on_loss=answer), epochs=1)
        advice = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  To do: ")]
        assert said in advice[0]


def test_what_cannot_work_says_why(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a CertificateCallback with name='certificate' .* got none"):
        trainer(tmp_path, callbacks=[CertificateGuard(0.1)]).fit(UserVAE(), plain_loader(), plain_loader())
    with pytest.raises(ValueError, match="`target` must be below 0.6.* nats, the teacher information of 0.6"):
        fit(tmp_path, CertificateGuard(0.65))
    with pytest.raises(ValueError, match="`target` must be above 0"):
        CertificateGuard(0.0)
    with pytest.raises(ValueError, match="`on_loss` must be one of rescue, stop, warn, raise, got 'sing'"):
        CertificateGuard(0.1, "sing")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`headroom` must be at least 0"):
        CertificateGuard(0.1, headroom=-1)
    for faulty in ({"rate": 0}, {"damping": -1}, {"low": 2, "high": 1}):
        with pytest.raises(ValueError, match="must be"):
            DualController(**faulty)
