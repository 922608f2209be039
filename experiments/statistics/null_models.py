"""Counts false certificates of witnesses that are independent of the input, each with its own teacher."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from coverage_cells import COMPONENTS, SIZES
from populations import Array, make_teacher
from repetitions import METHODS, settings_of

from certvae.certificate.verdict import certificate_from_sums
from certvae.theory.scores import ScoredRows
from certvae.theory.sums import CertificateSums

__all__ = ["WITNESSES", "null_models"]

WITNESSES = ("best_constant", "other_constant", "independent")
_SIZE_SHARES = (0.3, 0.3, 0.3, 0.1)  # the largest size costs most
_TYPES = 200


def null_models(seed: int, models: int) -> Iterator[dict[str, Any]]:
    """One result for each model: its setting, and whether each method certified it at safety margin 0."""
    for number in range(models):
        rng = np.random.default_rng([seed, 4, number])
        size, components = int(rng.choice(SIZES, p=_SIZE_SHARES)), int(rng.choice(COMPONENTS))
        witness = str(rng.choice(WITNESSES))
        teacher, logits = _rows(rng, size, components, witness)
        yield {"witness": witness, "n": size, "K": components, **_verdicts(teacher, logits)}


def _rows(rng: np.random.Generator, size: int, components: int, witness: str) -> tuple[Array, Array]:
    """Rows from a population of 200 teacher rows, and a witness drawn without a look at them.

    The teacher's sharpness, the distance of the other constant from the best one, and the spread of the independent
    witness around the best constant are log-uniform: small spreads come closest to a positive margin.
    """
    types = make_teacher(rng, _TYPES, components, sharpness=_log_uniform(rng, 0.05, 10))
    teacher = types[rng.integers(0, _TYPES, size)]
    mean = np.log(types.mean(axis=0))
    distance = 0.0 if witness == "best_constant" else _log_uniform(rng, 0.003, 3)
    rows = size if witness == "independent" else 1
    logits = mean + distance * rng.standard_normal((rows, components))
    return teacher, np.broadcast_to(logits, teacher.shape).copy()


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _verdicts(teacher: Array, logits: Array) -> dict[str, Any]:
    rows = torch.as_tensor(teacher), torch.as_tensor(logits)
    sums = {floor: CertificateSums.of(ScoredRows.check(*rows, witness_floor=floor)) for floor in _floors()}
    certificates = {
        method: certificate_from_sums(sums[settings_of(method).applied_floor], settings_of(method))
        for method in METHODS
    }
    return {method: certificate.certified for method, certificate in certificates.items()}


def _floors() -> set[float]:
    return {settings_of(method).applied_floor for method in METHODS}
