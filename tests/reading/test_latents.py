"""Where a code stands in the output of a submodule, and what becomes of it."""

from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from certvae.callbacks import CertificateCallback, Latents
from certvae.reading.latents import LatentCapture, read_latents
from certvae.theory.posterior import Posterior

MEAN = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
LOG_VARIANCE = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
Pair = namedtuple("Pair", "mu logvar")


@pytest.mark.parametrize(
    ("output", "part"),
    [
        ((MEAN, LOG_VARIANCE), ""),
        ([MEAN, LOG_VARIANCE], ""),
        (Pair(MEAN, LOG_VARIANCE), ""),
        (Posterior(MEAN, LOG_VARIANCE), ""),
        (Normal(MEAN, (LOG_VARIANCE / 2).exp()), ""),
        (Independent(Normal(MEAN, (LOG_VARIANCE / 2).exp()), 1), ""),
        (torch.cat([MEAN, LOG_VARIANCE], dim=1), "chunk"),
        ({"mu": MEAN, "logvar": LOG_VARIANCE, "h": None}, "mu,logvar"),
        (SimpleNamespace(mu=MEAN, logvar=LOG_VARIANCE), "mu, logvar"),
        (("features", MEAN, LOG_VARIANCE), "1,2"),
        (("features", MEAN, LOG_VARIANCE), "-2,-1"),
    ],
)
def test_every_spelling_of_a_gaussian_code_is_the_same_code(output: Any, part: str) -> None:
    caught = read_latents(output, part)
    assert caught.log_variance is not None
    assert caught.rate is not None
    torch.testing.assert_close(caught.mean, MEAN)
    torch.testing.assert_close(caught.log_variance, LOG_VARIANCE)
    expected = torch.distributions.kl_divergence(Normal(MEAN, (LOG_VARIANCE / 2).exp()), Normal(0.0, 1.0)).sum(dim=1)
    torch.testing.assert_close(caught.rate, expected)


@pytest.mark.parametrize(("output", "part"), [(MEAN, ""), ({"mu": MEAN}, "mu"), ((None, MEAN), "1")])
def test_a_mean_alone_has_no_rate(output: Any, part: str) -> None:
    caught = read_latents(output, part)
    assert torch.equal(caught.mean, MEAN)
    assert caught.log_variance is None
    assert caught.rate is None


def test_a_flattened_spatial_code_keeps_every_value() -> None:
    mean, log_variance = MEAN.reshape(5, 1, 2, 2), LOG_VARIANCE.reshape(5, 1, 2, 2)
    caught, flat = read_latents((mean, log_variance), spatial="flatten"), read_latents((MEAN, LOG_VARIANCE))
    assert all(torch.equal(one, other) for one, other in zip(caught, flat, strict=True))  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_pooled_code_is_the_average_of_the_draws_over_positions() -> None:
    mean, log_variance = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    caught = read_latents((mean, log_variance), spatial="pool")
    draws = torch.stack([Posterior(mean, log_variance).sample().mean(dim=(2, 3)) for _ in range(4000)])
    assert caught.log_variance is not None
    torch.testing.assert_close(draws.mean(dim=0), caught.mean, atol=0.05, rtol=0)
    torch.testing.assert_close(draws.var(dim=0), caught.log_variance.exp(), atol=0, rtol=0.15)


def test_the_rate_of_a_pooled_code_is_that_of_the_whole_code() -> None:
    mean, log_variance = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    pooled, whole = (read_latents((mean, log_variance), spatial=way).rate for way in ("pool", "flatten"))
    assert pooled is not None
    assert whole is not None
    assert torch.equal(pooled, whole)


@pytest.mark.parametrize(
    ("output", "part", "message"),
    [
        (torch.zeros(5, 3), "chunk", "even axis 1, got \\(5, 3\\)"),
        ({"mu": MEAN}, "mean", "the part 'mean' .* has \\['mu'\\]"),
        ((MEAN, MEAN), "2", "the part '2'"),
        (MEAN.reshape(5, 1, 2, 2), "", "spatial='flatten'"),
        ((MEAN, MEAN[:, :2]), "", "mean of shape \\(5, 4\\) with a log-variance of \\(5, 2\\)"),
    ],
)
def test_what_cannot_be_read_says_what_came(output: Any, part: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_latents(output, part)


@pytest.mark.parametrize("output", [{"mu": MEAN}, "code", (MEAN, MEAN, MEAN), None])
def test_an_output_that_is_no_code_is_refused(output: Any) -> None:
    with pytest.raises(TypeError, match="Name the part after a colon"):
        read_latents(output)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, values: Tensor) -> Tensor:
        return self.blocks[1](self.blocks[1](values))


def test_first_last_or_an_error_when_a_submodule_is_called_twice() -> None:
    model = Model()
    first = model.blocks[1](MEAN)
    for calls, expected in (("first", first), ("last", model.blocks[1](first))):
        capture = LatentCapture(Latents("blocks.1", calls=calls))  # type: ignore[arg-type]
        capture.attach(model)
        capture.listen()
        model(MEAN)
        assert torch.equal(capture.read(model, None, None).mean, expected)
        capture.detach()
    capture = LatentCapture("blocks.1")
    capture.attach(model)
    capture.listen()
    model(MEAN)
    with pytest.raises(ValueError, match=r"called 2 times in one step.*calls='first'"):
        capture.read(model, None, None)
    capture.detach()
    assert not model.blocks[1]._forward_hooks


def test_a_wrong_path_lists_the_nearest_names() -> None:
    with pytest.raises(ValueError, match=r"'block.1'` names no submodule. The nearest are \['blocks.1'"):
        LatentCapture("block.1").attach(Model())


class HasEncode(Model):
    def encode(self, values: Tensor) -> Tensor:
        return values


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("encode", r"It is a method: .*latents=lambda pl_module, batch: pl_module.encode\(batch\[0\]\)\."),
        ("fc_mu, fc_var", r"Two heads are a tuple: latents=\('fc_mu', 'fc_var'\)\."),
    ],
)
def test_a_method_or_two_names_in_one_get_the_line_that_works(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        LatentCapture(name).attach(HasEncode())


def test_a_submodule_itself_is_refused_for_its_name_is_asked_for() -> None:
    with pytest.raises(TypeError, match="must be the path of a submodule.*got a Model: name it by its path"):
        LatentCapture(Model())


def test_bad_settings_are_refused() -> None:
    for arguments, message in (
        ({"path": ""}, "must name a submodule"),
        ({"path": "a", "spatial": "max"}, "'flatten', 'pool' or None, got 'max'"),
        ({"path": "a", "calls": "all"}, "'error', 'first' or 'last', got 'all'"),
    ):
        with pytest.raises(ValueError, match=message):
            Latents(**arguments)  # type: ignore[arg-type]
    assert CertificateCallback(latents="encoder.fc:chunk").reader.capture.source == Latents("encoder.fc", "chunk")


class Levels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.top, self.bottom, self.plain = nn.Linear(4, 6), nn.Linear(4, 4), nn.Linear(4, 5)

    def forward(self, values: Tensor) -> Tensor:
        return self.top(values).sum() + self.bottom(values).sum() + self.plain(values).sum()


def caught(source: Any) -> tuple[LatentCapture, Any]:
    model, capture = Levels(), LatentCapture(source)
    capture.attach(model)
    capture.listen()
    model(MEAN)
    captured = capture.read(model, MEAN, None)
    return capture, captured


def test_groups_stand_side_by_side_in_their_order_and_rates_add_up() -> None:
    torch.manual_seed(0)
    capture, whole = caught({"top": "top:chunk", "bottom": lambda model, batch: model.bottom(batch).chunk(2, dim=1)})
    assert capture.groups == {"top": slice(0, 3), "bottom": slice(3, 5)}
    assert capture.names == ["top", "bottom"]
    assert whole.mean.shape == whole.log_variance.shape == (5, 5)
    expected = Posterior(whole.mean, whole.log_variance).kl_to_standard_normal().sum(dim=1)
    torch.testing.assert_close(whole.rate, expected)
    assert not whole.deterministic
    capture.detach()


def test_a_group_without_a_variance_leaves_the_whole_without_one() -> None:
    _, whole = caught({"top": "top:chunk", "plain": "plain"})
    assert whole.mean.shape == (5, 8)
    assert (whole.log_variance, whole.rate, whole.deterministic) == (None, None, False)


def test_a_single_source_has_no_groups() -> None:
    capture, _ = caught("top")
    assert capture.groups == {}
    assert capture.names == []


def test_groups_are_encoded_again_together() -> None:
    torch.manual_seed(0)
    model, capture = Levels(), LatentCapture({"top": "top:chunk", "plain": "plain"})
    capture.attach(model)
    capture.listen()
    model(MEAN)
    whole, rows = capture.read(model, MEAN, None), torch.tensor([3, 1])
    torch.testing.assert_close(capture.read_again(model, MEAN, rows, 5).mean, whole.mean[rows])


@pytest.mark.parametrize("part", ["", "chunk"])
def test_a_deterministic_code_has_a_mean_and_nothing_else(part: str) -> None:
    for source in (Latents("top", part, deterministic=True), {"a": Latents("top", part, deterministic=True)}):
        capture, whole = caught(source)
        assert capture.deterministic
        assert whole.deterministic
        assert whole.checked().deterministic
        assert (whole.log_variance, whole.rate) == (None, None)
    assert not LatentCapture("top").deterministic
    _, mixed = caught({"top": "top:chunk", "plain": Latents("plain", deterministic=True)})
    assert mixed.deterministic


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        ({}, ValueError, "at least one group"),
        ({"a/b": "top"}, ValueError, "named by letters, .* got 'a/b'"),
        ({"top": None}, TypeError, "the group 'top' of `latents` must be the path"),
        (3, TypeError, "`latents` must be the path of a submodule"),
    ],
)
def test_what_is_no_source_is_refused(source: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        LatentCapture(source)


def test_groups_of_different_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"each give a code for every row .* \{'a': 5, 'b': 2\}"):
        caught({"a": "top", "b": lambda model, batch: batch[:2]})
