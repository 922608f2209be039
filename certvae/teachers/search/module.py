"""The teacher search as a LightningModule that streams the data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from rich.console import Console
from torch import Tensor

from certvae.io.random_state import kept_random_state
from certvae.reading.found import describe
from certvae.reading.inputs import InputSource, index_of, inputs_and_index
from certvae.reading.rows import RowPositions, first_loader, is_truncated
from certvae.reading.streams import CountedRows
from certvae.teachers.base import flat_float64
from certvae.teachers.card import TeacherCard
from certvae.teachers.mixture import GaussianMixtureTeacher
from certvae.teachers.search.candidates import Candidate, measured_row
from certvae.teachers.search.logged import log_candidates, log_teacher
from certvae.teachers.search.passes import STATE, Phase, SearchPasses, saved_within_pass
from certvae.teachers.search.selection import CandidateRow, SelectionCriteria, choose, explain, rich_table, write_table
from certvae.teachers.search.settings import SearchSettings, TeacherSearchError
from certvae.teachers.search.streams import check_all_read, check_read_once
from certvae.theory.row_noise import row_hash

__all__ = ["TeacherSearch", "TeacherSearchError"]


class TeacherSearch(LightningModule):
    """Search for a Gaussian-mixture teacher on principal components, over a grid of candidates.

    Run :meth:`search`, or ``Trainer.fit``, on images or vectors, in batches such as ``(images, label, index)``. The
    search takes some epochs for the principal components, one for the starting points, and one to measure every
    candidate at every temperature on training and validation rows. EM runs on projected rows in memory. If a process
    has more than 2^26 values of them, each EM iteration of all candidates takes an epoch. Validation rows are used to
    compare candidates, never to fit them. Of the teachers that meet the criteria, the one with the most held-out
    information is saved. Checkpoints hold the whole search: with :class:`certvae.callbacks.LastCheckpoint` it resumes
    from the end of any pass and finds the same teacher, bit for bit.

    Args:
        components: numbers of components K to try.
        covariances: ``"diagonal"`` and/or ``"spherical"``.
        temperatures: divisors of the log-posteriors to try; higher is softer.
        initializations: starts for each K and covariance.
        floor: every probability is at least ``floor / K``; in (0, 1).
        pca_dim: number of principal components; at most the number of values of a row.
        pca_passes: passes over the data for the principal components.
        em_iterations: largest number of EM iterations.
        tolerance: EM ends when every candidate's gain is below this, nats a row.
        relative_variance_floor: added to each variance, as a share of the mean variance of a principal component.
        witness_scale: witness scale at which energies are given.
        criteria: conditions for the choice of a teacher; default: ``SelectionCriteria()``.
        sample_size: number of rows drawn for the k-means starts.
        output_dir: folder for ``teacher.safetensors`` and ``candidates.csv``; default: the run's directory.
        seed: of the search; default: the seed of the run.
        images: where the input is in a batch, as for the callbacks.

    Attributes:
        rows: the table of all candidates, after the search.

    Raises:
        ValueError: if ``components`` holds a number below 2, ``covariances`` an unknown name or ``temperatures`` a
            number that is not positive; if ``floor`` is not in (0, 1); if a number of starts, passes or iterations is
            below 1.
    """

    def __init__(
        self,
        components: Sequence[int] = (10,),
        covariances: Sequence[str] = ("diagonal",),
        temperatures: Sequence[float] = (1.0, 2.0, 3.0, 4.0),
        initializations: int = 2,
        floor: float = 0.01,
        pca_dim: int = 32,
        pca_passes: int = 6,
        em_iterations: int = 60,
        tolerance: float = 1e-3,
        relative_variance_floor: float = 1e-3,
        witness_scale: float = 2.0,
        criteria: SelectionCriteria | None = None,
        sample_size: int = 4096,
        output_dir: str | None = None,
        seed: int | None = None,
        images: InputSource = 0,
    ) -> None:
        super().__init__()
        # A checkpoint that contains a function cannot be loaded without running code.
        self.save_hyperparameters(ignore=["criteria", "images"])
        self.automatic_optimization = False
        # Never trained: DistributedDataParallel refuses a module without any parameter that could be.
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.settings = SearchSettings(
            components,
            covariances,
            temperatures,
            initializations,
            floor,
            pca_dim,
            pca_passes,
            em_iterations,
            tolerance,
            relative_variance_floor,
            sample_size,
            seed=torch.initial_seed() % 2**31 if seed is None else seed,
        )
        self.witness_scale, self.criteria = witness_scale, criteria or SelectionCriteria()
        self.output_dir, self.images = output_dir, images
        self.rows: list[CandidateRow] = []
        # In a list, so that the teacher is in no checkpoint: weights are loaded before the search goes on.
        self._chosen: list[GaussianMixtureTeacher] = []
        self._passes = SearchPasses(self.settings)
        self._image_shape: tuple[int, ...] = ()
        self._fingerprint: str | None = None
        self._positions: RowPositions | None = None
        self._rows: CountedRows | None = None  # of a first pass without a sampler
        self._batches = 0

    @property
    def teacher(self) -> GaussianMixtureTeacher | None:
        """The chosen teacher; None before the end of the search."""
        return self._chosen[0] if self._chosen else None

    def search(self, train_dataloader: Any, val_dataloader: Any) -> GaussianMixtureTeacher:
        """Run the search with its own quiet Trainer, because ``lightning.pytorch``'s Trainer rejects this class.

        The global random state is restored afterwards. With a ``seed`` it does not influence the teacher, even if the
        loader shuffles.
        """
        quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
        trainer = Trainer(max_epochs=-1, devices=1, enable_model_summary=False, num_sanity_val_steps=0, **quiet)
        with kept_random_state(self.settings.seed):
            trainer.fit(self, train_dataloader, val_dataloader)
        return self._chosen[0]

    @property
    def max_passes(self) -> int:
        """Largest number of epochs that the search takes."""
        return self.settings.max_passes

    @property
    def _done(self) -> bool:
        return self._passes.phase is Phase.DONE

    @property
    def _is_dev_run(self) -> bool:
        return bool(getattr(self.trainer, "fast_dev_run", False))

    def configure_optimizers(self) -> list[Any]:
        return []

    def on_fit_start(self) -> None:
        limit = self.trainer.max_epochs
        if self.trainer.check_val_every_n_epoch != 1:
            raise ValueError(f"`check_val_every_n_epoch` must be 1, got {self.trainer.check_val_every_n_epoch}.")
        if not self._is_dev_run and limit is not None and 0 <= limit < self.max_passes:
            raise ValueError(
                f"`max_epochs` must be -1 or at least {self.max_passes}, the passes of this search, got {limit}."
            )
        if not self.trainer.enable_validation:
            raise TeacherSearchError("the search needs a validation set to compare candidates on, got none.")
        self._check_data()
        if self._done:
            self._choose()

    def _check_data(self) -> None:
        fingerprint = getattr(getattr(self.trainer, "datamodule", None), "fingerprint", None)
        if self._fingerprint and fingerprint and self._fingerprint != fingerprint:
            raise TeacherSearchError(
                f"the checkpoint is of a search on data with fingerprint {self._fingerprint[:12]}, got data with "
                f"{fingerprint[:12]}. Search anew without `ckpt_path`."
            )
        self._fingerprint = fingerprint

    def training_step(self, batch: Any, batch_idx: int) -> None:
        images, index = self._counted(batch)
        if not len(images):
            return
        if self._rows is not None:
            self._rows.add(images, index_of(batch))
        self._image_shape = tuple(images.shape[1:])
        self._passes.add(flat_float64(images), index)
        self._batches = batch_idx + 1

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if self._passes.phase is Phase.EVALUATE and self._passes.pca is not None:
            self._passes.add_held_out(flat_float64(self._counted(batch)[0]))

    def on_train_epoch_start(self) -> None:
        loader = first_loader(self.trainer.train_dataloader)
        self._positions = RowPositions(loader, self.trainer)
        self._rows = None if self._passes.begun or self._positions.dealt else CountedRows()
        if self._is_dev_run:
            return
        if is_truncated(self.trainer.num_training_batches, loader):
            raise ValueError(
                "`limit_train_batches` would fit the teacher to a part of the data; use the data's `subset`."
            )
        check_all_read(self.trainer, loader, self.trainer.num_training_batches, training=True)

    def on_validation_epoch_start(self) -> None:
        loader = first_loader(self.trainer.val_dataloaders)
        self._positions = RowPositions(loader, self.trainer)
        if not self._is_dev_run:
            check_all_read(self.trainer, loader, self.trainer.num_val_batches[0])

    def _counted(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Inputs of a batch and an integer for each, without rows that a sampler repeated as padding."""
        images, index = inputs_and_index(batch, self.images)
        self._check_rows(images)
        assert self._positions is not None
        positions, weights = self._positions.next(images.shape[0])
        keep = (weights > 0).to(images.device)
        # A third entry with repeated values is not an index: rows that share a value would be one row of the sample.

        if index is None or len(index) != len(images) or index.unique().numel() < len(images):
            # Positions in a stream depend on the number of processes; the rows' contents do not.
            index = row_hash(images) if self._positions.streamed else positions.to(images.device)
        return images[keep], index[keep]

    def _check_rows(self, images: Tensor) -> None:
        """Reject rows that cannot be compared by distance: tokens, and rows of different lengths."""
        if images.is_nested or (self._image_shape and tuple(images.shape[1:]) != self._image_shape):
            raise TeacherSearchError(
                f"the search needs rows of one shape, got {describe(images)} after rows of {self._image_shape}. Give "
                "fixed ones, such as the counts of words: images=lambda batch: torch.stack([torch.bincount(row, "
                "minlength=vocabulary).float() for row in batch[0]])."
            )
        if not images.is_floating_point() and images.dtype != torch.bool:
            raise TeacherSearchError(
                f"the search compares rows by distance, got whole numbers, {describe(images)}. Between tokens there is "
                "none: count them, images=lambda batch: torch.nn.functional.one_hot(batch[0], "
                "vocabulary).sum(1).float(). If they are measured counts, say so: images=lambda batch: "
                "batch[0].float()."
            )

    def on_train_epoch_end(self) -> None:
        if self._done:  # `min_epochs` keeps the trainer going
            return
        check_read_once(self.trainer, self._rows, self.device)
        for name, value in self._passes.end_pass(self._reduce, self.all_gather).items():
            self.log(f"search/{name}", value)
        self._batches = 0
        if self._done:
            self._choose()

    def _reduce(self, sums: Tensor) -> Tensor:
        total = self.trainer.strategy.reduce(sums, reduce_op="sum")
        assert isinstance(total, Tensor)
        return total

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[STATE] = {
            **self._passes.state_dict(self._reduce, self.all_gather),
            "image_shape": self._image_shape,
            "fingerprint": self._fingerprint,
            "within_pass": 0 < self._batches < self.trainer.num_training_batches,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Resume the search from a checkpoint.

        Raises:
            TeacherSearchError: if the checkpoint holds no search, has other settings, or was saved during a pass.
        """
        state = checkpoint.get(STATE)
        if state is None:
            raise TeacherSearchError("the checkpoint holds no teacher search; search anew without `ckpt_path`.")
        if saved_within_pass(checkpoint):
            raise TeacherSearchError(
                "the checkpoint was saved in the middle of a pass, and the rows seen by then cannot be left out of the "
                "rest. Resume from the end of an epoch: certvae.callbacks.LastCheckpoint saves there."
            )
        self._passes.load_state_dict(state, first=self.global_rank == 0)
        self._image_shape, self._fingerprint = tuple(state["image_shape"]), state["fingerprint"]

    def _choose(self) -> None:
        """End the search: choose a teacher; write its file and the table of all candidates."""
        passes = self._passes
        assert passes.measured is not None
        rows = [
            measured_row(candidate, temperature, train, held_out, self.witness_scale)
            for (candidate, temperature), train, held_out in zip(passes.grid, *passes.measured, strict=True)
        ]
        self.rows, best = choose(rows, self.criteria)
        self.trainer.should_stop = True
        directory = Path(self.output_dir or self.trainer.log_dir or self.trainer.default_root_dir)
        if self.trainer.is_global_zero:
            write_table(self.rows, directory / "candidates.csv")
            log_candidates(self.trainer.loggers, self.rows)
            Console().print(rich_table(self.rows))
        if best is None:
            raise TeacherSearchError(
                f"none of {len(rows)} candidates meets the criteria {self.criteria}; see "
                f"{directory / 'candidates.csv'}. Widen `criteria`, or try fewer components and higher temperatures."
            )
        teacher = self._teacher(*passes.grid[best], self.rows[best], passes.measured[0][best])
        self._chosen = [teacher]
        if self.trainer.is_global_zero:
            self._save(teacher, directory / "teacher.safetensors")
            log_teacher(self.trainer.loggers, directory / "teacher.safetensors")

    def _teacher(
        self, candidate: Candidate, temperature: float, row: CandidateRow, sums: Tensor
    ) -> GaussianMixtureTeacher:
        pca, mixture = self._passes.fitted_pca, candidate.fitted
        card = TeacherCard(
            candidate.components,
            temperature,
            self.settings.floor,
            self.settings.seed,
            self._image_shape,
            # Vectors that were scaled to [0, 1] on training rows can leave this range on other rows.
            None if self._passes.outside or len(self._image_shape) < 2 else (0.0, 1.0),
            self._fingerprint,
            row.information_train,
            row.information_held_out,
            row.energy * self.witness_scale**2,
            float(pca.eigenvalues[0]),
            explain(row, self.rows, self.criteria, self.witness_scale),
        )
        average = sums[1 : candidate.components + 1] / sums[0]
        tensors = (pca.mean, pca.projection, mixture.log_weights, mixture.means, mixture.variances, average.cpu())
        return GaussianMixtureTeacher(card, *tensors)

    def _save(self, teacher: GaussianMixtureTeacher, path: Path) -> None:
        eigenvalue = teacher.card.largest_eigenvalue
        print(f"{teacher.card.choice}\nTeacher saved to {teacher.save(path)}.")
        print(
            f"Largest eigenvalue of the data's covariance: {eigenvalue:.3g}; the linear theory predicts full "
            f"collapse of a plain VAE at KL weight x observation variance > {eigenvalue:.3g}."
        )

    def on_train_end(self) -> None:
        if not self._done and not self._is_dev_run and not self.trainer.interrupted:
            raise TeacherSearchError(
                f"the search ended in the phase '{self._passes.phase}', before a teacher was chosen. Set "
                "`max_epochs: -1`."
            )
