"""How far the numbers of many processes are from those of one: ``python -m tests.distributed.differences``.

Prints for each number that is reported its largest difference between one process and two nodes of two processes.
"""

import math
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.distributed.launch import common, launch_nodes
from tests.distributed.worker import run_jobs

__all__ = ["largest_differences", "main"]

JOBS = "tests.distributed.node_jobs"
SAME = (  # jobs whose every number must be that of one process
    *("datamodule_101", "datamodule_3", "sharded", "searched_101", "probed", "diagnosed_101", "informed_101"),
    *("coded_101", "aligned", "guarded", "bracketed", "teacher_of_the_first", "aligned_to_it"),
)
PLACES = {"folder", "global_step"}  # not numbers of the result
# Of the decoder check, which exchanges codes within a batch: other rows, where batches are smaller.
WITHIN_BATCHES = {"shuffled", "error", "needed"}


def pairs(seen: Any, expected: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every value of two results with its name, which is that of the innermost mapping it is in."""
    if isinstance(expected, Mapping):
        assert isinstance(seen, Mapping)
        assert seen.keys() == expected.keys(), name
        for key in expected.keys() - PLACES - WITHIN_BATCHES:
            yield from pairs(seen[key], expected[key], str(key))
    elif isinstance(expected, list):
        assert len(seen) == len(expected), name
        for one, other in zip(seen, expected, strict=True):
            yield from pairs(one, other, name)
    else:
        yield name, seen, expected


def largest_differences(many: list[dict[str, Any]], one: dict[str, Any]) -> dict[str, float]:
    """The largest difference of each reported number over all jobs; infinite where a value is another."""
    found: dict[str, float] = defaultdict(float)
    for job in SAME:
        assert "error" not in one[job], one[job]["error"]
        for name, seen, expected in pairs(common(many, job), one[job]["result"], job):
            found[name] = max(found[name], _difference(seen, expected))
    return dict(found)


def _difference(seen: Any, expected: Any) -> float:
    if not all(isinstance(value, float) for value in (seen, expected)):
        return 0.0 if seen == expected else math.inf
    if seen == expected or (math.isnan(seen) and math.isnan(expected)):  # a number that the job does not log
        return 0.0
    return math.inf if math.isnan(seen - expected) else abs(seen - expected)


def main() -> int:
    """Start the nodes, and print the table; the status is 0 if no difference is above 1e-10."""
    with tempfile.TemporaryDirectory() as folder:
        nodes, alone = Path(folder) / "nodes", Path(folder) / "one"
        nodes.mkdir()
        found = largest_differences(launch_nodes(nodes, 2, 2, 600.0, JOBS), run_jobs(JOBS, alone, 1))
    for name, difference in sorted(found.items(), key=lambda item: -item[1]):
        print(f"{name:32} {difference:.1e}")
    return int(max(found.values()) > 1e-10)


if __name__ == "__main__":
    sys.exit(main())
