"""Codes that are not finite give no numbers for their epoch and one warning; no watcher ends the run, unless asked."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import TensorBoardLogger

from certvae.callbacks import (
    CertificateGuard,
    CodebookCallback,
    CollapseDiagnostics,
    DecoderCheck,
    InformationCallback,
    LaggingInference,
    ProbeCallback,
    ReconstructionImages,
)
from certvae.monitoring.divergence import check_on_divergence, find_fault
from certvae.monitoring.running_means import RunningMeans
from tests.plain_vae import UserVAE, fit, watch

pytestmark = pytest.mark.slow


class Diverging(UserVAE):
    """The fourth code of the first validation batch of epoch 0 is not finite; its losses stay finite."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder.register_forward_hook(self.overflow)
        self.wild = False

    def overflow(self, module: Any, inputs: Any, code: Any) -> Any:
        if not self.wild:
            return None
        broken = torch.arange(len(code[0]))[:, None] == 3
        return code[0].masked_fill(broken, torch.inf), code[1]

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        self.wild = self.current_epoch == 0 and batch_idx == 0
        loss = super().step(batch).nan_to_num(1.0, 1.0, 1.0)
        self.wild = False
        return loss


WATCHERS: dict[str, tuple[Callable[[Any], Callback], str]] = {
    "certificate": (lambda answer: watch(on_divergence=answer), "certificate/margin"),
    "information": (lambda answer: InformationCallback("encoder", on_divergence=answer), "information/lower"),
    "diagnostics": (lambda answer: CollapseDiagnostics("encoder", on_divergence=answer), "diagnostics/rate"),
    "codebook": (lambda answer: CodebookCallback("encoder:0", kind="logits", on_divergence=answer), "codebook/lower"),
    "decoder": (lambda answer: DecoderCheck("encoder", on_divergence=answer), "decoder/own"),
}


def strict(module: Any, codes: torch.Tensor) -> Any:
    """Refuses what is not finite, as distributions do."""
    return torch.distributions.Normal(module.decoder(codes), 1.0)


class Seen(Callback):
    """Names of what was logged in each validation."""

    def __init__(self) -> None:
        self.epochs: list[set[str]] = []

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.epochs.append({name for name, value in trainer.callback_metrics.items() if math.isfinite(float(value))})


def test_every_watcher_warns_once_and_goes_on_with_the_next_epoch(tmp_path: Path) -> None:
    seen = Seen()
    watchers = [make("warn") for make, _ in WATCHERS.values()]
    more = [
        ProbeCallback(),
        ReconstructionImages(1, latents="encoder", decoder=strict),
        CertificateGuard(0.1),
        LaggingInference(inner_steps=1),
    ]
    with pytest.warns(UserWarning, match="row 3") as caught:
        fit(tmp_path, [*watchers, *more, seen], Diverging, max_epochs=2, logger=TensorBoardLogger(tmp_path))
    said = [str(item.message) for item in caught if "row 3" in str(item.message)]
    assert len(said) == len(watchers) + 1
    assert all(line.startswith("epoch 0: ") and line.endswith("the run goes on.") for line in said), said
    keys = {key for _, key in WATCHERS.values()} | {"probe/margin"}
    assert not keys & seen.epochs[0]
    assert keys <= seen.epochs[1]


@pytest.mark.parametrize("name", WATCHERS)
def test_a_watcher_raises_if_it_is_told_to(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"epoch 0: .* row 3 .*: the model has diverged, and `on_divergence` is 'ra"):
        fit(tmp_path, [WATCHERS[name][0]("raise")], Diverging)


def test_codes_that_are_not_finite_only_when_encoded_again_are_a_leak_and_no_end(tmp_path: Path) -> None:
    """The test of the encoder asks some rows alone."""

    def broken_alone(module: Any, batch: Any) -> Any:
        codes = module.encoder(module.images(batch))[0]
        return codes if len(codes) > 1 else codes * math.inf

    callback = watch(latents=broken_alone, check_encoder=True)
    fit(tmp_path, [callback], UserVAE)
    assert callback.certificate is not None
    assert any("encoder" in leak for leak in callback.certificate.leaks)


def test_a_step_that_diverged_counts_for_nothing_in_the_running_means() -> None:
    class Alone:
        world_size = 1

    means, alone = RunningMeans(), Alone()
    for value in (math.inf, 2.0, math.nan, 2.0):
        found = means.add(alone, torch.tensor([value]))  # type: ignore[arg-type]
    assert float(found) == 2.0


def test_the_fault_names_what_and_which_row() -> None:
    rows, whole = torch.tensor([7, 9]), torch.zeros(2, 3)
    assert find_fault(rows, mean=whole, log_variance=None, rate=torch.zeros(2)) == ""
    assert find_fault(rows, log_variance=whole / whole).startswith("the log-variance of row 7 is nan")
    assert find_fault(rows, rate=torch.tensor([0.0, 1e30])) == "the rate of row 9 is 1e+30, not a finite number"
    with pytest.raises(ValueError, match="`on_divergence` must be 'warn' or 'raise', got 'stop'"):
        check_on_divergence("stop")  # type: ignore[arg-type]
