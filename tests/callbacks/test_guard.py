"""The guard keeps a certificate without a hand-set weight, or answers when it is lost."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from certvae.callbacks import CertificateCallback, CertificateGuard, CertificateLostError, DualController
from certvae.datamodules import DigitsDataModule
from tests.foreign import ForeignVAE, plain_loader
from tests.runs import digits_teacher, small_vae, trainer

TARGET = 0.4


def fit(folder: Path, guard: CertificateGuard, model: Any = None, epochs: int = 2, **arguments: Any) -> Any:
    model = model or small_vae(digits_teacher(), beta=20.0)
    runner = trainer(folder, max_epochs=epochs, callbacks=[guard, CertificateCallback(save_dir=folder)], **arguments)
    runner.fit(model, datamodule=DigitsDataModule(batch_size=32))
    return model


def collapsed(folder: Path) -> Any:
    model, certificate = small_vae(digits_teacher(), beta=20.0), CertificateCallback()
    trainer(folder, max_epochs=4, callbacks=[certificate]).fit(model, datamodule=DigitsDataModule(batch_size=32))
    assert certificate.certificate is not None
    assert not certificate.certificate.certified
    return model


def test_a_collapsed_model_is_rescued_and_kept_by_the_guard_alone(tmp_path: Path) -> None:
    guard = CertificateGuard(TARGET)
    fit(tmp_path, guard, collapsed(tmp_path), epochs=16)
    watched = guard._watched
    assert watched is not None
    assert watched.certificate is not None
    assert TARGET <= watched.certificate.margin_lower <= TARGET + 0.15, str(watched.certificate)
    assert guard.reached


class WithAdam(ForeignVAE):
    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def test_a_foreign_module_is_guarded_through_its_certificate(tmp_path: Path) -> None:
    certificate, guard = CertificateCallback(digits_teacher(), "encoder"), CertificateGuard(0.2)
    model = WithAdam()
    trainer(tmp_path, max_epochs=60, callbacks=[certificate, guard]).fit(model, plain_loader(), plain_loader())
    assert certificate.certificate is not None
    assert certificate.certificate.margin_lower > 0.15
    assert "training_step" not in vars(model)


def test_the_state_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path, filename="last", enable_version_counter=False)
    first, second = CertificateGuard(TARGET), CertificateGuard(TARGET)
    for guard, epochs, path in ((first, 3, None), (second, 3, tmp_path / "last.ckpt")):
        callbacks = [CertificateCallback(), guard, saving]
        runner = trainer(tmp_path, max_epochs=epochs, enable_checkpointing=True, callbacks=callbacks)
        model = small_vae(digits_teacher(), beta=20.0)
        runner.fit(model, datamodule=DigitsDataModule(batch_size=32), ckpt_path=path)
    assert second.controller.log_weight == pytest.approx(first.controller.log_weight, abs=1e-12)
    assert second.state_dict()["reached"] == first.state_dict()["reached"]


def reached(on_loss: Any) -> CertificateGuard:
    """A guard that has seen the target reached in an earlier part of the run."""
    guard = CertificateGuard(TARGET, on_loss)
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


def test_the_controller_meets_a_constraint_at_the_least_weight_and_does_not_wind_up() -> None:
    """A quantity that saturates with the weight, ``w / (w + 50)``, is held at 0.5 by the weight 50."""
    controller = DualController(high=1e3)
    for _ in range(2000):  # unreachable: the weight waits at its bound
        controller.step(1.0)
    assert math.exp(controller.log_weight) == pytest.approx(1e3)
    weight, seen = controller.weight, []
    for _ in range(1500):
        weight = controller.step((0.5 - weight / (weight + 50)) / 0.5)
        seen.append(weight)
    assert seen[-1] == pytest.approx(50, rel=0.01)
    assert next(step for step, value in enumerate(seen) if value < 100) < 200


def test_what_cannot_work_says_why(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a CertificateCallback with name='certificate' .* got none"):
        trainer(tmp_path, callbacks=[CertificateGuard(0.1)]).fit(ForeignVAE(), plain_loader(), plain_loader())
    with pytest.raises(ValueError, match="`target` must be below the teacher information, 0.6"):
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
