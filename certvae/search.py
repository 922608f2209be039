"""The search for a teacher, as a LightningModule that streams the data and keeps additive sums only."""

from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule
from rich.console import Console
from torch import Tensor

from certvae.candidates import Candidate, measured_row, teacher_sums
from certvae.em import COVARIANCES, MixtureEM
from certvae.pca import StreamingPCA
from certvae.row_sample import RowSample
from certvae.rows import RowPositions, first_loader, is_cut_short
from certvae.search_table import CandidateRow, SearchBounds, choose, explain, rich_table, write_table
from certvae.teachers.base import TeacherCard, flat_float64, inputs_and_index
from certvae.teachers.mixture import GaussianMixtureTeacher, soften

__all__ = ["TeacherSearch", "TeacherSearchError"]


class TeacherSearchError(RuntimeError):
    """No candidate keeps the bounds, or the search was cut short."""


class _Phase(StrEnum):
    PCA = "principal components"
    START = "starting points"
    EM = "mixtures"
    EVALUATE = "evaluation"
    DONE = "done"


class TeacherSearch(LightningModule):
    """Search a Gaussian-mixture teacher on principal components, for a whole grid of candidates at once.

    Run it with ``Trainer.fit`` on batches ``(images, label, index)``: some epochs for the principal components, one
    for the starting points, one for each EM iteration of all candidates together, and one to measure every candidate
    at every temperature on training and validation rows. Validation rows are used to compare candidates, never to
    fit one. Of the teachers within the bounds, the one with the most held-out information is saved.

    Args:
        components: numbers of components K to try.
        covariances: ``"diagonal"`` and/or ``"spherical"``.
        temperatures: divisors of the log-posteriors to try; higher is softer.
        initialisations: starts for each K and covariance.
        floor: every probability is at least ``floor / K``; in (0, 1).
        pca_dim: principal components kept; at most the values of a row.
        pca_passes: passes over the data for them.
        em_iterations: most EM iterations.
        tolerance: EM ends when every candidate's gain is below this, nats a row.
        relative_variance_floor: added to each variance, as a share of the mean variance of a component.
        witness_scale: the scale of the witness for which energies are given.
        bounds: what a teacher must keep to be chosen.
        sample_size: rows drawn for the k-means starts.
        output_dir: where ``teacher.safetensors`` and ``candidates.csv`` go; default: the run's directory.
        seed: of the search; default: the seed of the run.

    Attributes:
        rows: the table of all candidates, when the search has ended.
        teacher: the chosen teacher, when the search has ended.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        components: Sequence[int] = (10,),
        covariances: Sequence[str] = ("diagonal",),
        temperatures: Sequence[float] = (1.0, 2.0, 3.0, 4.0),
        initialisations: int = 2,
        floor: float = 0.01,
        pca_dim: int = 32,
        pca_passes: int = 6,
        em_iterations: int = 60,
        tolerance: float = 1e-3,
        relative_variance_floor: float = 1e-3,
        witness_scale: float = 2.0,
        bounds: SearchBounds | None = None,
        sample_size: int = 4096,
        output_dir: str | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        _check_grid(components, covariances, temperatures, floor, initialisations, pca_passes, em_iterations)
        self.save_hyperparameters(ignore=["bounds"])
        self.automatic_optimization = False
        # Never trained: DistributedDataParallel refuses a module without any parameter that could be.
        self.anchor = torch.nn.Parameter(torch.zeros(()))
        self.temperatures, self.floor = [float(value) for value in temperatures], floor
        self.pca_dim, self.pca_passes, self.em_iterations = pca_dim, pca_passes, em_iterations
        self.tolerance, self.relative_variance_floor = tolerance, relative_variance_floor
        self.witness_scale, self.bounds = witness_scale, bounds or SearchBounds()
        self.sample_size, self.output_dir = sample_size, output_dir
        self.seed = torch.initial_seed() % 2**31 if seed is None else seed
        self.rows: list[CandidateRow] = []
        self.teacher: GaussianMixtureTeacher | None = None
        self._candidates = [
            Candidate(k, covariance, start)
            for k in components
            for covariance in covariances
            for start in range(initialisations)
        ]
        self._phase, self._passes = _Phase.PCA, 0
        self._pca: StreamingPCA | None = None
        self._image_shape: tuple[int, ...] = ()
        self._positions: RowPositions | None = None
        self._rows_outside = 0.0
        self._sample = RowSample(sample_size, self.seed)
        self._train_sums: list[Tensor] = []
        self._held_out_sums: list[Tensor] = []

    @property
    def max_passes(self) -> int:
        """Most epochs that the search takes."""
        return self.pca_passes + 1 + self.em_iterations + 1

    @property
    def _trying(self) -> bool:
        return bool(getattr(self.trainer, "fast_dev_run", False))

    def configure_optimizers(self) -> list[Any]:  # noqa: D102
        return []

    def on_fit_start(self) -> None:  # noqa: D102
        limit = self.trainer.max_epochs
        if self.trainer.check_val_every_n_epoch != 1:
            raise ValueError(f"`check_val_every_n_epoch` must be 1, got {self.trainer.check_val_every_n_epoch}.")
        if not self._trying and limit is not None and 0 <= limit < self.max_passes:
            raise ValueError(
                f"`max_epochs` must be -1 or at least {self.max_passes}, the passes of this search, got {limit}."
            )

    def training_step(self, batch: Any, batch_idx: int) -> None:  # noqa: D102
        images, index = self._counted(batch)
        rows = flat_float64(images)
        if self._pca is None:
            self._start_pca(images, rows)
        assert self._pca is not None
        if self._phase is _Phase.PCA:
            self._pca.accumulate(rows)
            self._rows_outside += float(((rows < 0) | (rows > 1)).any(dim=1).sum())
            return
        features = self._pca.project(rows)
        if self._phase is _Phase.START:
            self._sample.add(features, index)
        elif self._phase is _Phase.EM:
            for candidate in self._candidates:
                candidate.fitted.accumulate(features)
        elif self._phase is _Phase.EVALUATE:
            self._measure(features, self._train_sums)

    def validation_step(self, batch: Any, batch_idx: int) -> None:  # noqa: D102
        if self._phase is _Phase.EVALUATE and self._pca is not None:
            images, _ = self._counted(batch)
            self._measure(self._pca.project(flat_float64(images)), self._held_out_sums)

    def on_train_epoch_start(self) -> None:  # noqa: D102
        loader = first_loader(self.trainer.train_dataloader)
        self._positions = RowPositions(loader, self.trainer)
        if not self._trying and is_cut_short(self.trainer.num_training_batches, loader):
            raise ValueError(
                "`limit_train_batches` would fit the teacher to a part of the data; use the data's `subset`."
            )

    def on_validation_epoch_start(self) -> None:  # noqa: D102
        self._positions = RowPositions(first_loader(self.trainer.val_dataloaders), self.trainer)

    def _counted(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        """Inputs and index of a batch, without the rows that a sampler repeated as padding."""
        images, index = inputs_and_index(batch)
        assert self._positions is not None
        keep = (self._positions.next(images.shape[0])[1] > 0).to(images.device)
        return images[keep], None if index is None else index[keep]

    def _start_pca(self, images: Tensor, rows: Tensor) -> None:
        self._image_shape = tuple(images.shape[1:])
        generator = torch.Generator().manual_seed(self.seed)
        self._pca = StreamingPCA(rows.shape[1], min(self.pca_dim, rows.shape[1]), 16, generator, rows.device)

    def _measure(self, features: Tensor, sums: list[Tensor]) -> None:
        added = [
            teacher_sums(soften(candidate.fitted.log_joint(features), temperature, self.floor))
            for candidate in self._candidates
            for temperature in self.temperatures
        ]
        sums[:] = [old + new for old, new in zip(sums, added, strict=True)] if sums else added

    def on_train_epoch_end(self) -> None:  # noqa: D102
        advance: dict[_Phase, Callable[[], None]] = {
            _Phase.PCA: self._end_pca_pass,
            _Phase.START: self._end_start,
            _Phase.EM: self._end_em_iteration,
            _Phase.EVALUATE: self._end_evaluation,
        }
        if self._phase is _Phase.DONE:  # `min_epochs` keeps the trainer going
            return
        self._passes += 1
        advance[self._phase]()

    def _reduce(self, sums: Tensor) -> Tensor:
        total = self.trainer.strategy.reduce(sums, reduce_op="sum")
        assert isinstance(total, Tensor)
        return total

    def _end_pca_pass(self) -> None:
        assert self._pca is not None
        self._pca.step(self._reduce(self._pca.sums))
        self.log("search/largest_eigenvalue", self._pca.eigenvalues[0])
        if self._passes >= self.pca_passes:
            self._phase = _Phase.START

    def _end_start(self) -> None:
        assert self._pca is not None
        sample = self._sample.gather(self.all_gather)
        variance_floor = self.relative_variance_floor * float(self._pca.eigenvalues.mean())
        for number, candidate in enumerate(self._candidates):
            start = MixtureEM.from_sample(
                sample, candidate.components, candidate.covariance, self.seed + 7919 * number, variance_floor
            )
            candidate.mixture = start.to(self._pca.mean.device)
        self._phase, self._passes = _Phase.EM, 0

    def _end_em_iteration(self) -> None:
        mixtures = [candidate.fitted for candidate in self._candidates]
        sizes = [mixture.sums.numel() for mixture in mixtures]
        totals = self._reduce(torch.cat([mixture.sums for mixture in mixtures])).split(sizes)
        for mixture, total in zip(mixtures, totals, strict=True):
            mixture.step(total)
        best = max(mixture.log_likelihood for mixture in mixtures)
        self.log("search/log_likelihood", torch.tensor(best, dtype=torch.float64))
        if self._passes >= self.em_iterations or all(mixture.gain < self.tolerance for mixture in mixtures):
            self._phase = _Phase.EVALUATE

    def _end_evaluation(self) -> None:
        if not self._held_out_sums:
            raise TeacherSearchError("the search needs a validation set to compare candidates on, got none.")
        train, held_out = self._reduce_all(self._train_sums), self._reduce_all(self._held_out_sums)
        grid = [(candidate, value) for candidate in self._candidates for value in self.temperatures]
        rows = [
            measured_row(candidate, temperature, sums, other, self.witness_scale)
            for (candidate, temperature), sums, other in zip(grid, train, held_out, strict=True)
        ]
        self.rows, best = choose(rows, self.bounds)
        self._phase = _Phase.DONE
        self.trainer.should_stop = True
        directory = Path(self.output_dir or self.trainer.log_dir or self.trainer.default_root_dir)
        if self.trainer.is_global_zero:
            write_table(self.rows, directory / "candidates.csv")
            Console().print(rich_table(self.rows))
        if best is None:
            raise TeacherSearchError(
                f"none of {len(rows)} candidates keeps the bounds {self.bounds}; see {directory / 'candidates.csv'}. "
                "Widen `bounds`, or try fewer components and higher temperatures."
            )
        self._finish(*grid[best], self.rows[best], train[best], directory)

    def _reduce_all(self, sums: list[Tensor]) -> list[Tensor]:
        return list(self._reduce(torch.cat(sums)).split([part.numel() for part in sums]))

    def _finish(
        self, candidate: Candidate, temperature: float, row: CandidateRow, sums: Tensor, directory: Path
    ) -> None:
        assert self._pca is not None
        mixture = candidate.fitted
        eigenvalue = float(self._pca.eigenvalues[0])
        outside = float(self._reduce(torch.tensor(self._rows_outside, dtype=torch.float64))) > 0
        card = TeacherCard(
            candidate.components,
            temperature,
            self.floor,
            self.seed,
            self._image_shape,
            None if outside else (0.0, 1.0),
            getattr(getattr(self.trainer, "datamodule", None), "fingerprint", None),
            row.information_train,
            row.information_held_out,
            row.energy * self.witness_scale**2,
            eigenvalue,
            explain(row, self.rows, self.bounds),
        )
        average = sums[1 : candidate.components + 1] / sums[0]
        self.teacher = GaussianMixtureTeacher(
            card,
            self._pca.mean,
            self._pca.projection,
            mixture.log_weights,
            mixture.means,
            mixture.variances,
            average.cpu(),
        )
        if self.trainer.is_global_zero:
            path = self.teacher.save(directory / "teacher.safetensors")
            print(f"{card.choice}\nTeacher saved to {path}.")
            print(
                f"Largest eigenvalue of the data's covariance: {eigenvalue:.3g}; the linear theory predicts full "
                f"collapse of a plain VAE at KL weight x observation variance > {eigenvalue:.3g}."
            )

    def on_train_end(self) -> None:  # noqa: D102
        if self._phase is not _Phase.DONE and not self._trying and not self.trainer.interrupted:
            raise TeacherSearchError(
                f"the search ended in the phase '{self._phase}', before a teacher was chosen. Set `max_epochs: -1`."
            )


def _check_grid(
    components: Sequence[int],
    covariances: Sequence[str],
    temperatures: Sequence[float],
    floor: float,
    initialisations: int,
    pca_passes: int,
    em_iterations: int,
) -> None:
    if not components or min(components) < 2:
        raise ValueError(f"`components` must hold numbers of at least 2, got {list(components)}.")
    if not covariances or not set(covariances) <= set(COVARIANCES):
        raise ValueError(f"`covariances` must be among {', '.join(COVARIANCES)}, got {list(covariances)}.")
    if not temperatures or min(temperatures) <= 0:
        raise ValueError(f"`temperatures` must be positive, got {list(temperatures)}.")
    if not 0 < floor < 1:
        raise ValueError(f"`floor` must be above 0 and below 1, got {floor}.")
    if min(initialisations, pca_passes, em_iterations) < 1:
        raise ValueError("`initialisations`, `pca_passes` and `em_iterations` must be at least 1.")
