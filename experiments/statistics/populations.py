r"""Finite populations of (teacher row, witness row) whose margin is known exactly.

A data set of n rows is n independent draws from m equally likely joint types, so it is a vector of multinomial counts,
and the population's margin is the plug-in margin of the m types.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ALPHA",
    "CONSTANT",
    "NULL",
    "SHARPNESS",
    "TEACHER_FLOOR",
    "WITNESSES",
    "Population",
    "make_population",
    "make_teacher",
    "make_witness",
    "with_floor",
]

Array = NDArray[np.float64]

ALPHA = 0.05
TEACHER_FLOOR = 0.01
SHARPNESS = {"sharp": 8.0, "medium": 2.0, "flat": 0.2}
CONSTANT = ("best_constant", "other_constant")
NULL = (*CONSTANT, "independent", "faint")
WITNESSES = (*NULL, "weak", "strong", "rare")

_TYPES = 1000
_INDEPENDENT_TYPES = (100, 20)  # teacher rows and witness rows, every pair of them equally likely
_RARE = 0.01  # share of the inputs on which the witness `rare` is confidently wrong


@dataclass(frozen=True)
class Population:
    """Joint types, equally likely.

    Attributes:
        teacher: teacher probabilities of each type, shape ``(m, K)``.
        log_witness: log-probabilities of the witness, shape ``(m, K)``.
    """

    teacher: Array
    log_witness: Array

    @property
    def margin(self) -> float:
        """The population's margin in nats."""
        return float((self.teacher * (self.log_witness - np.log(self.teacher.mean(axis=0)))).sum(axis=1).mean())

    def floored(self, floor: float) -> "Population":
        """The same with a share ``floor`` of the uniform distribution mixed into the witness."""
        return Population(self.teacher, np.log(with_floor(np.exp(self.log_witness), floor)))


def with_floor(probs: Array, floor: float) -> Array:
    """Probabilities mixed with the uniform distribution, none below ``floor / K``."""
    return (1 - floor) * probs + floor / probs.shape[-1]


def make_teacher(rng: np.random.Generator, rows: int, components: int, sharpness: float) -> Array:
    """Softmax of Gaussian logits around an uneven average, with the floor, shape ``(rows, components)``."""
    center = 0.5 * rng.standard_normal(components)
    logits = center + sharpness * rng.standard_normal((rows, components))
    return with_floor(np.exp(_log_softmax(logits)), TEACHER_FLOOR)


def make_population(rng: np.random.Generator, components: int, teacher: str, witness: str) -> Population:
    """A random population.

    Args:
        rng: source of randomness.
        components: K.
        teacher: a key of :data:`SHARPNESS`.
        witness: one of :data:`WITNESSES`. ``best_constant`` answers the population's average teacher,
            ``other_constant`` something else; ``independent`` and ``faint`` vary, but not with the input (by 1 and by
            0.05 in the logits); ``weak`` and ``strong`` follow the teacher; ``rare`` is ``strong`` but confidently
            wrong on 1 % of the inputs.
    """
    if witness in ("independent", "faint"):
        return _independent(rng, components, teacher, noise=1.0 if witness == "independent" else 0.05)
    probs = make_teacher(rng, _TYPES, components, SHARPNESS[teacher])
    return Population(probs, make_witness(rng, probs, witness))


def make_witness(rng: np.random.Generator, teacher: Array, witness: str) -> Array:
    """Log-probabilities of a witness that is constant or depends on the input, shape of ``teacher``."""
    mean, noise = np.log(teacher.mean(axis=0)), rng.standard_normal(teacher.shape)
    if witness in CONSTANT:
        constant = mean if witness == "best_constant" else mean + noise[0]
        return _log_softmax(np.broadcast_to(constant, teacher.shape))
    if witness == "weak":
        return _log_softmax(mean + 0.3 * (np.log(teacher) - mean) + 0.3 * noise)
    logits = np.log(teacher) + 0.3 * noise
    if witness == "rare":
        wrong = slice(0, max(1, round(_RARE * len(teacher))))
        logits[wrong] -= 8 * teacher[wrong] / teacher[wrong].max(axis=1, keepdims=True)
    return _log_softmax(logits)


def _independent(rng: np.random.Generator, components: int, teacher: str, noise: float) -> Population:
    teachers, witnesses = _INDEPENDENT_TYPES
    probs = make_teacher(rng, teachers, components, SHARPNESS[teacher])
    answers = np.log(probs.mean(axis=0)) + noise * rng.standard_normal((witnesses, components))
    return Population(probs.repeat(witnesses, axis=0), np.tile(_log_softmax(answers), (teachers, 1)))


def _log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
