"""Leak tests: does the witness see only the latent code? They use the answers that the certificate counted.

A function of a row's code alone passes these tests. *Repeatable*: it gives the same answer again (dropout fails). *Row
independence*: its answer does not change with the other rows (batch norm fails). *Order*: if codes are permuted, its
answers are permuted in the same way. *Equal codes*: it answers equal codes equally. *Fixed*: it does not change while
the rows are read. A witness with another path to the image, or to the position of a row, fails one of them. Each test
compares with the counted answer and is exact up to rounding, so none needs a confidence level.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from certvae.io.files import sha256_tensors
from certvae.theory.arguments import as_float64, as_number, as_tensor, float64_device
from certvae.theory.information import as_logits
from certvae.theory.row_noise import row_uniform
from certvae.theory.row_sample import RowSample

__all__ = ["WitnessAudit", "check_encoder", "check_witness", "shuffled_margin_leaks"]

TOLERANCE = 1e-4  # in log-probabilities: float32 rounding differs between batch sizes; a leak is far larger

ENCODER_TOLERANCE = 0.02  # share of a coordinate's size: bfloat16 convolutions differ by 1 % between batch sizes

Witness = Callable[[Tensor], Tensor]


class WitnessAudit:
    """Runs the leak tests on a witness batch by batch, against the counted answers.

    Args:
        size: number of codes that are tested again after all rows; a hash of their positions selects them.
        seed: of the hash.

    Attributes:
        findings: one sentence for each test that failed.
    """

    def __init__(self, size: int = 256, seed: int = 0) -> None:
        self.findings: list[str] = []
        self._sample = RowSample(size, seed)
        self._first: tuple[Tensor, Tensor] | None = None
        self._state, self._latent_dim = "", 0

    @torch.no_grad()
    def add(self, witness: Witness, latents: Tensor, answers: Tensor, positions: Tensor) -> None:
        """Test a batch.

        Args:
            witness: maps codes ``(B, latent_dim)`` to logits ``(B, K)``.
            latents: codes of the batch, shape ``(B, latent_dim)``.
            answers: counted logits, shape ``(B, K)``.
            positions: of the rows in the data set, integers, shape ``(B,)``.
        """
        if self._first is None:
            self._first, self._latent_dim = (latents, answers), latents.shape[1]
            self._state = _state(witness)
            self._note(check_witness(witness, latents, answers))
        else:
            again = _answers(witness, self._first[0])
            self._note(_unless(not _differ(as_logits(self._first[1], "answers"), again), LATER))
        self._note(_unless(_equal_codes_agree(latents, as_logits(answers, "answers")), UNEQUAL))
        self._sample.add(torch.cat([as_float64(latents), as_float64(answers.to(latents.device))], dim=1), positions)

    @torch.no_grad()
    def finish(self, witness: Witness) -> list[str]:
        """Test a sample of the codes again; returns all findings."""
        if self._first is None:
            return self.findings
        latents, answers = self._sample.rows.split([self._latent_dim, self._first[1].shape[1]], dim=1)
        again = _answers(witness, latents.to(self._first[0]))
        counted = as_logits(answers, "answers")
        self._note(_unless(not _differ(counted, again.to(counted.device)), LATER))
        self._note(_unless(_equal_codes_agree(latents, counted), UNEQUAL))
        self._note(_unless(_state(witness) == self._state, "fixed: parameters or buffers of the witness have changed"))
        return self.findings

    def _note(self, findings: list[str]) -> None:
        self.findings += [found for found in findings if found not in self.findings]


LATER = "repeatable: the witness gives other answers for the same codes later"
UNEQUAL = "equal codes: rows with the same code got different answers, so the witness sees more than the code"


def _unless(holds: bool, finding: str) -> list[str]:
    return [] if holds else [finding]


@torch.no_grad()
def check_witness(witness: Witness, latents: Tensor, answers: Tensor | None = None) -> list[str]:
    """Test whether a witness is a function of each row's code alone.

    Args:
        witness: maps codes ``(B, latent_dim)`` to logits ``(B, K)``. If it is a module, its mode is checked too.
        latents: codes of one batch, shape ``(B, latent_dim)``.
        answers: counted logits for these codes, shape ``(B, K)``; default: computed now.

    Returns:
        One sentence for each failed test; empty for a valid witness.

    Raises:
        TypeError: if ``witness`` is not callable, or ``latents`` is not an array of real numbers.
        ValueError: if ``latents`` does not have shape ``(B, latent_dim)``, or the witness does not return finite logits
            ``(B, K)``.
    """
    if not callable(witness):
        raise TypeError(f"`witness` must map codes to logits, got {type(witness).__name__}.")
    latents = as_tensor(latents, "latents")
    if latents.ndim != 2 or len(latents) == 0:
        raise ValueError(
            f"`latents` must have shape (B, latent_dim) with at least one row, got {tuple(latents.shape)}."
        )
    findings = []
    if isinstance(witness, nn.Module) and any(module.training for module in witness.modules() if _has_mode(module)):
        findings.append("eval mode: a part of the witness that acts differently in training is in train mode")
    counted = _answers(witness, latents) if answers is None else as_logits(answers, "answers")
    if len(counted) != len(latents):
        raise ValueError(f"`witness` must return one row for each of {len(latents)} codes, got {len(counted)}.")
    if _differ(counted, _answers(witness, latents).to(counted.device)):
        return [*findings, "repeatable: the witness gives two answers for the same codes"]
    return findings + _rows_are_independent(witness, latents, counted)


def _rows_are_independent(witness: Witness, latents: Tensor, counted: Tensor) -> list[str]:
    findings, half = [], (len(latents) + 1) // 2
    if len(latents) > 1 and _differ(counted[:half], _answers(witness, latents[:half]).to(counted.device)):
        findings.append("row independence: a row's answer changes with the other rows of the batch")
    order = torch.arange(len(latents), device=latents.device).roll(1)
    if _differ(counted[order.to(counted.device)], _answers(witness, latents[order]).to(counted.device)):
        findings.append("order: answers do not follow their codes, so the witness sees more than the code")
    return findings


def _equal_codes_agree(latents: Tensor, answers: Tensor) -> bool:
    """Whether equal codes have equal answers. Sorting by a projection makes equal codes neighbors."""
    weights = row_uniform(torch.arange(latents.shape[1]), 1)[:, 0].to(latents.device)
    order = (as_float64(latents) @ weights.to(float64_device(latents.device))).argsort().to(latents.device)
    codes, given = latents[order], answers[order.to(answers.device)]
    same = (codes[1:] == codes[:-1]).all(dim=1).to(given.device)
    return not _differ(given[1:][same], given[:-1][same])


def _state(witness: Witness) -> str:
    if not isinstance(witness, nn.Module):
        return ""
    tensors = {name: value for name, value in witness.state_dict().items() if isinstance(value, Tensor)}
    return sha256_tensors({name: getattr(value, "to_local", lambda v=value: v)() for name, value in tensors.items()})


@torch.no_grad()
def check_encoder(codes: Tensor, encode: Callable[[Tensor], Tensor], rows: int = 16) -> list[str]:
    """Test whether a row's code depends on the other rows of its batch, or on its position.

    Args:
        codes: counted codes, shape ``(B, latent_dim)``.
        encode: maps positions in the same batch, int64 ``(n,)``, to codes of these rows, ``(n, latent_dim)``.
        rows: number of rows that are encoded again.

    Returns:
        One sentence for each failed test.
    """
    count = len(codes)
    chosen = row_uniform(torch.arange(count), 1)[:, 0].argsort()[:rows]
    alone = torch.cat([encode(row[None]) for row in chosen])
    findings = _unless(_alike(codes[chosen.to(codes.device)], alone), "encoder: a row's code changes with its batch")
    backwards = torch.arange(count).flip(0)
    same = _alike(codes[backwards.to(codes.device)], encode(backwards))
    return findings + _unless(same, "encoder: codes do not follow their rows when the order changes")


def _alike(one: Tensor, other: Tensor) -> bool:
    """Equal up to the rounding differences of a network between batch sizes, in the codes' precision."""
    scale = one.abs().amax(dim=0, keepdim=True) + other.abs().amax(dim=0, keepdim=True)
    if one.shape != other.shape or not bool(scale.isfinite().all()):  # an infinite scale would accept any difference
        return False
    return bool(((one - other).abs() <= ENCODER_TOLERANCE * scale).all())


def shuffled_margin_leaks(lower_bound: float) -> list[str]:
    """Test the margin that remains after codes are shuffled across inputs; returns the findings.

    Args:
        lower_bound: lower bound on this margin in nats. For a witness that reads only the code it is positive only by
            chance, with the bound's error probability.

    Raises:
        TypeError: if it is not a number.
        ValueError: if it is NaN.
    """
    nats = as_number(lower_bound, "lower_bound")
    if math.isnan(nats):
        raise ValueError("`lower_bound` must be a number of nats, got NaN.")
    if nats > 0:
        return [f"shuffled codes: a margin of at least {nats:.4f} nats stays when codes change places"]
    return []


def _has_mode(module: nn.Module) -> bool:
    kinds = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)
    return isinstance(module, kinds)


def _answers(witness: Witness, latents: Tensor) -> Tensor:
    return as_logits(witness(latents), "witness")


def _differ(one: Tensor, other: Tensor) -> bool:
    return one.shape != other.shape or not bool(((one - other).abs() <= TOLERANCE * (1 + one.abs())).all())
