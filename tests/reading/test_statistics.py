"""A function given as `latents` runs a second time, and no statistic of a norm moves."""

import copy

import pytest
import torch
from torch import Tensor, nn

from certvae.reading.latents import LatentCapture
from certvae.reading.statistics import kept_statistics

NORMS = [
    lambda: nn.BatchNorm1d(4),
    lambda: nn.BatchNorm1d(4, momentum=None),
    lambda: nn.BatchNorm1d(4, track_running_stats=False),
    lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten()),
]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_the_code_is_the_steps_own_and_every_buffer_and_setting_is_as_before(norm: object, training: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), norm(), nn.Linear(4, 2)).train(training)  # type: ignore[operator]
    rows = torch.randn(16, 3)
    before = copy.deepcopy(model)
    expected = before(rows)
    twin = copy.deepcopy(model)
    capture = LatentCapture(lambda module, batch: module(batch))
    found = capture.read(model, rows, None).mean
    assert torch.equal(found, expected)
    for (name, value), old in zip(model.named_buffers(), twin.buffers(), strict=True):
        assert torch.equal(value, old), name
    for part, other in zip(model.modules(), twin.modules(), strict=True):
        settings = ("training", "momentum", "track_running_stats")
        assert [getattr(part, name, None) for name in settings] == [getattr(other, name, None) for name in settings]
    assert torch.equal(model(rows), expected)  # afterwards they move again, as in the twin
    twin(rows)
    assert all(torch.equal(value, old) for value, old in zip(model.buffers(), twin.buffers(), strict=True))


def test_gradients_pass_through_both_passes() -> None:
    """The second leaves nothing in place that the backward pass of the first would refuse."""
    model, rows = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), torch.randn(16, 3)
    loss = model(rows).square().mean()
    second = LatentCapture(lambda module, batch: module(batch)).read(model, rows, None).mean
    (loss + second.pow(4).mean()).backward()
    assert model[0].weight.grad is not None


def test_an_error_in_the_function_leaves_the_norms_as_they_were() -> None:
    model = nn.BatchNorm1d(4)

    def fails() -> Tensor:
        raise RuntimeError("no code")

    with pytest.raises(RuntimeError, match="no code"), kept_statistics(model):
        fails()
    assert model.track_running_stats
