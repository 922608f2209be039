"""Draws many data sets from one population and computes the shipped lower bounds of all of them."""

import numpy as np
from populations import ALPHA, TEACHER_FLOOR, Array, Population

from certvae import CertificateSettings, certify
from certvae.theory.bounds import BOUNDS, Evidence

__all__ = ["METHODS", "Repetitions", "draw_counts", "settings_of"]

METHODS = ("normal", "hoeffding", "bernstein")


def settings_of(method: str) -> CertificateSettings:
    """The shipped settings at safety margin 0; the witness floor is the method's default."""
    return CertificateSettings(safety_margin=0.0, confidence=1 - ALPHA, method=method, teacher_floor=TEACHER_FLOOR)


def draw_counts(rng: np.random.Generator, population: Population, size: int, repetitions: int) -> Array:
    """How often each type occurs in each of ``repetitions`` data sets of ``size`` rows, shape ``(R, m)``."""
    types = len(population.teacher)
    return rng.multinomial(size, np.full(types, 1 / types), size=repetitions).astype(np.float64)


class Repetitions:
    """Margins, deviations and lower bounds of data sets that are given as counts.

    Args:
        population: where the data sets come from.
        counts: of each type in each data set, shape ``(R, m)``.
    """

    def __init__(self, population: Population, counts: Array) -> None:
        self.population = population
        self.counts = counts
        self.size = int(counts[0].sum())
        self._log_mean = np.log(counts @ population.teacher / self.size)
        self._numbers: dict[float, tuple[float, Array, Array]] = {}

    def lower(self, method: str, alpha: float = ALPHA) -> tuple[float, Array]:
        """The population's margin and the lower bound from each data set, shape ``(R,)``."""
        floor = settings_of(method).applied_floor
        truth, margins, deviations = self.numbers(floor)
        components = int(self.population.teacher.shape[1])
        pairs = zip(margins.tolist(), deviations.tolist(), strict=True)
        return truth, np.array(
            [
                BOUNDS[method].lower(Evidence(*pair, self.size, components, TEACHER_FLOOR, floor), alpha)
                for pair in pairs
            ]
        )

    def numbers(self, floor: float) -> tuple[float, Array, Array]:
        """The population's margin, and the plug-in margin and the deviation of each data set."""
        if floor not in self._numbers:
            self._numbers[floor] = self._compute(self.population.floored(floor))
        return self._numbers[floor]

    def _compute(self, population: Population) -> tuple[float, Array, Array]:
        answers = (population.teacher * population.log_witness).sum(axis=1)
        scores = answers - self._log_mean @ population.teacher.T
        margins = np.einsum("rm,rm->r", self.counts, scores) / self.size
        scores -= margins[:, None]
        variances = np.einsum("rm,rm,rm->r", self.counts, scores, scores) / (self.size - 1)
        return population.margin, margins, np.sqrt(variances)

    def check(self, repetition: int) -> None:
        """Assert that :func:`certvae.certify` on the rows themselves gives the same bounds."""
        rows = self.counts[repetition].astype(int)
        teacher, log_witness = (
            values.repeat(rows, axis=0) for values in (self.population.teacher, self.population.log_witness)
        )
        for method in METHODS:
            settings = settings_of(method)
            certificate = certify(
                teacher, log_witness, safety_margin=0.0, method=method, teacher_floor=settings.teacher_floor
            )
            found = self.lower(method)[1][repetition]
            if abs(found - certificate.margin_lower) > 1e-6:
                raise AssertionError(f"{method}: counts give {found}, certify gives {certificate.margin_lower}.")
