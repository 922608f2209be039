"""Codes in the forms that people's encoders give them, and errors that say what was found and what to type."""

import tempfile
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import (
    Categorical,
    Independent,
    Normal,
    OneHotCategorical,
    RelaxedOneHotCategorical,
    TransformedDistribution,
)
from torch.distributions.transforms import StickBreakingTransform
from torch.utils.data import DataLoader, TensorDataset

from certvae.callbacks import DecoderCheck, Latents
from certvae.monitoring.code_checks import CodeChecks
from certvae.reading.inputs import select_inputs
from certvae.reading.latents import Captured, LatentCapture, read_latents
from certvae.teachers.search import SelectionCriteria, TeacherSearch, TeacherSearchError

MEAN = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
LOG_VARIANCE = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
STD = (LOG_VARIANCE / 2).exp()
LOOSE = SelectionCriteria(max_energy=1e6, min_use=0.0, max_use=1.0, max_drift=10.0)
WRITTEN = {
    "logvar": LOG_VARIANCE,
    "log_var": LOG_VARIANCE,
    "log_variance": LOG_VARIANCE,
    "std": STD,
    "stddev": STD,
    "scale": STD,
    "variance": STD**2,
    "log_std": STD.log(),
}
SCALES = {"log_variance": LOG_VARIANCE, "std": STD, "variance": STD**2, "log_std": STD.log()}


class DiagonalGaussian:
    """As diffusers writes it."""

    def __init__(self, parameters: Tensor) -> None:
        self.parameters = parameters
        self.mean, self.logvar = parameters.chunk(2, dim=1)
        self.std, self.var = (self.logvar / 2).exp(), self.logvar.exp()


class Properties:
    @property
    def loc(self) -> Tensor:
        return MEAN

    @property
    def scale(self) -> Tensor:
        return STD


class TwoHeads(nn.Module):
    """Backbone, two heads, and a forward that gives (reconstruction, mean, scale)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc_mu, self.fc_var, self.decoder = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(3, 4)

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, scale = self.fc_mu(values), self.fc_var(values)
        return self.decoder(mean + torch.randn_like(mean) * (scale / 2).exp()), mean, scale


def is_the_code(caught: Captured) -> None:
    assert caught.log_variance is not None
    assert caught.rate is not None
    torch.testing.assert_close(caught.mean, MEAN)
    torch.testing.assert_close(caught.log_variance, LOG_VARIANCE)


def read_from(module: nn.Module, source: Any, call: Any = None) -> Captured:
    capture = LatentCapture(source)
    capture.attach(module)
    capture.listen()
    (call or module)(MEAN)
    caught = capture.read(module, [MEAN], None)
    again = capture.read_again(module, [MEAN], torch.tensor([2, 0]), 5)
    capture.detach()
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    torch.testing.assert_close(again.mean, caught.mean[[2, 0]])
    return caught


@pytest.mark.parametrize("name", WRITTEN)
def test_an_object_or_a_dict_with_a_mean_and_a_scale_is_a_posterior(name: str) -> None:
    is_the_code(read_latents(SimpleNamespace(mean=MEAN, **{name: WRITTEN[name]})))
    is_the_code(read_latents({"mu": MEAN, name: WRITTEN[name]}))
    is_the_code(read_latents(SimpleNamespace(posterior={"mu": MEAN, name: WRITTEN[name]}), f"posterior:mu,{name}"[:9]))
    is_the_code(read_latents({"mu": MEAN, name: WRITTEN[name]}, f"mu,{name}"))


def test_posteriors_of_other_libraries_are_read() -> None:
    is_the_code(read_latents(DiagonalGaussian(torch.cat([MEAN, LOG_VARIANCE], dim=1))))
    is_the_code(read_latents(Properties()))
    output = SimpleNamespace(latent_dist=DiagonalGaussian(torch.randn(5, 8, 2, 2)))
    assert read_latents(output, "latent_dist", "pool").mean.shape == (5, 4)
    with pytest.raises(TypeError, match=r"latent_dist: DiagonalGaussian.*latents='encoder:latent_dist'"):
        read_latents(output)


class Refusing(dict[str, Tensor]):
    """As the outputs of transformers and diffusers."""

    def update(self, *values: Any, **named: Any) -> None:
        raise AssertionError("You cannot use update")


class RefusingEncoder(nn.Module):
    def forward(self, values: Tensor) -> Refusing:
        return Refusing(mu=values, logvar=LOG_VARIANCE[: len(values)])


@pytest.mark.parametrize("part", ["", ":mu,logvar"])
def test_an_output_that_refuses_an_update_is_caught(part: str) -> None:
    is_the_code(read_from(nn.Sequential(RefusingEncoder()), f"0{part}"))


@pytest.mark.parametrize("scale", SCALES)
def test_the_scale_is_read_as_it_is_said_to_be(scale: Any) -> None:
    is_the_code(read_latents((MEAN, SCALES[scale]), scale=scale))
    is_the_code(Latents("encoder", "1,2", scale=scale).read((None, MEAN, SCALES[scale])))


@pytest.mark.parametrize("scale", ["std", "variance"])
def test_a_negative_deviation_is_refused(scale: Any) -> None:
    with pytest.raises(ValueError, match=r"not positive. Set its kind, Latents\('encoder', ..., scale='log_var"):
        read_latents((MEAN, LOG_VARIANCE), scale=scale)


@pytest.mark.parametrize(
    ("source", "likely"),
    [(("fc_mu", "fc_sigma"), "std"), ("encoder:mu,log_sigma", "log_std"), (("mu", "fc_std"), "std")],
)
def test_a_likely_scale_is_warned_of_and_not_guessed(source: Any, likely: str) -> None:
    with pytest.warns(UserWarning, match=f"for a log-variance.*scale='{likely}'"):
        LatentCapture(source)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for certain in (
            ("fc_mu", "fc_var"),
            ("fc_mu", "fc_logvar"),
            "encoder:mu,std",
            Latents("a", "0,1", scale="std"),
        ):
            LatentCapture(certain)


@pytest.mark.parametrize("source", [("fc_mu", "fc_var"), ["fc_mu", "fc_var"], Latents("fc_mu", scale_path="fc_var")])
def test_two_heads_are_a_code(source: Any) -> None:
    model = TwoHeads()
    caught = read_from(model, source)
    assert torch.equal(caught.mean, model.fc_mu(MEAN))
    assert caught.log_variance is not None
    assert torch.equal(caught.log_variance, model.fc_var(MEAN))


def test_two_heads_are_checked_in_the_graph() -> None:
    model, said, scales = TwoHeads(), list[list[str]](), (None, "std")
    for scale in scales:
        checks = CodeChecks(Latents("fc_mu", scale_path="fc_var", scale=scale))  # type: ignore[arg-type]
        checks.begin(model)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            checks.before_backward(model(MEAN)[0].sum())
        checks.end()
        said.append([str(item.message) for item in caught])
    assert said[0] == []
    assert "gives the log-variance where the standard deviation is read" in said[1][0]
    assert "scale='log_variance'" in said[1][0]


def test_the_output_of_the_module_itself_is_read_also_where_its_step_is_wrapped() -> None:
    model = TwoHeads()
    assert torch.equal(read_from(model, ":1,2").mean, model.fc_mu(MEAN))
    original = model.forward

    def step(values: Tensor) -> Tensor:
        model.forward = original  # type: ignore[method-assign]
        return model(values)[0].sum()

    def wrapped(values: Tensor) -> Any:
        model.forward = step  # type: ignore[assignment, method-assign]
        return model(values)

    assert torch.equal(read_from(model, ":1,2", wrapped).mean, model.fc_mu(MEAN))


def test_a_function_may_be_pooled_and_may_give_a_deviation() -> None:
    def posterior(module: Any, batch: Any) -> Any:
        return {"code": (batch[0][:, :, None, None].expand(-1, 4, 2, 2), torch.ones(len(batch[0]), 4, 2, 2))}

    caught = read_from(nn.Identity(), Latents(posterior, "code", spatial="flatten", scale="std"))
    assert caught.log_variance is not None
    assert not caught.log_variance.any()
    assert caught.mean.shape == (5, 16)
    with pytest.raises(ValueError, match=r"got \(5, 4, 2, 2\); flatten or pool them: Latents\(posterior, spatial='fl"):
        Latents(posterior, "code").read(posterior(None, [MEAN]))


def test_samples_are_no_positions() -> None:
    """Of S samples of a row the first is read: S of them would carry more than the decoder gets of one."""
    samples = MEAN[:, None].expand(5, 3, 4), LOG_VARIANCE[:, None].expand(5, 3, 4)
    is_the_code(read_latents(samples, spatial="samples"))
    draws = torch.randn(5, 3, 4)
    assert torch.equal(read_latents(draws, spatial="samples").mean, draws[:, 0])
    with pytest.raises(ValueError, match=r"first of S samples of \(B, S, latent_dim\).*spatial='samples'"):
        read_latents(draws)


def test_merged_posteriors_of_a_hierarchy_are_read_by_level_and_together() -> None:
    """A ladder merges two Gaussians by precision; its levels come as a list of pairs."""
    precision = (-LOG_VARIANCE).exp()
    levels = [(MEAN, LOG_VARIANCE), Normal(MEAN / (1 + precision), (1 + precision) ** -0.5)]
    capture = LatentCapture({"top": Latents(lambda *_: levels, "0"), "bottom": Latents(lambda *_: levels, "1")})
    code = capture.read(nn.Identity(), None, None)
    assert code.mean.shape == (5, 8)
    assert code.log_variance is not None
    torch.testing.assert_close(code.log_variance[:, 4:], -(1 + precision).log())


def test_classes_are_a_code_of_probabilities_with_a_rate() -> None:
    logits = torch.randn(5, 3, 4, dtype=torch.float64)
    rate = (4 * logits.softmax(2) / 4 * (4 * logits.softmax(2)).log()).sum(dim=(1, 2)).float()
    for posterior in (Categorical(logits=logits), Independent(OneHotCategorical(logits=logits), 1)):
        caught = read_latents(posterior)
        torch.testing.assert_close(caught.mean, logits.softmax(2).flatten(1))
        assert caught.log_variance is None
        assert caught.rate is not None
        torch.testing.assert_close(caught.rate.float(), rate)
    relaxed = read_latents(RelaxedOneHotCategorical(torch.tensor(0.5), logits=MEAN))
    torch.testing.assert_close(relaxed.mean, MEAN.softmax(1))
    assert relaxed.rate is None
    with pytest.raises(TypeError, match="TransformedDistribution, whose mean is not known.*'encoder:base_dist'"):
        read_latents(TransformedDistribution(Normal(MEAN, STD), [StickBreakingTransform()]))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([MEAN, MEAN[:, :2], LOG_VARIANCE[:, :2]], r"list of 3: 0: float32 \(5, 4\).*latents='encoder:1,2'"),
        (("features", MEAN), r"tuple of 2: 0: str, 1: float32 \(5, 4\).*latents='encoder:1'"),
        ({"recon": MEAN, "z": None}, "dict of 2: recon: float32.*z: NoneType"),
        (
            torch.nested.nested_tensor([MEAN[:3], MEAN[:2]], layout=torch.jagged),
            r"different lengths.*\[3, 2\].*mean\(0",
        ),
    ],
)
def test_what_is_no_code_is_listed_with_the_line_to_type(value: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        read_latents(value)


def test_three_names_are_refused_with_what_to_write() -> None:
    with pytest.raises(TypeError, match=r"two heads, \('fc_mu', 'fc_var'\).*Several codes need names"):
        LatentCapture(("a", "b", "c"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`scale_path` goes with the path"):
        Latents(lambda *_: MEAN, scale_path="fc_var")
    with pytest.raises(ValueError, match="`scale` must be one of log_variance, variance, std, log_std"):
        Latents("encoder", scale="sigma")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must name a submodule"):
        DecoderCheck(Latents(lambda *_: MEAN))


def test_a_ragged_batch_is_listed_with_how_to_pad_it() -> None:
    with pytest.raises(TypeError, match=r"list of 2: 0: float32 \(3, 4\), 1: float32 \(2, 4\).*pad_sequence"):
        select_inputs(([MEAN[:3], MEAN[:2]], 1))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            torch.randint(0, 9, (8, 5)),
            r"whole numbers, int64 \(8, 5\). Between tokens there is none: count them.*one_hot",
        ),
        (torch.rand(8, 7), r"rows of one shape, got float32 \(8, 7\) after rows of \(5,\).*counts of words"),
    ],
)
def test_a_search_refuses_tokens_and_ragged_rows_with_the_line_that_mends_it(batch: Tensor, message: str) -> None:
    search = TeacherSearch(components=(2,))
    search._check_rows(torch.rand(8, 5))
    search._image_shape = (5,)
    with pytest.raises(TeacherSearchError, match=message):
        search._check_rows(batch)


@pytest.mark.slow
def test_a_search_leaves_out_the_rows_that_its_function_drops() -> None:
    rows, labels = torch.randn(64, 3), torch.arange(64) % 2 - 1
    index = torch.arange(64)
    options: dict[str, Any] = {"components": (2,), "temperatures": (1.0,), "pca_dim": 2, "em_iterations": 2, "seed": 0}
    found = []
    for data, images in (
        (TensorDataset(rows, labels, index), lambda given: given[0][given[1] >= 0]),
        (TensorDataset(rows[labels >= 0]), lambda given: given[0]),
    ):
        with tempfile.TemporaryDirectory() as folder:
            search = TeacherSearch(**options, images=images, output_dir=folder, criteria=LOOSE)
            found.append(search.search(DataLoader(data, 64), DataLoader(data, 64)))
    assert torch.equal(found[0](rows[:5]), found[1](rows[:5]))
