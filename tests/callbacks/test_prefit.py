"""The mean code is fitted to the closed form before training, which then starts as it would without."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from certvae.callbacks import AlignmentCallback, CertificateGuard, PrefitCallback
from tests.plain_vae import ManualVAE, UserVAE, plain_loader, watch
from tests.runs import digits_teacher, trainer

pytestmark = pytest.mark.slow

TEACHER = digits_teacher()


class Normed(UserVAE):
    """Counts its steps, draws numbers and has a batch norm; ``rate`` 0 keeps what the fit left."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.learning_rate, self.steps, self.front = rate, 0, nn.BatchNorm1d(64)

    def images(self, batch: Any) -> Tensor:
        return self.front(batch[0].flatten(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.steps += 1
        self.drawn = torch.rand(1)
        self.log("own", 1.0)
        return self.step(batch)


def fit(folder: Path, model: Any, *callbacks: Any, resume: Path | None = None, **options: Any) -> Any:
    torch.manual_seed(0)
    runner = trainer(folder, callbacks=list(callbacks), **options)
    runner.fit(model, plain_loader(shuffle=True), plain_loader(), ckpt_path=resume)
    return runner


def prefit(**arguments: Any) -> PrefitCallback:
    return PrefitCallback(TEACHER, "encoder", **{"epochs": 40, "learning_rate": 0.05, **arguments})


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_the_code_is_on_the_path_and_the_margin_is_that_of_its_point(tmp_path: Path, alpha: float) -> None:
    """The fit is linear here and cannot be exact: it must come near the best linear one."""
    callback, model = prefit(alpha=alpha), UserVAE()
    model.learning_rate = 0.0
    runner = fit(tmp_path, model, callback)
    images = torch.cat([batch[0] for batch in plain_loader()])
    target = alpha * TEACHER.witness(6).inverse(TEACHER(images))[:, :4]
    inputs = torch.cat([images.flatten(1), torch.ones(90, 1)], dim=1).double()
    best = inputs @ torch.linalg.lstsq(inputs, target, driver="gelsd").solution
    found = model.encoder.body(images.flatten(1))[:, :4].double()
    spread = (target - target.mean(dim=0)).square().sum()
    assert (found - best).square().sum() < 0.1 * spread
    assert callback.margin_before is not None
    assert callback.margin_after is not None
    assert callback.margin_after > max(callback.margin_before, 0.0)
    assert callback.epochs_run == 40
    assert float(runner.callback_metrics["prefit/margin_after"]) == pytest.approx(callback.margin_after)


def test_it_ends_at_its_margin_and_a_smaller_alpha_has_a_smaller_one(tmp_path: Path) -> None:
    early, low = prefit(until_margin=0.1), prefit(alpha=0.1)
    fit(tmp_path, UserVAE(), early)
    fit(tmp_path, UserVAE(), low)
    assert early.epochs_run < 40
    assert early.margin_after is not None
    assert low.margin_after is not None
    assert early.margin_after > low.margin_after > 0


def test_the_run_starts_as_it_would_without_but_for_the_codes_weights(tmp_path: Path) -> None:
    plain, fitted = Normed(), Normed()
    plain.load_state_dict(fitted.state_dict())
    start = {name: value.clone() for name, value in fitted.state_dict().items()}
    before = fit(tmp_path, plain)
    after = fit(tmp_path, fitted, prefit(epochs=2))
    assert (fitted.steps, fitted.drawn) == (plain.steps, plain.drawn)
    assert (before.global_step, before.current_epoch) == (after.global_step, after.current_epoch)
    assert before.optimizers[0].state_dict() == after.optimizers[0].state_dict()
    changed = {name for name, value in fitted.state_dict().items() if not torch.equal(value, start[name])}
    assert {"encoder.body.weight", "encoder.body.bias", "front.running_mean"} <= changed
    assert not any(name.startswith("decoder") for name in changed)
    assert torch.equal(fitted.encoder.body.bias[6:], start["encoder.body.bias"][6:]), "the log-variance is left alone"


def test_terms_that_other_callbacks_add_are_left_out_and_a_guard_does_not_learn_from_it(tmp_path: Path) -> None:
    guard = CertificateGuard(0.3, path="mean")
    weights = []
    for callbacks in ([], [prefit(epochs=3, learning_rate=1e-9)]):
        guard = CertificateGuard(0.3, path="mean")
        fit(tmp_path, UserVAE(), watch(), AlignmentCallback(TEACHER, "encoder"), guard, *callbacks)
        weights.append(guard.weight_now)
    assert weights[0] == pytest.approx(weights[1], rel=1e-3)


def test_a_resumed_run_is_not_fitted_again(tmp_path: Path) -> None:
    path, first, second = tmp_path / "run.ckpt", prefit(epochs=2), prefit(epochs=2)
    fit(tmp_path, UserVAE(), first).save_checkpoint(path)
    fit(tmp_path, UserVAE(), second, resume=path, max_epochs=2)
    assert (second.margin_after, second.epochs_run) == (first.margin_after, 2)


def test_bad_arguments_and_modules_are_refused(tmp_path: Path) -> None:
    for alpha in (0.0, 1.5):
        with pytest.raises(ValueError, match="`alpha` must be above 0 and at most 1"):
            prefit(alpha=alpha)
    with pytest.raises(ValueError, match="`epochs` must be at least 1, got 0"):
        prefit(epochs=0)
    with pytest.raises(ValueError, match="`learning_rate` must be above 0"):
        prefit(learning_rate=0.0)
    with pytest.raises(ValueError, match="sets `automatic_optimization = False`: its `training_step`"):
        fit(tmp_path, ManualVAE(), prefit())
    runner = trainer(tmp_path, callbacks=[prefit()])
    with pytest.raises(ValueError, match="PrefitCallback reads one training dataloader, got several"):
        runner.fit(UserVAE(), [plain_loader(), plain_loader()], plain_loader())
