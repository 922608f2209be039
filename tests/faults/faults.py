"""The faults: each is injected into a small run, and a verdict is given on what it left."""

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from certvae.callbacks.last_checkpoint import is_whole
from tests.faults.children import Ended, in_child
from tests.faults.kills import FailingLogger, Kill, TornWrite, die_between_renames
from tests.faults.runs import copy, fit, fit_strike, protocol, results, same_teacher, search, spoil, train

__all__ = ["FAULTS", "Fault", "Verdict"]


@dataclass(frozen=True)
class Verdict:
    """What came of a fault: what happened, what was lost, and whether the run survived it."""

    happened: str
    lost: str
    survived: bool


@dataclass(frozen=True)
class Fault:
    """A fault, how it is injected, and the function that does so in an empty folder."""

    name: str
    injected: str
    run: Callable[[Path], Verdict]


FAULTS: list[Fault] = []
_whole_runs: dict[Any, dict[str, Any]] = {}


def fault(name: str, injected: str, *args: Any) -> Callable[[Callable[..., Verdict]], Callable[..., Verdict]]:
    """Register a function of a folder and ``args`` as a fault."""

    def register(run: Callable[..., Verdict]) -> Callable[..., Verdict]:
        FAULTS.append(Fault(name, injected, lambda folder: run(folder, *args)))
        return run

    return register


def uninterrupted(folder: Path, action: Callable[..., Any], **options: Any) -> dict[str, Any]:
    """The results of a run that nothing strikes; each is run once."""
    key = action, tuple(options.items())
    if key not in _whole_runs:
        ended = in_child(folder.with_name(f"{folder.name}-reference"), action, **options)
        assert ended.status == 0, ended.output
        _whole_runs[key] = results(folder.with_name(f"{folder.name}-reference"))
    return _whole_runs[key]


def compare(folder: Path, reference: dict[str, Any], struck: list[Ended], last: Ended, expected: str) -> Verdict:
    """Survived if every start but the last ended as expected, and the results equal those of an uninterrupted run."""
    seen = results(folder)
    ends = [ended.end for ended in struck]
    same = bool(seen) and seen == reference
    happened = (
        f"{', '.join(ends)}; went on, {'same results bit for bit' if same else 'OTHER RESULTS ' + last.last_line}"
    )
    lost = "nothing; a part of an epoch was run twice" if same else "the results"
    return Verdict(happened, lost, same and last.status == 0 and set(ends) == {expected})


KILLS: dict[str, Callable[[], dict[str, Any]]] = {
    "in an epoch": lambda: {"callbacks": [Kill("batch", 2)]},
    "in validation": lambda: {"callbacks": [Kill("validation", 2)]},
    "while a checkpoint is written": lambda: {"plugins": [TornWrite(2)]},
}


@fault("SIGKILL in an epoch, Trainer", "os.kill at a batch", "in an epoch")
@fault("SIGKILL in validation, Trainer", "os.kill at a validation batch", "in validation")
@fault("SIGKILL in a checkpoint, Trainer", "half of its bytes, then os.kill", "while a checkpoint is written")
def killed_trainer(folder: Path, when: str) -> Verdict:
    reference = uninterrupted(folder, train)
    struck = in_child(folder, train, **KILLS[when]())
    return compare(folder, reference, [struck], in_child(folder, train, "last"), "SIGKILL")


@fault("SIGKILL before the 1st rename", "os.kill in os.replace", 3)
@fault("SIGKILL before the 2nd rename", "os.kill in os.replace", 4)
def killed_renaming(folder: Path, number: int) -> Verdict:
    def action() -> None:
        die_between_renames(number)
        train()

    reference = uninterrupted(folder, train)
    struck = in_child(folder, action)
    return compare(folder, reference, [struck], in_child(folder, train, "last"), "SIGKILL")


@fault("SIGKILL five times at random", "kill after random seconds")
def killed_at_random(folder: Path) -> Verdict:
    reference = uninterrupted(folder, train)
    generator = torch.Generator().manual_seed(0)
    struck: list[Ended] = []
    while len(struck) < 5 and not (folder / "result.json").exists():
        seconds = 0.1 + 0.2 * float(torch.rand((), generator=generator))
        struck.append(in_child(folder, train, "last", limit=seconds))
    struck = [ended for ended in struck if ended.status]  # the last of them may have finished the run
    return compare(folder, reference, struck, in_child(folder, train, "last"), "SIGKILL")


@fault("SIGKILL in an epoch, certvae fit", "os.kill at a batch", fit_strike("batch", 2), "SIGKILL")
@fault("SIGKILL in validation, certvae fit", "os.kill at a validation batch", fit_strike("validation", 2), "SIGKILL")
@fault(
    "SIGKILL in a checkpoint, certvae fit",
    "half of its bytes, then os.kill",
    '--trainer.plugins={"class_path": "tests.faults.kills.TornWrite", "init_args": {"epoch": 2}}',
    "SIGKILL",
)
@fault("SIGTERM, certvae fit", "os.kill at a batch", fit_strike("batch", 2, "SIGTERM"), "status 143")
@fault("SIGINT (Ctrl-C), certvae fit", "os.kill at a batch", fit_strike("batch", 2, "SIGINT"), "status 130")
def struck_fit(folder: Path, option: str, expected: str) -> Verdict:
    reference = uninterrupted(folder, fit)
    struck = in_child(folder, fit, option)
    verdict = compare(folder, reference, [struck], in_child(folder, fit, resume=True), expected)
    told = expected != "status 143" or struck.last_line.startswith("certvae: stopped by SIGTERM; the same command")
    return Verdict(verdict.happened, verdict.lost, verdict.survived and told)


@fault("SIGKILL in every phase, certvae protocol", "os.kill, seven times in all")
def killed_protocol(folder: Path) -> Verdict:
    strikes = {
        "search": [{"point": "batch", "epoch": epoch, "name": f"search{epoch}"} for epoch in (1, 2, 3)]
        + [{"point": "validation", "epoch": 3, "name": "search-held-out"}],
        "full": [{"point": "batch", "epoch": 2}],
        "no_align": [{"point": "validation", "epoch": 1}],
        "rescue": [{"point": "batch", "epoch": 0}],
    }
    reference = uninterrupted(folder, protocol)
    struck = [in_child(folder, protocol, strikes)]
    while struck[-1].end == "SIGKILL" and len(struck) < 9:
        struck.append(in_child(folder, protocol, strikes))
    verdict = compare(folder, reference, struck[:-1], struck[-1], "SIGKILL")
    return Verdict(f"SIGKILL x {len(struck) - 1}; {verdict.happened.split('; ')[1]}", *_rest(verdict, len(struck) == 8))


def _rest(verdict: Verdict, also: bool) -> tuple[str, bool]:
    return verdict.lost, verdict.survived and also


@fault("SIGTERM, certvae protocol", "os.kill at a batch", "full", "SIGTERM")
@fault("SIGINT (Ctrl-C), certvae protocol", "os.kill at a batch", "full", "SIGINT")
@fault("SIGTERM in a search, certvae protocol", "os.kill at a batch", "search", "SIGTERM")
def interrupted_protocol(folder: Path, phase: str, kind: str) -> Verdict:
    strikes = {phase: [{"point": "batch", "epoch": 1, "kind": kind}]}
    expected = "status 130" if kind == "SIGINT" else "status 1"
    reference = uninterrupted(folder, protocol)
    struck = in_child(folder, protocol, strikes)
    verdict = compare(folder, reference, [struck], in_child(folder, protocol, strikes), expected)
    name = "" if kind == "SIGINT" else "RunError: "
    line = f"certvae: {name}runs/digits was interrupted; run the same command again to resume."
    clear = struck.last_line == line and not struck.has("Traceback")
    return Verdict(verdict.happened, *_rest(verdict, clear))


@fault("last checkpoint truncated", "half of the file", "truncated")
@fault("last checkpoint zeroed", "zeros for the file", "zeros")
@fault("last checkpoint with bad bytes", "64 random bytes in the middle", "random bytes")
def damaged_checkpoint(folder: Path, how: str) -> Verdict:
    reference = uninterrupted(folder, fit)
    struck = in_child(folder, fit, fit_strike("batch", 3))
    spoil(folder / "runs/digits/full/checkpoints/last.ckpt", how)
    last = in_child(folder, fit, resume=True)
    told = len([line for line in last.output.splitlines() if "damaged; going on from" in line]) == 1
    verdict = compare(folder, reference, [struck], last, "SIGKILL")
    return Verdict(f"fell back by one epoch; {verdict.happened.split('; ')[1]}", *_rest(verdict, told))


@fault("last checkpoint damaged, certvae protocol", "half of the file")
def damaged_in_protocol(folder: Path) -> Verdict:
    strikes = {"search": [{"point": "batch", "epoch": 3}], "full": [{"point": "batch", "epoch": 2}]}
    reference, struck = uninterrupted(folder, protocol), []
    for phase in strikes:
        struck.append(in_child(folder, protocol, strikes))
        spoil(folder / "runs/digits/seed0" / phase / "checkpoints/last.ckpt", "truncated")
    last = in_child(folder, protocol, strikes)
    told = struck[1].has("damaged; going on from") and last.has("damaged; going on from")
    verdict = compare(folder, reference, struck, last, "SIGKILL")
    return Verdict(f"fell back by one epoch; {verdict.happened.split('; ')[1]}", *_rest(verdict, told))


@fault("both checkpoints damaged", "zeros for both files")
def both_damaged(folder: Path) -> Verdict:
    in_child(folder, fit, fit_strike("batch", 3))
    for name in ("last", "previous"):
        spoil(folder / f"runs/digits/full/checkpoints/{name}.ckpt", "zeros")
    ended = in_child(folder, fit, resume=True)
    line = ended.last_line
    clear = line.startswith("certvae: CheckpointError") and "last.ckpt and" in line and "previous.ckpt" in line
    return Verdict("refused in one line that names both", "what both held", ended.status == 1 and clear)


@fault("disk full", "RLIMIT_FSIZE of 20 kB from epoch 2 on")
def disk_full(folder: Path) -> Verdict:
    class Fill(Kill):
        def _reached(self, point: str, trainer: Any, batch_idx: int) -> None:
            if (point, trainer.current_epoch) == ("batch", 2):
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))

    reference = uninterrupted(folder, train)
    struck = in_child(folder, train, callbacks=[Fill("batch", 2)])
    whole = all(is_whole(path) for path in (folder / "checkpoints").glob("*.ckpt"))
    clear = struck.has("CheckpointError: the checkpoint .*last.ckpt was not written: .*File too large")
    verdict = compare(folder, reference, [struck], in_child(folder, train, "last"), "status 1")
    return Verdict(verdict.happened, *_rest(verdict, clear and whole))


@fault("folder that cannot be written", "a folder in /proc", "/proc/certvae")
@fault("folder below a file", "the parent is a file", "file/checkpoints")
def unwritable(folder: Path, checkpoints: str) -> Verdict:
    folder.mkdir(parents=True)
    (folder / "file").touch()
    ended = in_child(folder, train, checkpoints=checkpoints)
    clear = ended.has("CheckpointError: checkpoints cannot be written to `dirpath=")
    early = not (folder / "certificates_val.jsonl").exists()
    return Verdict(f"{ended.end} with a clear error before the first epoch", "nothing", clear and early)


@fault("a logger that raises", "ConnectionError in log_metrics")
def failing_logger(folder: Path) -> Verdict:
    reference = uninterrupted(folder, train)
    struck = in_child(folder, train, logger=FailingLogger(2))
    clear = struck.last_line == "ConnectionError: the logging service is gone"
    verdict = compare(folder, reference, [struck], in_child(folder, train, "last"), "status 1")
    return Verdict(verdict.happened, *_rest(verdict, clear))


@fault("NaN loss", "NaN in the loss of epoch 2")
def nan_loss(folder: Path) -> Verdict:
    reference = uninterrupted(folder, train)
    struck = in_child(folder, train, nan_epoch=2)
    clear = struck.has("TrainingDivergedError: the loss is nan at epoch 2, batch 0")
    verdict = compare(folder, reference, [struck], in_child(folder, train, "last"), "status 1")
    return Verdict(verdict.happened, *_rest(verdict, clear))


@fault("teacher file deleted in a run", "unlink before a SIGKILL of full")
def teacher_deleted(folder: Path) -> Verdict:
    strikes = {"full": [{"point": "batch", "epoch": 2}]}
    reference = uninterrupted(folder, protocol)
    struck = in_child(folder, protocol, strikes)
    (folder / "runs/digits/seed0/search/teacher.safetensors").unlink()
    last = in_child(folder, protocol, strikes)
    verdict = compare(folder, reference, [struck], last, "SIGKILL")
    return Verdict(f"written again from the search's checkpoint; {verdict.happened}", verdict.lost, verdict.survived)


@fault("one of two ranks dies", "SIGKILL of rank 1 at a batch")
def dead_rank(folder: Path) -> Verdict:
    reference = uninterrupted(folder, train, devices=2)
    begun = time.monotonic()
    struck = in_child(folder, train, callbacks=[Kill("batch", 2, rank=1)], devices=2, limit=60)
    bounded = time.monotonic() - begun < 50 and struck.has("terminated with signal SIGKILL|Connection closed by peer")
    alone = in_child(copy(folder, folder.with_name(f"{folder.name}-alone")), train, "last")
    verdict = compare(folder, reference, [struck], in_child(folder, train, "last", devices=2), "status 1")
    happened = f"both ended after {struck.seconds:.0f} s; {verdict.happened}; one process goes on too"
    return Verdict(happened, *_rest(verdict, bounded and alone.status == 0))


@fault("one of two ranks of a search dies", "SIGKILL of rank 1 in the last pass")
def dead_rank_of_a_search(folder: Path) -> Verdict:
    reference = uninterrupted(folder, search, devices=2)
    struck = in_child(folder, search, callbacks=[Kill("batch", 3, rank=1)], devices=2, limit=60)
    other = copy(folder, folder.with_name(f"{folder.name}-alone"))
    alone = in_child(other, search, "last")
    verdict = compare(folder, reference, [struck], in_child(folder, search, "last", devices=2), "status 1")
    same = alone.status == 0 and same_teacher(folder / "teacher.safetensors", other / "teacher.safetensors")
    return Verdict(f"{verdict.happened}; one process finds the same teacher", *_rest(verdict, same))
