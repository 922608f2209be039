"""The bounds against formulas written anew, and the inequalities that their proofs rest on."""

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from certvae.certificate.verdict import certify
from certvae.theory import bounds
from certvae.theory.bounds import BOUNDS, Evidence
from certvae.theory.scores import ScoredRows
from certvae.theory.sums import CertificateSums

ALPHAS = st.floats(1e-6, 0.4)
SIZES = st.integers(2, 10**6)
FLOORS = st.floats(1e-4, 0.5)
TOLERANCE = 1e-9


def floored(probs: np.ndarray, floor: float) -> np.ndarray:
    return (1 - floor) * probs + floor / probs.shape[-1]


def population(seed: int, components: int, floor: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a random teacher and of a witness between useless and overconfident, all of them floored."""
    rng = np.random.default_rng(seed)
    rows = int(rng.integers(1, 40))
    logits = rng.exponential(3) * rng.standard_normal((rows, components))
    answers = rng.uniform(-1, 2) * logits + rng.exponential(2) * rng.standard_normal((rows, components))
    return floored(softmax(logits), floor), floored(softmax(answers), floor)


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    return float(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0))


class Sample:
    """Rows drawn from a finite population, with both scores of every row computed one by one."""

    def __init__(self, seed: int, components: int, floor: float) -> None:
        types, answers = population(seed, components, floor)
        rng = np.random.default_rng(seed + 1)
        shares = rng.dirichlet(np.full(len(types), rng.choice([0.1, 1.0, 10.0])))
        self.n = int(rng.integers(2, 60))
        drawn = rng.choice(len(types), size=self.n, p=shares)
        self.teacher, self.witness = types[drawn], answers[drawn]
        self.mean, self.truth = self.teacher.mean(axis=0), shares @ types
        self.plugin_scores = self.scores(self.mean)
        self.scores_of_the_truth = self.scores(self.truth)
        self.shift = np.log(self.mean / self.truth)

    def scores(self, mean: np.ndarray) -> np.ndarray:
        rows = zip(self.teacher, self.witness, strict=True)
        return np.array([sum(t * math.log(s / m) for t, s, m in zip(a, b, mean, strict=True)) for a, b in rows])


SAMPLES = st.builds(Sample, st.integers(0, 2**20), st.integers(2, 12), FLOORS)


@pytest.mark.slow
@given(margin=st.floats(-5, 5), deviation=st.floats(0, 5), size=SIZES, alpha=ALPHAS)
def test_normal_is_the_lower_end_of_a_one_sided_interval(
    margin: float, deviation: float, size: int, alpha: float
) -> None:
    expected = scipy.stats.norm(loc=margin, scale=max(deviation, 1e-300) / size**0.5).ppf(alpha)
    assert bounds.normal_bound(margin, deviation, size, alpha) == pytest.approx(expected, abs=TOLERANCE)


@given(margin=st.floats(-5, 5), width=st.floats(0.1, 30), size=SIZES, alpha=ALPHAS)
def test_hoeffding_inverts_its_tail_inequality(margin: float, width: float, size: int, alpha: float) -> None:
    """P(mean - E >= t) <= exp(-2 n t^2 / R^2), solved for t."""
    slack = margin - bounds.hoeffding_bound(margin, width, size, alpha)
    assert -2 * size * slack**2 / width**2 == pytest.approx(math.log(alpha), rel=1e-6)


@pytest.mark.slow
@given(
    margin=st.floats(-5, 5),
    deviation=st.floats(0, 5),
    width=st.floats(0.1, 30),
    reach=st.floats(0.7, 15),
    size=SIZES,
    alpha=ALPHAS,
)
def test_bernstein_is_maurer_and_pontil_and_the_price_of_the_threshold(
    margin: float, deviation: float, width: float, reach: float, size: int, alpha: float
) -> None:
    """The price is the worst case over ``s`` of ``s sqrt(2L / (n - 1)) - c_B s^2``, found numerically."""
    log_term = math.log(2) - math.log(alpha)
    curvature = (math.expm1(-reach) + reach) / reach**2
    slope = math.sqrt(2 * log_term / (size - 1))
    largest = slope / curvature
    price = -scipy.optimize.minimize_scalar(
        lambda s: curvature * s**2 - slope * s, bounds=(0, largest), method="bounded", options={"xatol": 1e-12}
    ).fun
    maurer_pontil = math.sqrt(2 * deviation**2 * log_term / size) + 7 * width * log_term / (3 * (size - 1))
    found = bounds.bernstein_bound(margin, deviation, width, reach, size, alpha)
    assert found == pytest.approx(margin - maurer_pontil - price, rel=1e-7, abs=1e-7)


def test_bernstein_by_hand() -> None:
    """n = 101, alpha = 2/e (L = 1), B = log 2, R = 3, deviation 0.5."""
    reach = math.log(2)
    curvature = (reach - 0.5) / reach**2
    expected = 1 - 0.5 * math.sqrt(2 / 101) - 7 / 100 - 1 / (200 * curvature)
    assert bounds.bernstein_bound(1.0, 0.5, 3.0, reach, 101, 2 / math.e) == pytest.approx(expected, abs=1e-12)


def test_score_range_by_hand() -> None:
    assert bounds.score_range(10, 0.01, 0.001) == pytest.approx(math.log(1000) + math.log(10_000))


@pytest.mark.slow
@given(sample=SAMPLES)
def test_scores_lie_in_an_interval_of_the_score_range(sample: Sample) -> None:
    components = sample.teacher.shape[1]
    teacher_floor, witness_floor = sample.teacher.min() * components, sample.witness.min() * components
    low, high = math.log(witness_floor / components), math.log(components / teacher_floor)
    assert bounds.score_range(components, teacher_floor, witness_floor) == pytest.approx(high - low)
    for scores in (sample.scores_of_the_truth, sample.plugin_scores):
        assert low - TOLERANCE <= scores.min() <= scores.max() <= high + TOLERANCE


@given(margin=st.floats(-5, 5), deviation=st.floats(0, 5), size=SIZES, alpha=ALPHAS)
def test_lower_bound_calls_the_method(margin: float, deviation: float, size: int, alpha: float) -> None:
    floors = {"num_components": 7, "teacher_floor": 0.01, "witness_floor": 0.001}
    width = math.log(7 / 0.01) + math.log(7 / 0.001)
    expected = {
        "plugin": margin,
        "normal": bounds.normal_bound(margin, deviation, size, alpha),
        "hoeffding": bounds.hoeffding_bound(margin, width, size, alpha),
        "bernstein": bounds.bernstein_bound(margin, deviation, width, math.log(7 / 0.01), size, alpha),
    }
    assert set(expected) == {name for name, bound in BOUNDS.items() if not bound.needs_rows}
    for method, value in expected.items():
        found = BOUNDS[method].lower(Evidence(margin, deviation, size, **floors), alpha)  # type: ignore[arg-type]
        assert found == pytest.approx(value, rel=1e-12)


@given(spread=st.floats(0, 1), width=st.floats(0.1, 30), reach=st.floats(0.7, 15), size=SIZES, alpha=ALPHAS)
def test_rigor_costs_and_nothing_exceeds_the_margin(
    spread: float, width: float, reach: float, size: int, alpha: float
) -> None:
    """``sd <= R/2 sqrt(n/(n-1))`` (Popoviciu); ``z <= sqrt(2 log(1/2a))`` as P(Z > t) <= exp(-t^2 / 2) / 2."""
    deviation = spread * width / 2 * math.sqrt(size / (size - 1))
    normal = bounds.normal_bound(0.0, deviation, size, alpha)
    hoeffding = bounds.hoeffding_bound(0.0, width, size, alpha)
    assert bounds.bernstein_bound(0.0, deviation, width, reach, size, alpha) <= normal <= bounds.plugin_bound(0.0)
    assert hoeffding < 0
    if math.log(1 / (2 * alpha)) * size <= math.log(1 / alpha) * (size - 1):
        assert hoeffding <= normal + TOLERANCE


@given(size=st.integers(2, 10**5), alpha=ALPHAS, deviation=st.floats(0, 5))
def test_bounds_rise_with_rows_and_alpha_and_fall_with_spread(size: int, alpha: float, deviation: float) -> None:
    def every(n: int = size, a: float = alpha, sd: float = deviation, width: float = 10.0) -> np.ndarray:
        bernstein = bounds.bernstein_bound(0.0, sd, width, 7.0, n, a)
        return np.array([bounds.normal_bound(0.0, sd, n, a), bounds.hoeffding_bound(0.0, width, n, a), bernstein])

    assert (every() <= every(n=2 * size) + TOLERANCE).all()
    assert (every() <= every(a=1.2 * alpha) + TOLERANCE).all()
    assert (every(sd=deviation + 1) <= every() + TOLERANCE).all()
    assert (every(width=11.0) <= every() + TOLERANCE).all()


def test_bernstein_beats_hoeffding_once_the_variance_is_small_and_loses_when_rows_are_few() -> None:
    width, reach = bounds.score_range(10, 0.01, 0.001), math.log(1000)
    few, many = (
        bounds.bernstein_bound(0, 0.5, width, reach, n, 0.05) - bounds.hoeffding_bound(0, width, n, 0.05)
        for n in (50, 10_000)
    )
    assert few < 0 < many


@pytest.mark.slow
@given(sample=SAMPLES)
def test_gibbs_step(sample: Sample) -> None:
    """The plug-in margin is the mean of the true scores less KL(That || Tbar), so never above that mean."""
    plugin, mean = sample.plugin_scores.mean(), sample.scores_of_the_truth.mean()
    assert plugin == pytest.approx(mean - divergence(sample.mean, sample.truth), abs=TOLERANCE)
    assert plugin <= mean + TOLERANCE


@pytest.mark.slow
@given(sample=SAMPLES)
def test_step_two_the_deviation_changes_by_at_most_the_shift(sample: Sample) -> None:
    """``g_i = ghat_i + T_i . d`` and ``|sd(g) - sd(ghat)| <= sqrt(n / (n-1)) s``."""
    moved = sample.plugin_scores + sample.teacher @ sample.shift
    np.testing.assert_allclose(moved, sample.scores_of_the_truth, atol=TOLERANCE)
    s = math.sqrt(sample.mean @ sample.shift**2)
    change = sample.scores_of_the_truth.std(ddof=1) - sample.plugin_scores.std(ddof=1)
    assert abs(change) <= math.sqrt(sample.n / (sample.n - 1)) * s + TOLERANCE


@given(seed=st.integers(0, 2**20), components=st.integers(2, 30), floor=FLOORS, spread=st.floats(0.01, 20))
def test_step_three_divergence_is_at_least_curvature_times_squared_log_ratio(
    seed: int, components: int, floor: float, spread: float
) -> None:
    """``KL(p || q) >= c_B sum p d^2``, ``d = log(p / q) <= B``, where only ``q`` has the floor."""
    p, q = softmax(spread * np.random.default_rng(seed).standard_normal((2, components)))
    q = floored(q, floor)
    p = np.maximum(p, 1e-300)
    d = np.log(p / q)
    reach = math.log(components / floor)
    assert d.max() <= reach + TOLERANCE
    curvature = (reach - 1 + math.exp(-reach)) / reach**2
    assert divergence(p, q) >= curvature * (p * d**2).sum() - TOLERANCE


@given(d=st.floats(-30, 30), step=st.floats(1e-3, 10))
def test_the_curvature_decreases(d: float, step: float) -> None:
    """``(d - 1 + e^-d) / d^2``, which is 1/2 at 0."""
    assume(min(abs(d), abs(d + step)) > 1e-2)

    def curvature(x: float) -> float:
        return (x + math.expm1(-x)) / x**2

    assert curvature(d + step) <= curvature(d) * (1 + 1e-9)
    assert curvature(1e-2) == pytest.approx(0.5, abs=2e-3)


@given(curvature=st.floats(0.01, 0.5), s=st.floats(0, 20), size=SIZES, alpha=ALPHAS)
def test_step_four_the_slack_of_gibbs_pays_for_the_unknown_variance(
    curvature: float, s: float, size: int, alpha: float
) -> None:
    log_term = math.log(2 / alpha)
    left = curvature * s**2 - s * math.sqrt(2 * log_term / (size - 1))
    worst = -log_term / (2 * curvature * (size - 1))
    assert left >= worst - TOLERANCE
    tight = math.sqrt(2 * log_term / (size - 1)) / (2 * curvature)
    assert curvature * tight**2 - tight * math.sqrt(2 * log_term / (size - 1)) == pytest.approx(worst)


@pytest.mark.slow
@given(sample=SAMPLES, alpha=ALPHAS)
def test_bernstein_never_exceeds_the_bound_that_knows_the_average_teacher(sample: Sample, alpha: float) -> None:
    """Steps 2 to 4 together: no probability is left in them, so they hold for every sample."""
    components = sample.teacher.shape[1]
    floor = min(sample.teacher.min(), sample.truth.min()) * components
    width, reach = bounds.score_range(components, floor, 0.001), math.log(components / floor)
    found = bounds.bernstein_bound(
        sample.plugin_scores.mean(), sample.plugin_scores.std(ddof=1), width, reach, sample.n, alpha
    )
    log_term = math.log(2 / alpha)
    scores = sample.scores_of_the_truth
    known = scores.std(ddof=1) * math.sqrt(2 * log_term / sample.n) + 7 * width * log_term / (3 * (sample.n - 1))
    assert found <= scores.mean() - known + TOLERANCE


@pytest.mark.slow
@settings(max_examples=25)
@given(sample=SAMPLES, seed=st.integers(0, 2**16))
def test_no_method_puts_a_constant_witness_above_zero(sample: Sample, seed: int) -> None:
    """The plug-in margin of a constant is ``-KL(That || q)``: no false certificate is possible, by Gibbs."""
    components = sample.teacher.shape[1]
    constant = np.random.default_rng(seed).standard_normal((1, components)).repeat(sample.n, axis=0)
    floor = float(sample.teacher.min()) * components
    for method in BOUNDS:
        assert certify(sample.teacher, constant, method=method, teacher_floor=floor).margin_lower <= TOLERANCE


@pytest.mark.slow
@given(sample=SAMPLES)
def test_sums_give_the_numbers_of_a_computation_row_by_row(sample: Sample) -> None:
    sums = CertificateSums.of(ScoredRows.check(sample.teacher, np.log(sample.witness)))
    coefficients = sums.influence("mean")
    assert sums.mean(coefficients) == pytest.approx(sample.plugin_scores.mean(), abs=TOLERANCE)
    # Sums of squares lose half of the digits where the scores hardly vary.
    assert sums.standard_deviation(coefficients) == pytest.approx(sample.plugin_scores.std(ddof=1), abs=1e-5)
    assert sums.effective_size == sample.n


@pytest.mark.slow
@settings(max_examples=25)
@given(sample=SAMPLES, confidence=st.floats(0.6, 0.999), witness_floor=st.floats(1e-4, 0.1))
def test_certify_gives_the_bound_of_a_computation_row_by_row(
    sample: Sample, confidence: float, witness_floor: float
) -> None:
    components = sample.teacher.shape[1]
    floor = float(sample.teacher.min()) * components
    raw = np.log(sample.witness)
    sample.witness = floored(sample.witness, witness_floor)
    scores = sample.scores(sample.mean)
    floors = {"teacher_floor": floor, "witness_floor": witness_floor}
    for method, bound in BOUNDS.items():
        if bound.needs_rows:
            continue
        certificate = certify(sample.teacher, raw, method=method, confidence=confidence, **floors)
        numbers = (float(scores.mean()), float(scores.std(ddof=1)), sample.n, components)
        expected = bound.lower(Evidence(*numbers, **floors), 1 - confidence)
        assert certificate.margin_lower == pytest.approx(expected, rel=1e-6, abs=1e-5)


def test_an_unknown_method_is_rejected() -> None:
    with pytest.raises(
        ValueError, match="`method` must be one of bernstein, betting, hoeffding, normal, plugin, got 'exact'"
    ):
        bounds.find_bound("exact")


@pytest.mark.parametrize("method", ["hoeffding", "bernstein"])
@pytest.mark.parametrize(("teacher_floor", "witness_floor"), [(0.0, 0.1), (0.1, 0.0), (0.0, 0.0)])
def test_a_rigorous_method_needs_both_floors(method: str, teacher_floor: float, witness_floor: float) -> None:
    with pytest.raises(ValueError, match=f"`method='{method}'` needs bounded log-probabilities"):
        BOUNDS[method].check(teacher_floor, witness_floor)
    with pytest.raises(ValueError, match="`(teacher|witness)_floor` must be above 0"):
        BOUNDS[method].lower(Evidence(0.1, 0.1, 100, 10, teacher_floor, witness_floor), 0.05)


@pytest.mark.parametrize("method", ["plugin", "normal"])
def test_the_other_methods_need_no_floor(method: str) -> None:
    BOUNDS[method].check(0.0, 0.0)
    assert math.isfinite(BOUNDS[method].lower(Evidence(0.1, 0.1, 100, 10), 0.05))


def test_one_row_supports_no_bound_that_needs_a_variance() -> None:
    assert bounds.normal_bound(1.0, math.nan, 1, 0.05) == -math.inf
    assert bounds.bernstein_bound(1.0, math.nan, 10.0, 7.0, 1, 0.05) == -math.inf
    assert bounds.hoeffding_bound(1.0, 10.0, 1, 0.05) < 1.0 - 10.0  # valid, and says nothing
