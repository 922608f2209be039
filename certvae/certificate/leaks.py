"""Tests that a witness sees the latent and nothing else.

A function of a row's code alone gives the same answer whenever it is asked (*repeatable*, which dropout is not), does
not change with the other rows (*row independence*, which batch norm lacks), and when codes change places its answers
change places with them (*order*). A side door to the image, or to the position of a row, fails the last one.
Each test is exact up to rounding; none needs a confidence level.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from certvae.theory.arguments import as_number, as_tensor
from certvae.theory.information import as_logits

__all__ = ["check_repeatability", "check_witness", "shuffled_margin_leaks"]

TOLERANCE = 1e-4  # of log-probabilities: float32 rounding differs between batch sizes, a leak is far larger

Witness = Callable[[Tensor], Tensor]


@torch.no_grad()
def check_repeatability(witness: Witness, latents: Tensor, answers: Tensor) -> list[str]:
    """Ask once more about the codes of an earlier batch, which a side door to the current batch answers differently.

    A batch of one row, or of one class, cannot show such a door by itself.

    Args:
        witness: maps codes ``(B, latent_dim)`` to logits ``(B, K)``.
        latents: codes of an earlier batch, shape ``(B, latent_dim)``.
        answers: what it answered then, shape ``(B, K)``.

    Returns:
        One sentence if the answers differ, else nothing.
    """
    if _differ(as_logits(answers, "answers"), _answers(witness, latents)):
        return ["repeatable: codes of one batch are answered differently at a later one"]
    return []


@torch.no_grad()
def check_witness(witness: Witness, latents: Tensor) -> list[str]:
    """Find out whether a witness is a function of each row's code alone.

    Args:
        witness: maps codes ``(B, latent_dim)`` to logits ``(B, K)``. If it is a module, its mode is looked at too.
        latents: codes of one batch, shape ``(B, latent_dim)``.

    Returns:
        One sentence for each test that failed; empty for a sound witness.

    Raises:
        TypeError: if ``witness`` cannot be called, or ``latents`` are not an array of real numbers.
        ValueError: if ``latents`` are not rows, or what the witness answers is not finite logits ``(B, K)``.
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
    answers = _answers(witness, latents)
    if len(answers) != len(latents):
        raise ValueError(f"`witness` must answer a row for each of {len(latents)} codes, got {len(answers)}.")
    if _differ(answers, _answers(witness, latents)):
        findings.append("repeatable: the witness gives two answers for the same codes")
        return findings
    half = (len(latents) + 1) // 2
    if len(latents) > 1 and _differ(answers[:half], _answers(witness, latents[:half])):
        findings.append("row independence: a row's answer changes with the other rows of the batch")
    order = torch.arange(len(latents), device=latents.device).roll(1)
    if _differ(answers[order.to(answers.device)], _answers(witness, latents[order])):
        findings.append("order: answers do not follow their codes, so the witness sees more than the code")
    return findings


def shuffled_margin_leaks(lower_bound: float) -> list[str]:
    """Judge the margin that remains when codes are shuffled across inputs.

    Args:
        lower_bound: its lower bound in nats; a witness of the code alone cannot have a positive one, except by chance
            with the bound's error probability.

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
