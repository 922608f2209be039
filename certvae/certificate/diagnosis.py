"""Diagnosis of a certificate: the reading, its cause, and the code to add."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from certvae.certificate.status import Reading, Status

if TYPE_CHECKING:
    from certvae.certificate.certificate import Certificate

__all__ = ["CAUSES", "NOTHING", "Cause", "Diagnosis", "diagnose", "grows", "read"]

NOTHING = "nothing."  # to do


@dataclass(frozen=True)
class Diagnosis:
    """The diagnosis of a certificate.

    Attributes:
        reading: whether the code carries any information.
        cause: name of the cause, one of :data:`CAUSES`.
        finding: one sentence with the numbers.
        cure: what to do, with the code to add.
    """

    reading: Reading
    cause: str
    finding: str
    cure: str

    def __str__(self) -> str:
        return f"{self.reading}: {self.finding}\n  To do: {self.cure}"


@dataclass(frozen=True)
class Cause:
    """One entry in the list of causes; the first that applies is the diagnosis.

    Attributes:
        name: short name.
        applies: function of the certificate: whether the cause applies.
        finding: function of the certificate: one sentence.
        cure: function of the certificate: what to do.
    """

    name: str
    applies: Callable[["Certificate"], bool]
    finding: Callable[["Certificate"], str]
    cure: Callable[["Certificate"], str]


def grows(before: "Certificate | None", now: "Certificate") -> bool:
    """Whether a code that has not collapsed carries clearly more than at the previous validation."""
    if before is None or before.information is None or now.information is None or now.reading is Reading.COLLAPSED:
        return False
    return now.information.upper > 1.05 * before.information.upper


def read(certificate: "Certificate") -> Reading:
    """The reading of a certificate, computed from its numbers.

    ``CERTIFIED`` gives ``ALIGNED``. An incomplete set or a failed leak test gives ``UNDECIDED``. Otherwise the reading
    depends on bounds only: the information bracket or, for a code without noise, the bound of the fitted reader.
    """
    c = certificate
    if c.status in (Status.PARTIAL, Status.LEAKING):
        return Reading.UNDECIDED
    if c.status is Status.CERTIFIED:
        return Reading.ALIGNED
    if _known_least(c) > c.safety_margin:
        return Reading.INFORMATIVE
    if c.information is not None and c.information.upper < c.safety_margin:
        return Reading.COLLAPSED
    return Reading.UNDECIDED


def diagnose(certificate: "Certificate") -> Diagnosis:
    """Reading, cause and cure of a certificate. Each cause in the list assumes that no earlier one applies.

    Args:
        certificate: from a callback, ``certvae certify`` or :func:`certvae.certify`.
    """
    cause = next(item for item in CAUSES if item.applies(certificate))
    cure = cause.cure(certificate) + (NOISE if _noise_unknown(certificate) else "")
    if (
        certificate.status is Status.NOT_CERTIFIED
        and certificate.num_samples < FEW_ROWS
        and cause.name != "too few rows"
    ):
        cure += f" These are {certificate.num_samples} rows: validate on more before you rely on any of it."
    return Diagnosis(certificate.reading, cause.name, cause.finding(certificate), cure)


def _noise_unknown(c: "Certificate") -> bool:
    """Whether the reading is undecided because only the mean of a possibly noisy code was given."""
    open_reading = c.status is Status.NOT_CERTIFIED and c.reading is Reading.UNDECIDED
    mean_only = c.information is None and c.fitted is not None and c.fitted.draw is None
    return open_reading and mean_only and c.provenance.get("deterministic") is not True


def _known_least(c: "Certificate") -> float:
    """Lower bound on the information in the code that the decoder receives, in nats."""
    if c.information is not None:
        return c.information.lower
    noiseless = c.provenance.get("deterministic") is True
    return c.fitted.lower if c.fitted is not None and noiseless else 0.0


def _channel(c: "Certificate") -> str:
    return "the code is read" if c.information is None else f"the code carries {c.information.span()}"


def _recorded(c: "Certificate") -> float:
    """Teacher information on the teacher's own training rows, or 0 if unknown."""
    teacher = c.provenance.get("teacher")
    known = teacher.get("information_train") if isinstance(teacher, dict) else None
    return known if isinstance(known, float) else 0.0


def _most(c: "Certificate") -> float:
    """Estimated upper limit on the information that the decoder receives, in nats; infinite if unknown."""
    if c.information is not None:
        return c.information.upper
    return float("inf") if c.rate is None else c.rate


def _rows_needed(c: "Certificate") -> str:
    width, room = c.margin - c.margin_lower, c.margin - c.safety_margin
    if width == float("inf"):
        return "several times as many"
    return f"about {100 * round(c.num_samples * (width / room) ** 2 / 100 + 0.5):,}"


def _counted_twice(c: "Certificate") -> tuple[str, str]:
    """The finding and the cure."""
    finding, _, cure = c.leaks[0].removeprefix("rows: ").partition(": ")
    return finding, cure


def _target(c: "Certificate") -> float:
    return round(0.5 * c.teacher_information, 2)


FEW_ROWS = 50
NOISE = (
    " To decide the reading, name the log-variance too: latents='encoder:chunk', or ('fc_mu', 'fc_var') for two heads; "
    "of a code without noise, Latents('encoder', deterministic=True)."
)
CAUSES = (
    Cause(
        "partial",
        lambda c: c.status is Status.PARTIAL,
        lambda c: "only a part of the validation set was read, so there is no verdict.",
        lambda c: (
            (
                "; ".join(c.provenance.get("missing", []))
                or "let a validation see all rows: Trainer(limit_val_batches=1.0), without fast_dev_run"
            )
            + "."
        ),
    ),
    Cause(
        "rows counted twice",
        lambda c: c.status is Status.LEAKING and all(leak.startswith("rows: ") for leak in c.leaks),
        lambda c: f"{_counted_twice(c)[0]}.",
        lambda c: f"{_counted_twice(c)[1]}.",
    ),
    Cause(
        "leaking",
        lambda c: c.status is Status.LEAKING,
        lambda c: f"the witness or the encoder reads more than the row's own code ({'; '.join(c.leaks)}).",
        lambda c: (
            "use the teacher's fixed witness, CertificateCallback(witness=None), and an encoder whose code of a "
            "row does not depend on the other rows of its batch."
        ),
    ),
    Cause(
        "other inputs",
        lambda c: c.teacher_information < 0.5 * _recorded(c),
        lambda c: (
            f"the teacher information is {c.teacher_information:.3f} nats on these rows, and {_recorded(c):.3f} "
            "on the teacher's own training rows: the inputs differ."
        ),
        lambda c: "give the teacher the inputs it was made for: CertificateCallback(images=lambda batch: ...).",
    ),
    Cause(
        "vacuous",
        lambda c: c.status is Status.VACUOUS,
        lambda c: f"the teacher information is only {c.teacher_information:.3f} nats, and no margin can exceed it.",
        lambda c: (
            "take a teacher that varies: LabelTeacher(num_classes, smoothing=0.1), or TeacherSearch(components="
            "(16, 24)).search(train_loader, val_loader)."
        ),
    ),
    Cause(
        "certified on the mean only",
        lambda c: c.certified and _most(c) < c.safety_margin,
        lambda c: (
            f"the mean carries at least {c.margin_lower:.3f} nats, but the decoder receives draws, and a draw "
            f"carries at most {_most(c):.3g}."
        ),
        lambda c: "lower the KL weight and align draws: AlignmentCallback(path='draw', weight=10.0).",
    ),
    Cause(
        "certified",
        lambda c: c.certified,
        lambda c: (
            f"the mean code carries at least {c.margin_lower:.3f} of the teacher's {c.teacher_information:.3f} nats."
        ),
        lambda c: NOTHING,
    ),
    Cause(
        "collapsed",
        lambda c: c.reading is Reading.COLLAPSED or (c.reading is not Reading.INFORMATIVE and _most(c) < 0.1),
        lambda c: f"a draw of the code carries at most {_most(c):.3g} nats, whatever reads it.",
        lambda c: (
            "lower the KL weight (half of it, then half again), or let a guard hold the code: "
            f"CertificateGuard(target={_target(c):g})."
        ),
    ),
    Cause(
        "too few rows",
        lambda c: c.margin > c.safety_margin,
        lambda c: (
            f"the margin is {c.margin:.3f} nats, but {c.num_samples} rows are too few to prove it by {c.method!r}."
        ),
        lambda c: f"validate on more rows: {_rows_needed(c)}.",
    ),
    Cause(
        "no noise known",
        lambda c: c.information is None and c.fitted is None and c.channel_margin is None and c.rate is None,
        lambda c: "only the raw witness was tested, and it cannot read a code that is not aligned.",
        lambda c: (
            "name the log-variance too, latents='encoder:mu,logvar'; with arrays, certify(..., information="
            "information_bracket(mean, log_variance))."
        ),
    ),
    Cause(
        "narrow channel",
        lambda c: _most(c) < 0.5 * c.teacher_information,
        lambda c: (
            f"a draw of the code carries at most {_most(c):.3g} nats, and the teacher information is "
            f"{c.teacher_information:.3f}."
        ),
        lambda c: (
            f"lower the KL weight (half of it, then half again), then add CertificateGuard(target={_target(c):g})."
        ),
    ),
    Cause(
        "another target",
        # Noise may hide from draws what a reader finds in the mean: then the target is the right one.
        lambda c: c.fitted is not None and max(c.fitted.mean, c.fitted_margin or 0) < 0.25 * c.teacher_information,
        lambda c: (
            f"{_channel(c)}, of which a fitted reader finds {c.fitted_margin or 0.0:.3f} of the teacher's "
            f"{c.teacher_information:.3f}: the code is about something else, or it is not trained yet."
        ),
        lambda c: (
            "show the encoder what the teacher sees (images=...), check that labels belong to their rows, or "
            f"align: AlignmentCallback(weight=10.0); a guard finds the weight: CertificateGuard(target={_target(c):g})."
        ),
    ),
    Cause(
        "witness scale too small",
        lambda c: c.witness_information < 0.05 * c.teacher_information,
        lambda c: (
            f"{_channel(c)}, but the witness hardly moves with it ({c.witness_information:.3f} nats): its scale "
            "is too small for these codes, or they are not aligned yet."
        ),
        lambda c: (
            f"align: AlignmentCallback(weight=10.0), or CertificateGuard(target={_target(c):g}); if it is aligned, "
            "raise witness_scale (default 2) in both callbacks."
        ),
    ),
    Cause(
        "witness scale too large",
        lambda c: c.fitted is not None and c.witness_information > max(c.fitted.mean, 0.0),
        lambda c: (
            f"the witness information is {c.witness_information:.3f} nats, but a fitted reader finds only "
            f"{c.fitted.mean if c.fitted else 0.0:.3f}: the witness is overconfident."
        ),
        lambda c: "lower witness_scale (default 2), and give the same to CertificateCallback and AlignmentCallback.",
    ),
    Cause(
        "not aligned",
        lambda c: True,
        lambda c: f"{_channel(c)}, but not where the raw witness looks for the teacher's answer.",
        lambda c: (
            "if this is what you wanted to know, nothing. To certify it, align: CertificateGuard(target="
            f"{_target(c):g}), which finds the weight, or AlignmentCallback(weight=10.0)."
        ),
    ),
)
