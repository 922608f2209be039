"""A candidate teacher of the search, and its measurements."""

from dataclasses import dataclass

import torch
from torch import Tensor

from certvae.teachers.base import energy_from_sums, log_ratio_sums
from certvae.teachers.search.em import MixtureEM
from certvae.teachers.search.selection import CandidateRow
from certvae.theory.information import entropy, kl_divergence

__all__ = ["Candidate", "measured_row", "teacher_sums"]


@dataclass
class Candidate:
    """A mixture to try; each temperature gives another teacher."""

    components: int
    covariance: str
    initialization: int
    mixture: MixtureEM | None = None

    @property
    def fitted(self) -> MixtureEM:
        """The mixture; available after the starting points."""
        assert self.mixture is not None
        return self.mixture


def teacher_sums(probs: Tensor) -> Tensor:
    """Rows, ``sum T``, ``sum H(T)``, ``sum c(T)`` and ``sum |c(T)|^2``, shape ``(2 K + 3,)``."""
    count = torch.tensor([float(probs.shape[0])], dtype=torch.float64, device=probs.device)
    return torch.cat([count, probs.sum(dim=0), entropy(probs).sum()[None], log_ratio_sums(probs)])


def _information(sums: Tensor, components: int) -> tuple[float, Tensor]:
    average = sums[1 : components + 1] / sums[0]
    return float(entropy(average) - sums[components + 1] / sums[0]), average


def measured_row(
    candidate: Candidate, temperature: float, train: Tensor, held_out: Tensor, scale: float
) -> CandidateRow:
    """The table row of a candidate at one temperature.

    Args:
        candidate: the fitted mixture.
        temperature: of the teacher.
        train: :func:`teacher_sums` over training rows.
        held_out: the same over held-out rows.
        scale: of the witness for which the energy is given.
    """
    components = candidate.components
    information, average = _information(train, components)
    information_held_out, average_held_out = _information(held_out, components)
    return CandidateRow(
        components,
        candidate.covariance,
        candidate.initialization,
        temperature,
        candidate.fitted.log_likelihood,
        information,
        information_held_out,
        energy_from_sums(train[components + 2 :], float(train[0]), average) / scale**2,
        float(average.min()),
        float(average.max()),
        float(kl_divergence(average_held_out, average.log())),
    )
