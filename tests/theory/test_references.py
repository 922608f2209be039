"""The teacher information against an implementation that nobody here wrote."""

import pytest
import torch
from ignite.metrics import MutualInformation

from certvae.theory.information import teacher_information
from tests.conftest import random_logits


@pytest.mark.parametrize(("rows", "components"), [(1, 2), (50, 10), (400, 100)])
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_the_teacher_information_is_the_mutual_information_of_ignite(rows: int, components: int, scale: float) -> None:
    """``ignite.metrics.MutualInformation`` keeps its sums in torch's default type."""
    logits = random_logits(rows, components, seed=rows, scale=scale)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        metric = MutualInformation()
        for batch in logits.split(32):
            metric.update((batch, torch.zeros(len(batch), dtype=torch.long)))
        expected = metric.compute()
    finally:
        torch.set_default_dtype(default)
    assert float(teacher_information(logits.softmax(dim=1))) == pytest.approx(expected, abs=1e-12)
