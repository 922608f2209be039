"""The guard brings a model that collapses under its KL weight back, without a teacher."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from certvae.callbacks import CertificateGuard, CertificateLostError, DualController, InformationCallback
from certvae.datamodules import DigitsDataModule
from certvae.models.objectives import FreeBits
from tests.plain_vae import UserVAE, fit
from tests.runs import small_vae, trainer

pytestmark = pytest.mark.slow


def guard(**arguments: Any) -> CertificateGuard:
    return CertificateGuard(**{"target": 1.0, "on": "bracket", "kl_weight": "beta", **arguments})


class BetaVAE(UserVAE):
    """A linear VAE with a KL weight, as somebody else would write it."""

    def __init__(self, beta: float = 60.0) -> None:
        super().__init__()
        self.beta = beta

    def step(self, batch: Any) -> Tensor:
        images = self.images(batch)
        mean, log_variance = self.encoder(images)
        code = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        rate = (mean**2 + log_variance.exp() - log_variance - 1).sum(dim=1) / 2
        return ((self.decoder(code) - images) ** 2).sum(dim=1).mean() / (2 * 0.05) + self.beta * rate.mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    images = torch.tensor(load_digits().data / 16, dtype=torch.float32)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    sets = TensorDataset(images[order[:1200]]), TensorDataset(images[order[1200:]])
    return DataLoader(sets[0], 32), DataLoader(sets[1], 200)


@pytest.mark.parametrize("beta", [20.0, 60.0])
def test_a_collapsing_model_is_brought_back_above_the_target(tmp_path: Path, beta: float) -> None:
    lower = {}
    for guarded in (False, True):
        torch.manual_seed(0)
        information, model = InformationCallback("encoder"), BetaVAE(beta)
        callbacks = [information, guard()] if guarded else [information]
        run = trainer(tmp_path, max_epochs=24, callbacks=callbacks)
        run.fit(model, *loaders())
        assert information.bracket is not None
        lower[guarded] = information.bracket.lower
        if not guarded:
            assert information.bracket.upper < 0.05, "collapsed"
            continue
        assert 0 < model.beta < beta, "the attribute keeps what was found"
        assert float(run.callback_metrics["information/kl_weight"]) == pytest.approx(model.beta)
    assert lower[True] > 1.0
    assert lower[False] == 0.0


def test_our_own_vae_is_held_by_its_objectives_weight(tmp_path: Path) -> None:
    information, model = InformationCallback(), small_vae(beta=20.0)
    callbacks = [information, guard(kl_weight="objective.beta")]
    trainer(tmp_path, max_epochs=20, callbacks=callbacks).fit(model, datamodule=DigitsDataModule(batch_size=32))
    assert information.bracket is not None
    assert information.bracket.lower > 1.0


def test_a_code_that_carries_enough_keeps_the_models_own_weight(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, keeper = BetaVAE(0.5), guard(target=0.3)
    trainer(tmp_path, max_epochs=6, callbacks=[InformationCallback("encoder"), keeper]).fit(model, *loaders())
    assert model.beta == 0.5
    assert keeper.weight_now == 1.0


def kept(folder: Path, epochs: int, resume: Path | None = None) -> tuple[CertificateGuard, BetaVAE]:
    torch.manual_seed(0)
    model, keeper = BetaVAE(), guard()
    saving = ModelCheckpoint(folder, filename="last", enable_version_counter=False)
    callbacks = [InformationCallback("encoder"), keeper, saving]
    run = trainer(folder, max_epochs=epochs, enable_checkpointing=True, callbacks=callbacks)
    run.fit(model, *loaders(), ckpt_path=resume)
    return keeper, model


def test_an_interrupted_run_goes_on_from_its_weight(tmp_path: Path) -> None:
    """The state is that of the end of the epoch; the model's own weight is not taken for a lowered one."""
    first, lowered = kept(tmp_path, 4)
    before = first.state_dict()
    after = kept(tmp_path, 4, tmp_path / "last.ckpt")[0].state_dict()
    assert torch.equal(before.pop("average"), after.pop("average"))
    assert after == {**before, "kl_weight": after["kl_weight"]}
    again, longer = kept(tmp_path, 5, tmp_path / "last.ckpt")
    assert again._kl_before is not None
    assert again._kl_before[0] == 60.0
    assert 0 < longer.beta < 60.0
    assert lowered.beta < 60.0


def test_a_second_fit_of_the_same_model_goes_on_from_its_own_weight(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, keeper = BetaVAE(), guard()
    for _ in range(2):
        callbacks = [InformationCallback("encoder"), keeper]
        trainer(tmp_path, max_epochs=2, callbacks=callbacks).fit(model, *loaders())
        assert keeper._kl_before == (60.0, model.beta)
        assert not model.encoder._forward_hooks


class Nothing(nn.Module):
    """An encoder without an input: a rate without information."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.ones(6))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.mean.expand(len(images), 6)
        return mean, 0 * mean - 2


def test_a_rate_that_is_no_information_is_given_up(tmp_path: Path) -> None:
    """The rate is above any target while the bound stays 0: no KL weight helps."""
    model = BetaVAE(8.0)
    model.encoder, keeper = Nothing(), guard()  # type: ignore[assignment]
    run = trainer(tmp_path, max_epochs=12, callbacks=[InformationCallback("encoder"), keeper])
    with pytest.warns(UserWarning, match="the guard stops raising its weight") as caught:
        run.fit(model, *loaders())
    assert len([item for item in caught if "stops raising" in str(item.message)]) == 1
    assert keeper._pursuit.given_up
    assert model.beta >= 8.0 / 4


def test_a_loss_of_the_bracket_is_answered_without_a_kl_weight(tmp_path: Path) -> None:
    keeper = CertificateGuard(1.0, "raise", on="bracket")
    keeper.load_state_dict({**keeper.state_dict(), "reached": True})
    with pytest.raises(CertificateLostError, match="epoch 0: the information's lower bound, .* target of 1"):
        fit(tmp_path, [InformationCallback("encoder"), keeper])


def test_what_cannot_work_says_why(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`on` must be 'certificate' or 'bracket', got 'rate'"):
        CertificateGuard(1.0, on="rate")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`kl_weight` must name the float attribute"):
        CertificateGuard(1.0, on="bracket")
    with pytest.raises(ValueError, match="`kl_weight='beta'` goes with on='bracket'"):
        CertificateGuard(1.0, kl_weight="beta")
    with pytest.raises(ValueError, match="needs an InformationCallback with name='information' .*got none"):
        fit(tmp_path, [guard()], BetaVAE)
    with pytest.raises(ValueError, match="names no attribute of BetaVAE; .*'beta'"):
        fit(tmp_path, [InformationCallback("encoder"), guard(kl_weight="bta")], BetaVAE)
    with pytest.raises(ValueError, match=r"`target` must be below 3.35 nats, the cap of blocks of 30 rows"):
        fit(tmp_path, [InformationCallback("encoder", block=30), guard(target=4.0)], BetaVAE)
    with pytest.raises(ValueError, match="`on='bracket'` needs the posterior's log-variance, .*'encoder:mu,logvar'"):
        fit(tmp_path, [InformationCallback("encoder"), guard(kl_weight="learning_rate")], lambda: UserVAE("mean"))


def test_the_weight_of_a_given_controller_stays_at_least_1() -> None:
    assert guard(controller=DualController(low=0.1, high=50.0)).controller == DualController(low=1.0, high=50.0)


def test_free_bits_bring_a_model_back_that_its_kl_term_collapses(tmp_path: Path) -> None:
    """Pixels of standard deviation 0.8: the KL term weighs as a KL weight of 13 does at 0.2236."""
    lower = {}
    for guarded in (False, True):
        torch.manual_seed(0)
        information, model = InformationCallback(), small_vae(observation_std=0.8, learning_rate=5e-3)
        model.objective = objective = FreeBits(0.01)
        callbacks = (
            [information, guard(target=0.5, kl_weight=None, free_bits="objective.floor")] if guarded else [information]
        )
        run = trainer(tmp_path, max_epochs=12, callbacks=callbacks)
        run.fit(model, datamodule=DigitsDataModule(batch_size=32))
        assert information.bracket is not None
        lower[guarded] = information.bracket.lower
        if guarded:
            assert 0.01 < objective.floor < 6.0, "the attribute keeps what was found"
            assert float(run.callback_metrics["information/free_bits"]) == pytest.approx(objective.floor)
    assert lower[True] > 0.5
    assert lower[False] == 0.0


def test_a_code_that_carries_enough_keeps_the_models_own_free_bits(tmp_path: Path) -> None:
    model, keeper = small_vae(), guard(target=0.3, kl_weight=None, free_bits="objective.floor")
    model.objective = FreeBits(0.25)
    callbacks = [InformationCallback(), keeper]
    trainer(tmp_path, max_epochs=4, callbacks=callbacks).fit(model, datamodule=DigitsDataModule(batch_size=32))
    assert model.objective.floor == pytest.approx(0.25)
