"""A probe reads the code, certifies nothing, and leaves the run as it is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn

from certvae import certify
from certvae.callbacks import CertificateCallback, Latents, ProbeCallback
from certvae.datamodules import DigitsDataModule
from tests.callbacks.test_unchanged_runs import NoisyVAE, plain, streams
from tests.plain_vae import ManualVAE, UserVAE, plain_loader, watch
from tests.runs import digits_teacher, small_vae, trainer

pytestmark = pytest.mark.slow


def run(folder: Path, model: Any, *callbacks: Any, epochs: int = 2, **arguments: Any) -> Any:
    """Train on the digits, with the certificate first."""
    runner = trainer(
        folder, max_epochs=epochs, callbacks=[CertificateCallback(method="normal"), *callbacks], **arguments
    )
    runner.fit(model, datamodule=DigitsDataModule(batch_size=32))
    return runner


def test_a_vae_that_reconstructs_and_is_not_aligned_is_informative_without_a_certificate(tmp_path: Path) -> None:
    probe = ProbeCallback()
    runner = run(tmp_path, small_vae(digits_teacher(), beta=0.1, learning_rate=5e-3), probe, epochs=4)
    metrics = runner.callback_metrics
    assert metrics["certificate/margin"] <= 0
    assert metrics["certificate/certified"] == 0
    assert metrics["probe/margin_lower"] > 0.4
    assert metrics["probe/margin"] < metrics["certificate/teacher_information"]


class ConstantCode(UserVAE):
    def step(self, batch: Any) -> Tensor:
        mean = self.encoder(torch.ones_like(self.images(batch)))[0]
        return (self.decoder(mean) - self.images(batch)).pow(2).mean()


def fit(folder: Path, model: Any, *callbacks: Any, **arguments: Any) -> Any:
    options: dict[str, Any] = {"max_epochs": 3, **arguments}
    runner = trainer(folder, callbacks=list(callbacks), **options)
    runner.fit(model, plain_loader(batch_size=20), plain_loader())
    return runner


def test_a_constant_code_has_no_probe_margin(tmp_path: Path) -> None:
    probe = ProbeCallback()
    fit(tmp_path, ConstantCode(), probe, watch(), max_epochs=8)
    assert -0.05 < probe.figures["margin"] <= 1e-9
    assert probe.figures["margin_lower"] <= 1e-9


class Skips(UserVAE):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.step(batch)
        return {"loss": loss} if batch_idx % 2 else None


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
@pytest.mark.parametrize(
    ("kind", "latents", "arguments", "steps"),
    [
        (UserVAE, "encoder", {}, 15),
        (UserVAE, "encoder", {"accumulate_grad_batches": 2}, 15),
        (UserVAE, "encoder", {"precision": "bf16-mixed"}, 15),
        (UserVAE, "encoder", {"precision": "64-true"}, 15),
        (UserVAE, "encoder", {"num_sanity_val_steps": 2, "val_check_interval": 1, "max_epochs": 1}, 5),
        (UserVAE, "encoder.body:chunk", {}, 15),
        (UserVAE, Latents("encoder", calls="first"), {}, 15),
        (UserVAE, lambda module, batch: module.encoder(module.images(batch)), {}, 15),
        (ManualVAE, "encoder", {}, 15),
        (Skips, "encoder", {}, 6),
    ],
)
def test_a_foreign_module_is_probed_batch_by_batch_and_scored_on_validation_rows(
    tmp_path: Path, kind: Any, latents: Any, arguments: dict[str, Any], steps: int
) -> None:
    """Against the one-shot certificate of the probe's logits, and one step for each training batch."""
    torch.manual_seed(0)
    probe, model = ProbeCallback(), kind()
    images = (lambda batch: batch[0].double()) if "64" in str(arguments) else 0
    if "64" in str(arguments):
        model.images = lambda batch: batch[0].flatten(1).double()
    runner = fit(tmp_path, model, watch(latents=latents, images=images), probe, **{"max_epochs": 3, **arguments})
    assert probe._probe.steps == steps
    (inputs,) = (torch.cat(column) for column in zip(*((batch[0],) for batch in plain_loader()), strict=True))
    with torch.no_grad():
        codes = model.encoder.body(model.images([inputs]))[:, :6].detach()
        expected = certify(digits_teacher()(inputs), probe._probe(codes), teacher_floor=0.01)
    tolerance = 0.02 if "bf16" in str(arguments) else 1e-6
    for name in ("alignment_loss", "margin", "margin_lower"):
        assert float(runner.callback_metrics[f"probe/{name}"]) == pytest.approx(getattr(expected, name), abs=tolerance)
        assert runner.callback_metrics[f"probe/{name}"].dtype == torch.float64


@pytest.mark.parametrize("options", [{}, {"precision": "bf16-mixed"}, {"accumulate_grad_batches": 3}], ids=str)
@pytest.mark.parametrize("latents", ["encoder", "function"])
def test_a_run_is_the_same_bits_with_and_without_it(tmp_path: Path, options: dict[str, Any], latents: str) -> None:
    """Weights, statistics of the batch norm, optimizer, modes and every random stream."""

    def code(module: Any, batch: Any) -> Any:
        torch.rand(1), np.random.rand()  # noqa: NPY002
        return module.encoder(module.front(module.images(batch)))

    found = []
    for probes in ([], [ProbeCallback()]):
        torch.manual_seed(0), np.random.seed(0)  # noqa: NPY002
        model = NoisyVAE()
        watched = watch(latents=code if latents == "function" else latents, channel_samples=0)
        runner = trainer(tmp_path, max_epochs=2, callbacks=[*probes, watched], **options)
        runner.fit(model, plain_loader(batch_size=20, shuffle=True), plain_loader())
        assert ("probe/margin" in runner.callback_metrics) == bool(probes)
        modes = [part.training for part in model.modules()]
        gradients = [plain(value.grad) for value in model.parameters()]
        optimizer = plain(runner.optimizers[0].state_dict())
        found.append([plain(model.state_dict()), gradients, optimizer, modes, streams()])
    assert found[0] == found[1]


def saved(folder: Path, epochs: int, resume: bool = False) -> ProbeCallback:
    """A run without random numbers whose last checkpoint stays in the folder."""
    torch.manual_seed(0)
    probe, saving = ProbeCallback(), ModelCheckpoint(folder, "last", enable_version_counter=False)
    options = {"max_epochs": epochs, "enable_checkpointing": True, "callbacks": [probe, watch(), saving]}
    path = folder / "last.ckpt" if resume else None
    trainer(folder, **options).fit(UserVAE(), plain_loader(batch_size=20), plain_loader(), ckpt_path=path)
    return probe


def test_a_resumed_run_goes_on_bit_for_bit_and_the_module_keeps_its_checkpoint_keys(tmp_path: Path) -> None:
    straight = saved(tmp_path, 3)
    saved(tmp_path, 1)
    resumed = saved(tmp_path, 3, resume=True)
    assert plain(resumed.state_dict()) == plain(straight.state_dict())
    assert resumed.figures == straight.figures
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert list(checkpoint["state_dict"]) == list(UserVAE().state_dict())
    assert len(checkpoint["optimizer_states"]) == 1


@pytest.mark.filterwarnings("ignore:.*when using `ckpt_path`, callbacks used")
def test_a_validation_scores_the_probe_of_a_checkpoint_and_a_fit_goes_on_from_it(tmp_path: Path) -> None:
    """In one process: what a validation loads does not belong to inference mode."""
    figures, probe = saved(tmp_path, 2).figures, ProbeCallback()
    runner = trainer(tmp_path, callbacks=[watch(), probe])
    runner.validate(UserVAE(), plain_loader(), ckpt_path=tmp_path / "last.ckpt", verbose=False)
    assert probe.figures == pytest.approx(figures, abs=1e-9)
    steps = probe.state_dict()["steps"]
    runner.fit(UserVAE(), plain_loader(batch_size=20), plain_loader())
    assert probe.state_dict()["steps"] == steps + 5


def test_a_validation_without_a_probe_logs_nothing_and_says_so(tmp_path: Path) -> None:
    probe = ProbeCallback()
    runner = trainer(tmp_path, callbacks=[watch(), probe])
    with pytest.warns(UserWarning, match="ProbeCallback has no probe to score"):
        runner.validate(UserVAE(), plain_loader(), verbose=False)
    assert probe.figures == {}
    assert not [name for name in runner.callback_metrics if name.startswith("probe")]
    assert "certificate/margin" in runner.callback_metrics


def test_two_probes_under_two_names_watch_two_codes(tmp_path: Path) -> None:
    constant = lambda module, batch: torch.ones(len(batch[0]), 3)  # noqa: E731
    certificates = [watch(), watch(latents=constant, name="none", witness=nn.Linear(3, 5))]
    probes = [ProbeCallback(learning_rate=0.1), ProbeCallback("none", name="nothing")]
    metrics = fit(tmp_path, UserVAE(), *certificates, *probes, max_epochs=5).callback_metrics
    assert metrics["probe/margin"] > 0.05 > metrics["nothing/margin"]


def test_the_trainer_of_the_other_import_name_runs_it(tmp_path: Path) -> None:
    theirs: Any = pytest.importorskip("lightning.pytorch", reason="`lightning` is not installed beside ours")
    kind = type("Theirs", (*UserVAE.__mro__[1:2], theirs.LightningModule), {})
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    options = {**quiet, "enable_checkpointing": False, "default_root_dir": tmp_path, "accelerator": "cpu"}
    runner = theirs.Trainer(max_epochs=3, callbacks=[watch(), ProbeCallback()], **options)
    runner.fit(kind(), plain_loader(batch_size=20), plain_loader())
    assert not isinstance(kind(), LightningModule)
    assert "probe/margin_lower" in runner.callback_metrics


def test_what_cannot_work_says_why(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a CertificateCallback with name='other' .* got \\['certificate'\\]"):
        fit(tmp_path, UserVAE(), watch(), ProbeCallback("other"))
