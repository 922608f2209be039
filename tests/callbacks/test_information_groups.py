"""Groups of latents, deterministic codes and wrong names in `InformationCallback`."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from certvae import information_bracket
from certvae.callbacks import AlignmentCallback, CertificateCallback, InformationCallback, Latents
from certvae.commands.lightning import run_lightning
from certvae.theory.row_noise import row_uniform
from tests.callbacks.test_information import KEYS, logged
from tests.callbacks.test_unchanged_runs import plain, streams
from tests.commands.test_cli import EXPERIMENTS
from tests.monitoring.test_code_checks import Heads
from tests.plain_vae import UserVAE, fit, images, plain_loader
from tests.public_vaes import Autoencoder, PublicVAE, ResidualHierarchy, Vanilla
from tests.runs import digits_teacher, trainer

pytestmark = pytest.mark.slow


class TwoLevels(UserVAE):
    """Two codes that are independent given the input, and a third without noise."""

    def __init__(self) -> None:
        super().__init__()
        self.top, self.bottom = nn.Linear(64, 6), nn.Linear(64, 8)
        self.decoder = nn.Linear(7, 64)

    def step(self, batch: Any) -> Tensor:
        inputs = self.images(batch)
        codes = [level(inputs).chunk(2, dim=1)[0] for level in (self.top, self.bottom)]
        return ((self.decoder(torch.cat(codes, dim=1)) - inputs) ** 2).mean() + self.encoder(inputs)[0].pow(2).mean()


GROUPS = {"top": "top:chunk", "bottom": "bottom:chunk"}


def groups_of(runner: Any, name: str) -> dict[str, float]:
    prefix = f"information/{name}/"
    return {key.removeprefix(prefix): float(v) for key, v in runner.callback_metrics.items() if key.startswith(prefix)}


def test_each_group_has_its_bracket_and_all_together_have_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    callback = InformationCallback(GROUPS, block=30, save_dir=tmp_path, seed=2)
    runner, model = fit(tmp_path, [callback], TwoLevels, plain_loader(90, 32))
    order = row_uniform(torch.arange(90), 1, 2)[:, 0].argsort()
    with torch.no_grad():
        inputs = images(90).flatten(1)[order]
        levels = [level(inputs).chunk(2, dim=1) for level in (model.top, model.bottom)]
    whole = [torch.cat(parts, dim=1) for parts in zip(*levels, strict=True)]
    expected = {"top": levels[0], "bottom": levels[1], "": whole}
    record = json.loads((tmp_path / "information_val.jsonl").read_text())
    for name, (mean, log_variance) in expected.items():
        bracket = information_bracket(mean, log_variance, block=30, seed=2)
        found = groups_of(runner, name) if name else {k: v for k, v in logged(runner).items() if k in KEYS}
        assert set(found) == KEYS
        for key in KEYS:
            assert found[key] == pytest.approx(getattr(bracket, key), abs=1e-4), (name, key)
        saved = record["groups"][name] if name else record
        assert saved["lower"] == pytest.approx(bracket.lower, abs=1e-4)
    assert set(callback.brackets) == {"top", "bottom"}
    assert callback.bracket is not None
    assert callback.bracket.rate == pytest.approx(sum(found.rate or 0.0 for found in callback.brackets.values()))
    printed = capsys.readouterr().out
    assert "epoch 0: the code carries" in printed
    assert "epoch 0: top: the code carries" in printed


def test_a_group_without_noise_leaves_the_others_their_brackets(tmp_path: Path) -> None:
    callback = InformationCallback({**GROUPS, "third": Latents("encoder", deterministic=True)}, name="levels")
    with pytest.warns(UserWarning, match="nothing of the group 'third' and of all together: the code is deterministic"):
        runner, _ = fit(tmp_path, [callback], TwoLevels)
    assert callback.bracket is None
    assert {key for key in runner.callback_metrics if key.startswith("levels")} == {
        f"levels/{name}/{key}" for name in GROUPS for key in KEYS
    }


def test_a_certificate_takes_groups_side_by_side(tmp_path: Path) -> None:
    joint = CertificateCallback(digits_teacher(), GROUPS)
    named = CertificateCallback(
        digits_teacher(),
        lambda module, batch: [
            torch.cat(parts, dim=1)
            for parts in zip(
                *(level(batch[0].flatten(1)).chunk(2, dim=1) for level in (module.top, module.bottom)), strict=True
            )
        ],
        name="function",
    )
    fit(tmp_path, [joint, named], TwoLevels)
    assert joint.certificate is not None
    assert named.certificate is not None
    assert joint.certificate.margin == pytest.approx(named.certificate.margin)
    assert joint.certificate.rate == pytest.approx(named.certificate.rate)


def test_a_deterministic_code_gives_one_message_and_no_numbers(tmp_path: Path) -> None:
    callback = InformationCallback(Latents("encoder", deterministic=True))
    with pytest.warns(UserWarning, match="deterministic.*is infinite.*fitted reader") as caught:
        runner, _ = fit(tmp_path, [callback], Autoencoder, max_epochs=3)
    assert len([item for item in caught if "InformationCallback" in str(item.message)]) == 1
    assert logged(runner) == {}


def said(folder: Path, model: PublicVAE, latents: Any, callback: Any = InformationCallback) -> list[str]:
    loader = plain_loader(64, 16)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(folder, max_epochs=2, callbacks=[callback(latents)]).fit(model, loader, loader)
    return [str(item.message) for item in caught if "`latents" in str(item.message)]


def test_a_run_says_once_that_the_name_is_a_backbones(tmp_path: Path) -> None:
    (message,) = said(tmp_path, Heads(), "backbone")
    assert "a backbone in front of the heads" in message
    assert "latents='fc_mu'" in message
    assert said(tmp_path, Vanilla(), "fc_mu") == []
    assert said(tmp_path, ResidualHierarchy(), ResidualHierarchy.latents) == []


@pytest.mark.parametrize(
    ("latents", "message"), [("unread", "no loss of the first 20"), ("backbone", "a backbone in front of the heads")]
)
def test_our_own_alignment_does_not_count_as_a_reader(tmp_path: Path, latents: str, message: str) -> None:
    """A collapsed model whose features are aligned is certified on them: it must be told."""
    aligned = AlignmentCallback(digits_teacher(), latents)
    callbacks = [aligned, InformationCallback(latents)]
    with pytest.warns(UserWarning, match=message):
        trainer(tmp_path, max_epochs=6, callbacks=callbacks).fit(Heads(), plain_loader(64, 16), plain_loader())


@pytest.mark.parametrize("latents", ["backbone", "unread", "fc_mu"])
def test_the_checks_change_no_bit_of_a_run_and_leave_no_hook(tmp_path: Path, latents: str) -> None:
    found = []
    for callbacks in ([], [InformationCallback(latents)]):
        torch.manual_seed(0)
        model = Heads()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            runner = trainer(tmp_path, max_epochs=2, callbacks=callbacks)
            runner.fit(model, plain_loader(64, 16, shuffle=True), plain_loader())
        found.append([plain(model.state_dict()), plain(runner.optimizers[0].state_dict()), streams()])
        assert not any(part._forward_hooks for part in model.modules())
    assert found[0] == found[1]


def test_groups_can_be_written_in_a_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bottom = {"class_path": "certvae.callbacks.Latents", "init_args": {"path": "encoder.bottom", "part": "chunk"}}
    groups = {"top": "encoder.top:chunk", "bottom": bottom}
    names = ("InformationCallback", "CertificateCallback", "AlignmentCallback", "CollapseDiagnostics")
    callbacks = [{"class_path": f"certvae.callbacks.{name}", "init_args": {"latents": groups}} for name in names]
    (tmp_path / "groups.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
    files = [str(EXPERIMENTS / "digits" / "full.yaml"), str(tmp_path / "groups.yaml")]
    with pytest.raises(SystemExit) as stop:
        run_lightning(["fit", *(part for file in files for part in ("--config", file)), "--print_config"])
    assert stop.value.code == 0
    shown = yaml.safe_load(capsys.readouterr().out)["trainer"]["callbacks"]
    for callback in shown[: len(names)]:
        found = callback["init_args"]["latents"]
        assert found["top"] == "encoder.top:chunk"
        assert found["bottom"]["init_args"]["path"] == "encoder.bottom"
