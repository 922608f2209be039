"""Carry out every attack and print the table of ``docs/cheats.md``: ``python -m tests.attacks``."""

import sys
from dataclasses import replace

from tests.attacks.attacks import ATTACKS, outcome, table

if __name__ == "__main__":
    found = [replace(item, now=outcome(item)) for item in ATTACKS]
    print(table(found))
    sys.exit(found != ATTACKS)
