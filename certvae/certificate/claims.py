"""Consistency checks of a certificate's numbers, without the model."""

import math

from certvae.certificate.certificate import Certificate, Status, check_fields
from certvae.certificate.diagnosis import read
from certvae.certificate.settings import CertificateSettings
from certvae.certificate.verdict import verdict
from certvae.theory.bounds import Evidence

__all__ = ["ClaimsError", "check_claims"]

SLACK = 1e-9  # nats


class ClaimsError(ValueError):
    """The numbers of a certificate contradict each other."""


def check_claims(certificate: Certificate) -> None:
    """Check that the numbers of a certificate do not contradict each other.

    Raises:
        ClaimsError: if they do. The message names the first contradiction.
    """
    c = certificate
    try:
        check_fields(c)
        settings = CertificateSettings(
            c.safety_margin, c.confidence, c.method, c.teacher_floor, c.witness_floor, c.look
        )
        reading = ("reading follows from the numbers", c.reading is read(c))
        claims = [*_of_numbers(c), *_of_margins(c, settings), reading]
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ClaimsError(f"a field is invalid: {error}") from None
    for claim, holds in claims:
        if not holds:
            raise ClaimsError(f"it contradicts itself: {claim} does not hold.")


def _of_numbers(c: Certificate) -> list[tuple[str, bool]]:
    most = math.log(c.num_components) + SLACK
    difference = c.teacher_information - c.alignment_loss
    return [
        ("num_samples >= 1", c.num_samples >= 1),
        ("0 <= teacher_information <= log K", -SLACK <= c.teacher_information <= most),
        ("0 <= witness_information <= log K", -SLACK <= c.witness_information <= most),
        ("alignment_loss >= 0", c.alignment_loss >= -SLACK),
        ("margin = teacher_information - alignment_loss", abs(c.margin - difference) <= SLACK * (1 + abs(difference))),
        ("p_value in (0, 1]", c.p_value is None or 0 < c.p_value <= 1),
        ("rate >= 0", c.rate is None or c.rate >= -SLACK),
        ("escape_force >= 0", c.escape_force is None or c.escape_force >= 0),
        ("status follows from the numbers", c.status is Status.PARTIAL or c.status is verdict(c)),
        *_of_components(c),
        *_of_information(c),
    ]


def _of_components(c: Certificate) -> list[tuple[str, bool]]:
    if not c.components:
        return []  # a file of the first schema, or more than 4,096 components
    wholes = {"share": 1.0, "margin": c.margin, "information": c.teacher_information}
    sums = {name: sum(getattr(part, name) for part in c.components) for name in wholes}
    near = {name: abs(sums[name] - whole) <= 1e-6 * (1 + abs(whole)) for name, whole in wholes.items()}
    return [
        ("there are K components", len(c.components) == c.num_components),
        *((f"the components' {name} adds up", holds) for name, holds in near.items()),
    ]


def _of_information(c: Certificate) -> list[tuple[str, bool]]:
    """Claims about the bracket's four bounds and the fitted reader's bound."""
    claims = []
    if c.information is not None:
        b = c.information
        claims += [
            ("information: 0 <= lower <= cap", 0 <= b.lower <= b.cap + SLACK),
            ("information: lower_estimate <= cap", b.lower_estimate <= b.cap + SLACK),
            ("information: upper >= 0", b.upper >= 0),
            ("information: rows >= 2", b.rows >= 2),
            ("information: its confidence is in (0, 1)", 0 < b.confidence < 1),
        ]
    if c.fitted is not None:
        shown = c.fitted.mean if c.fitted.draw is None else c.fitted.draw
        claims.append(("fitted: lower <= margin", c.confidence < 0.5 or c.fitted.lower <= shown + SLACK))
    return claims


def _of_margins(c: Certificate, settings: CertificateSettings) -> list[tuple[str, bool]]:
    """Claims of the bound about each margin and its lower bound."""
    claims = []
    for name, margin, lower in (
        ("margin", c.margin, c.margin_lower),
        ("channel_margin", c.channel_margin, c.channel_margin_lower),
        ("calibrated_channel_margin", c.calibrated_channel_margin, c.calibrated_channel_margin_lower),
    ):
        claims.append((f"`{name}` has its lower bound", (margin is None) == (lower is None)))
        if margin is not None and lower is not None:
            known = (c.num_samples, c.num_components, c.teacher_floor, c.witness_floor)
            claims.append((f"{name} <= teacher_information", margin <= c.teacher_information + SLACK))
            found = settings.bound.claims(Evidence(margin, math.nan, *known), settings.alpha, lower)
            claims += [(claim.replace("margin", name), holds) for claim, holds in found]
    return claims
