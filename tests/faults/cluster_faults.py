"""The faults of a cluster, beside those of :mod:`tests.faults.faults`."""

import re
import time
from pathlib import Path
from typing import Any

from tests.distributed.nodes import free_port
from tests.faults.children import in_child, result_of, start_child
from tests.faults.cluster import NodeDies, Slow, TimeOver, as_slurm_job, guarded, node, on_nodes
from tests.faults.faults import Verdict, compare, fault, uninterrupted
from tests.faults.runs import EPOCHS, results, search

__all__: list[str] = []


@fault("requeue by SLURM, Trainer", "SIGUSR1 and SIGKILL at a batch")
def requeued(folder: Path) -> Verdict:
    """Lightning's checkpoint is newer than that of the last epoch: the run goes on within the epoch."""
    reference = uninterrupted(folder, guarded)
    struck = in_child(folder, as_slurm_job(guarded), "last", (TimeOver(2),))
    asked = (folder / "requeued").is_file() and (folder / "requeued").read_text() == "requeue 17\n"
    last = in_child(folder, as_slurm_job(guarded), "last")
    ends = struck.end == "SIGKILL" and last.status == 0 and last.has("going on from .*hpc_ckpt_1.ckpt")
    went_on = last.has("epoch 2, step [1-9].*'gap': ")
    same = _looks(results(folder)) == _looks(reference) and _looks(reference)[0] == EPOCHS
    happened = f"{struck.end}; went on from hpc_ckpt_1.ckpt in epoch 2, with looks, guard and ledger"
    return Verdict(happened, "nothing; the rows of one epoch are others", asked and ends and went_on and same)


def _looks(found: dict[str, Any]) -> list[Any]:
    state = found["result"]["state"]
    return [state["looks"], len(found["result"]["history"]), sorted(state)]


@fault("requeue by SLURM in a search", "SIGUSR1 and SIGKILL in the last pass")
def requeued_search(folder: Path) -> Verdict:
    """A search cannot go on within a pass, so that Lightning's checkpoint is left aside."""
    reference = uninterrupted(folder, search)
    struck = in_child(folder, as_slurm_job(search), None, [TimeOver(3)])
    wrote = (folder / "hpc_ckpt_1.ckpt").is_file()
    verdict = compare(folder, reference, [struck], in_child(folder, as_slurm_job(search), "last"), "SIGKILL")
    return Verdict(f"went on from the last whole pass; {verdict.happened}", verdict.lost, verdict.survived and wrote)


def _reference(folder: Path) -> dict[str, Any]:
    """What two nodes give that nothing strikes."""
    return uninterrupted(folder, both_nodes)


def both_nodes(*args: Any, restarts: int = 0) -> int:
    """Two nodes in the current folder, until both have ended."""
    port = free_port()
    nodes = [start_child(Path(), node, number, port, on_nodes, *args, restarts=restarts) for number in (0, 1)]
    ends = [result_of(child, 100.0) for child in nodes]
    return int(any(ends))


@fault("a node dies and comes back", "SIGKILL of its agent and process; then a new agent")
def node_comes_back(folder: Path) -> Verdict:
    reference, port = _reference(folder), free_port()
    folder.mkdir(parents=True)
    job = on_nodes, 60.0, (NodeDies("batch", 2),)
    first, second = (start_child(folder, node, number, port, *job, restarts=3) for number in (0, 1))
    died = result_of(second, 100.0)
    again = start_child(folder, node, 1, port, *job, restarts=3)
    ends = [result_of(child, 100.0) for child in (first, again)]
    same = results(folder) == reference
    happened = f"the other node restarted its process and waited; {'same results bit for bit' if same else ends}"
    return Verdict(happened, "nothing; a part of an epoch was run twice", same and died < 0 and ends == [0, 0])


@fault("a process that is slow, within the timeout", "sleep of 3 s, timeout 60 s", 60.0)
@fault("a process that is slow, beyond the timeout", "sleep of 8 s, timeout 3 s", 3.0)
def slow(folder: Path, timeout: float) -> Verdict:
    reference, late = _reference(folder), timeout < 10
    struck = in_child(folder, both_nodes, timeout, (Slow(8.0 if late else 3.0),))
    output = "".join(path.read_text(errors="replace") for path in folder.glob("*.log"))
    told = re.search("Timed out waiting 3000ms|Application timeout caused pair closure", output) is not None
    clear = (struck.status == 1 and told) if late else struck.status == 0
    last = in_child(folder, both_nodes) if late else struck
    same = results(folder) == reference and last.status == 0
    happened = f"{'ended with a clear error; went on' if late else 'the others waited'}, same results bit for bit"
    return Verdict(happened if same else f"OTHER RESULTS {last.last_line}", "nothing", clear and same)


@fault("a node that does not come", "one agent of two, join_timeout=3")
def missing_node(folder: Path) -> Verdict:
    begun = time.monotonic()
    ended = in_child(folder, node, 0, free_port(), on_nodes, join_timeout=3)
    seconds = time.monotonic() - begun
    clear = ended.status == 1 and ended.has("RendezvousTimeoutError") and seconds < 60
    return Verdict(f"{ended.end} after {seconds:.0f} s: RendezvousTimeoutError", "nothing was begun", clear)
