"""A step that is asked once more leaves no trace in its module."""

from typing import Any

import torch
from torch import nn
from torchmetrics import MeanMetric

from certvae.monitoring.kept_state import kept_module_state


class Counting(nn.Module):
    """Keeps books in every way that a LightningModule does."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.metric = nn.BatchNorm1d(2), MeanMetric()
        self.total, self.seen, self.named, self.kinds = torch.zeros(2), [1], {"a": 1}, {1}
        self.same = self.total
        self.count = 0

    def forward(self, values: Any) -> None:
        self.norm(values)
        self.metric.update(values)
        self.total += 1
        self.total = self.total + 1
        self.seen.append(2)
        self.named["b"] = 2
        self.kinds.add(2)
        self.count += 1
        self.late = 1


def books(module: Counting) -> list[Any]:
    metric = [float(module.metric.mean_value), float(module.metric.weight), module.metric._update_count]
    norm = [module.norm.running_mean, module.norm.running_var, module.norm.num_batches_tracked]
    plain = [module.total.tolist(), module.seen, module.named, module.kinds, module.count]
    return [*metric, *(value.tolist() for value in norm if value is not None), *map(repr, plain)]


def test_buffers_metrics_and_attributes_come_back() -> None:
    module, values = Counting(), torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    module(values)
    before, bound = books(module), (module.seen, module.named)
    del module.late
    with kept_module_state(module):
        module(values)
        assert books(module) != before
    assert books(module) == before
    assert (module.seen is bound[0], module.named is bound[1]) == (True, True)
    assert not hasattr(module, "late")
    module(values)
    assert module.count == 2
