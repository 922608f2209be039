"""Every precision of a run: the sums stay float64, and what the precision costs the margin is known."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn

from certvae import Certificate, Status
from certvae.callbacks import CertificateCallback
from certvae.certificate.metric import CertificateMetric
from certvae.datamodules import DigitsDataModule
from certvae.monitoring.batch_reader import BatchReader
from tests.plain_vae import UserVAE, expected, fit, measured, plain_loader, watch
from tests.runs import digits_teacher, small_vae, trainer

pytestmark = pytest.mark.slow

# Nats by which values of the same weights may differ from those in float32: about three times what was seen.
BOUNDS = {"64-true": 1e-7, "16-true": 2e-4, "bf16-mixed": 1e-3, "bf16-true": 2e-3, "16-mixed": 1e-3}
ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="16-mixed is a precision of GPUs; there is none here")
PRECISIONS = [pytest.param(name, marks=ON_GPU if name == "16-mixed" else ()) for name in BOUNDS]


class Witnessed(UserVAE):
    """Trains its own witness, which takes the module's precision."""

    def __init__(self) -> None:
        super().__init__()
        self.witness = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5))

    def images(self, batch: Any) -> Tensor:
        return super().images(batch).to(self.dtype)

    def step(self, batch: Any) -> Tensor:
        return super().step(batch) + self.witness(self.encoder.body(self.images(batch))[:, :6]).pow(2).mean()


def place(precision: str) -> dict[str, Any]:
    return {"accelerator": "gpu" if precision == "16-mixed" else "cpu", "precision": precision}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A certified VAE and a foreign one, trained in float32."""
    folder = tmp_path_factory.mktemp("models")
    own = small_vae(digits_teacher(), alignment_weight=100.0)
    trainer(folder, max_epochs=4).fit(own, datamodule=DigitsDataModule(batch_size=64))
    return {"own": own, "foreign": fit(folder, [], Witnessed, max_epochs=2)[1]}


def certificate(folder: Path, model: Any, precision: str) -> Certificate:
    """Of the same weights, in a precision."""
    own = hasattr(model, "teacher")
    callback = CertificateCallback(channel_samples=4) if own else watch(channel_samples=4)
    data: Any = DigitsDataModule() if own else plain_loader()
    trainer(folder, callbacks=[callback], **place(precision)).validate(copy.deepcopy(model), data, verbose=False)
    return measured(callback)


@pytest.mark.parametrize("kind", ["own", "foreign"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_precision_moves_the_margin_of_the_same_weights_by_less_than_its_bound(
    tmp_path: Path, models: dict[str, Any], kind: str, precision: str, record_property: Callable[[str, Any], None]
) -> None:
    wide, narrow = (certificate(tmp_path, models[kind], name) for name in ("32-true", precision))
    for name in ("margin", "channel_margin", "teacher_information", "witness_information"):
        difference = getattr(narrow, name) - getattr(wide, name)
        record_property(f"{name}_difference", difference)
        print(f"{kind} {precision} {name}: {getattr(wide, name):.6f} {difference:+.1e} nats")
        assert abs(difference) < BOUNDS[precision], name
    assert narrow.status is wide.status is (Status.CERTIFIED if kind == "own" else Status.NOT_CERTIFIED)
    assert narrow.leaks == []


class Kept(CertificateCallback):
    """Looks at the sums before they are used."""

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        assert self._evaluation is not None
        self.kinds = {self._evaluation.metric.packed.dtype}
        super().on_validation_epoch_end(trainer, pl_module)


@pytest.mark.parametrize("precision", ["32-true", *PRECISIONS])
def test_a_run_trains_is_monitored_and_resumes_with_float64_sums(tmp_path: Path, precision: str) -> None:
    saved = ModelCheckpoint(tmp_path, "last", "certificate/margin_lower", mode="max", enable_version_counter=False)
    options = {"enable_checkpointing": True, **place(precision)}
    callback = Kept(digits_teacher(), "encoder")
    fit(tmp_path, [callback, saved], Witnessed, max_epochs=1, **options)
    model, again = Witnessed(), Kept(digits_teacher(), "encoder")
    runner = trainer(tmp_path, callbacks=[again], max_epochs=2, **place(precision))
    runner.fit(model, plain_loader(), plain_loader(), ckpt_path=tmp_path / "last.ckpt")
    assert callback.kinds == again.kinds == {runner.callback_metrics["certificate/margin"].dtype} == {torch.float64}
    assert float(runner.callback_metrics["certificate/margin"]) == measured(again).margin
    assert again.looks == 2
    if precision == "32-true":
        assert measured(again).margin == pytest.approx(expected(model).margin, abs=1e-6)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_our_vae_trains_in_every_precision_that_its_optimizer_survives(tmp_path: Path, precision: str) -> None:
    if precision == "16-true":
        pytest.skip("Adam's epsilon of 1e-8 is 0 in float16, so that its steps are not finite")
    callback, model = CertificateCallback(), small_vae(digits_teacher(), alignment_weight=100.0)
    trainer(tmp_path, max_epochs=4, callbacks=[callback], **place(precision)).fit(model, datamodule=DigitsDataModule())
    assert measured(callback).status is Status.CERTIFIED


@pytest.mark.parametrize("code", [torch.float32, torch.float64])
@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_a_witness_is_computed_in_the_wider_type_of_itself_and_its_codes(
    tmp_path: Path, weights: torch.dtype, code: torch.dtype
) -> None:
    """In bfloat16 its answers would move by more than the leak tests allow, and a sound witness would be accused."""
    torch.manual_seed(0)
    witness, codes = nn.Linear(6, 5).to(weights), torch.randn(33, 6, dtype=code)
    reader = BatchReader(digits_teacher(), witness=witness)
    reader.setup(trainer(tmp_path), UserVAE())
    wide = torch.promote_types(weights, code)
    answers = reader.witness_for(codes)(codes)
    assert answers.dtype == wide
    assert torch.equal(answers, copy.deepcopy(witness).to(wide)(codes.to(wide)))
    assert witness.weight.dtype == weights


def test_a_metric_that_is_cast_keeps_float64() -> None:
    """As a precision plugin would, if a metric were part of the module."""
    metric = CertificateMetric(5)
    assert nn.ModuleList([metric]).to(torch.bfloat16)[0].packed.dtype == torch.float64
