"""``certvae verify``: recomputes a certificate from scratch, or checks that its claims are consistent.

Exit status: 0 the certificate holds; 3 the file is not a certificate or was altered; 4 its claims contradict each
other; 5 another teacher; 6 another checkpoint; 7 other rows; 8 other numbers.

A YAML is code: the classes that --config names are imported and run. Use only your own YAML, or one that you have read.
Certificate, checkpoint and teacher run no code.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, fields
from enum import IntEnum
from pathlib import Path
from reprlib import repr as short
from tempfile import TemporaryDirectory
from typing import Any

from certvae.certificate.certificate import Certificate
from certvae.certificate.claims import ClaimsError, check_claims
from certvae.commands.certify import CertifyOptions, add_inputs, certify_checkpoint
from certvae.commands.wandb_run import RUN, fetch
from certvae.io.checkpoints import CHECKPOINT_LIMIT, CheckpointFileError
from certvae.io.files import sha256_file
from certvae.io.untrusted import regular_file
from certvae.teachers import TeacherFileError, TeacherMismatchError
from certvae.teachers.files import TEACHER_LIMIT

__all__ = ["Refusal", "VerificationError", "main", "verify"]

TOLERANCE = 1e-4  # tolerance of recomputed numbers: float32 networks round differently on other processors


class Refusal(IntEnum):
    """Reason why a certificate was refused; the value is the exit status of the command."""

    FILE = 3
    CLAIMS = 4
    TEACHER = 5
    CHECKPOINT = 6
    ROWS = 7
    NUMBERS = 8


class VerificationError(ValueError):
    """A certificate was refused.

    Attributes:
        refusal: reason of the refusal.
    """

    def __init__(self, refusal: Refusal, message: str) -> None:
        super().__init__(message)
        self.refusal = refusal


def read(path: str | Path) -> Certificate:
    """Read a certificate; refuse a file that is not a certificate or was altered."""
    try:
        return Certificate.load(path)
    except (OSError, ValueError) as error:
        raise VerificationError(Refusal.FILE, str(error)) from None


def _refuse_contradictions(certificate: Certificate) -> None:
    try:
        check_claims(certificate)
    except ClaimsError as error:
        raise VerificationError(Refusal.CLAIMS, str(error)) from None


def _refuse_sums_of_digests(stated: dict[str, Any]) -> None:
    """Refuse certificates of versions before 0.2."""
    if "rows_sha256" in stated and "repeated_rows" not in stated:
        raise VerificationError(
            Refusal.ROWS,
            "it was made by a version before 0.2, whose digest of the rows could be forged. Make it anew: certvae "
            "certify.",
        )


def verify(certificate: Certificate, checkpoint: Path, teacher: Path, config: Path) -> Certificate:
    """Recompute a certificate from scratch and compare.

    Returns:
        The recomputed certificate.

    Args:
        certificate: the certificate to check.
        checkpoint: path of the run's checkpoint.
        teacher: path of the teacher's file.
        config: path of the run's YAML, which is code: the classes that it names are imported and run.

    Raises:
        VerificationError: if anything differs; the message states what.
        FileNotFoundError: if ``config`` is not a regular file.
        ValueError: if ``config`` does not describe a run.
    """
    _refuse_contradictions(certificate)
    stated = certificate.provenance
    _refuse_sums_of_digests(stated)
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
        raise VerificationError(Refusal.CLAIMS, f"its provenance has no valid options: {error}") from None
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


def _close(one: float, other: float) -> bool:
    return one == other or abs(one - other) <= TOLERANCE * (1 + abs(other))


def _compare(stated: dict[str, Any], key: str, seen: str, refusal: Refusal, what: str) -> None:
    if stated.get(key) != seen:
        given = short(str(stated.get(key))[:12])
        raise VerificationError(refusal, f"{what} has SHA-256 {seen[:12]}..., the certificate states {given}...")


def _compare_numbers(stated: Certificate, fresh: Certificate) -> None:
    left, right = asdict(stated), asdict(fresh)
    for name in [item.name for item in fields(Certificate) if item.name != "provenance"]:
        _compare_value(name, left[name], right[name])
    for name in ("calibration", "witness_scale", "looks", "repeated_rows", "component_names"):
        _compare_value(name, stated.provenance.get(name), fresh.provenance.get(name))


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
    if not (_close(stated, fresh) if numeric else stated == fresh):
        message = f"`{name}` is {fresh} when recomputed, the certificate states {short(stated)}."
        raise VerificationError(Refusal.NUMBERS, message)


def main(args: Sequence[str] | None = None) -> int:
    """``certvae verify``: print the outcome; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="certvae verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("certificate", type=Path, nargs="?", help="file of the certificate; left out with --wandb")
    add_inputs(parser, required=False)
    parser.add_argument("--wandb", metavar=RUN, help="fetch all four files from this run of W&B; its YAML is code")
    claims = "check the file by itself, without the model"
    parser.add_argument("--claims-only", "--claims_only", action="store_true", help=claims)
    given = parser.parse_args(args)
    if (given.certificate is None) is (given.wandb is None):
        parser.error("give the certificate's file, or --wandb")
    with TemporaryDirectory() as folder:
        files = vars(given) if given.wandb is None else vars(given) | fetch(given.wandb, Path(folder))
        if not given.claims_only and None in (files["ckpt"], files["teacher"], files["config"]):
            parser.error("give --ckpt, --teacher and --config, or --claims-only")
        try:
            certificate = read(files["certificate"])
            _refuse_contradictions(certificate)
            if not given.claims_only:
                verify(certificate, files["ckpt"], files["teacher"], files["config"])
        except VerificationError as error:
            print(f"REFUSED ({error.refusal.name.lower()}): {error}")
            return int(error.refusal)
    how = "its claims agree with each other" if given.claims_only else "recomputed from scratch, everything agrees"
    print(f"{certificate}\nHOLDS: {how}.")
    return 0
