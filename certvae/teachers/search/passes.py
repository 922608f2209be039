"""The passes of a teacher search over the data: sums within a pass, updates at its end, and saved state."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from certvae.teachers.mixture import soften
from certvae.teachers.search.candidates import Candidate, teacher_sums
from certvae.teachers.search.em import MixtureEM
from certvae.teachers.search.pca import StreamingPCA
from certvae.teachers.search.settings import SearchSettings, TeacherSearchError
from certvae.theory.row_sample import RowSample

__all__ = ["STATE", "Phase", "SearchPasses", "saved_within_pass"]

STATE = "certvae.teacher_search"  # the key of a search in a checkpoint

BLOCK = 2048  # kept rows per E step; smaller ones leave a second processor core idle
MOST_KEPT = 2**26  # values of projected rows that a process keeps: half a GiB

Collective = Callable[[Tensor], Any]


class Phase(StrEnum):
    """The purpose of a pass over the data."""

    PCA = "principal components"
    START = "starting points"
    EM = "mixtures"
    EVALUATE = "evaluation"
    DONE = "done"


def saved_within_pass(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a checkpoint holds a search that was saved during a pass, from which it cannot resume."""
    return bool(checkpoint.get(STATE, {}).get("within_pass"))


class SearchPasses:
    """The state of a teacher search, without a trainer: additive sums within a pass, parameters between passes.

    The pass for the starting points keeps the projected rows, up to 2^26 values on each process. If all rows are kept,
    the mixtures are fitted on them at the end of the pass. Otherwise they are fitted by further passes over the data,
    with the same result.

    Args:
        settings: of the search.

    Attributes:
        phase: purpose of the current pass.
        pca: the principal components; None before the first batch.
        candidates: all mixtures to try.
        grid: every candidate with every temperature.
        outside: whether a row of any process had a value outside [0, 1].
        measured: after the search, :func:`certvae.teachers.search.candidates.teacher_sums` of each entry of ``grid`` on
            training and held-out rows.
    """

    def __init__(self, settings: SearchSettings) -> None:
        self.settings = settings
        self.phase = Phase.PCA
        self.pca: StreamingPCA | None = None
        self.candidates = settings.candidates()
        self.outside = False
        self.measured: list[list[Tensor]] | None = None
        self._passes, self._num_rows = 0, 0
        self._counts = torch.zeros(2, dtype=torch.float64)
        self._sample = RowSample(settings.sample_size, settings.seed)
        self._kept: list[Tensor] = []
        self._too_many = False
        self._train: Tensor | None = None
        self._held_out: Tensor | None = None

    @property
    def grid(self) -> list[tuple[Candidate, float]]:
        return [(candidate, float(value)) for candidate in self.candidates for value in self.settings.temperatures]

    @property
    def begun(self) -> bool:
        """Whether a pass has ended."""
        return self._num_rows > 0

    @property
    def fitted_pca(self) -> StreamingPCA:
        """The principal components; available after the first batch."""
        assert self.pca is not None
        return self.pca

    def add(self, rows: Tensor, index: Tensor) -> None:
        """Add training rows, float64, shape ``(B, D)``, with an integer that identifies each, shape ``(B,)``."""
        self._prepare(rows)
        outside = not self.begun and rows.numel() > 0 and bool((rows.amin() < 0) | (rows.amax() > 1))
        self._counts += torch.tensor([rows.shape[0], outside], dtype=torch.float64, device=rows.device)
        if self.phase is Phase.PCA:
            self.fitted_pca.accumulate(rows)
            return
        features = self.fitted_pca.project(rows)
        if self.phase is Phase.START:
            self._sample.add(features, index)
            self._keep(features)
        elif self.phase is Phase.EM:
            self._accumulate(features)
        elif self.phase is Phase.EVALUATE:
            self._train = self._measure(features, self._train)

    def _keep(self, features: Tensor) -> None:
        kept = sum(part.numel() for part in self._kept)
        self._too_many = self._too_many or kept + features.numel() > MOST_KEPT
        self._kept = [] if self._too_many else [*self._kept, features]  # EM needs all rows or none

    def add_held_out(self, rows: Tensor) -> None:
        """Add held-out rows, float64, shape ``(B, D)``; they are used in the evaluation only."""
        if self.phase is Phase.EVALUATE:
            self._held_out = self._measure(self.fitted_pca.project(rows), self._held_out)

    def _prepare(self, rows: Tensor) -> None:
        if self.pca is None:
            settings = self.settings
            generator = torch.Generator().manual_seed(settings.seed)
            rank = min(settings.pca_dim, rows.shape[1])
            self.pca = StreamingPCA(rows.shape[1], rank, generator=generator, device=rows.device)
        if self._counts.device != rows.device:  # the first batch, also after a resume from a checkpoint
            self._counts = self._counts.to(rows.device)
            self.pca.to(rows.device)
            for candidate in self.candidates:
                if candidate.mixture is not None:
                    candidate.mixture.to(rows.device)

    def _measure(self, features: Tensor, sums: Tensor | None) -> Tensor:
        floor = self.settings.floor
        added = torch.cat(
            [teacher_sums(soften(item.fitted.log_joint(features), value, floor)) for item, value in self.grid]
        )
        return added if sums is None else sums.to(added) + added

    def end_pass(self, reduce: Collective, gather: Collective) -> dict[str, Tensor]:
        """End a pass.

        Args:
            reduce: sums a tensor over all processes.
            gather: stacks a tensor of all processes.

        Returns:
            Values to log, by name.

        Raises:
            TeacherSearchError: if the pass and the first pass saw different numbers of rows, or there are no held-out
                rows.
        """
        rows, outside = reduce(self._counts).tolist()
        if self._num_rows not in (0, int(rows)):
            raise TeacherSearchError(
                f"this pass read {int(rows)} rows, the first one {self._num_rows}: every pass must read the same data."
            )
        self._num_rows, self.outside = int(rows), self.outside or outside > 0
        self._counts = torch.zeros_like(self._counts)
        self._passes += 1
        if self.phase is Phase.PCA:
            return self._end_pca(reduce)
        if self.phase is Phase.START:
            return self._end_start(reduce, gather)
        if self.phase is Phase.EM:
            return self._end_em(reduce)
        return self._end_evaluation(reduce)

    def _end_pca(self, reduce: Collective) -> dict[str, Tensor]:
        pca = self.fitted_pca
        pca.step(reduce(pca.sums))
        if self._passes >= self.settings.pca_passes:
            self.phase = Phase.START
        return {"largest_eigenvalue": pca.eigenvalues[0]}

    def _end_start(self, reduce: Collective, gather: Collective) -> dict[str, Tensor]:
        pca, settings = self.fitted_pca, self.settings
        sample = self._sample.gather(gather).rows
        variance_floor = settings.relative_variance_floor * float(pca.eigenvalues.mean())
        for number, candidate in enumerate(self.candidates):
            seed = settings.seed + 7919 * number
            start = MixtureEM.from_sample(sample, candidate.components, candidate.covariance, seed, variance_floor)
            candidate.mixture = start.to(pca.mean.device)
        self._sample = RowSample(settings.sample_size, settings.seed)
        self.phase, self._passes = Phase.EM, 0
        kept, self._kept = self._kept, []
        rows = torch.tensor(sum(len(part) for part in kept), dtype=torch.float64, device=pca.mean.device)
        return self._fit(kept, reduce) if int(reduce(rows)) == self._num_rows else {}

    def _fit(self, kept: list[Tensor], reduce: Collective) -> dict[str, Tensor]:
        """Fit the mixtures on the projected rows of all processes, block by block."""
        blocks = torch.cat(kept).split(BLOCK) if kept else ()
        found: dict[str, Tensor] = {}
        while self.phase is Phase.EM:
            for features in blocks:
                self._accumulate(features)
            self._passes += 1
            found = self._end_em(reduce)
        return found

    def _accumulate(self, features: Tensor) -> None:
        for candidate in self.candidates:
            candidate.fitted.accumulate(features)

    def _end_em(self, reduce: Collective) -> dict[str, Tensor]:
        mixtures = [candidate.fitted for candidate in self.candidates]
        totals = reduce(torch.cat([mixture.sums for mixture in mixtures]))
        for mixture, total in zip(mixtures, totals.split([item.sums.numel() for item in mixtures]), strict=True):
            mixture.step(total)
        converged = all(mixture.gain < self.settings.tolerance for mixture in mixtures)
        if self._passes >= self.settings.em_iterations or converged:
            self.phase = Phase.EVALUATE
        best = max(mixture.log_likelihood for mixture in mixtures)
        return {"log_likelihood": torch.tensor(best, dtype=torch.float64)}

    def _end_evaluation(self, reduce: Collective) -> dict[str, Tensor]:
        if self._train is None or self._held_out is None:
            raise TeacherSearchError("the search needs a validation set to compare candidates on, got none.")
        sizes = [2 * candidate.components + 3 for candidate, _ in self.grid]
        self.measured = [list(reduce(sums).split(sizes)) for sums in (self._train, self._held_out)]
        self._train = self._held_out = None
        self.phase = Phase.DONE
        return {}

    def state_dict(self, reduce: Collective, gather: Collective) -> dict[str, Any]:
        """The whole search as plain values and tensors; sums of an unfinished pass are totals over all processes.

        Args:
            reduce: sums a tensor over all processes.
            gather: stacks a tensor of all processes.
        """

        def total(sums: Tensor | None) -> Any:
            return None if sums is None else reduce(sums.clone())

        sample = self._sample.gather(gather) if self.phase is Phase.START else self._sample
        return {
            "settings": asdict(self.settings),
            "phase": self.phase.value,
            "passes": self._passes,
            "num_rows": self._num_rows,
            "outside": self.outside,
            "measured": self.measured,
            "pca": None if self.pca is None else self.pca.state_dict(),
            "mixtures": [item.mixture.state_dict() for item in self.candidates if item.mixture is not None],
            "sums": {
                "counts": total(self._counts),
                "pca": None if self.pca is None else total(self.pca.sums),
                "mixtures": [total(item.mixture.sums) for item in self.candidates if item.mixture is not None],
                "sample": [sample.keys, sample.rows],
                "train": total(self._train),
                "held_out": total(self._held_out),
            },
        }

    def load_state_dict(self, state: dict[str, Any], first: bool = True) -> None:
        """Resume from the output of :meth:`state_dict`.

        Args:
            state: the output of :meth:`state_dict`.
            first: whether this process takes the total sums; all other processes start from zero.

        Raises:
            TeacherSearchError: if the state belongs to a search with other settings.
        """
        self.settings.check_same(state["settings"])
        self.phase, self._passes = Phase(state["phase"]), state["passes"]
        self._num_rows, self.outside, self.measured = state["num_rows"], state["outside"], state["measured"]
        sums = _shared(state["sums"], first)
        self._counts, self._train, self._held_out = sums["counts"], sums["train"], sums["held_out"]
        self._sample.restore(*(part if first else part[:0] for part in state["sums"]["sample"]))
        if state["pca"] is not None:
            self.pca = StreamingPCA.from_state_dict(state["pca"], sums["pca"])
        for candidate, mixture, own in zip(self.candidates, state["mixtures"], sums["mixtures"], strict=False):
            candidate.mixture = MixtureEM.from_state_dict(mixture, own)


def _shared(sums: Any, first: bool) -> Any:
    """The sums for the first process; zeros of the same shapes for the others."""
    if isinstance(sums, dict):
        return {key: _shared(value, first) for key, value in sums.items()}
    if isinstance(sums, list):
        return [_shared(value, first) for value in sums]
    return sums if first or sums is None else torch.zeros_like(sums)
