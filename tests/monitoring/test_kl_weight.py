"""The KL weight of a module is found by its name, lowered, and never raised."""

from typing import Any

import pytest
from torch import nn

from certvae.models.objectives import ELBO
from certvae.models.schedules import LinearSchedule
from certvae.monitoring.kl_weight import FreeBitsFloor, KLWeight
from tests.runs import small_vae


class Module(nn.Module):
    def __init__(self, beta: Any = 8.0) -> None:
        super().__init__()
        self.beta, self.rate, self.layer = beta, 0.1, nn.Linear(1, 1)


def test_it_is_divided_and_never_above_the_modules_own() -> None:
    module = Module()
    weight = KLWeight(module, "beta")
    assert [weight.apply(value) for value in (4.0, 1.0, 0.5)] == [2.0, 8.0, 8.0]
    assert module.beta == 8.0
    vae = small_vae(beta=60.0)
    assert KLWeight(vae, "objective.beta").apply(6.0) == vae.objective.beta == 10.0


def test_the_free_rate_is_multiplied_and_never_below_the_modules_own() -> None:
    module = Module(0.25)
    floor = FreeBitsFloor(module, "beta")
    assert [floor.apply(value) for value in (4.0, 1.0, 0.5)] == [1.0, 0.25, 0.25]
    floor.apply(4.0)
    assert FreeBitsFloor(module, "beta", floor.own, floor.now).apply(2.0) == 0.5
    with pytest.raises(ValueError, match="`free_bits='beta'` must name a number above 0.* such as 0.01 nats"):
        FreeBitsFloor(Module(0.0), "beta")
    with pytest.raises(ValueError, match="`free_bits='gamma'` names no attribute of Module"):
        FreeBitsFloor(module, "gamma")


def test_a_module_that_sets_it_itself_is_followed() -> None:
    module = Module(1.0)
    weight = KLWeight(module, "beta")
    weight.apply(4.0)
    module.beta = 2.0  # as in annealing
    assert weight.apply(4.0) == 0.5
    assert weight.own == 2.0


def test_what_was_found_is_divided_from_the_modules_own_again() -> None:
    module = Module()
    before = KLWeight(module, "beta")
    before.apply(4.0)
    assert KLWeight(module, "beta", before.own, before.now).apply(2.0) == 4.0
    assert KLWeight(Module(6.0), "beta", before.own, before.now).apply(2.0) == 3.0, "another config counts"


def test_what_is_no_number_says_why() -> None:
    for name in ("gamma", "layer.beta", "nothing.beta", "layer.", ""):
        with pytest.raises(ValueError, match=r"names no attribute of Module; .*\['beta', 'rate'\]|names no attribute"):
            KLWeight(Module(), name)
    saved = Module()
    saved.hparams = {"weight": 2.0}  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"'hparams.weight'"):
        KLWeight(saved, "weight")
    with pytest.raises(TypeError, match="`kl_weight='layer'` must name a number.* it is a Linear"):
        KLWeight(Module(), "layer")
    with pytest.raises(TypeError, match="it is a LinearSchedule"):
        KLWeight(ELBO(LinearSchedule(0.0, 1.0, epochs=2)), "beta")
    for value in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="a finite number of at least 0"):
            KLWeight(Module(value), "beta")
