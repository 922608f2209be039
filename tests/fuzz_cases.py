"""Calls of every public function with plain and awkward arguments, and what must hold of their results.

A case draws arguments and returns the call and the check of its result.
"""

import json
import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from torch import Tensor

from certvae import (
    Certificate,
    CertificateMetric,
    CertificateSettings,
    SimplexWitness,
    Status,
    certify,
)
from certvae.certificate import leaks
from certvae.certificate.claims import check_claims
from certvae.certificate.verdict import certificate_from_sums
from certvae.theory import bounds, information, row_noise
from certvae.theory.calibration import fit_calibration
from certvae.theory.permutation import permutation_p_value
from certvae.theory.posterior import Posterior
from certvae.theory.scores import ScoredRows, as_weights
from certvae.theory.sums import CertificateSums
from certvae.theory.witness import simplex_basis
from tests.unusual_inputs import logits, number, probabilities, shapes, spoiled

Check = Callable[[Any], None]
Case = tuple[Callable[[], Any], Check]
SLACK = 1e-9
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


# What must hold of results.


def near(value: float, low: float, high: float) -> bool:
    """Within bounds up to the rounding of sums of this size; NaN is not."""
    slack = SLACK * (1 + abs(value))
    return float(low) - slack <= value <= float(high) + slack


def between(low: float, high: float) -> Check:
    def check(result: Any) -> None:
        assert near(float(result), low, high), result

    return check


def finite(result: Any) -> None:
    assert bool(torch.as_tensor(result, dtype=torch.float64).isfinite().all()), result


def distributions(result: Tensor) -> None:
    assert result.dtype == torch.float64
    assert bool((result >= 0).all())
    assert bool(((result.sum(dim=-1) - 1).abs() < 1e-12).all())


def log_distributions(result: Tensor) -> None:
    finite(result)
    distributions(result.exp())


def sound(certificate: Certificate) -> None:
    """Every number is finite, the mathematics holds, and the status follows from the numbers."""
    c, top = certificate, math.log(certificate.num_components)
    if c.rate is None or c.rate >= 0:  # a rate that was estimated can be negative
        check_claims(c)
    between(0, top)(c.teacher_information)
    between(0, top)(c.witness_information)
    between(-1e10, c.teacher_information)(c.margin)
    assert c.margin_lower <= c.margin
    assert c.p_value is None or 0 < c.p_value <= 1
    enough = min(c.margin_lower, c.teacher_information) > c.safety_margin + SLACK
    assert c.certified == (enough and not c.leaks and c.status is not Status.PARTIAL)
    assert Certificate.from_dict(json.loads(json.dumps(c.to_dict(), allow_nan=False))) == c
    assert "nats" in str(c)


# Certificates.


def some_settings(draw: DrawFn) -> dict[str, Any]:
    """Settings of a certificate; some are awkward."""
    good = {
        "safety_margin": (0.0, 0.05),
        "confidence": (0.95, 0.5, 0.1, 0.999999),
        "method": (*bounds.BOUNDS, "normal"),
        "teacher_floor": (0.0, 0.1),
        "witness_floor": (None, 0.0, 0.5, 5e-324),
    }
    names = [name for name in good if draw(st.booleans())]
    return {name: number(draw, *good[name], chance=16) for name in names}


def some_rows(draw: DrawFn, chance: int = 12) -> tuple[Any, Any, dict[str, Any]]:
    """Teacher, witness and options of rows that fit each other, each perhaps spoiled."""
    rows, components = draw(shapes())
    probs = probabilities(draw, rows, components)
    if draw(st.booleans()):
        probs = 0.8 * probs + 0.2 / components  # keeps the promise of a floor
    unit, cycle = draw(st.sampled_from([1.0, 0.1, 1e-20, 1e-49, 1e-300, 1e49])), draw(st.sampled_from([1, 2, 3]))
    options = {
        "weights": unit * (torch.arange(rows) % cycle + (cycle == 1)).double(),
        "channel_logits": torch.stack([logits(draw, probs) for _ in range(2)]),
        "rate": torch.linspace(0, draw(st.sampled_from([0.0, 1.0, 1e9])), rows, dtype=torch.float64),
    }
    chosen = {name: spoiled(draw, value, chance) for name, value in options.items() if draw(st.integers(0, 2)) == 0}
    return spoiled(draw, probs, chance), spoiled(draw, logits(draw, probs), chance), chosen


def components_of(probs: Any) -> int:
    """K of rows that may be spoiled; 2 if they have none."""
    if isinstance(probs, Tensor):
        return 2 if probs.is_nested or probs.ndim == 0 else max(2, probs.shape[-1])
    return len(probs[0]) if isinstance(probs, list) else 2


def certify_case(draw: DrawFn) -> Case:
    probs, witness, options = some_rows(draw)
    options |= some_settings(draw)
    options["permutations"] = number(draw, 0, 0, 3, chance=12, most=10)
    options["generator"] = number(draw, None, chance=12)
    return lambda: certify(probs, witness, **options), sound


def metric_case(draw: DrawFn) -> Case:
    """Update, or forward, which gives the certificate of a batch alone."""
    probs, witness, options = some_rows(draw)
    components, chosen = number(draw, components_of(probs), chance=12, most=1000), some_settings(draw)
    forward = draw(st.booleans())

    def call() -> Certificate:
        metric = CertificateMetric(components, CertificateSettings(**chosen))
        if forward:
            return metric(probs, witness, **options)
        metric.update(probs, witness, **options)
        return metric.compute()

    return call, sound


def merge_case(draw: DrawFn) -> Case:
    """Merge or load the state of another metric, or what is none."""
    probs = probabilities(draw, 3, 4)
    other = CertificateMetric(
        draw(st.sampled_from([4, 4, 4, 5])), CertificateSettings(witness_floor=draw(st.sampled_from([None, None, 0.1])))
    )
    other.persistent(True)
    if other.num_components == 4:
        other.update(probs, logits(draw, probs))
    state = draw(st.sampled_from([other.state_dict(), other.metric_state, {}, {"packed": 3}, {"packed": other.packed}]))
    given = draw(st.sampled_from([other, other, state, None, "metric", probs]))
    load = draw(st.booleans())

    def call() -> Certificate:
        metric = CertificateMetric(4)
        metric.update(probs, probs.clamp(min=1e-300).log())
        if load and isinstance(given, dict) and given:
            metric.load_state_dict(given)
        else:
            metric.merge_state(given)
        return metric.compute()

    return call, sound


def sums_case(draw: DrawFn) -> Case:
    """Sums of two batches, through a packed vector."""
    (probs, witness, options), chosen = some_rows(draw), some_settings(draw)
    components, other = (
        number(draw, components_of(probs), chance=12, most=1000),
        probabilities(draw, 2, components_of(probs)),
    )
    score: Any = draw(st.sampled_from(["mean", "mean", "channel", "calibrated", "x", 3]))
    floors = {name: value for name, value in chosen.items() if name.endswith("floor") and value is not None}

    def call() -> Certificate:
        sums = CertificateSums.of(ScoredRows.check(other, torch.zeros_like(other)))
        sums += CertificateSums.of(ScoredRows.check(probs, witness, **options, **floors))
        sums = CertificateSums.unpack(sums.pack(), components)
        finite([sums.mean(sums.influence(score)), float(sums.has("rate"))])
        return certificate_from_sums(sums, CertificateSettings(**chosen))

    return call, sound


def weights_case(draw: DrawFn) -> Case:
    probs = probabilities(draw, *draw(shapes()))
    weights = spoiled(draw, torch.rand(len(probs), dtype=torch.float64), 2)
    return lambda: as_weights(weights, probs), finite


def settings_case(draw: DrawFn) -> Case:
    chosen, look = some_settings(draw), number(draw, None, 1, 10**6, chance=3)
    return lambda: CertificateSettings(**chosen, look=look).alpha, between(0, 1)


# Information.


def of_teacher(function: Callable[[Any], Any], check: Check) -> Callable[[DrawFn], Case]:
    def case(draw: DrawFn) -> Case:
        probs = spoiled(draw, probabilities(draw, *draw(shapes())), 2)
        return lambda: function(probs), check

    return case


def of_logits(function: Callable[[Any], Any], check: Check) -> Callable[[DrawFn], Case]:
    def case(draw: DrawFn) -> Case:
        values = spoiled(draw, logits(draw, probabilities(draw, *draw(shapes()))), 2)
        return lambda: function(values), check

    return case


def of_both(function: Callable[[Any, Any], Any], check: Check) -> Callable[[DrawFn], Case]:
    def case(draw: DrawFn) -> Case:
        probs, witness, _ = some_rows(draw, 4)
        return lambda: function(probs, witness), check

    return case


def pair(result: tuple[Tensor, Tensor]) -> None:
    distributions(result[0])
    log_distributions(result[1])


def constant_student_case(draw: DrawFn) -> Case:
    probs = probabilities(draw, *draw(shapes()))
    student = spoiled(draw, probabilities(draw, 1, probs.shape[1])[0], 3)
    given = spoiled(draw, probs, 4)
    return lambda: information.constant_student_loss(given, student), between(0, math.inf)


def floor_case(draw: DrawFn) -> Case:
    values, floor = logits(draw, probabilities(draw, *draw(shapes()))), number(draw, 0.1, 0.0, 0.999, 5e-324, chance=2)
    return lambda: information.floor_log_probabilities(values.log_softmax(dim=1), floor), log_distributions


# Bounds and tests.


def of_numbers(
    function: Callable[..., Any], *good: tuple[Any, ...], most: float = math.inf
) -> Callable[[DrawFn], Case]:
    """A function of numbers. Its result is not NaN and at most ``most``; a bound's at most its first argument."""

    def case(draw: DrawFn) -> Case:
        given = [number(draw, *values, chance=8) for values in good]
        top: Any = given[0] if most == 0 and isinstance(given[0], Real) else most
        return lambda: function(*given), between(-math.inf, top)

    return case


MARGIN, SPREAD, SIZE = (0.5, -3.0, 1e50), (0.0, 1.0, 1e50), (1, 2, 2.5, 1000, 1e12)
ALPHA, FLOOR, LOOK = (0.05, 0.9, 1e-12, 5e-324), (0.1, 0.999, 5e-324), (1, 7, 10**9)


def permutation_case(draw: DrawFn) -> Case:
    probs, witness, _ = some_rows(draw)
    count, generator = number(draw, 1, 2, 5, chance=8, most=10), number(draw, None, torch.Generator(), chance=8)
    return lambda: permutation_p_value(probs, witness, count, generator), between(0.1, 1)


def calibration_case(draw: DrawFn) -> Case:
    """Fit, and apply to the same draws."""
    probs = probabilities(draw, *draw(shapes()))
    channel = torch.stack([logits(draw, probs) for _ in range(2)])
    given, draws, applied = (spoiled(draw, values, 8) for values in (probs, channel, channel))
    iterations = number(draw, 50, 1, chance=12, most=100)
    return lambda: fit_calibration(given, draws, iterations)(applied), finite


def leaks_case(draw: DrawFn) -> Case:
    codes = torch.randn(draw(st.sampled_from([0, 1, 2, 9])), 6, generator=torch.Generator().manual_seed(0)).double()
    latents, answers = spoiled(draw, codes, 3), spoiled(draw, codes[:, :3], 3)
    witness: Any = draw(st.sampled_from([lambda z: z[:, :3].double(), lambda z: answers, 3]))

    def check(findings: list[str]) -> None:
        assert all(isinstance(finding, str) for finding in findings)

    return lambda: leaks.check_witness(witness, latents), check


# Witness and posterior.


def witness_case(draw: DrawFn) -> Case:
    """Construct it, and ask one of its functions."""
    components, latent_dim = number(draw, 2, 3, 5, chance=12, most=100), number(draw, 4, 6, chance=12, most=100)
    known = components if isinstance(components, int) and 2 <= components <= 100 else 3
    dim = latent_dim if isinstance(latent_dim, int) and latent_dim > 0 else 4
    probs = 0.9 * probabilities(draw, draw(st.sampled_from([0, 1, 3])), known) + 0.1 / known
    prior = spoiled(draw, 0.9 * probabilities(draw, 1, known)[0] + 0.1 / known, 8) if draw(st.booleans()) else None
    scale = number(draw, 2.0, 1e-15, 1e15, 1, chance=8)
    given, codes = spoiled(draw, probs, 4), _codes(draw, len(probs), dim)
    name = draw(st.sampled_from(["forward", "inverse", "energy", "alignment_gradient"]))

    def call() -> Tensor:
        witness = SimplexWitness(components, latent_dim, scale, prior)
        arguments = {"forward": (codes,), "alignment_gradient": (codes, given)}.get(name, (given,))
        return getattr(witness, name)(*arguments)

    return call, finite


def _codes(draw: DrawFn, rows: int, dim: int) -> Any:
    codes = torch.randn(rows, dim, generator=torch.Generator().manual_seed(0))
    if draw(st.integers(0, 3)) > 0:
        return codes.to(draw(st.sampled_from(FLOATS)))
    bad = [codes.tolist(), codes.numpy(), codes.to(torch.int64), codes.to(torch.complex64), codes[0:0].sum(), None]
    return draw(st.sampled_from([*bad, codes[:, :-1], codes.to_sparse(), codes.bool(), "codes", codes[None, None]]))


def posterior_case(draw: DrawFn) -> Case:
    """Draws and divergence, in every float type; the divergence is at least 0."""
    values = torch.randn(2, draw(st.sampled_from([0, 1, 5])), 3, generator=torch.Generator().manual_seed(0))
    values *= draw(st.sampled_from([0.0, 1e-7, 1e-3, 1.0, 2.0]))
    posterior = Posterior(*values.to(draw(st.sampled_from(FLOATS))))
    keys = spoiled(draw, torch.arange(values.shape[1]), 3) if draw(st.booleans()) else torch.arange(values.shape[1])
    samples, seed = number(draw, 1, 2, chance=8, most=100), number(draw, 0, -3, 2**40, chance=8, most=2**62)

    def call() -> Tensor:
        rate = posterior.kl_to_standard_normal().double()
        assert bool((rate >= -1e-9).all())
        return torch.cat([posterior.row_draws(keys, samples, seed).double(), rate[None]])

    return call, finite


def noise_case(draw: DrawFn) -> Case:
    keys, count = spoiled(draw, torch.arange(draw(st.sampled_from([0, 1, 9]))), 2), number(draw, 0, 1, 7, most=100)
    function, seed = (
        draw(st.sampled_from([row_noise.row_uniform, row_noise.row_normal])),
        number(draw, 0, -(2**62), 2**62),
    )
    return lambda: function(keys, count, seed), finite


CASES: dict[str, Callable[[DrawFn], Case]] = {
    "certify": certify_case,
    "CertificateMetric": metric_case,
    "CertificateMetric.merge_state, load_state_dict": merge_case,
    "CertificateSums": sums_case,
    "CertificateSettings": settings_case,
    "as_weights": weights_case,
    "as_probabilities": of_teacher(information.as_probabilities, distributions),
    "as_logits": of_logits(information.as_logits, log_distributions),
    "as_pair": of_both(information.as_pair, pair),
    "best_constant_student": of_teacher(information.best_constant_student, distributions),
    "teacher_information": of_teacher(information.teacher_information, between(0, math.log(150))),
    "witness_information": of_logits(information.witness_information, between(0, math.log(150))),
    "alignment_loss": of_both(information.alignment_loss, between(0, 1e10)),
    "margin": of_both(information.margin, between(-1e10, math.log(150))),
    "constant_student_loss": constant_student_case,
    "floor_log_probabilities": floor_case,
    "bounds.plugin_bound": of_numbers(bounds.plugin_bound, MARGIN, most=0),
    "bounds.normal_bound": of_numbers(bounds.normal_bound, MARGIN, SPREAD, SIZE, ALPHA, most=0),
    "bounds.hoeffding_bound": of_numbers(bounds.hoeffding_bound, MARGIN, SPREAD, SIZE, ALPHA, most=0),
    "bounds.bernstein_bound": of_numbers(
        bounds.bernstein_bound, MARGIN, SPREAD, SPREAD, (0.7, 9.0), SIZE, ALPHA, most=0
    ),
    "bounds.score_range": of_numbers(bounds.score_range, (2, 10, 10**9), FLOOR, FLOOR, most=2000),
    "bounds.spending": of_numbers(bounds.spending, ALPHA, LOOK, most=1),
    "bounds.find_bound": of_numbers(lambda *given: len(bounds.find_bound(*given).name), tuple(bounds.BOUNDS)),
    "permutation_p_value": permutation_case,
    "fit_calibration, Calibration": calibration_case,
    "check_witness": leaks_case,
    "shuffled_margin_leaks": of_numbers(
        lambda bound: len(leaks.shuffled_margin_leaks(bound)), (0.1, -math.inf), most=1
    ),
    "SimplexWitness": witness_case,
    "simplex_basis": of_numbers(lambda k: float(simplex_basis(k).sum()), (2, 9)),
    "Posterior": posterior_case,
    "row_uniform, row_normal": noise_case,
}
