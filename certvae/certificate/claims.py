"""What a certificate's numbers must satisfy among themselves, without the model."""

import math

from certvae.certificate.certificate import Certificate, Status, check_fields
from certvae.certificate.settings import CertificateSettings
from certvae.certificate.verdict import verdict
from certvae.theory.bounds import Evidence

__all__ = ["ClaimsError", "check_claims"]

SLACK = 1e-9  # nats


class ClaimsError(ValueError):
    """A certificate contradicts itself."""


def check_claims(certificate: Certificate) -> None:
    """Check that the numbers of a certificate do not contradict each other.

    Raises:
        ClaimsError: naming the first contradiction.
    """
    c = certificate
    try:
        check_fields(c)
        settings = CertificateSettings(
            c.safety_margin, c.confidence, c.method, c.teacher_floor, c.witness_floor, c.look
        )
        claims = [*_of_numbers(c), *_of_margins(c, settings)]
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ClaimsError(f"a field is not what it should be: {error}") from None
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
        ("status follows from the numbers", c.status is Status.PARTIAL or c.status is verdict(c)),
    ]


def _of_margins(c: Certificate, settings: CertificateSettings) -> list[tuple[str, bool]]:
    """What the bound says of each margin with its lower bound."""
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
