"""Jobs of the callbacks that stand beside the certificate; see :mod:`tests.distributed.jobs`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler

import certvae
from certvae.callbacks import (
    CertificateCallback,
    CodebookCallback,
    CollapseDiagnostics,
    InformationCallback,
    ProbeCallback,
)
from certvae.datamodules import DigitsDataModule
from tests.distributed.jobs import Result, Silent, WithAdam, fields, spread, teacher, trained, vae
from tests.distributed.sets import BATCH, Stream, digits, rank
from tests.plain_vae import plain_loader

ROWS = (101, 7, 3)


def logged(metrics: Any) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in metrics.items()
        if name.startswith(("probe", "diagnostics", "information", "signs", "soft"))
    }


def probed(folder: Path, world: int) -> Result:
    """A probe fitted in a run, and then scored on rows that do not divide evenly."""
    probe = ProbeCallback()
    trained(folder, world, [CertificateCallback(teacher(), "encoder"), probe])
    state, figures = probe.state_dict(), probe.figures
    checker = spread(folder, world, callbacks=[CertificateCallback(teacher(), "encoder"), probe])
    torch.manual_seed(1)
    checker.validate(WithAdam().double(), plain_loader(101, BATCH), verbose=False)
    weights = {name: state[name].flatten().tolist() for name in ("weights", "average", "sums")}
    return {"probe": weights, "steps": state["steps"], "fitted": figures, "validated": probe.figures}


def diagnosed(folder: Path, world: int, rows: int) -> Result:
    run = spread(folder, world, CollapseDiagnostics(block=40, threshold=1e-4))
    run.validate(vae(), DigitsDataModule(BATCH, subset=rows), verbose=False)
    return logged(run.callback_metrics)


def informed(folder: Path, world: int, rows: int) -> Result:
    run = spread(folder, world, InformationCallback(block=40, rows=60))
    run.validate(vae(), DigitsDataModule(BATCH, subset=rows), verbose=False)
    return logged(run.callback_metrics)


def coded(folder: Path, world: int, rows: int) -> Result:
    """The signs of six coordinates as indices, and the coordinates as logits, of rows that do not divide evenly."""

    def mean(module: Any, batch: Any) -> Any:
        return module(batch[0]).mean

    signs = CodebookCallback(lambda *given: (mean(*given) > 0).long(), 2, kind="indices", name="signs")
    soft = CodebookCallback(mean, 6, kind="logits", name="soft")
    run = spread(folder, world, callbacks=[signs, soft])
    run.validate(vae(), DigitsDataModule(BATCH, subset=rows), verbose=False)
    return logged(run.callback_metrics)


def levels(folder: Path, world: int, rows: int) -> Result:
    run = spread(folder, world, InformationCallback({"one": "encoder", "two": "encoder"}, block=40, rows=60))
    run.validate(vae(), DigitsDataModule(BATCH, subset=rows), verbose=False)
    return logged(run.callback_metrics)


def streamed(folder: Path, world: int, idle: int | None) -> Result:
    """Iterable data; ``idle`` counts from the end if negative, and is nobody in a single process."""
    absent = None if idle is None or world == 1 else idle % world
    run = spread(folder, world, CollapseDiagnostics(block=500))
    model, data = vae(Silent, own_teacher=False), DataLoader(Stream(digits(101), world, absent), BATCH)
    run.validate(model, data, verbose=False)
    return logged(run.callback_metrics)


def dealt_out(world: int, rows: int) -> DataLoader[Any]:
    """Rows that do not divide evenly among the processes."""
    data = digits(rows)
    return DataLoader(data, BATCH, sampler=DistributedSampler(data, world, rank(), shuffle=False))


def own_rows(folder: Path, world: int) -> Result:
    """Callbacks that run the model themselves, at the end of each epoch of a fit."""
    rows = dealt_out(world, 101)
    certificate = CertificateCallback(teacher(), "encoder", dataloader=rows)
    information = InformationCallback("encoder", block=40, rows=60, dataloader=rows)
    trained(folder, world, [certificate, information], max_epochs=2)
    assert information.bracket is not None
    return {"certificate": fields(certificate), "bracket": information.bracket.to_dict()}


def watched(folder: Path, world: int) -> Result:
    """A plain loop's model, in the process group that is there."""
    torch.manual_seed(1)
    found = certvae.watch(WithAdam().double(), dealt_out(world, 101), teacher(), "encoder", run=WithAdam.step)
    return found.to_dict()


JOBS: dict[str, Callable[[Path, int], Any]] = {
    "probed": probed,
    **{f"diagnosed_{rows}": partial(diagnosed, rows=rows) for rows in ROWS},
    **{f"informed_{rows}": partial(informed, rows=rows) for rows in ROWS},
    **{f"coded_{rows}": partial(coded, rows=rows) for rows in ROWS},
    **{f"levels_{rows}": partial(levels, rows=rows) for rows in ROWS},
    "own_rows": own_rows,
    "watched": watched,
    "streamed": partial(streamed, idle=None),
    "first_process_idle": partial(streamed, idle=0),
    "last_process_idle": partial(streamed, idle=-1),
}
