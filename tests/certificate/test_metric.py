"""The metric equals the one-shot certificate however the rows arrive."""

import itertools
import pickle
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from certvae import CertificateMetric, CertificateSettings, Status, certify
from certvae.theory.sums import CertificateSums
from tests.conftest import random_logits, random_probs
from tests.same import assert_same


def rows_of(count: int, components: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    teacher, logits = random_probs(count, components, seed), random_logits(count, components, seed)
    channel = torch.stack([random_logits(count, components, seed + draw) for draw in (1, 2)])
    rate = random_probs(count, 2, seed)[:, 0] * 5
    return teacher, logits, channel, rate


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(
    cuts=st.lists(st.integers(0, 200), max_size=8),
    components=st.integers(2, 12),
    seed=st.integers(0, 2**16),
    merge=st.booleans(),
)
def test_any_split_of_the_rows_gives_the_one_shot_certificate(
    cuts: list[int], components: int, seed: int, merge: bool
) -> None:
    """To 1e-10 in every field, in one metric or in several that are merged."""
    teacher, logits, channel, rate = rows_of(200, components, seed)
    expected = certify(teacher, logits, channel_logits=channel, rate=rate)
    edges = [0, *sorted(cuts), 200]
    metrics = [CertificateMetric(components)]
    for start, end in itertools.pairwise(edges):
        if merge:
            metrics.append(CertificateMetric(components))
        part = slice(start, end)
        metrics[-1].update(teacher[part], logits[part], channel_logits=channel[:, part], rate=rate[part])
    for metric in metrics[1:]:
        metrics[0].merge_state(metric)
    assert_same(metrics[0].compute(), expected)


def test_numbers_equal_a_computation_row_by_row() -> None:
    teacher, logits, channel, rate = rows_of(150, 5, seed=8)
    certificate = certify(teacher, logits, channel_logits=channel, rate=rate)
    mean = teacher.mean(dim=0)
    scores = (teacher * (logits.log_softmax(dim=1) - mean.log())).sum(dim=1)
    channel_scores = (teacher * (channel.log_softmax(dim=2) - mean.log())).sum(dim=2).mean(dim=0)
    z95 = 1.6448536269514722
    assert certificate.margin == pytest.approx(float(scores.mean()), abs=1e-12)
    assert certificate.margin_lower == pytest.approx(float(scores.mean() - z95 * scores.std() / 150**0.5), abs=1e-10)
    assert certificate.channel_margin == pytest.approx(float(channel_scores.mean()), abs=1e-12)
    assert certificate.rate == pytest.approx(float(rate.mean()), abs=1e-12)


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**16))
def test_rows_of_weight_zero_do_not_count(seed: int) -> None:
    teacher, logits, channel, rate = rows_of(60, 4, seed)
    keep = random_probs(60, 2, seed + 5)[:, 0] > 0.4
    kept = certify(teacher[keep], logits[keep], channel_logits=channel[:, keep], rate=rate[keep])
    metric = CertificateMetric(4)
    metric.update(teacher, logits, keep.double(), channel_logits=channel, rate=rate)
    assert_same(metric.compute(), kept)


@pytest.mark.parametrize("method", ["plugin", "normal", "hoeffding", "bernstein"])
def test_every_bound_works_from_the_metric(method: str) -> None:
    teacher = 0.95 * random_probs(500, 4, seed=1) + 0.05 / 4
    metric = CertificateMetric(4, CertificateSettings(method=method, teacher_floor=0.05))
    for part in teacher.split(77):
        metric.update(part, part.log())
    assert_same(metric.compute(), certify(teacher, teacher.log(), method=method, teacher_floor=0.05))


def test_state_is_independent_of_the_number_of_rows() -> None:
    metric = CertificateMetric(7)
    metric.update(random_probs(5000, 7, 0), random_logits(5000, 7, 0))
    assert metric.packed.numel() == CertificateSums.packed_size(7) == 13**2 + 8 + 5 + 2 * 7
    assert metric.packed.dtype == torch.float64


def test_a_pickled_metric_goes_on_where_it_was() -> None:
    teacher, logits, channel, rate = rows_of(90, 3, seed=2)
    metric = CertificateMetric(3)
    metric.update(teacher[:40], logits[:40], channel_logits=channel[:, :40], rate=rate[:40])
    metric = pickle.loads(pickle.dumps(metric))
    metric.update(teacher[40:], logits[40:], channel_logits=channel[:, 40:], rate=rate[40:])
    assert_same(metric.compute(), certify(teacher, logits, channel_logits=channel, rate=rate))


def test_a_metric_that_was_reset_starts_anew() -> None:
    metric, teacher = CertificateMetric(3), random_probs(200, 3, seed=1)
    metric.update(teacher, torch.zeros_like(teacher))
    assert metric.compute().status is Status.NOT_CERTIFIED
    metric.reset()
    metric.update(teacher, teacher.log())
    assert metric.compute().status is Status.CERTIFIED


def test_half_precision_sums_do_not_follow_the_module() -> None:
    assert CertificateMetric(3).half().packed.dtype == torch.float64


def test_channel_values_for_some_rows_only_give_no_channel_margin() -> None:
    teacher, logits, channel, rate = rows_of(20, 3, seed=2)
    metric = CertificateMetric(3)
    metric.update(teacher, logits, channel_logits=channel, rate=rate)
    metric.update(teacher, logits)
    certificate = metric.compute()
    assert certificate.channel_margin is None
    assert certificate.rate is None


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="`num_components` must be at least 2, got 1"):
        CertificateMetric(1)
    metric = CertificateMetric(3)
    with pytest.raises(ValueError, match="at least one row"):
        metric.compute()
    with pytest.raises(ValueError, match=r"`teacher_probs` must have shape \(N, 3\)"):
        metric.update(torch.full((2, 4), 0.25), torch.zeros(2, 4))
    probs = torch.full((2, 3), 1 / 3)
    with pytest.raises(ValueError, match="`witness_logits` must have the shape of `teacher_probs`"):
        metric.update(probs, torch.zeros(2, 4))
    with pytest.raises(ValueError, match="`channel_logits` must have shape"):
        metric.update(probs, torch.zeros(2, 3), channel_logits=torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"`rate` must have shape \(2,\)"):
        metric.update(probs, torch.zeros(2, 3), rate=torch.zeros(3))
    with pytest.raises(ValueError, match="`rate` must be finite"):
        metric.update(probs, torch.zeros(2, 3), rate=torch.tensor([0.0, float("nan")]))
    with pytest.raises(ValueError, match="`weights` must be non-negative, got -1"):
        metric.update(probs, torch.zeros(2, 3), torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match="`teacher_floor=0.5` promises"):
        CertificateMetric(3, CertificateSettings(teacher_floor=0.5)).update(
            torch.tensor([[0.9, 0.05, 0.05]]), torch.zeros(1, 3)
        )


def test_a_metric_draws_its_certificate_and_others_beside_it() -> None:
    """The mark of a certified one is filled, the line goes down to the bound, the tick names the status."""
    teacher, metric = random_probs(200, 3, seed=1), CertificateMetric(3)
    metric.update(teacher, teacher.log())
    certified = metric.compute()
    figure, axes = metric.plot()
    assert figure is axes.get_figure()
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["CERTIFIED"]
    assert cast(Any, axes.lines[0].get_ydata()).min() == pytest.approx(certified.margin_lower)
    other = certify(teacher, torch.zeros_like(teacher))
    _, both = metric.plot([certified, other], ax=figure.add_axes((0, 0, 1, 1)))
    assert [tick.get_text() for tick in both.get_xticklabels()] == ["CERTIFIED", "NOT_CERTIFIED"]
    faces = cast(Any, both.collections[-1]).get_facecolor()
    assert tuple(faces[0]) != tuple(faces[1])


def test_rows_that_are_too_many_to_keep_are_not_kept_again() -> None:
    """Else memory would rise to the limit over and over; after a reset they are kept anew."""
    settings = CertificateSettings(method="betting", teacher_floor=0.01, max_kept=100)
    metric, teacher = CertificateMetric(3, settings), 0.99 * random_probs(10, 3, seed=1) + 0.01 / 3
    kept = []
    for _ in range(4):
        metric.update(teacher, teacher.log())
        kept.append(len(metric.rows))
    assert kept == [1, 0, 0, 0]
    assert metric.compute().method != "betting"
    metric.reset()
    metric.update(teacher, teacher.log())
    assert metric.compute().method == "betting"
