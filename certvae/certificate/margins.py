"""A margin with its lower bound, from additive sums."""

from certvae.certificate.settings import CertificateSettings
from certvae.theory.bounds import Evidence
from certvae.theory.scores import OrderedRows
from certvae.theory.sums import CertificateSums

__all__ = ["bounded_margin"]


def bounded_margin(
    sums: CertificateSums, settings: CertificateSettings, rows: OrderedRows | None, score: str
) -> tuple[float, float]:
    """A margin and its lower bound, both in nats.

    Args:
        sums: see :class:`certvae.theory.sums.CertificateSums`.
        settings: names the bound and its error probability.
        rows: the rows in the order of the data set, for a bound that needs them.
        score: ``"mean"``, ``"channel"`` or ``"calibrated"``.
    """
    coefficients = sums.influence(score)
    margin = sums.mean(coefficients)
    evidence = Evidence(
        margin,
        sums.standard_deviation(coefficients),
        sums.effective_size,
        sums.num_components,
        settings.teacher_floor,
        settings.applied_floor,
        sums.equal_weights,
        None if rows is None else rows.teacher,
        None if rows is None else rows.scores[score],
    )
    return margin, settings.bound.lower(evidence, settings.alpha)
