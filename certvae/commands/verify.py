"""``certvae verify``: is a certificate true? Recomputed from scratch, or checked for what it says of itself.

Exit status: 0 it holds; 3 the file is no certificate or was altered; 4 its claims contradict each other; 5 another
teacher; 6 another checkpoint; 7 other rows; 8 other numbers.

A YAML is code: the classes that --config names are imported and run. Give only your own, or one that you have read.
Certificate, checkpoint and teacher run no code.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from enum import IntEnum
from pathlib import Path
from reprlib import repr as short
from typing import Any

from certvae.certificate.certificate import Certificate, Status, check_fields
from certvae.certificate.verdict import CertificateSettings, verdict
from certvae.commands.certify import CertifyOptions, add_inputs, certify_checkpoint
from certvae.io.checkpoints import CHECKPOINT_LIMIT, CheckpointFileError
from certvae.io.files import regular_file, sha256_file
from certvae.teachers import TeacherFileError, TeacherMismatchError
from certvae.teachers.files import TEACHER_LIMIT
from certvae.theory.bounds import RIGOROUS, bernstein, hoeffding, score_range

__all__ = ["Refusal", "VerificationError", "check_claims", "main", "verify"]

TOLERANCE = 1e-4  # of recomputed numbers: float32 networks round differently on other processors


class Refusal(IntEnum):
    """Why a certificate was refused; the exit status of the command."""

    FILE = 3
    CLAIMS = 4
    TEACHER = 5
    CHECKPOINT = 6
    ROWS = 7
    NUMBERS = 8


class VerificationError(ValueError):
    """A certificate was refused.

    Attributes:
        refusal: why.
    """

    def __init__(self, refusal: Refusal, message: str) -> None:
        super().__init__(message)
        self.refusal = refusal


def read(path: str | Path) -> Certificate:
    """Read a certificate, refusing a file that is none or was altered."""
    try:
        return Certificate.load(path)
    except (OSError, ValueError) as error:
        raise VerificationError(Refusal.FILE, str(error)) from None


def check_claims(certificate: Certificate) -> None:
    """Check that the numbers of a certificate do not contradict each other, without the model.

    Raises:
        VerificationError: naming the first contradiction.
    """
    c = certificate
    try:
        check_fields(c)
        settings = CertificateSettings(
            c.safety_margin, c.confidence, c.method, c.teacher_floor, c.witness_floor, c.look
        )
        claims = _claims(c, settings)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise VerificationError(Refusal.CLAIMS, f"a field is not what it should be: {error}") from None
    for claim, holds in claims:
        if not holds:
            raise VerificationError(Refusal.CLAIMS, f"it contradicts itself: {claim} does not hold.")


def _claims(c: Certificate, settings: CertificateSettings) -> list[tuple[str, bool]]:
    most, slack = math.log(c.num_components), 1e-9
    lowers = (c.margin_lower, c.channel_margin_lower, c.calibrated_channel_margin_lower)
    none_bounds = all(lower in (None, -math.inf) for lower in lowers)
    one_row = c.num_samples == 1 and c.method in ("normal", "bernstein")
    claims = [
        ("num_samples >= 1", c.num_samples >= 1 and c.num_samples == int(c.num_samples)),
        ("0 <= teacher_information <= log K", -slack <= c.teacher_information <= most + slack),
        ("0 <= witness_information <= log K", -slack <= c.witness_information <= most + slack),
        ("alignment_loss >= 0", c.alignment_loss >= -slack),
        ("margin = teacher_information - alignment_loss", _close(c.margin, c.teacher_information - c.alignment_loss)),
        ("margin_lower <= margin", settings.alpha > 0.5 or c.margin_lower <= c.margin + slack),
        ("one row bounds nothing", none_bounds or not one_row),
        ("p_value in (0, 1]", c.p_value is None or 0 < c.p_value <= 1),
        ("rate >= 0", c.rate is None or c.rate >= -slack),
        ("status follows from the numbers", c.status is Status.PARTIAL or c.status is verdict(c)),
    ]
    for margin, lower in (
        (c.channel_margin, c.channel_margin_lower),
        (c.calibrated_channel_margin, c.calibrated_channel_margin_lower),
    ):
        both = margin is not None and lower is not None
        claims.append(("a channel margin has its lower bound", both or (margin is None and lower is None)))
        if margin is not None and lower is not None:
            claims.append(("channel bound <= channel margin <= I_T", lower <= margin <= c.teacher_information + slack))
    if c.method == "plugin":
        claims.append(("margin_lower = margin", c.margin_lower == c.margin))
    if c.method in RIGOROUS:
        width = score_range(c.num_components, c.teacher_floor, c.witness_floor)
    if c.method == "bernstein":
        most_range = math.log(c.num_components / c.teacher_floor)
        best = bernstein(c.margin, 0.0, width, most_range, c.num_samples, settings.alpha)
        claims.append(("margin_lower is at most Bernstein's bound at variance 0", c.margin_lower <= best + slack))
    if c.method == "hoeffding":
        bound = hoeffding(c.margin, width, c.num_samples, settings.alpha)
        claims.append(("margin_lower is Hoeffding's bound", _close(c.margin_lower, bound)))
    return claims


def _close(one: float, other: float, tolerance: float = 1e-9) -> bool:
    return one == other or abs(one - other) <= tolerance * (1 + abs(other))


def verify(certificate: Certificate, checkpoint: Path, teacher: Path, config: Path) -> Certificate:
    """Recompute a certificate from scratch and compare.

    Returns:
        The recomputed certificate.

    Args:
        certificate: what is claimed.
        checkpoint: of the run.
        teacher: its file.
        config: the run's YAML, which is code: the classes that it names are imported and run.

    Raises:
        VerificationError: saying what differs.
        FileNotFoundError: if ``config`` is not there as a regular file.
        ValueError: if it is not the YAML of a run.
    """
    check_claims(certificate)
    stated = certificate.provenance
    for path, key, limit, refusal in (
        (teacher, "teacher_sha256", TEACHER_LIMIT, Refusal.TEACHER),
        (checkpoint, "checkpoint_sha256", CHECKPOINT_LIMIT, Refusal.CHECKPOINT),
    ):
        try:
            seen = sha256_file(regular_file(path, limit))
        except (OSError, ValueError) as error:
            raise VerificationError(refusal, str(error)) from None
        _compare(stated, key, seen, refusal, f"the file {path}")
    try:
        options = CertifyOptions(**stated["options"])
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise VerificationError(Refusal.CLAIMS, f"its provenance states no usable options: {error}") from None
    try:
        fresh = certify_checkpoint(checkpoint, teacher, config, options)
    except TeacherMismatchError as error:
        raise VerificationError(Refusal.ROWS, str(error)) from None
    except TeacherFileError as error:
        raise VerificationError(Refusal.TEACHER, str(error)) from None
    except CheckpointFileError as error:
        raise VerificationError(Refusal.CHECKPOINT, str(error)) from None
    _compare(stated, "weights_sha256", fresh.provenance["weights_sha256"], Refusal.CHECKPOINT, "the model's weights")
    _compare(stated, "rows_sha256", fresh.provenance["rows_sha256"], Refusal.ROWS, "the evaluated rows")
    _compare_numbers(certificate, fresh)
    return fresh


def _compare(stated: dict[str, Any], key: str, seen: str, refusal: Refusal, what: str) -> None:
    if stated.get(key) != seen:
        given = short(str(stated.get(key))[:12])
        raise VerificationError(refusal, f"{what} has SHA-256 {seen[:12]}..., the certificate states {given}...")


def _compare_numbers(stated: Certificate, fresh: Certificate) -> None:
    left, right = asdict(stated), asdict(fresh)
    for name in [item.name for item in fields(Certificate) if item.name != "provenance"]:
        _compare_value(name, left[name], right[name])
    for name in ("calibration", "witness_scale", "looks"):
        _compare_value(name, stated.provenance.get(name), fresh.provenance[name])


def _compare_value(name: str, stated: Any, fresh: Any) -> None:
    if isinstance(stated, dict) and isinstance(fresh, dict) and set(stated) == set(fresh):
        for key in fresh:
            _compare_value(f"{name}.{key}", stated[key], fresh[key])
        return
    if isinstance(stated, list) and isinstance(fresh, list) and len(stated) == len(fresh):
        for number, (one, other) in enumerate(zip(stated, fresh, strict=True)):
            _compare_value(f"{name}[{number}]", one, other)
        return
    numeric = all(isinstance(value, float) for value in (stated, fresh))
    if not (_close(stated, fresh, TOLERANCE) if numeric else stated == fresh):
        message = f"`{name}` is {fresh} when recomputed, the certificate states {short(stated)}."
        raise VerificationError(Refusal.NUMBERS, message)


def main(args: Sequence[str] | None = None) -> int:
    """``certvae verify``: print the outcome; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="certvae verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("certificate", type=Path)
    add_inputs(parser, required=False)
    parser.add_argument("--claims-only", action="store_true", help="check the file by itself, without the model")
    given = parser.parse_args(args)
    if not given.claims_only and None in (given.ckpt, given.teacher, given.config):
        parser.error("give --ckpt, --teacher and --config, or --claims-only")
    try:
        certificate = read(given.certificate)
        check_claims(certificate)
        if not given.claims_only:
            verify(certificate, given.ckpt, given.teacher, given.config)
    except VerificationError as error:
        print(f"REFUSED ({error.refusal.name.lower()}): {error}")
        return int(error.refusal)
    how = "its claims agree with each other" if given.claims_only else "recomputed from scratch, everything agrees"
    print(f"{certificate}\nHOLDS: {how}.")
    return 0
