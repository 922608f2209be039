"""What is read from an output after its code was replaced is the other code, whatever kind of output it is."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, Normal

from certvae.reading.latents import read_latents
from certvae.reading.replacement import other_rows, replace_code, standard_normal
from certvae.theory.posterior import Posterior

MEAN = torch.arange(12.0).view(4, 3)
LOG_VARIANCE = -MEAN / 10
EXTRA = torch.ones(4, 7)


@dataclass(frozen=True)
class Output:
    mu: Tensor
    logvar: Tensor
    features: Tensor


NORMAL = Normal(MEAN, (LOG_VARIANCE / 2).exp())
KINDS: list[tuple[Any, str]] = [
    ((MEAN, LOG_VARIANCE), ""),
    ([MEAN, LOG_VARIANCE], ""),
    (Posterior(MEAN, LOG_VARIANCE), ""),
    (torch.cat([MEAN, LOG_VARIANCE], dim=1), "chunk"),
    ((EXTRA, MEAN, LOG_VARIANCE), "1,2"),
    (Posterior(MEAN, LOG_VARIANCE), "mean,log_variance"),
    ({"mu": MEAN, "logvar": LOG_VARIANCE, "features": EXTRA}, "mu,logvar"),
    (Output(MEAN, LOG_VARIANCE, EXTRA), "mu, logvar"),
    (NORMAL, ""),
    (Independent(NORMAL, 1), ""),
    ({"q": Independent(NORMAL, 1), "features": EXTRA}, "q"),
]


@pytest.mark.parametrize(("value", "part"), KINDS)
def test_mean_and_log_variance_are_those_of_the_other_rows_or_of_the_prior(value: Any, part: str) -> None:
    order = torch.tensor([1, 2, 3, 0])
    shuffled = replace_code(value, part, other_rows(order))
    assert type(shuffled) is type(value)
    mean, log_variance, _ = read_latents(shuffled, part)
    assert log_variance is not None
    torch.testing.assert_close(mean, MEAN[order])
    torch.testing.assert_close(log_variance, LOG_VARIANCE[order])
    prior = read_latents(replace_code(value, part, standard_normal), part)
    assert prior.log_variance is not None
    assert float(prior.mean.abs().max()) == float(prior.log_variance.abs().max()) == 0
    before = read_latents(value, part).mean
    torch.testing.assert_close(before, MEAN, msg="the output itself stays as it is")


def test_a_mean_alone_is_replaced_alone() -> None:
    order = torch.tensor([3, 0, 1, 2])
    assert torch.equal(replace_code(MEAN, "", other_rows(order)), MEAN[order])
    changed = replace_code({"mu": MEAN, "logvar": LOG_VARIANCE}, "mu", other_rows(order))
    assert torch.equal(changed["mu"], MEAN[order])
    assert torch.equal(changed["logvar"], LOG_VARIANCE)


def test_what_cannot_be_replaced_says_so() -> None:
    with pytest.raises(TypeError, match="the code in a Categorical cannot be replaced"):
        replace_code(Categorical(logits=MEAN), "", standard_normal)
