"""``certvae diagnose``: prints what a certificate shows about the code, why, and what to do.

Exit status: 0 the code is aligned or informative; 3 the file is not a certificate; 4 collapsed; 5 undecided.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from certvae.certificate.status import Reading
from certvae.commands.verify import VerificationError, read

__all__ = ["main"]

STATUSES = {Reading.ALIGNED: 0, Reading.INFORMATIVE: 0, Reading.COLLAPSED: 4, Reading.UNDECIDED: 5}


def main(args: Sequence[str] | None = None) -> int:
    """``certvae diagnose``: print the reading, its cause and what to do; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="certvae diagnose", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("certificate", type=Path, help="a certificate.json")
    path = parser.parse_args(args).certificate
    try:
        certificate = read(path)
    except VerificationError as error:
        print(f"REFUSED ({error.refusal.name.lower()}): {error}")
        return int(error.refusal)
    print(f"{certificate}\n\n{certificate.diagnose()}")
    return STATUSES[certificate.reading]
