"""From checked rows, or their additive sums, to a verdict; and :func:`certify`, which does it from arrays."""

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

LEAK_LEVEL = 1e-4  # one-sided error probability of calling a sound witness leaking
MOST_LISTED = 4096  # components of which the parts are listed: a file of 32,768 would be past its limit
ROUNDING = 1e-9  # nats: sums in float64 put the margin of a constant witness this close to its threshold


def certificate_from_rows(
    rows: ScoredRows,
    settings: CertificateSettings,
    *,
    permutations: int = 0,
    generator: torch.Generator | None = None,
    information: InformationBracket | None = None,
    fitted: FittedMargin | None = None,
) -> Certificate:
    """The certificate of rows that are all at hand.

    Args:
        rows: checked and scored, in a fixed order.
        settings: how numbers become a verdict.
        permutations: of the permutation test that fills in ``p_value``; 0 makes no test.
        generator: CPU generator of the permutations; default: the global random state.
        information: as in :func:`certificate_from_sums`.
        fitted: as in :func:`certificate_from_sums`.

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
    """Turn additive sums into a certificate; every certificate is made here.

    Args:
        sums: see :class:`certvae.theory.sums.CertificateSums`.
        settings: how numbers become a verdict.
        rows: the rows themselves in the order of their set, for a bound that needs them; without them its
            ``fallback`` is taken, which the certificate then names.
        p_value: of a permutation test made on the rows.
        information: what the same code carries, from both sides.
        fitted: what a fitted reader finds in it.

    Raises:
        ValueError: if no row was counted, or a rigorous method got unequal weights.
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
    """The same numbers with the status and the reading that follow from them and from what was found.

    Args:
        certificate: the numbers.
        partial: whether a part of the set is missing.
        leaks: what leak tests found, beside what the certificate states.
    """
    found = replace(certificate, leaks=[*certificate.leaks, *leaks])
    judged = replace(found, status=Status.PARTIAL if partial else verdict(found))
    return replace(judged, reading=read(judged))


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

    The witness must be computed from the latent code and nothing else; this function cannot see whether it was.

    Args:
        teacher_probs: teacher probabilities, shape ``(N, K)``.
        witness_logits: unnormalized log-probabilities of the witness on the mean code, shape ``(N, K)``.
        safety_margin: nats by which the lower bound must exceed the threshold, at least 0.
        confidence: probability with which the lower bound holds, in ``(0, 1)``.
        method: name of the bound, see :mod:`certvae.theory.bounds`; default as in
            :class:`certvae.CertificateSettings`.
        teacher_floor: every teacher probability is at least ``teacher_floor / K``, by construction.
        witness_floor: share of the uniform distribution mixed into the witness; default 1e-3 for the rigorous
            methods, else 0.
        weights: weight of each row, from 0 to 1e50, shape ``(N,)``; 0 leaves a row out. The bound of unequal weights
            uses Kish's effective size, and holds for weights that were fixed independently of the row's teacher and
            witness; class-balancing weights are not.
        channel_logits: the witness on draws of the latent, shape ``(draws, N, K)``.
        rate: ``KL(q(z|x) || p(z))`` of each row in nats, at most 1e9 in size, shape ``(N,)``.
        permutations: number of permutations of the test that fills in ``p_value``, 999 for instance; 0 makes no
            test. It does not change the status. It uses the rows of positive weight, each once; see
            :func:`certvae.theory.permutation.permutation_p_value`.
        generator: CPU generator of the permutations; default: the global random state.
        information: what the code carries, from :func:`certvae.information_bracket`; with it the certificate's reading
            says whether a code that is not certified is informative or collapsed.

    Returns:
        The certificate. With one row the bound of ``normal`` and ``bernstein`` is minus infinity.

    Raises:
        TypeError: if an argument is of another kind than this page says: no numbers, no array of real numbers.
        ValueError: if its value or shape is not what this page says.
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
