"""Being watched changes nothing: weights, optimizer, random streams and metrics are the same bits without it."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from torch import Tensor, nn

from certvae.callbacks import CertificateCallback, CollapseDiagnostics, InformationCallback
from certvae.datamodules import DigitsDataModule
from tests.plain_vae import UserVAE, fit, measured, plain_loader, watch
from tests.runs import digits_teacher, small_vae, trainer

pytestmark = pytest.mark.slow


class NoisyVAE(UserVAE):
    """Dropout and batch norm; draws its latents in training, in validation and in test."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Dropout(0.3))
        self.witness = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3), nn.Linear(8, 5))

    def step(self, batch: Any) -> Tensor:
        images = self.images(batch)
        mean, log_variance = self.encoder(self.front(images))
        latents = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        return ((self.decoder(latents) - images) ** 2).mean() + self.witness(mean).pow(2).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def streams() -> list[Any]:
    """The next number of each global random stream."""
    return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]  # type: ignore[index]  # noqa: NPY002


def plain(state: Any) -> Any:
    """A nested state with lists for tensors, so that ``==`` compares its bits."""
    if isinstance(state, Tensor):
        return state.tolist()
    if isinstance(state, dict):
        return {key: plain(value) for key, value in state.items()}
    return [plain(value) for value in state] if isinstance(state, list | tuple) else state


def run(folder: Path, callbacks: list[Any], workers: int = 0, **arguments: Any) -> dict[str, Any]:
    """Everything that a run leaves, less what is about certificates."""
    torch.manual_seed(0), random.seed(0), np.random.seed(0)  # noqa: NPY002
    model = NoisyVAE()
    runner = trainer(folder, callbacks=callbacks, **{"max_epochs": 2, **arguments})
    train_loader = plain_loader(batch_size=20, shuffle=True, num_workers=workers)
    val_loader = plain_loader(num_workers=workers)
    runner.fit(model, train_loader, val_loader)
    metrics = {name: float(value) for name, value in runner.callback_metrics.items() if "certificate" not in name}
    assert metrics
    (evaluated,) = runner.validate(model, val_loader, verbose=False)
    return {
        "weights": plain(model.state_dict()),
        "optimizer": plain(runner.optimizers[0].state_dict()),
        "gradients": [plain(value.grad) for value in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "metrics": metrics,
        "validated": evaluated["val_loss"],
        "streams": streams(),
        "epoch": (runner.current_epoch, runner.global_step),
    }


AVERAGING: dict[Any, Any] = {
    None: list,
    "exponential": lambda: [EMAWeightAveraging(decay=0.9)],
    "stochastic": lambda: [StochasticWeightAveraging(0.01, 1)],
}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"workers": 2},
        {"accumulate_grad_batches": 3},
        {"num_sanity_val_steps": 2},
        {"val_check_interval": 0.4},
        {"check_val_every_n_epoch": 2},
        {"precision": "bf16-mixed"},
        {"inference_mode": False},
        {"gradient_clip_val": 0.1},
        {"averaging": "exponential"},
        {"averaging": "stochastic"},
    ],
    ids=str,
)
def test_a_run_is_the_same_bits_with_and_without_it(tmp_path: Path, options: dict[str, Any]) -> None:
    found = []
    for channel_samples in (None, 3):
        rest = dict(options)
        callbacks: list[Any] = AVERAGING[rest.pop("averaging", None)]()
        if channel_samples is not None:
            callbacks.insert(0, watch(channel_samples=channel_samples, save_dir=tmp_path))
        found.append(run(tmp_path, callbacks, **rest))
    for name, value in found[0].items():
        assert found[1][name] == value, name


def test_functions_of_the_user_may_draw_numbers(tmp_path: Path) -> None:
    """As a VAE's forward does, and a witness that keeps its dropout on; the latter is found to be no sound witness."""

    def code(module: Any, batch: Any) -> Any:
        random.random(), np.random.rand()  # noqa: NPY002
        module.step(batch)
        return module.encoder(module.front(module.images(batch)))

    class Drops(nn.Module):
        def forward(self, codes: Tensor) -> Tensor:
            return nn.functional.dropout(codes[:, :5], 0.5, training=True)

    callback = watch(latents=code, witness=Drops(), images=lambda batch: batch[0] + 0 * torch.rand(1))
    alone, watched = run(tmp_path, []), run(tmp_path, [callback])
    assert alone == watched
    assert any("repeatable" in finding for finding in measured(callback).leaks)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize(
    ("watcher", "key"),
    [(CollapseDiagnostics, "diagnostics/mutual_information"), (InformationCallback, "information/lower")],
)
def test_no_other_callback_that_watches_changes_a_bit(tmp_path: Path, watcher: Any, key: str, precision: str) -> None:
    def code(module: Any, batch: Any) -> Any:
        torch.rand(1), np.random.rand()  # noqa: NPY002
        return module.encoder(module.front(module.images(batch)))

    found = []
    for callbacks in ([], [watcher("encoder")], [watcher(code)]):
        np.random.seed(0)  # noqa: NPY002
        runner, model = fit(tmp_path, callbacks, NoisyVAE, precision=precision, max_epochs=2)
        found.append([plain(model.state_dict()), plain(runner.optimizers[0].state_dict()), streams()])
        logged = [name for name in runner.callback_metrics if name.startswith(key.partition("/")[0])]
        assert (key in logged) == bool(logged) == bool(callbacks)
    assert found[0] == found[1] == found[2]


def test_several_certificates_and_our_own_vae_too(tmp_path: Path) -> None:
    """Whose validation step draws latents, and whose alignment uses the same teacher object as the callbacks."""
    found = []
    for watched in (False, True):
        teacher = digits_teacher()
        model = small_vae(teacher, alignment_weight=20.0, alignment_path="sample")
        callbacks = [
            CertificateCallback(channel_samples=4, save_dir=tmp_path),
            CertificateCallback(teacher, channel_samples=2, name="again", seed=1),
            CertificateCallback(digits_teacher(3), name="three", method="bernstein", spending=True),
        ]
        runner = trainer(tmp_path, max_epochs=3, callbacks=callbacks if watched else [])
        runner.fit(model, datamodule=DigitsDataModule(subset=300))
        metrics = {name: float(runner.callback_metrics[name]) for name in ("val/loss", "val/rate", "train/loss")}
        found.append((plain(model.state_dict()), plain(runner.optimizers[0].state_dict()), metrics, streams()))
    assert found[0] == found[1]
