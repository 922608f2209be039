"""However rows reach the metric, and whatever happens to it in between, its certificate is the one-shot one."""

import pickle
from copy import deepcopy
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor, nn
from torchmetrics import MetricCollection

from certvae import Certificate, CertificateMetric, CertificateSettings, certify
from tests import same
from tests.conftest import random_logits, random_probs

pytestmark = pytest.mark.slow

CASTS = ("half", "float", "double", "bfloat16")
DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])
SEEDS = st.integers(0, 2**16)


def assert_same(one: Certificate, other: Certificate) -> None:
    """Every field to 1e-10, relative where values are large."""
    same.assert_same(one, other, relative=1e-10)


class Interleavings(RuleBasedStateMachine):
    """A metric, and the rows that it has seen."""

    @initialize(components=st.sampled_from([2, 3, 9]), floor=st.sampled_from([0.0, 0.1]), rate=st.booleans())
    def start(self, components: int, floor: float, rate: bool) -> None:
        self.components = components
        self.arguments: dict[str, Any] = {"safety_margin": 0.0, "witness_floor": floor}
        self.with_rate = rate
        self.metric = self.fresh()
        self.rows: list[dict[str, Tensor]] = []

    def fresh(self) -> CertificateMetric:
        return CertificateMetric(self.components, CertificateSettings(**self.arguments))

    def batch(self, seed: int, count: int, scale: float) -> dict[str, Tensor]:
        """Rows of which every third has weight 0 and the others different ones."""
        teacher = random_probs(count, self.components, seed)
        channel = torch.stack([random_logits(count, self.components, seed + draw) for draw in (1, 2)])
        rows = {
            "teacher_probs": teacher,
            "witness_logits": teacher.log() + random_logits(count, self.components, seed, scale),
            "weights": (torch.arange(count) % 3).double() * random_probs(count, 2, seed)[:, 0],
            "channel_logits": channel,
        }
        return {**rows, "rate": 9 + random_probs(count, 2, seed)[:, 1]} if self.with_rate else rows

    @rule(seed=SEEDS, count=st.integers(0, 20), scale=st.sampled_from([0.0, 1.0, 1e6]))
    def update(self, seed: int, count: int, scale: float) -> None:
        rows = self.batch(seed, count, scale)
        self.metric.update(**rows)
        self.rows.append(rows)

    @rule(seed=SEEDS, count=st.integers(2, 20))
    def forward(self, seed: int, count: int) -> None:
        """Its value is that of the batch alone."""
        rows = self.batch(seed, count, 1.0)
        assert_same(self.metric(**rows), self.expected([rows]))
        self.rows.append(rows)

    @rule(seed=SEEDS, fault=st.sampled_from(["teacher_probs", "witness_logits", "weights"]), forward=st.booleans())
    def refused_rows_leave_the_sums(self, seed: int, fault: str, forward: bool) -> None:
        rows = self.batch(seed, 5, 1.0)
        rows[fault] = rows[fault] * torch.nan
        with pytest.raises(ValueError, match=f"`{fault}`"):
            self.metric(**rows) if forward else self.metric.update(**rows)

    @rule(seed=SEEDS, count=st.integers(0, 9), empty=st.booleans(), mine=st.booleans())
    def merge(self, seed: int, count: int, empty: bool, mine: bool) -> None:
        """Into this metric, or of this metric into the other."""
        other, rows = self.fresh(), self.batch(seed, count, 1.0)
        if not empty:
            other.update(**rows)
            self.rows.append(rows)
        into, given = (self.metric, other) if mine else (other, self.metric)
        into.merge_state(given)
        self.metric = into

    @rule(seed=SEEDS)
    def merge_a_plain_state(self, seed: int) -> None:
        other, rows = self.fresh(), self.batch(seed, 4, 1.0)
        other.update(**rows)
        self.metric.merge_state(other.metric_state)
        self.rows.append(rows)

    @rule()
    def reset(self) -> None:
        self.metric.reset()
        self.rows = []

    @rule(keep=st.booleans())
    def pickle_or_copy(self, keep: bool) -> None:
        self.metric = pickle.loads(pickle.dumps(self.metric)) if keep else deepcopy(self.metric)

    @rule(seed=SEEDS)
    def a_copy_shares_nothing(self, seed: int) -> None:
        other = self.metric.clone()
        other.update(**self.batch(seed, 3, 1.0))

    @rule(seed=SEEDS)
    def checkpoint(self, seed: int) -> None:
        """Saved, and loaded twice: what is loaded shares nothing with the state that was given."""
        self.metric.persistent(True)
        state = self.metric.state_dict()
        for _ in range(2):
            loaded = self.fresh()
            loaded.update(**self.batch(seed, 3, 1.0))
            loaded.load_state_dict(state)
            self.metric = deepcopy(loaded)
            loaded.update(**self.batch(seed, 3, 1.0))

    @rule(
        dtype=DTYPES, cast=st.sampled_from(CASTS), way=st.sampled_from(["to", "set_dtype", "cast", "child", "child.to"])
    )
    def change_type(self, dtype: torch.dtype, cast: str, way: str) -> None:
        parent = nn.ModuleList([self.metric])
        calls: dict[str, Any] = {
            "to": lambda: self.metric.to(dtype),
            "set_dtype": lambda: self.metric.set_dtype(dtype),
            "cast": getattr(self.metric, cast),
            "child": getattr(parent, cast),
            "child.to": lambda: parent.to("cpu", dtype),
        }
        calls[way]()

    @rule(mode=st.sampled_from([torch.inference_mode, torch.no_grad]), seed=SEEDS, clear=st.booleans())
    def under_inference_mode(self, mode: Any, seed: int, clear: bool) -> None:
        """As in a stand-alone validation of Lightning."""
        with mode():
            if clear:
                self.reset()
            self.update(seed, 4, 1.0)

    @rule(seed=SEEDS)
    def under_autocast(self, seed: int) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            self.update(seed, 4, 1.0)

    def expected(self, rows: list[dict[str, Tensor]]) -> Certificate:
        joined: dict[str, Any] = {
            name: torch.cat([batch[name] for batch in rows], dim=int(name == "channel_logits")) for name in rows[0]
        }
        return certify(**joined, **self.arguments)

    @invariant()
    def sums_are_float64(self) -> None:
        assert self.metric.packed.dtype == self.metric.floors.dtype == torch.float64

    @precondition(lambda self: any(bool((rows["weights"] > 0).any()) for rows in self.rows))
    @invariant()
    def equals_the_one_shot_certificate(self) -> None:
        assert_same(self.metric.compute(), self.expected(self.rows))


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=50, stateful_step_count=25, deadline=None)


def rows_of(seed: int) -> tuple[Tensor, Tensor]:
    return random_probs(20, 3, seed), random_logits(20, 3, seed)


def test_the_state_is_not_in_a_checkpoint_unless_it_is_asked_for() -> None:
    """Rows of one validation must not enter the next through a module's checkpoint."""
    metric = CertificateMetric(3)
    metric.update(*rows_of(0))
    assert not nn.ModuleDict({"metric": metric}).state_dict()
    metric.persistent(True)
    assert set(nn.ModuleDict({"metric": metric}).state_dict()) == {"metric.packed", "metric.floors", "metric.rows"}


def test_a_checkpoint_of_a_module_restores_the_rows() -> None:
    before, after = CertificateMetric(3), CertificateMetric(3)
    saved, loaded = (nn.ModuleDict({"metric": metric, "net": nn.Linear(2, 2)}) for metric in (before, after))
    before.update(*rows_of(0))
    before.persistent(True)
    loaded.load_state_dict(saved.state_dict())
    assert_same(after.compute(), before.compute())


def test_metrics_of_other_floors_in_a_collection_do_not_share_their_sums() -> None:
    """A first batch that no floor changes must not make torchmetrics take them for one."""
    collection = MetricCollection(
        {"plain": CertificateMetric(3), "floored": CertificateMetric(3, CertificateSettings(witness_floor=0.5))}
    )
    teacher, logits = rows_of(0)
    for witness in (torch.zeros_like(logits), logits):
        collection.update(teacher, witness)
    margins = {name: metric.compute().margin for name, metric in collection.items()}
    joined = torch.cat([torch.zeros_like(logits), logits])
    for name, floor in (("plain", 0.0), ("floored", 0.5)):
        expected = certify(teacher.repeat(2, 1), joined, witness_floor=floor).margin
        assert margins[name] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("load", [False, True])
def test_sums_of_another_kind_are_refused(load: bool) -> None:
    metric = CertificateMetric(3)
    for other, message in (
        (CertificateMetric(4), "`packed` must be of 3 components"),
        (
            CertificateMetric(3, CertificateSettings(witness_floor=0.1)),
            r"`floors` must be the teacher and witness floors \[0.0, 0.0\], got",
        ),
        (
            CertificateMetric(3, CertificateSettings(teacher_floor=0.1)),
            "`floors` must be the teacher and witness floors",
        ),
    ):
        other.persistent(True)
        with pytest.raises(ValueError, match=message):
            metric.load_state_dict(other.state_dict()) if load else metric.merge_state(other)
    with pytest.raises(TypeError, match="`incoming_state` must be a CertificateMetric"):
        metric.merge_state({"packed": torch.zeros(3)})
