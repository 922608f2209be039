"""The alignment term is added as the module's own terms are, and leaves nothing behind."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from certvae import Certificate
from certvae.callbacks import AlignmentCallback, CertificateCallback, LinearWeight
from certvae.information import kl_divergence
from tests.foreign import ForeignVAE, plain_loader
from tests.runs import digits_teacher, trainer

TEACHER = digits_teacher()


class AlignedByHand(ForeignVAE):
    """The same term, written into the module."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images = batch[0].flatten(1)
        code = self.encoder(images)[0]
        loss = ((self.decoder(code) - images) ** 2).mean()
        log_student = TEACHER.witness(6)(code).log_softmax(dim=1)
        return loss + 3.0 * kl_divergence(TEACHER(batch[0]).float(), log_student).mean()


def fit(folder: Path, model: Any, *callbacks: Any, **arguments: Any) -> Any:
    torch.manual_seed(1)
    options: dict[str, Any] = {"max_epochs": 2, **arguments}
    trainer(folder, callbacks=list(callbacks), **options).fit(model, plain_loader(batch_size=16), plain_loader())
    return model


def foreign(kind: type[ForeignVAE] = ForeignVAE) -> ForeignVAE:
    torch.manual_seed(0)
    return kind()


def aligned(weight: Any = 3.0) -> AlignmentCallback:
    return AlignmentCallback(TEACHER, "encoder", weight=weight)


@pytest.mark.parametrize("arguments", [{}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}])
def test_weights_equal_those_of_the_term_written_into_the_module(tmp_path: Path, arguments: dict[str, Any]) -> None:
    by_callback = fit(tmp_path, foreign(), aligned(), **arguments).state_dict()
    by_hand = fit(tmp_path, foreign(AlignedByHand), **arguments).state_dict()
    for name, value in by_hand.items():
        # Under bf16 the one term is computed from a code that autocast has rounded, as the other is.
        assert torch.allclose(by_callback[name], value, atol=1e-6), name


def test_a_weight_of_zero_changes_no_bit(tmp_path: Path) -> None:
    left, right = fit(tmp_path, foreign(), aligned(0.0)).state_dict(), fit(tmp_path, foreign()).state_dict()
    assert all(torch.equal(value, right[name]) for name, value in left.items())


def test_an_aligned_model_is_certified_and_keeps_its_checkpoint_keys(tmp_path: Path) -> None:
    certificate, model = CertificateCallback(digits_teacher(), "encoder"), foreign()
    keys = list(model.state_dict())
    runner = trainer(tmp_path, max_epochs=60, callbacks=[certificate, aligned(1.0)])
    runner.fit(model, plain_loader(), plain_loader())
    assert isinstance(certificate.certificate, Certificate)
    assert certificate.certificate.certified, str(certificate.certificate)
    assert list(model.state_dict()) == keys
    logged = float(runner.callback_metrics["certificate/alignment_train"])
    assert logged == pytest.approx(certificate.certificate.alignment_loss, abs=0.05)


class Failing(ForeignVAE):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        raise RuntimeError("their own error")


def test_the_module_gets_its_own_step_back(tmp_path: Path) -> None:
    model = fit(tmp_path, foreign(), aligned())
    assert "training_step" not in vars(model)
    assert not model.encoder._forward_hooks
    failing = foreign(Failing)
    with pytest.raises(RuntimeError, match="their own error"):
        fit(tmp_path, failing, aligned())
    assert "training_step" not in vars(failing)
    assert not failing.encoder._forward_hooks


class SkipsOrDict(ForeignVAE):
    """Skips every second batch and returns a dict for the others."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.step(batch)
        return {"loss": loss, "extra": 1} if batch_idx % 2 else None


def test_a_step_may_return_a_dict_or_nothing(tmp_path: Path) -> None:
    assert fit(tmp_path, foreign(SkipsOrDict), aligned()).encoder.body.weight.isfinite().all()


class ByHand(ForeignVAE):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


def test_manual_optimization_is_refused_with_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`automatic_optimization = False` .*kl_divergence"):
        fit(tmp_path, foreign(ByHand), aligned())


def test_the_weight_may_follow_a_line(tmp_path: Path) -> None:
    line = LinearWeight(0.0, 8.0, epochs=4)
    assert [line(epoch) for epoch in (0, 1, 4, 9)] == [0.0, 2.0, 8.0, 8.0]
    seen: list[int] = []
    fit(tmp_path, foreign(), aligned(lambda epoch: float(seen.append(epoch) or 1)))
    assert seen == sorted(seen)
    assert set(seen) == {0, 1}


def test_bad_weights_are_refused(tmp_path: Path) -> None:
    for weight in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="`weight` must be at least 0 and finite"):
            aligned(weight)
    with pytest.raises(ValueError, match="`weight` must be at least 0 and finite, got -2"):
        fit(tmp_path, foreign(), aligned(lambda epoch: -2.0))
    with pytest.raises(ValueError, match="`first` must be at least 0"):
        LinearWeight(-1, 1, 1)
    with pytest.raises(ValueError, match="`epochs` must be at least 1"):
        LinearWeight(1, 1, 0)
