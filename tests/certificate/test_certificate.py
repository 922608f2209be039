"""The verdict, its file, and what it prints."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from certvae import Certificate, Status, certify
from certvae.certificate.claims import ClaimsError, check_claims
from certvae.certificate.verdict import judge
from tests.conftest import random_logits, random_probs


def strong(rows: int = 300, **arguments: Any) -> Certificate:
    teacher = random_probs(rows, 5, seed=0)
    return certify(teacher, teacher.log(), **arguments)


def test_the_teacher_itself_is_certified() -> None:
    certificate = strong()
    assert certificate.status is Status.CERTIFIED
    assert certificate.certified
    assert certificate.alignment_loss == pytest.approx(0, abs=1e-12)


def test_a_constant_witness_is_never_certified() -> None:
    """Not even the best one with safety margin 0: its margin is 0 and its lower bound is not above."""
    teacher = random_probs(300, 5, seed=0)
    best = teacher.mean(dim=0).log().expand(300, -1)
    for logits in (best, torch.zeros(300, 5), random_logits(1, 5, seed=1).expand(300, -1)):
        for method in ("plugin", "normal"):
            certificate = certify(teacher, logits, safety_margin=0, method=method)
            assert certificate.status is Status.NOT_CERTIFIED


def test_a_random_witness_that_ignores_the_input_is_not_certified() -> None:
    assert certify(random_probs(300, 5, seed=0), random_logits(300, 5, seed=1)).status is Status.NOT_CERTIFIED


def test_a_constant_teacher_is_vacuous() -> None:
    teacher = random_probs(1, 5, seed=0).expand(300, -1)
    assert certify(teacher, teacher.log()).status is Status.VACUOUS


@pytest.mark.slow
def test_rounding_never_certifies_at_safety_margin_zero() -> None:
    """A constant witness that answers the sample's own average has margin 0 up to rounding of either sign."""
    for seed in range(200):
        teacher = random_probs(7 + seed % 5, 3, seed)
        constant = teacher.mean(dim=0).log().expand_as(teacher)
        for method in ("plugin", "normal"):
            assert certify(teacher, constant, safety_margin=0, method=method).status is Status.NOT_CERTIFIED
        same = teacher[:1].expand(9, -1)
        assert certify(same, same.log(), safety_margin=0).status is Status.VACUOUS


@pytest.mark.slow
@pytest.mark.parametrize("rows", [2, 3, 5, 20])
def test_few_rows_seldom_accuse_a_sound_witness_of_leaking(rows: int) -> None:
    """A channel margin that equals the rate on average: the error probability is 1e-4, so 0 or 1 of 2,000."""
    generator = torch.Generator().manual_seed(rows)
    accused = 0
    for seed in range(2000):
        teacher = random_probs(rows, 3, seed)
        channel = teacher.log()[None]
        scores = (teacher * (channel[0].log_softmax(dim=1) - teacher.mean(dim=0).log())).sum(dim=1)
        rate = scores + 0.1 * torch.randn(rows, generator=generator, dtype=torch.float64)
        accused += certify(teacher, teacher.log(), channel_logits=channel, rate=rate).status is Status.LEAKING
    assert accused <= 2


def test_a_channel_margin_beyond_the_rate_is_leaking() -> None:
    teacher = random_probs(300, 5, seed=0)
    certificate = certify(teacher, teacher.log(), channel_logits=teacher.log()[None], rate=torch.full((300,), 0.1))
    assert certificate.status is Status.LEAKING


def test_a_channel_margin_within_the_rate_is_sound() -> None:
    teacher = random_probs(300, 5, seed=0)
    certificate = certify(teacher, teacher.log(), channel_logits=teacher.log()[None], rate=torch.full((300,), 3.0))
    assert certificate.status is Status.CERTIFIED


def test_one_row_gives_no_bound_and_survives_the_file(tmp_path: Path) -> None:
    teacher = random_probs(1, 5, seed=0)
    certificate = certify(teacher, teacher.log(), safety_margin=0)
    assert certificate.margin_lower == -math.inf
    assert Certificate.load(certificate.save(tmp_path / "c.json")) == certificate
    check_claims(certificate)


@pytest.mark.parametrize("method", ["normal", "bernstein"])
def test_no_bound_is_believed_that_one_row_cannot_give(method: str) -> None:
    teacher = 0.9 * random_probs(300, 5, seed=0) + 0.1 / 5
    arguments = {"method": method, "teacher_floor": 0.1, "channel_logits": teacher.log()[None]}
    honest = certify(teacher, teacher.log(), **arguments)  # type: ignore[arg-type]
    check_claims(honest)
    forged = replace(honest, num_samples=1)
    unbounded = judge(replace(forged, margin_lower=-math.inf))
    for certificate in (forged, unbounded):
        with pytest.raises(ClaimsError, match="one row bounds nothing"):
            check_claims(certificate)
    check_claims(replace(unbounded, channel_margin_lower=-math.inf))


@pytest.mark.parametrize("method", ["plugin", "normal", "hoeffding", "bernstein"])
def test_save_and_load_keep_every_field(tmp_path: Path, method: str) -> None:
    teacher = 0.9 * random_probs(50, 4, seed=0) + 0.1 / 4
    certificate = certify(teacher, teacher.log(), method=method, teacher_floor=0.1, rate=torch.ones(50))
    certificate.provenance = {"epoch": 3, "teacher": {"seed": 0}}
    path = certificate.save(tmp_path / "folder" / "certificate.json")
    assert Certificate.load(path) == certificate
    assert list(path.parent.iterdir()) == [path]


def test_files_that_are_no_certificate_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    values = strong().to_dict()
    for content, message in (
        ("{", "is not JSON"),
        ("[]", "must be a JSON object"),
        ("{}", "`schema` must be"),
        (json.dumps({**values, "extra": 1}), "unknown \\['extra'\\]"),
        (json.dumps({k: v for k, v in values.items() if k != "margin"}), "missing \\['margin'\\]"),
        (json.dumps({**values, "status": "FINE"}), "FINE"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            Certificate.load(path)


def test_numpy_arrays_and_tensors_of_any_float_give_the_same_verdict() -> None:
    teacher, logits = random_probs(200, 4, seed=0), random_probs(200, 4, seed=0).log()
    expected = certify(teacher, logits)
    assert certify(teacher.numpy(), logits.numpy()) == expected
    for dtype, tolerance in ((np.float16, 2e-2), (np.float32, 1e-5)):
        narrow = certify(teacher.numpy().astype(dtype), logits.numpy().astype(dtype))
        assert narrow.margin == pytest.approx(expected.margin, abs=tolerance)
        assert narrow.status is Status.CERTIFIED


def test_print_tells_verdict_numbers_and_limits() -> None:
    text = str(strong())
    assert text.startswith("CERTIFIED: the latent code is not constant in the input.")
    assert "does not prove collapse" in str(certify(random_probs(50, 3, 0), random_logits(50, 3, 1)))
    for name in ("margin", "teacher information", "alignment loss", "witness information", "300 rows, 5 components"):
        assert name in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"confidence": 1.0}, "`confidence` must be between 0 and 1"),
        ({"confidence": 0.0}, "`confidence` must be between 0 and 1"),
        ({"safety_margin": -0.1}, "`safety_margin` must be at least 0"),
        ({"safety_margin": float("nan")}, "`safety_margin` must be at least 0"),
        ({"method": "magic"}, "`method` must be one of bernstein, betting, hoeffding, normal, plugin"),
        ({"method": "bernstein"}, "`teacher_floor` and `witness_floor` must be above 0"),
        ({"witness_floor": 1.0}, "`witness_floor` must be at least 0 and below 1"),
        ({"weights": torch.zeros(300)}, "at least one row with positive weight"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        strong(**arguments)


def test_masked_values_are_refused_and_not_counted() -> None:
    teacher = random_probs(4, 3, seed=0).numpy()
    masked = np.ma.MaskedArray(teacher, mask=np.eye(4, 3, dtype=bool))
    with pytest.raises(ValueError, match="`teacher_probs` must have no masked values, got 3 of 12"):
        certify(masked, np.log(teacher))
    whole = np.ma.MaskedArray(teacher)
    assert certify(whole, np.log(teacher)) == certify(teacher, np.log(teacher))


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        certify(torch.empty(0, 3), torch.empty(0, 3))


def test_rigorous_bounds_refuse_unequal_weights() -> None:
    weights = torch.ones(300)
    weights[0] = 2
    teacher = 0.9 * random_probs(300, 5, seed=0) + 0.1 / 5
    with pytest.raises(ValueError, match="weights that are 0 or one common value"):
        certify(teacher, teacher.log(), method="bernstein", teacher_floor=0.1, weights=weights)
