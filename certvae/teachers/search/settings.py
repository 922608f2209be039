"""The settings of a teacher search, and its error class."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from certvae.teachers.search.candidates import Candidate
from certvae.teachers.search.em import COVARIANCES

__all__ = ["SearchSettings", "TeacherSearchError"]


class TeacherSearchError(RuntimeError):
    """No candidate meets the criteria, the search was cut short, or it cannot resume from a checkpoint."""


@dataclass(frozen=True)
class SearchSettings:
    """The settings of a search; see :class:`certvae.TeacherSearch`.

    Raises:
        ValueError: if a setting is out of range. The message names it.
    """

    components: Sequence[int]
    covariances: Sequence[str]
    temperatures: Sequence[float]
    initializations: int
    floor: float
    pca_dim: int
    pca_passes: int
    em_iterations: int
    tolerance: float
    relative_variance_floor: float
    sample_size: int
    seed: int

    def __post_init__(self) -> None:
        for name in ("components", "covariances", "temperatures"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.components or min(self.components) < 2:
            raise ValueError(f"`components` must hold numbers of at least 2, got {list(self.components)}.")
        if not self.covariances or not set(self.covariances) <= set(COVARIANCES):
            raise ValueError(f"`covariances` must be among {', '.join(COVARIANCES)}, got {list(self.covariances)}.")
        if not self.temperatures or min(self.temperatures) <= 0:
            raise ValueError(f"`temperatures` must be positive, got {list(self.temperatures)}.")
        if not 0 < self.floor < 1:
            raise ValueError(f"`floor` must be above 0 and below 1, got {self.floor}.")
        if min(self.initializations, self.pca_passes, self.em_iterations) < 1:
            raise ValueError("`initializations`, `pca_passes` and `em_iterations` must be at least 1.")

    @property
    def max_passes(self) -> int:
        """Largest number of passes that the search takes."""
        return self.pca_passes + 1 + self.em_iterations + 1

    def candidates(self) -> list[Candidate]:
        """One candidate for each K, covariance and start."""
        return [
            Candidate(k, covariance, start)
            for k in self.components
            for covariance in self.covariances
            for start in range(self.initializations)
        ]

    def check_same(self, saved: dict[str, Any]) -> None:
        """Check that saved settings equal these.

        Raises:
            TeacherSearchError: if they differ. The message lists the differences.
        """
        own = asdict(self)
        changed = [f"`{key}` was {saved.get(key)}, is {own[key]}" for key in own if saved.get(key) != own[key]]
        if changed:
            raise TeacherSearchError(
                f"the checkpoint is of a search with other settings: {'; '.join(changed)}. Take the settings back, or "
                "search anew without `ckpt_path`."
            )
