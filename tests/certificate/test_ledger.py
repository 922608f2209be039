"""Looks at the same rows are counted by whoever shares the file, and other rows are not."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import norm

from certvae.certificate.ledger import LEDGER_LIMIT, LookLedger, name_rows
from certvae.report.wording import sentence
from certvae.theory.bounds import spending
from tests.conftest import random_probs
from tests.report.test_wording import certificate


def test_objects_with_one_file_share_their_counts(tmp_path: Path) -> None:
    path = tmp_path / "looks.json"
    assert [LookLedger(path).take("a") for _ in range(3)] == [1, 2, 3]
    assert LookLedger(path).take("b") == 1
    assert LookLedger(path).take("a", at_least=9) == 9
    assert LookLedger(path).take("a") == 10


def test_who_sees_the_same_once_more_takes_no_new_look(tmp_path: Path) -> None:
    """As a run that was killed after its look and goes on from the checkpoint before it."""
    path = tmp_path / "looks.json"
    assert [LookLedger(path).take("a", seen=seen) for seen in ("x", "y", "y", "z", "x")] == [1, 2, 2, 3, 1]
    assert LookLedger(path).take("b", seen="x") == 1


@pytest.mark.slow
def test_two_processes_have_one_ledger(tmp_path: Path) -> None:
    path = tmp_path / "looks.json"
    code = "import sys; from certvae.certificate.ledger import LookLedger; print(LookLedger(sys.argv[1]).take('a'))"
    ran = [subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=True) for _ in range(2)]
    assert [int(done.stdout) for done in ran] == [1, 2]
    assert LookLedger(path).take("a") == 3


def test_without_a_file_each_object_counts_for_itself() -> None:
    one = LookLedger()
    assert [one.take("a"), one.take("a"), LookLedger().take("a")] == [1, 2, 1]


@pytest.mark.parametrize("text", ["{", "[]", '{"a": {"x": 0}}', '{"a": {"x": true}}', '{"a": 1}', '{"a": {}, "a": {}}'])
def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "looks.json").write_text(text)
    with pytest.raises(ValueError, match="ledger|JSON|Expecting|twice"):
        LookLedger(tmp_path / "looks.json").take("a")
    assert (tmp_path / "looks.json").read_text() == text


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    (tmp_path / "looks.json").write_bytes(b" " * (LEDGER_LIMIT + 1))
    with pytest.raises(ValueError, match="may have at most"):
        LookLedger(tmp_path / "looks.json").take("a")


def test_rows_have_one_name_in_any_order_and_other_rows_have_another() -> None:
    teacher = random_probs(100, 4, seed=0)
    name = name_rows(100, teacher.mean(dim=0))
    assert name_rows(100, teacher[torch.randperm(100)].mean(dim=0)) == name
    assert name_rows(99, teacher[1:].mean(dim=0)) != name
    assert name_rows(100, random_probs(100, 4, seed=1).mean(dim=0)) != name


def test_fresh_callbacks_without_a_file_err_together_and_their_certificates_do_not_say_otherwise() -> None:
    """Of 50 first looks at 5 % by fresh ledgers one errs in 79 % of all cases; numbered by one ledger, in 5 %."""
    noise = np.random.default_rng(0).standard_normal((20_000, 50))
    fresh, shared = LookLedger(), LookLedger()
    first = norm.ppf(1 - spending(0.05, fresh.take("a")))
    numbered = norm.ppf([1 - spending(0.05, shared.take("a")) for _ in range(50)])
    assert (noise > first).any(axis=1).mean() == pytest.approx(0.79, abs=0.02)
    assert (noise > numbered).any(axis=1).mean() < 0.055  # with the error of the simulation
    assert "look" not in sentence(certificate(), "test")
    assert "for a single look" in sentence(certificate(), "val")
    assert "over all looks that the run's ledger has recorded" in sentence(certificate(look=1), "val")
