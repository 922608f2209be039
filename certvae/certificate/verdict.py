"""From additive sums to a verdict; and :func:`certify`, which does it from arrays."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import t as student_t

from certvae.certificate.certificate import Certificate, Status
from certvae.theory.arguments import as_fraction, as_number, as_whole_number
from certvae.theory.bounds import RIGOROUS, check_method, lower_bound, spending
from certvae.theory.information import as_logits, as_probabilities, floor_log_probabilities
from certvae.theory.permutation import permutation_p_value
from certvae.theory.sums import CertificateSums, as_weights

__all__ = ["CertificateSettings", "certificate_from_sums", "certify", "verdict"]

LEAK_LEVEL = 1e-4  # one-sided error probability of calling a sound witness leaking
ROUNDING = 1e-9  # nats: sums in float64 put the margin of a constant witness this close to its threshold


@dataclass(frozen=True)
class CertificateSettings:
    """How numbers become a verdict.

    Args:
        safety_margin: nats by which the lower bound must exceed the threshold, at least 0.
        confidence: probability with which the lower bound holds, in ``(0, 1)``.
        method: ``"plugin"``, ``"normal"``, ``"hoeffding"`` or ``"bernstein"``; see :mod:`certvae.theory.bounds`.
        teacher_floor: every teacher probability is at least ``teacher_floor / K``, by construction.
        witness_floor: share of the uniform distribution mixed into the witness. Default: 1e-3 for the rigorous
            methods, which need it, else 0.
        look: number of this look at the run, from 1: the bound then spends only its share of the error; see
            :func:`certvae.theory.bounds.spending`. None: a single look.

    Raises:
        TypeError: if a number is none, or ``look`` is not a whole one.
        ValueError: if an argument is out of its range, or a rigorous method lacks its floors.
    """

    safety_margin: float = 0.05
    confidence: float = 0.95
    method: str = "normal"
    teacher_floor: float = 0.0
    witness_floor: float | None = None
    look: int | None = None

    def __post_init__(self) -> None:
        if self.witness_floor is None:
            self._store("witness_floor", 1e-3 if isinstance(self.method, str) and self.method in RIGOROUS else 0.0)
        for name in ("safety_margin", "confidence"):
            self._store(name, as_number(getattr(self, name), name))
        for name in ("teacher_floor", "witness_floor"):
            self._store(name, as_fraction(getattr(self, name), name))
        if self.look is not None:
            self._store("look", as_whole_number(self.look, "look", 1))
        if not (math.isfinite(self.safety_margin) and self.safety_margin >= 0):
            raise ValueError(f"`safety_margin` must be at least 0 nats, got {self.safety_margin}.")
        if not 0 < 1 - self.confidence < 1:
            raise ValueError(f"`confidence` must be between 0 and 1, such as 0.95, got {self.confidence}.")
        check_method(self.method, self.teacher_floor, self.applied_floor)

    def _store(self, name: str, value: float) -> None:
        object.__setattr__(self, name, value)  # the class is frozen; a file needs plain numbers, not numpy's

    @property
    def applied_floor(self) -> float:
        """The witness floor as a number."""
        return self.witness_floor or 0.0

    @property
    def alpha(self) -> float:
        """Error probability that the bound may have at this look."""
        alpha = 1 - self.confidence
        return alpha if self.look is None else spending(alpha, self.look)


def certificate_from_sums(
    sums: CertificateSums,
    settings: CertificateSettings,
    *,
    partial: bool = False,
    p_value: float | None = None,
    leaks: Sequence[str] = (),
) -> Certificate:
    """Turn additive sums into a certificate.

    Args:
        sums: see :class:`certvae.theory.sums.CertificateSums`.
        settings: how numbers become a verdict.
        partial: whether the set was cut short.
        p_value: of a permutation test made on the rows.
        leaks: what the leak tests found.

    Raises:
        ValueError: if no row was counted, or a rigorous method got unequal weights.
    """
    if settings.method in RIGOROUS and not sums.equal_weights:
        raise ValueError(f"`method={settings.method!r}` needs weights that are 0 or one common value.")
    information = sums.teacher_information()
    margin, lower = _margin_and_bound(sums, settings, "mean")
    channel = _margin_and_bound(sums, settings, "channel") if sums.has("channel") else (None, None)
    calibrated = _margin_and_bound(sums, settings, "calibrated") if sums.has("calibrated") else (None, None)
    found = [*leaks, *_exceeds_rate(sums)]
    certificate = Certificate(
        status=Status.PARTIAL,
        teacher_information=information,
        alignment_loss=information - margin,
        margin=margin,
        margin_lower=lower,
        safety_margin=settings.safety_margin,
        confidence=settings.confidence,
        method=settings.method,
        p_value=p_value,
        channel_margin=channel[0],
        channel_margin_lower=channel[1],
        calibrated_channel_margin=calibrated[0],
        calibrated_channel_margin_lower=calibrated[1],
        rate=sums.mean(sums.rate_coefficients()) if sums.has("rate") else None,
        witness_information=sums.witness_information(),
        num_samples=sums.num_rows,
        num_components=sums.num_components,
        teacher_floor=settings.teacher_floor,
        witness_floor=settings.applied_floor,
        look=settings.look,
        leaks=found,
    )
    if not partial:
        certificate.status = verdict(certificate)
    return certificate


def _margin_and_bound(sums: CertificateSums, settings: CertificateSettings, score: str) -> tuple[float, float]:
    coefficients = sums.influence(score)
    margin = sums.mean(coefficients)
    lower = lower_bound(
        settings.method,
        margin,
        sums.standard_deviation(coefficients),
        sums.effective_size,
        settings.alpha,
        num_components=sums.num_components,
        teacher_floor=settings.teacher_floor,
        witness_floor=settings.applied_floor,
    )
    return margin, lower


def _exceeds_rate(sums: CertificateSums) -> list[str]:
    """Whether a channel margin is above the rate beyond sampling error, which no sound witness can reach."""
    if not sums.has("rate") or sums.effective_size < 2:
        return []
    quantile = float(student_t.ppf(1 - LEAK_LEVEL, sums.effective_size - 1))
    findings = []
    for score in ("channel", "calibrated"):
        if sums.has(score):
            excess = sums.influence(score) - sums.rate_coefficients()
            error = quantile * sums.standard_deviation(excess) / math.sqrt(sums.effective_size)
            if sums.mean(excess) - error > ROUNDING:
                findings.append(f"rate: the {score} margin exceeds the rate by {sums.mean(excess):.4f} nats")
    return findings


def verdict(certificate: Certificate) -> Status:
    """The status that follows from the numbers of a complete set."""
    if certificate.leaks:
        return Status.LEAKING
    threshold = certificate.safety_margin + ROUNDING
    if certificate.teacher_information <= threshold:
        return Status.VACUOUS
    return Status.CERTIFIED if certificate.margin_lower > threshold else Status.NOT_CERTIFIED


def certify(
    teacher_probs: Any,
    witness_logits: Any,
    *,
    safety_margin: float = 0.05,
    confidence: float = 0.95,
    method: str = "normal",
    teacher_floor: float = 0.0,
    witness_floor: float | None = None,
    weights: Any = None,
    channel_logits: Any = None,
    rate: Any = None,
    permutations: int = 0,
    generator: torch.Generator | None = None,
) -> Certificate:
    """Certify that a witness is not constant in the input, from arrays or tensors of any float type.

    The witness must be computed from the latent code and nothing else; this function cannot see whether it was.

    Args:
        teacher_probs: teacher probabilities, shape ``(N, K)``.
        witness_logits: unnormalized log-probabilities of the witness on the mean code, shape ``(N, K)``.
        safety_margin: nats by which the lower bound must exceed the threshold, at least 0.
        confidence: probability with which the lower bound holds, in ``(0, 1)``.
        method: the bound: ``"plugin"``, ``"normal"``, ``"hoeffding"`` or ``"bernstein"``.
        teacher_floor: every teacher probability is at least ``teacher_floor / K``, by construction.
        witness_floor: share of the uniform distribution mixed into the witness; default 1e-3 for the rigorous
            methods, else 0.
        weights: weight of each row, from 0 to 1e50, shape ``(N,)``; 0 leaves a row out. The bound of unequal weights
            uses Kish's effective size, and holds for weights that were fixed independently of the row's teacher and
            witness; class-balancing weights are not.
        channel_logits: the witness on draws of the latent, shape ``(draws, N, K)``.
        rate: ``KL(q(z|x) || p(z))`` of each row in nats, at most 1e50 in size, shape ``(N,)``.
        permutations: number of permutations of the test that fills in ``p_value``, 999 for instance; 0 makes no
            test. It does not change the status. It uses the rows of positive weight, each once; see
            :func:`certvae.theory.permutation.permutation_p_value`.
        generator: CPU generator of the permutations; default: the global random state.

    Returns:
        The certificate. With one row the bound of ``normal`` and ``bernstein`` is minus infinity.

    Raises:
        TypeError: if an argument is of another kind than this page says: no numbers, no array of real numbers.
        ValueError: if its value or shape is not what this page says.
    """
    as_whole_number(permutations, "permutations", 0)
    settings = CertificateSettings(safety_margin, confidence, method, teacher_floor, witness_floor)
    sums = CertificateSums.from_rows(
        teacher_probs,
        witness_logits,
        weights,
        channel_logits=channel_logits,
        rate=rate,
        witness_floor=settings.applied_floor,
        teacher_floor=teacher_floor,
    )
    p_value = None
    if permutations and sums.num_rows:
        teacher = as_probabilities(teacher_probs)
        kept = as_weights(weights, teacher) > 0
        floored = floor_log_probabilities(as_logits(witness_logits).to(teacher.device), settings.applied_floor)
        p_value = permutation_p_value(teacher[kept], floored[kept], permutations, generator)
    return certificate_from_sums(sums, settings, p_value=p_value)
