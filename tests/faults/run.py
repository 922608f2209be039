"""Inject every fault, and print what came of it: ``python -m tests.faults.run [name ...]``."""

import json
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from tests.faults import cluster_faults
from tests.faults.faults import FAULTS, Fault, Verdict

__all__ = ["FAULTS", "cluster_faults", "main"]


def main(args: Sequence[str] | None = None) -> int:
    """Run the faults whose names contain one of ``args``, default all; the exit status is 0 if all were survived.

    With ``--json FILE`` the verdicts are written there too.
    """
    given = list(sys.argv[1:] if args is None else args)
    file = Path(given.pop(given.index("--json") + 1)) if "--json" in given else None
    names = [name for name in given if name != "--json"]
    torch.set_num_threads(1)  # processes are forked, which threads do not survive
    warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
    chosen = [item for item in FAULTS if not names or any(name in item.name for name in names)]
    with tempfile.TemporaryDirectory() as folder:
        begun = time.monotonic()
        verdicts = [_verdict(item, Path(folder) / str(number)) for number, item in enumerate(chosen)]
        seconds = time.monotonic() - begun
    _show(chosen, verdicts, seconds)
    if file is not None:
        file.write_text(json.dumps({item.name: vars(verdict) for item, verdict in zip(chosen, verdicts, strict=True)}))
    return 0 if verdicts and all(verdict.survived for verdict in verdicts) else 1


def _verdict(item: Fault, folder: Path) -> Verdict:
    try:
        return item.run(folder)
    except Exception as error:
        traceback.print_exc()
        return Verdict(f"the case itself failed: {error!r}", "unknown", False)


def _show(chosen: Sequence[Fault], verdicts: Sequence[Verdict], seconds: float) -> None:
    survived = sum(verdict.survived for verdict in verdicts)
    table = Table(title=f"{survived} of {len(chosen)} faults survived; {seconds:.0f} s", box=None, title_justify="left")
    for name in ("fault", "how injected", "what happened", "what was lost", "verdict"):
        table.add_column(name, justify="left")
    for item, verdict in zip(chosen, verdicts, strict=True):
        mark = "[green]survived[/]" if verdict.survived else "[red]NOT SURVIVED[/]"
        table.add_row(item.name, item.injected, verdict.happened, verdict.lost, mark)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


if __name__ == "__main__":
    sys.exit(main())
