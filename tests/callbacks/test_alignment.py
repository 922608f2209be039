"""The alignment term is added as the module's own terms are, and leaves nothing behind."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from certvae import Certificate
from certvae.callbacks import AlignmentCallback, CertificateCallback, Latents
from certvae.models.schedules import LinearSchedule
from certvae.theory.information import kl_divergence
from tests.plain_vae import UserVAE, plain_loader
from tests.runs import digits_teacher, trainer

pytestmark = pytest.mark.slow

TEACHER = digits_teacher()


@pytest.fixture(autouse=True)
def _forget_compiled_code() -> Iterator[None]:
    yield
    torch.compiler.reset()


class AlignedByHand(UserVAE):
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


def foreign(kind: type[UserVAE] = UserVAE) -> UserVAE:
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


class Watched(UserVAE):
    """Trains its decoder only, so that the gradient at its code is that of the term; compares the two."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[float] = []

    def step(self, batch: Any) -> Tensor:
        self.inputs, (self.code, _) = batch[0], self.encoder(self.images(batch))
        if self.code.requires_grad:
            self.code.retain_grad()
        return ((self.decoder(self.code.detach()) - self.images(batch)) ** 2).mean()

    def on_after_backward(self) -> None:
        assert self.code.grad is not None
        direction = TEACHER.witness(6).alignment_gradient(self.code.detach(), TEACHER(self.inputs)) / len(self.code)
        seen = self.code.grad.double()
        weight = float((seen * direction).sum() / direction.square().sum())
        torch.testing.assert_close(seen, weight * direction, atol=1e-6, rtol=1e-4)
        self.weights.append(weight)


class SharedStep(UserVAE):
    """Its validation calls its training step."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        self.log("val_loss", self.training_step(batch, batch_idx), batch_size=1)


def test_a_validation_that_calls_the_training_step_gets_their_loss_alone(tmp_path: Path) -> None:
    model = foreign(SharedStep)
    runner = trainer(tmp_path, max_epochs=2, callbacks=[aligned(1.0)])
    runner.fit(model, plain_loader(), plain_loader(batch_size=90))
    with torch.no_grad():
        own = float(model.step(next(iter(plain_loader(batch_size=90)))))
    assert float(runner.callback_metrics["val_loss"]) == pytest.approx(own, rel=1e-5)


def test_the_gradient_at_the_code_is_the_closed_form_times_the_epochs_weight(tmp_path: Path) -> None:
    """``weight * scale * (S - T) U / B``, with the weight of each epoch, from 0 up."""
    model = foreign(Watched)
    fit(tmp_path, model, aligned(LinearSchedule(0.0, 8.0, epochs=2)), max_epochs=4)
    assert model.weights == pytest.approx([0.0] * 6 + [4.0] * 6 + [8.0] * 12, abs=1e-4)


class Twice(UserVAE):
    """Has its encoder in a list, and calls it twice a step: with the image, and with a brighter one."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Identity(), self.encoder.body])

    def step(self, batch: Any) -> Tensor:
        images = self.images(batch)
        first, second = (self.blocks[1](self.blocks[0](values))[:, :6] for values in (images, 2 * images))
        return ((self.decoder(first + 0 * second) - images) ** 2).mean()


def by_path(latents: Any) -> AlignmentCallback:
    return AlignmentCallback(TEACHER, latents, weight=3.0)


def test_of_several_calls_in_a_step_the_chosen_one_is_aligned(tmp_path: Path) -> None:
    found = {
        calls: fit(tmp_path, foreign(Twice), by_path(Latents("blocks.1", "chunk", calls=calls))).state_dict()
        for calls in ("first", "last")
    }
    once = fit(tmp_path, foreign(), aligned()).state_dict()
    assert torch.allclose(found["first"]["blocks.1.weight"], once["encoder.body.weight"], atol=1e-6)
    assert not torch.allclose(found["last"]["blocks.1.weight"], once["encoder.body.weight"], atol=1e-3)
    with pytest.raises(ValueError, match=r"called 2 times in one step.*calls='first'"):
        fit(tmp_path, foreign(Twice), by_path("blocks.1:chunk"))


@pytest.mark.parametrize(("whole", "latents"), [(True, "encoder.body:chunk"), (False, "encoder")])
def test_a_compiled_module_is_aligned_as_it_is_without_compilation(tmp_path: Path, whole: bool, latents: str) -> None:
    model = foreign()
    if not whole:
        model.encoder.compile(backend="eager")
    options: dict[str, Any] = {"max_epochs": 2, "callbacks": [by_path(latents)]}
    given: Any = torch.compile(model, backend="eager") if whole else model
    trainer(tmp_path, **options).fit(given, plain_loader(batch_size=16), plain_loader())
    plain = fit(tmp_path, foreign(), by_path(latents)).state_dict()
    assert all(torch.allclose(value, plain[name], atol=1e-6) for name, value in model.state_dict().items())


class Configured(UserVAE):
    """Keeps a hyper-parameter, and trains with a stateful optimizer."""

    def __init__(self, rate: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.hparams["rate"])


def outline(value: Any) -> Any:
    """Names and shapes of everything in a checkpoint."""
    if isinstance(value, dict):
        return {name: outline(part) for name, part in value.items()}
    if isinstance(value, list):
        return [outline(part) for part in value]
    return tuple(value.shape) if isinstance(value, Tensor) else value


def checkpoint(path: Path, callbacks: list[Any], resume: Path | None = None) -> dict[str, Any]:
    """What is in the checkpoint of an epoch, or of a second one."""
    torch.manual_seed(0)
    runner = trainer(path.parent, max_epochs=2 if resume else 1, callbacks=callbacks)
    runner.fit(Configured(), plain_loader(), plain_loader(), ckpt_path=resume)
    runner.save_checkpoint(path)
    kept = torch.load(path, weights_only=True)
    return {
        part: kept[part] for part in ("state_dict", "optimizer_states", "hyper_parameters", "callbacks", "global_step")
    }


def test_checkpoints_with_and_without_the_callback_are_alike_and_each_resumes_the_other(tmp_path: Path) -> None:
    """Weights, optimizer and hyper-parameters have the same names and shapes; only their numbers differ."""
    paths = [tmp_path / name for name in ("without.ckpt", "with.ckpt")]
    without, with_callback = (checkpoint(path, found) for path, found in zip(paths, ([], [aligned()]), strict=True))
    assert outline(without) == outline(with_callback)
    assert without["hyper_parameters"] == {"rate": 0.01}
    name = "encoder.body.weight"
    assert not torch.equal(without["state_dict"][name], with_callback["state_dict"][name])
    for path, callbacks in zip(paths, ([aligned()], []), strict=True):
        resumed = checkpoint(tmp_path / "resumed.ckpt", callbacks, path)
        assert outline(resumed["state_dict"]) == outline(without["state_dict"])
        assert resumed["global_step"] == 2 * without["global_step"]


class Drawn(UserVAE):
    """Decodes the mean, draws from the global stream, and has a log-variance that nothing else trains."""

    def step(self, batch: Any) -> Tensor:
        self.drawn = torch.randn(3)
        return super().step(batch)


def drawn(weight: float = 3.0) -> AlignmentCallback:
    return AlignmentCallback(TEACHER, "encoder", weight=weight, path="draw")


def test_aligned_draws_teach_the_log_variance_which_aligned_means_do_not(tmp_path: Path) -> None:
    """Noise in the coordinates that the witness reads, one less than components, makes it err; so it falls there."""
    start = foreign().encoder.body
    means, draws = (fit(tmp_path, foreign(), callback).encoder.body for callback in (aligned(), drawn()))
    assert torch.equal(means.bias[6:], start.bias[6:])
    assert (draws.bias[6:10] < start.bias[6:10] - 0.01).all()
    assert torch.equal(draws.bias[10:], start.bias[10:])


def test_the_draws_are_the_callbacks_own(tmp_path: Path) -> None:
    """The run draws the same numbers with and without them, and at weight 0 is the same bits."""
    runs = [fit(tmp_path, foreign(Drawn), *callbacks) for callbacks in ([], [drawn(0.0)], [drawn()])]
    assert torch.equal(runs[0].drawn, runs[1].drawn)
    assert torch.equal(runs[0].drawn, runs[2].drawn)
    left, right = runs[0].state_dict(), runs[1].state_dict()
    assert all(torch.equal(value, right[name]) for name, value in left.items())


class Steps(Drawn):
    """Keeps the noise that its code would need to be the one that was aligned."""

    def __init__(self) -> None:
        super().__init__()
        self.witness = Listening()


class Listening(nn.Module):
    """A witness that keeps the codes it is asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.codes: list[Tensor] = []

    def forward(self, codes: Tensor) -> Tensor:
        self.codes.append(codes.detach())
        return torch.zeros(len(codes), 5) + 0 * codes.sum()


def test_each_step_and_each_row_draw_anew_from_the_posterior(tmp_path: Path) -> None:
    """With mean 0 and log-variance 0, the codes aligned over two epochs are independent standard normal numbers."""
    model = foreign(Steps)
    model.learning_rate = 0.0
    with torch.no_grad():
        model.encoder.body.weight.zero_(), model.encoder.body.bias.zero_()
    fit(tmp_path, model, drawn(), max_epochs=20)
    codes = torch.cat(model.witness.codes)  # type: ignore[union-attr, arg-type]
    assert len(codes) == 20 * 90
    assert len(codes.flatten().unique()) > 0.99 * codes.numel()
    assert float(codes.mean()) == pytest.approx(0.0, abs=4 / codes.numel() ** 0.5)
    assert float(codes.var()) == pytest.approx(1.0, abs=4 * (2 / codes.numel()) ** 0.5)


def test_draws_of_a_code_that_is_only_a_mean_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`path='draw'` needs the posterior's log-variance, and `latents` gave only"):
        fit(tmp_path, UserVAE("mean"), drawn())
    with pytest.raises(ValueError, match="`path` must be 'mean' or 'draw', got 'sample'"):
        AlignmentCallback(path="sample")  # type: ignore[arg-type]


class Failing(UserVAE):
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


class SkipsOrDict(UserVAE):
    """Skips every second batch and returns a dict for the others."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.step(batch)
        return {"loss": loss, "extra": 1} if batch_idx % 2 else None


def test_a_step_may_return_a_dict_or_nothing(tmp_path: Path) -> None:
    assert fit(tmp_path, foreign(SkipsOrDict), aligned()).encoder.body.weight.isfinite().all()


class ByHand(UserVAE):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


def test_manual_optimization_without_a_submodule_is_refused_with_what_to_write(tmp_path: Path) -> None:
    callback = AlignmentCallback(digits_teacher(), lambda module, batch: module.encoder(module.images(batch)))
    with pytest.raises(ValueError, match=r"`automatic_optimization = False`.*latents='encoder.fc_mu'"):
        fit(tmp_path, foreign(ByHand), callback)


def test_the_weight_may_be_a_function_of_the_epoch(tmp_path: Path) -> None:
    seen: list[int] = []

    def weight(epoch: int) -> float:
        seen.append(epoch)
        return 1.0

    fit(tmp_path, foreign(), aligned(weight))
    assert seen == sorted(seen)
    assert set(seen) == {0, 1}


def test_bad_weights_are_refused(tmp_path: Path) -> None:
    for weight in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="`weight` must be at least 0 and finite"):
            aligned(weight)
    with pytest.raises(ValueError, match="`weight` must be at least 0 and finite, got -2"):
        fit(tmp_path, foreign(), aligned(lambda epoch: -2.0))


@pytest.mark.parametrize("first", [True, False])
def test_the_weight_alone_takes_the_rest_from_the_runs_certificate(tmp_path: Path, first: bool) -> None:
    watch, short = CertificateCallback(TEACHER, "encoder"), AlignmentCallback(weight=3.0)
    both = (watch, short) if first else (short, watch)
    named, taken = (fit(tmp_path, foreign(), *callbacks).state_dict() for callbacks in ((aligned(),), both))
    assert all(torch.equal(value, taken[name]) for name, value in named.items())


def test_the_weight_alone_without_a_certificate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the module has no `teacher`"):
        fit(tmp_path, foreign(), AlignmentCallback(weight=3.0))


def test_of_several_certificate_callbacks_none_is_chosen(tmp_path: Path) -> None:
    watches = [CertificateCallback(TEACHER, "encoder", name=name) for name in ("one", "other")]
    with pytest.raises(ValueError, match="several CertificateCallbacks, 'one', 'other': give it the `teacher`"):
        fit(tmp_path, foreign(), *watches, AlignmentCallback(weight=3.0))
