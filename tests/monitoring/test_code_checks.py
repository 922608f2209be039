"""A name that is not the code's is noticed in the first training batches, and nobody's right name is doubted."""

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certvae.callbacks import Latents
from certvae.monitoring.code_checks import PATIENCE, CodeChecks, check_log_variance
from certvae.reading.latents import LatentCapture
from tests import public_vaes
from tests.plain_vae import images
from tests.public_vaes import PairEncoder, PublicVAE, kld, mlp


def findings(model: nn.Module, latents: Any, batches: int = 1) -> list[str]:
    """What is said in some training batches, with backward passes, as a trainer makes them."""
    checks, batch = CodeChecks(latents), [images(16)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for place in range(batches):
            checks.begin(model)
            loss = model.training_step(batch, place)  # type: ignore[operator]
            checks.before_backward(loss)
            loss.backward()
            checks.end()
    assert batches < PATIENCE or not any(part._forward_hooks for part in model.modules())
    return [str(item.message) for item in caught if "`latents" in str(item.message)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", public_vaes.ALL)
def test_no_model_written_as_people_write_them_is_doubted(kind: Callable[[], PublicVAE]) -> None:
    """And every code of them is read."""
    torch.manual_seed(0)
    model = kind()
    assert findings(model, model.latents, PATIENCE + 1) == []
    capture = LatentCapture(model.latents)
    capture.attach(model)
    capture.listen()
    model.training_step([images(16)], 0)
    assert capture.read(model, None, None).mean.shape[0] == 16


class Heads(PublicVAE):
    """Backbone, heads, draw, decoder; ``draw`` says how the scale is spelled."""

    def __init__(self, draw: str = "log-variance", dropout: float = 0.0) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU())
        self.fc_mu = nn.Sequential(nn.Linear(32, 6), nn.Dropout(dropout))
        self.fc_scale, self.sampler = nn.Linear(32, 6), nn.Identity()
        self.decoder = nn.ModuleDict({"first": nn.Linear(6, 32), "last": nn.Linear(32, 64)})
        self.unread = nn.Linear(32, 6)
        self.draw = draw

    def encode(self, values: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.backbone(values)
        self.unread(hidden)
        return self.fc_mu(hidden), self.fc_scale(hidden)

    def std(self, scale: Tensor) -> Tensor:
        return {
            "log-variance": lambda: (0.5 * scale).exp(),
            "deviation": lambda: scale,
            "softplus": lambda: F.softplus(scale),
            "variance": lambda: scale.sqrt(),
            "logarithm": lambda: scale.exp(),
        }[self.draw]()

    def loss(self, images: Tensor) -> Tensor:
        mu, scale = self.encode(images)
        z = self.sampler(mu + torch.randn_like(mu) * self.std(scale))
        output = self.decoder["last"](self.decoder["first"](z).relu())
        return F.mse_loss(output, images.flatten(1)) + 0.01 * kld(mu, scale)


class Paired(Heads):
    """The same with an encoder that gives a pair, whose second part is what the draw takes."""

    def __init__(self, draw: str) -> None:
        super().__init__(draw)
        self.encoder = PositivePair() if draw == "variance" else PairEncoder()

    def encode(self, values: Tensor) -> tuple[Tensor, Tensor]:
        return self.encoder(values)


class PositivePair(PairEncoder):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mu, raw = super().forward(images)
        return mu, F.softplus(raw)


class StdEncoder(PairEncoder):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mu, log_std = super().forward(images)
        return mu, log_std.exp()


class GivesStd(Heads):
    """The encoder gives ``mean, std``, as many do."""

    def __init__(self) -> None:
        super().__init__("deviation")
        self.encoder = StdEncoder()

    def encode(self, values: Tensor) -> tuple[Tensor, Tensor]:
        return self.encoder(values)


class SideBySide(Heads):
    """The last layer gives both halves, taken apart as it comes."""

    def __init__(self, apart: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.encoder, self.apart = nn.Sequential(nn.Flatten(), mlp(64, 32, 12)), apart

    def encode(self, values: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = self.apart(self.encoder(values))
        return mu, logvar


class DrawsInTraining(Heads):
    """The encoder gives a draw in training and the mean in eval mode."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = PairEncoder()

        def forward(self, images: Tensor) -> Tensor:
            mu, logvar = self.heads(images)
            if self.training:
                return mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
            return mu

    def __init__(self) -> None:
        super().__init__()
        self.encoder = self.Encoder()

    def loss(self, images: Tensor) -> Tensor:
        output = self.decoder["last"](self.decoder["first"](self.encoder(images)).relu())
        return F.mse_loss(output, images.flatten(1))


APART = [
    lambda both: both.chunk(2, dim=1),
    lambda both: (both[:, :6], both[:, 6:]),
    lambda both: both.split(6, dim=-1),
    lambda both: both.view(-1, 2, 6).unbind(1),
]


@pytest.mark.parametrize(
    ("model", "latents", "message"),
    [
        (Heads(), "backbone", "a backbone in front of the heads.*latents='fc_mu'"),
        (Heads(), "backbone", r"its log-variance, which the reading needs, latents=\('fc_mu', 'fc_scale'\)\.$"),
        (Heads("softplus"), "backbone", r"Name the code: latents='fc_mu'\.$"),  # no log-variance stands there
        (Heads(), "fc_scale", "what the scale of the draw is made from, not its mean.*latents='fc_mu'"),
        (Heads(), ("fc_scale", "fc_mu"), "what the scale of the draw is made from, not its mean"),
        (public_vaes.Classic(), "fc1", r"latents=\('fc21', 'fc22'\)\.$"),
        (Heads("softplus"), "backbone.1", "a backbone in front of the heads.*latents='fc_mu'"),
        (SideBySide(APART[0]), "encoder.1.0", "a backbone in front of the heads.*latents='encoder:chunk'"),
        (public_vaes.Vanilla(), Latents("encoder", spatial="pool"), "a backbone in front.*latents='fc_mu'"),
        (public_vaes.Sentence(), "encoder_rnn:0", ""),
        (public_vaes.Sentence(), "embedding", "a backbone in front of the heads.*latents='hidden2mean'"),
        *((SideBySide(apart), "encoder", "side by side .*latents='encoder:chunk'") for apart in APART),
        (public_vaes.KLAutoencoder(), Latents("quant_conv", spatial="pool"), "side by side .*'quant_conv:chunk'"),
        (public_vaes.KLAutoencoder(), Latents("encoder", spatial="pool"), "a backbone .*'quant_conv:chunk'"),
        (Heads(), "sampler", "a draw of the code in training, not its mean.*latents='fc_mu'"),
        (DrawsInTraining(), "encoder", "a draw of the code in training.*the two differ.*latents='encoder.heads:0'"),
        (Heads(), "decoder.first", "comes after the draw.*the decoder.*latents='fc_mu'"),
        (Heads(), "decoder.last", "comes after the draw.*latents='fc_mu'"),
        (public_vaes.Distributions(), "decoder", "comes after the draw.*Name the"),
        (public_vaes.Ladder(), "down.mu", ""),  # a part of the posterior's mean
        (public_vaes.Ladder(), "up1", "a backbone in front of the heads"),
        (public_vaes.ResidualHierarchy(), "embed", "comes after the draw.*'enc_sampler:chunk'"),
        (Heads(dropout=0.2), "fc_mu", "dropout changes in training"),
        (Paired("deviation"), "encoder", r"the standard deviation itself where.*2 \* std.log\(\)"),
        (GivesStd(), "encoder", r"the standard deviation itself where.*2 \* std.log\(\)"),
        (Paired("variance"), "encoder", r"the variance itself where.*variance.log\(\)"),
        (Paired("softplus"), "encoder:0,1", "a softplus makes the standard deviation from"),
        (Paired("logarithm"), "encoder", r"the logarithm of the standard deviation.*2 \* log_std"),
        (Heads(), Latents("fc_mu", deterministic=True), "is declared deterministic, but the step adds noise"),
    ],
    ids=lambda value: None if isinstance(value, nn.Module) else str(value)[:40],
)
def test_a_wrong_name_is_noticed_once_with_the_line_that_cures_it(model: nn.Module, latents: Any, message: str) -> None:
    said = findings(model, latents, 3)
    assert len(said) == bool(message)
    assert not message or re.search(message, said[0], re.DOTALL), said
    shown = latents.path if isinstance(latents, Latents) else latents
    assert not said or said[0].startswith(f"`latents={shown!r}` ")


@pytest.mark.parametrize(("kind", "path"), [(Heads, "unread"), (public_vaes.Classic, "fc4")])
def test_a_code_that_no_loss_reads_is_noticed_after_some_batches(kind: Any, path: str) -> None:
    assert findings(kind(), path, PATIENCE - 1) == [] or path == "fc4"
    said = findings(kind(), path, PATIENCE + 5)
    assert len(said) == 1
    assert ("no loss of the first 20 training batches depends" in said[0]) == (path == "unread")


def test_each_group_is_checked_and_right_ones_are_not_named() -> None:
    said = findings(Heads(), {"good": "fc_mu", "bad": "backbone", "own": lambda module, batch: batch}, 2)
    assert len(said) == 1
    assert said[0].startswith("`latents='backbone'`")


@pytest.mark.slow
def test_a_compiled_module_gets_no_hook_and_a_function_none_either() -> None:
    model = Heads()
    model.backbone.compile(backend="eager")
    for watched, latents in ((model, "backbone"), (Heads(), lambda module, batch: batch), (Heads(), None)):
        checks = CodeChecks(latents)
        checks.begin(watched)
        assert not any(part._forward_hooks for part in watched.modules())


@pytest.mark.parametrize(
    ("latents", "sound"),
    [
        (("fc_mu", "fc_scale"), True),
        ("fc_mu", False),
        ("backbone", False),
        ({"code": ("fc_mu", "fc_scale"), "other": "backbone"}, False),
        (lambda module, batch: batch, False),
    ],
    ids=["heads", "mean", "backbone", "heads and backbone", "function"],
)
def test_a_code_is_sound_once_the_step_was_seen_to_draw_from_all_of_it(latents: Any, sound: bool) -> None:
    model, checks = Heads(), CodeChecks(latents)
    assert not checks.sound
    checks.begin(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checks.before_backward(model.training_step([images(16)], 0))
    assert checks.sound == sound


def test_standard_deviations_are_noticed_by_their_values() -> None:
    with pytest.warns(UserWarning, match="Every log-variance .* positive"):
        check_log_variance(torch.full((4, 3), 0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_log_variance(torch.full((4, 3), 0.05))
        check_log_variance(None)
