"""A raw head in training: by the alignment term alone, in the model or beside it, and fixed when it is certified."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from certvae import VAE, RawHead
from certvae.callbacks import AlignmentCallback, CertificateCallback
from certvae.datamodules import DigitsDataModule
from tests.plain_vae import UserVAE, measured, plain_loader
from tests.runs import digits_teacher, small_vae, trainer

pytestmark = pytest.mark.slow

TEACHER = digits_teacher()


def values(module: nn.Module) -> dict[str, Any]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def fit_vae(folder: Path, weight: float, epochs: int = 1) -> tuple[VAE, Any]:
    """A small VAE with a linear head, trained, and its certificate."""
    certificate = CertificateCallback()
    model = small_vae(TEACHER, witness=RawHead(temperature=0.1), alignment_weight=weight, learning_rate=0.01)
    runner = trainer(folder, max_epochs=epochs, callbacks=[certificate])
    runner.fit(model, datamodule=DigitsDataModule(subset=300))
    runner.save_checkpoint(folder / "run.ckpt")
    return model, measured(certificate)


def test_without_alignment_the_head_gets_no_gradient_and_the_margin_is_zero(tmp_path: Path) -> None:
    model, certificate = fit_vae(tmp_path, 0.0)
    head = model.witness
    assert isinstance(head, RawHead)
    assert all(value.grad is None for value in head.parameters())
    start = small_vae(TEACHER, witness=RawHead(temperature=0.1)).witness
    assert all(torch.equal(value, values(head)[name]) for name, value in values(start).items())  # type: ignore[arg-type]
    assert certificate.witness_information == pytest.approx(0, abs=1e-9)
    assert certificate.margin == pytest.approx(0, abs=0.05), "the average of training rows, on validation rows"
    assert certificate.escape_force == 0
    assert certificate.leaks == []


def test_alignment_trains_the_head_which_is_saved_and_certified_as_it_is(tmp_path: Path) -> None:
    model, certificate = fit_vae(tmp_path, 200.0, epochs=8)
    assert certificate.certified, str(certificate)
    assert certificate.escape_force is not None
    assert certificate.escape_force > 0
    again = small_vae(TEACHER, witness=RawHead(temperature=0.1), init_weights_from=tmp_path / "run.ckpt")
    assert all(torch.equal(value, values(again)[name]) for name, value in values(model).items())
    assert any(name.startswith("witness.layers") for name in values(model))


class WithHead(UserVAE):
    """A stranger's module with a head of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.witness = RawHead(5, 6, prior=TEACHER.measured_average())


def seeded() -> UserVAE:
    torch.manual_seed(1)
    return UserVAE()


def fit(folder: Path, model: UserVAE, *callbacks: Any, resume: Path | None = None, **options: Any) -> Any:
    torch.manual_seed(0)
    runner = trainer(folder, callbacks=list(callbacks), **options)
    runner.fit(model, plain_loader(), plain_loader(), ckpt_path=resume)
    return runner


def test_a_head_that_a_strangers_module_owns_is_trained_by_its_optimizer(tmp_path: Path) -> None:
    model, certificate = WithHead(), CertificateCallback(TEACHER, "encoder")
    fit(tmp_path, model, certificate, AlignmentCallback(TEACHER, "encoder"))
    assert model.witness.state_dict()["layers.0.weight"].any()
    assert measured(certificate).leaks == []


def beside(head: RawHead) -> list[Any]:
    """A head beside the module: aligned, trained, and certified."""
    aligned = AlignmentCallback(TEACHER, "encoder", witness=head, weight=3.0, witness_learning_rate=0.05)
    return [CertificateCallback(TEACHER, "encoder", witness=head), aligned]


def test_a_head_beside_a_module_is_trained_and_resumed_and_leaves_its_state_as_it_is(tmp_path: Path) -> None:
    whole = RawHead(5, 6, prior=TEACHER.measured_average())
    runner = fit(tmp_path, seeded(), *beside(whole), max_epochs=4)
    assert values(whole)["layers.0.weight"].any()
    path = tmp_path / "half.ckpt"
    fit(tmp_path, seeded(), *beside(RawHead(5, 6, prior=TEACHER.measured_average())), max_epochs=2).save_checkpoint(
        path
    )
    kept, plain = torch.load(path, weights_only=True), fit(tmp_path, seeded(), max_epochs=2)
    plain.save_checkpoint(tmp_path / "plain.ckpt")
    without = torch.load(tmp_path / "plain.ckpt", weights_only=True)
    assert kept["state_dict"].keys() == without["state_dict"].keys()
    assert kept["optimizer_states"] == without["optimizer_states"]
    resumed = RawHead(5, 6)
    fit(tmp_path, seeded(), *beside(resumed), resume=path, max_epochs=4)
    for name, value in values(whole).items():
        torch.testing.assert_close(values(resumed)[name], value)
    fit(tmp_path, seeded(), resume=path, max_epochs=3)  # a run without the head goes on from it too
    assert runner.callback_metrics["certificate/margin"] > 0


def test_heads_that_would_be_trained_wrongly_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`witness_learning_rate` needs a `witness` to train"):
        AlignmentCallback(TEACHER, "encoder", witness_learning_rate=0.1)
    with pytest.raises(ValueError, match="needs a `witness` with parameters, got SimplexWitness"):
        AlignmentCallback(TEACHER, "encoder", witness=TEACHER.witness(6), witness_learning_rate=0.1)
    with pytest.raises(ValueError, match="`witness_learning_rate` must be above 0"):
        AlignmentCallback(TEACHER, "encoder", witness=RawHead(5, 6), witness_learning_rate=0.0)
    model = WithHead()
    with pytest.raises(ValueError, match="`witness` belongs to WithHead already"):
        fit(tmp_path, model, AlignmentCallback(TEACHER, "encoder", witness=model.witness, witness_learning_rate=0.1))
    with pytest.raises(ValueError, match="can be given to one AlignmentCallback of a run"):
        fit(tmp_path, seeded(), *beside(RawHead(5, 6)), beside(RawHead(5, 6))[1]).save_checkpoint(tmp_path / "x.ckpt")

    class Closure(UserVAE):
        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.parameters())

    with pytest.raises(ValueError, match="does not go with LBFGS"):
        fit(tmp_path, Closure(), *beside(RawHead(5, 6)))

    class ByHand(UserVAE):
        automatic_optimization = False

    with pytest.raises(ValueError, match="ByHand, which optimizes by hand"):
        fit(tmp_path, ByHand(), *beside(RawHead(5, 6)))
