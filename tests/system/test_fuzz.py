"""Whatever is handed in: a sound result, or an error that names the argument. And sound numbers to 1e-9 nats.

Run with ``-rP`` for a table of how the calls ended.
"""

import math
import tempfile
from collections import Counter
from collections.abc import Iterator
from decimal import Context, Decimal, localcontext
from typing import Any, cast

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from certvae import Certificate, CertificateMetric, CertificateSettings, certify
from certvae.certificate.verdict import certificate_from_sums
from certvae.theory.posterior import Posterior
from certvae.theory.scores import ScoredRows
from certvae.theory.sums import CertificateSums
from tests.conftest import random_logits, random_probs
from tests.fuzz_cases import CASES
from tests.unusual_inputs import logits, outcome, probabilities, shapes

pytestmark = pytest.mark.slow

EXAMPLES = 80
NATS = 1e-9
PRECISE = Context(prec=60, Emin=-999_999, Emax=999_999)


@pytest.fixture(autouse=True)
def _every_warning() -> Iterator[None]:
    """Torch says some things only once in a process."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(before)


@pytest.mark.parametrize("name", CASES)
def test_every_call_ends_in_a_sound_result_or_an_error_that_names_the_argument(name: str) -> None:
    ends: Counter[str] = Counter()

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def attempt(data: st.DataObject) -> None:
        call, check = CASES[name](cast(Any, data).draw)
        ends[outcome(call, check)] += 1

    attempt()
    errors = ends["ValueError"] + ends["TypeError"]
    print(f"| {name} | {ends.total()} | {ends['result']} | {ends['ValueError']} | {ends['TypeError']} |")
    assert min(ends["result"], errors) > ends.total() // 20, "one kind of input was hardly tried"


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_saved_certificate_is_loaded_unchanged(data: st.DataObject) -> None:
    probs = probabilities(cast(Any, data).draw, *data.draw(shapes().filter(lambda shape: shape[0] > 0)))
    certificate = certify(probs, logits(cast(Any, data).draw, probs), rate=torch.rand(len(probs)))
    with tempfile.TemporaryDirectory() as folder:
        assert Certificate.load(certificate.save(f"{folder}/c.json")) == certificate


# Against exact arithmetic: 60 digits, with exponents to a million.


def exact(teacher: Tensor, witness: Tensor) -> dict[str, float]:
    """Teacher information, margin and witness information in 60 digits, from the float64 values as they are."""
    with localcontext(PRECISE):
        rows = [[Decimal(value) for value in row] for row in teacher.tolist()]
        probs = [[value / sum(row) for value in row] for row in rows]
        log_witness = [exact_log_softmax([Decimal(value) for value in row]) for row in witness.tolist()]
        answers = [[value.exp() for value in row] for row in log_witness]
        rows_of_both = zip(probs, log_witness, strict=True)
        cross = sum((t * s for row, logs in rows_of_both for t, s in zip(row, logs, strict=True)), Decimal(0))
        margin = exact_entropy(exact_mean(probs)) + cross / len(rows)
        return {
            "teacher_information": float(exact_spread(probs)),
            "margin": float(margin),
            "alignment_loss": float(exact_spread(probs) - margin),
            "witness_information": float(exact_spread(answers)),
        }


def exact_log_softmax(row: list[Decimal]) -> list[Decimal]:
    shifted = [value - max(row) for value in row]
    total = sum(value.exp() for value in shifted if value > -100_000)
    return [value - Decimal(total).ln() for value in shifted]


def exact_mean(rows: list[list[Decimal]]) -> list[Decimal]:
    return [sum(column, Decimal(0)) / len(rows) for column in zip(*rows, strict=True)]


def exact_entropy(row: list[Decimal]) -> Decimal:
    return -sum((value * value.ln() for value in row if value > 0), Decimal(0))


def exact_spread(rows: list[list[Decimal]]) -> Decimal:
    return exact_entropy(exact_mean(rows)) - sum((exact_entropy(row) for row in rows), Decimal(0)) / len(rows)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), rows=st.integers(1, 6), components=st.integers(2, 6), split=st.booleans())
def test_numbers_are_exact_to_1e_9_nats_for_extreme_probabilities(
    data: st.DataObject, rows: int, components: int, split: bool
) -> None:
    """One-hot, 1e-300, near-uniform and sharp rows; relative where log-probabilities reach 1e7."""
    teacher = probabilities(cast(Any, data).draw, rows, components)
    witness = logits(cast(Any, data).draw, teacher)
    metric = CertificateMetric(components)
    for part, answers in zip(teacher.split(1 if split else rows), witness.split(1 if split else rows), strict=True):
        metric.update(part, answers)
    certificate = metric.compute()
    for name, value in exact(teacher, witness).items():
        assert getattr(certificate, name) == pytest.approx(value, rel=NATS, abs=NATS), name


@pytest.mark.parametrize("smallest", [5e-324, 1e-310, 1e-300, 1e-16])
def test_the_smallest_probabilities_cost_what_they_should(smallest: float) -> None:
    teacher = torch.tensor([[1.0 - smallest, smallest], [smallest, 1.0 - smallest]], dtype=torch.float64)
    for witness in (teacher.log(), teacher.flip(1).log()):
        certificate = certify(teacher, witness)
        for name, value in exact(teacher, witness).items():
            assert getattr(certificate, name) == pytest.approx(value, rel=1e-12, abs=NATS), name


def test_a_million_rows_in_small_batches_lose_nothing() -> None:
    """Against sums that are rounded once (``math.fsum``)."""
    teacher, witness = random_probs(10**6, 3, seed=0), random_logits(10**6, 3, seed=0)
    metric = CertificateMetric(3)
    for part, answers in zip(teacher.split(400), witness.split(400), strict=True):
        metric.update(part, answers)
    certificate = metric.compute()
    mean = [math.fsum(column) / 10**6 for column in teacher.T.tolist()]
    entropies = math.fsum((-teacher * teacher.log()).flatten().tolist()) / 10**6
    information = -math.fsum(value * math.log(value) for value in mean) - entropies
    costs = math.fsum((teacher * (teacher.log() - witness.log_softmax(dim=1))).flatten().tolist()) / 10**6
    assert certificate.teacher_information == pytest.approx(information, abs=1e-12)
    assert certificate.alignment_loss == pytest.approx(costs, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_a_million_equal_rows_one_by_one_stay_within_1e_9_nats(seed: int) -> None:
    """The worst case for adding: every addition rounds the same way."""
    teacher, witness = random_probs(1, 3, seed), random_logits(1, 3, seed)
    row = CertificateSums.of(ScoredRows.check(teacher, witness)).pack().numpy()
    total = 0 * row
    for _ in range(10**6):
        total += row
    certificate = certificate_from_sums(CertificateSums.unpack(torch.from_numpy(total), 3), CertificateSettings())
    assert certificate.num_samples == 10**6
    assert certificate.teacher_information < NATS
    assert certificate.witness_information < NATS
    assert certificate.margin == pytest.approx(certify(teacher, witness).margin, abs=NATS)


@settings(max_examples=60, deadline=None)
@given(
    scale=st.sampled_from([0.0, 1e-12, 1e-9, 1e-7, 1e-6, 1e-4, 1.0]), rows=st.integers(2, 60), seed=st.integers(0, 999)
)
def test_the_lower_bound_is_never_above_that_of_a_computation_in_two_passes(scale: float, rows: int, seed: int) -> None:
    """A deviation that the sums cannot resolve is taken too large, by 1e-6 of the scores at most, not for 0."""
    teacher = random_probs(rows, 4, seed)
    witness = teacher.mean(dim=0).log() + random_logits(rows, 4, seed, scale)
    scores = (teacher * (witness.log_softmax(dim=1) - teacher.mean(dim=0).log())).sum(dim=1)
    expected = float(scores.mean() - 1.6448536269514722 * scores.std() / rows**0.5)
    seen = certify(teacher, witness).margin_lower
    assert expected - 2e-5 / rows**0.5 <= seen <= expected + 1e-8


def test_a_nearly_constant_witness_of_chance_is_not_certified_at_safety_margin_zero() -> None:
    """Codes that collapsed up to noise of 1e-7: the margin is noise, and so is its sign."""
    for seed in range(300):
        teacher = random_probs(100, 10, seed)
        witness = teacher.mean(dim=0).log() + random_logits(100, 10, seed, scale=1e-7)
        assert not certify(teacher, witness, safety_margin=0.0).certified


@pytest.mark.parametrize("unit", [1e-40, 0.1, 1 / 3, 1e40])
@pytest.mark.parametrize("method", ["plugin", "normal", "hoeffding", "bernstein"])
def test_the_unit_of_the_weights_does_not_matter(unit: float, method: str) -> None:
    """Two rows are two rows, and not 1.9999999999999998 of them."""
    teacher = 0.9 * random_probs(2, 3, seed=0) + 0.1 / 3
    weights = torch.full((2,), unit, dtype=torch.float64)
    arguments: dict[str, Any] = {"method": method, "teacher_floor": 0.1, "safety_margin": 0.0}
    plain, weighted = (certify(teacher, teacher.log(), weights=given, **arguments) for given in (None, weights))
    assert weighted.margin_lower == pytest.approx(plain.margin_lower, rel=1e-12)


def test_tiny_unequal_weights_are_not_taken_for_equal() -> None:
    teacher, weights = 0.9 * random_probs(20, 3, seed=0) + 0.1 / 3, torch.full((20,), 1e-6)
    weights[0] = 1e-5
    with pytest.raises(ValueError, match="needs weights that are 0 or one common value"):
        certify(teacher, teacher.log(), weights=weights, method="bernstein", teacher_floor=0.1)


def test_a_channel_that_some_light_rows_lack_gives_no_channel_margin() -> None:
    teacher, light = random_probs(20, 3, seed=0), torch.full((20,), 1e-10)
    metric = CertificateMetric(3)
    metric.update(teacher, teacher.log(), light, channel_logits=teacher.log()[None])
    metric.update(teacher, teacher.log(), light)
    assert metric.compute().channel_margin is None


def test_a_calibration_of_a_component_that_no_row_uses_is_finite() -> None:
    from certvae.theory.calibration import fit_calibration

    teacher = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.8, 0.0]], dtype=torch.float64)
    draws = random_logits(2, 3, seed=0)[None]
    assert bool(fit_calibration(teacher, draws)(draws).isfinite().all())


def test_the_rate_of_a_collapsed_posterior_in_float32_is_not_rounding() -> None:
    """Log-variances of 1e-4: the rate is 1e-9 nats a coordinate, and was negative for some."""
    posterior = Posterior(*(1e-4 * random_logits(2000, 8, seed, scale=1.0).float() for seed in (0, 1)))
    expected = Posterior(*(values.double() for values in posterior)).kl_to_standard_normal()
    rate = posterior.kl_to_standard_normal()
    assert bool((rate >= 0).all())
    assert float(rate.double().mean()) == pytest.approx(float(expected.mean()), rel=1e-3)
