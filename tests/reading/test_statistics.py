"""A function given as `latents` runs a second time, and no statistic of a norm moves."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from certvae.callbacks import AlignmentCallback
from certvae.reading.latents import LatentCapture
from certvae.reading.statistics import kept_statistics
from tests.callbacks.test_unchanged_runs import NoisyVAE
from tests.plain_vae import plain_loader
from tests.runs import digits_teacher, trainer

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


class Steady(NoisyVAE):
    """Without dropout, so that two passes give the same code; and SGD, for Adam makes steps of rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.front, self.witness = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64)), nn.Sequential(nn.Linear(6, 5))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.slow
def test_an_alignment_by_a_function_moves_the_statistics_once_a_step(tmp_path: Path) -> None:
    found: list[dict[str, Tensor]] = []
    for latents in ("encoder", lambda module, batch: module.encoder(module.front(module.images(batch)))):
        torch.manual_seed(0)
        model = Steady()
        callback = AlignmentCallback(digits_teacher(), latents)
        trainer(tmp_path, max_epochs=2, callbacks=[callback]).fit(model, plain_loader(64, 16))
        found.append(dict(model.front.named_buffers()))
    assert int(found[0]["1.num_batches_tracked"]) == 8
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name])
