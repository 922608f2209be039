"""Makes certificates from arrays (:func:`certify`), from checked rows, or from additive sums."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from scipy.stats import t as student_t

from certvae.certificate.certificate import Certificate
from certvae.certificate.diagnosis import read
from certvae.certificate.fitted_margin import FittedMargin
from certvae.certificate.margins import bounded_margin
from certvae.certificate.settings import CertificateSettings
from certvae.certificate.status import Reading, Status
from certvae.theory.arguments import as_whole_number
from certvae.theory.bracket import InformationBracket
from certvae.theory.permutation import permutation_p_value
from certvae.theory.scores import SCORES, OrderedRows, ScoredRows
from certvae.theory.sums import CertificateSums, WholeSums

__all__ = ["certificate_from_rows", "certificate_from_sums", "certify", "judge", "verdict"]

LEAK_LEVEL = 1e-4  # one-sided error probability of a false leak finding
MOST_LISTED = 4096  # most components that are listed; a file with 32,768 would exceed its size limit
ROUNDING = 1e-9  # nats: float64 rounding of the margin of a constant witness


def certificate_from_rows(
    rows: ScoredRows,
    settings: CertificateSettings,
    *,
    permutations: int = 0,
    generator: torch.Generator | None = None,
    information: InformationBracket | None = None,
    fitted: FittedMargin | None = None,
) -> Certificate:
    """Make a certificate from rows that are all in memory.

    Args:
        rows: checked and scored, in a fixed order.
        settings: bound, confidence and safety margin.
        permutations: number of permutations of the test that gives ``p_value``; 0: no test.
        generator: CPU generator of the permutations; default: the global random state.
        information: see :func:`certificate_from_sums`.
        fitted: see :func:`certificate_from_sums`.

    Raises:
        ValueError: if no row has positive weight, or a rigorous method got unequal weights.
    """
    sums, kept = WholeSums.of(rows), rows.weights > 0
    p_value = None
    if permutations and sums.num_rows:
        p_value = permutation_p_value(rows.teacher[kept], rows.log_witness[kept], permutations, generator)
    fits = sums.num_rows * (sums.num_components + 4) <= settings.max_kept
    return certificate_from_sums(sums, settings, rows.counted() if fits else None, p_value, information, fitted)


def certificate_from_sums(
    sums: CertificateSums,
    settings: CertificateSettings,
    rows: OrderedRows | None = None,
    p_value: float | None = None,
    information: InformationBracket | None = None,
    fitted: FittedMargin | None = None,
) -> Certificate:
    """Make a certificate from additive sums; every certificate is made here.

    Args:
        sums: see :class:`certvae.theory.sums.CertificateSums`.
        settings: bound, confidence and safety margin.
        rows: the rows in the order of the data set, for a bound that needs them. Without them the bound's ``fallback``
            is used, and the certificate names the fallback.
        p_value: of a permutation test on the rows.
        information: bounds on the information in the same code.
        fitted: margins of a fitted reader on the same code.

    Raises:
        ValueError: if no row has positive weight, or a rigorous method got unequal weights.
    """
    if settings.bound.fallback is not None and rows is None:
        settings = replace(settings, method=settings.bound.fallback)
    if settings.bound.rigorous and not sums.equal_weights:
        raise ValueError(f"`method={settings.method!r}` needs weights that are 0 or one common value.")
    teacher_information = sums.teacher_information()
    margins = {name: bounded_margin(sums, settings, rows, name) for name in SCORES if sums.has(name)}
    none = (None, None)
    margin, lower = margins["mean"]
    certificate = Certificate(
        status=Status.PARTIAL,
        reading=Reading.UNDECIDED,
        teacher_information=teacher_information,
        alignment_loss=teacher_information - margin,
        margin=margin,
        margin_lower=lower,
        safety_margin=settings.safety_margin,
        confidence=settings.confidence,
        method=settings.bound.name,
        p_value=p_value,
        channel_margin=margins.get("channel", none)[0],
        channel_margin_lower=margins.get("channel", none)[1],
        calibrated_channel_margin=margins.get("calibrated", none)[0],
        calibrated_channel_margin_lower=margins.get("calibrated", none)[1],
        rate=sums.mean(sums.rate_coefficients()) if sums.has("rate") else None,
        witness_information=sums.witness_information(),
        num_samples=sums.num_rows,
        num_components=sums.num_components,
        teacher_floor=settings.teacher_floor,
        witness_floor=settings.applied_floor,
        look=settings.look,
        leaks=_exceeds_rate(sums),
        components=sums.components() if sums.num_components <= MOST_LISTED else [],
        information=information,
        fitted=fitted,
    )
    return judge(certificate)


def judge(certificate: Certificate, *, partial: bool = False, leaks: Sequence[str] = ()) -> Certificate:
    """The same certificate with status and reading updated for missing rows and leaks.

    Args:
        certificate: the certificate.
        partial: whether rows of the data set are missing.
        leaks: findings of leak tests, added to those in the certificate.
    """
    found = replace(certificate, leaks=[*certificate.leaks, *leaks])
    judged = replace(found, status=Status.PARTIAL if partial else verdict(found))
    return replace(judged, reading=read(judged))


def _exceeds_rate(sums: CertificateSums) -> list[str]:
    """One finding for each channel margin that exceeds the rate beyond sampling error; no valid witness can."""
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
    """The status of a certificate on a complete data set, computed from its numbers."""
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
    method: str | None = None,
    teacher_floor: float = 0.0,
    witness_floor: float | None = None,
    weights: Any = None,
    channel_logits: Any = None,
    rate: Any = None,
    permutations: int = 0,
    generator: torch.Generator | None = None,
    information: InformationBracket | None = None,
) -> Certificate:
    """Certify that a witness is not constant in the input, from arrays or tensors of any float type.

    The witness must be computed from the latent code only. This function cannot check that.

    Args:
        teacher_probs: teacher probabilities, shape ``(N, K)``.
        witness_logits: unnormalized log-probabilities of the witness on the mean code, shape ``(N, K)``.
        safety_margin: nats that the lower bound on the margin must exceed, at least 0.
        confidence: probability with which the lower bound holds, in ``(0, 1)``.
        method: name of the bound, see :mod:`certvae.theory.bounds`; default as in
            :class:`certvae.CertificateSettings`.
        teacher_floor: every teacher probability is at least ``teacher_floor / K``, by construction.
        witness_floor: share of the uniform distribution mixed into the witness; default 1e-3 for the rigorous
            methods, else 0.
        weights: weight of each row, from 0 to 1e50, shape ``(N,)``; 0 leaves a row out. For unequal weights the bound
            uses Kish's effective size. It is valid only for weights that were chosen independently of teacher and
            witness, so not for class-balancing weights.
        channel_logits: the witness on draws of the latent, shape ``(draws, N, K)``.
        rate: ``KL(q(z|x) || p(z))`` of each row in nats, at most 1e9 in size, shape ``(N,)``.
        permutations: number of permutations of the test that gives ``p_value``, such as 999; 0: no test. The test does
            not change the status. It uses each row with positive weight once; see
            :func:`certvae.theory.permutation.permutation_p_value`.
        generator: CPU generator of the permutations; default: the global random state.
        information: bounds on the information in the code, from :func:`certvae.information_bracket`. With it the
            reading can tell an informative code from a collapsed one if the status is not ``CERTIFIED``.

    Returns:
        The certificate. With one row the bound of ``normal`` and ``bernstein`` is minus infinity.

    Raises:
        TypeError: if an argument is not a number, or not an array of real numbers.
        ValueError: if a shape or value is not allowed.

    """
    as_whole_number(permutations, "permutations", 0)
    settings = CertificateSettings(safety_margin, confidence, method, teacher_floor, witness_floor)
    rows = ScoredRows.check(
        teacher_probs,
        witness_logits,
        weights,
        channel_logits=channel_logits,
        rate=rate,
        witness_floor=settings.applied_floor,
        teacher_floor=settings.teacher_floor,
    )
    return certificate_from_rows(
        rows, settings, permutations=permutations, generator=generator, information=information
    )
