"""What is said is no stronger than what is shown."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certvae import Certificate, Status, certify
from certvae.certificate.status import Reading
from certvae.report import Phase
from certvae.report.wording import at_least, headline, limits, number, read_as, sentence
from certvae.theory.bracket import InformationBracket
from tests.conftest import random_probs


def certificate(status: Status = Status.CERTIFIED, **changes: Any) -> Certificate:
    teacher = random_probs(50, 3, seed=0)
    many = {"num_samples": 1000, **changes}  # of fewer rows no percentage is stated, by an approximate bound
    return replace(certify(teacher, teacher.log()), status=status, **many)


def phase(status: Status = Status.CERTIFIED, name: str = "full", split: str = "test", **changes: Any) -> Phase:
    return Phase(name, "0", Path(), Path(), certificate(status, **changes), split, ())


@given(nats=st.floats(1e-6, 50))
def test_rounding_never_adds_to_a_lower_bound(nats: float) -> None:
    """Each of the two is at most what was shown, and within one per cent of it."""
    found = re.fullmatch(r"([0-9.]+)\xa0nats \(([0-9.]+)\xa0bits\)", at_least(nats))
    assert found is not None
    for said, shown in zip(map(float, found.groups()), (nats, nats / math.log(2)), strict=True):
        assert 0.99 * shown <= said <= shown * (1 + 1e-15)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "\N{EN DASH}"),
        (-0.0001, "0.000"),
        (-1.5, "\N{MINUS SIGN}1.500"),
        (-math.inf, "\N{MINUS SIGN}\N{INFINITY}"),
    ],
)
def test_numbers_read_well(value: float | None, text: str) -> None:
    assert number(value) == text


def test_each_status_has_a_sentence_of_its_own() -> None:
    sentences = {status: sentence(certificate(status), "test") for status in Status}
    assert len(set(sentences.values())) == len(Status)
    assert "does not prove that it has collapsed" in sentences[Status.NOT_CERTIFIED]
    assert "no verdict" in sentences[Status.PARTIAL]
    assert "Nothing can be said" in sentences[Status.VACUOUS]
    assert "No number here can be trusted" in sentences[Status.LEAKING]


def test_only_a_certified_model_is_said_to_carry_information() -> None:
    for status in Status:
        said = sentence(certificate(status), "test")
        assert (
            ("carries at least" in said) == ("is not the same for every input" in said) == (status is Status.CERTIFIED)
        )


@pytest.mark.parametrize(
    ("method", "proven", "about", "only"),
    [
        ("normal", False, True, False),
        ("bernstein", True, False, False),
        ("hoeffding", True, False, False),
        ("plugin", False, False, True),
    ],
)
def test_the_strength_of_the_words_is_that_of_the_method(method: str, proven: bool, about: bool, only: bool) -> None:
    said = sentence(certificate(method=method), "test")
    assert ("proven bound" in said) == proven
    assert ("at about 95\xa0% confidence" in said) == about
    assert ("for these inputs alone" in said) == only
    assert "provably" not in said


def test_validation_rows_are_not_called_held_out() -> None:
    assert "held-out" in sentence(certificate(), "test")
    assert "held-out" not in sentence(certificate(), "val")
    assert "were watched during training" in sentence(certificate(), "val")


def test_a_bound_over_looks_says_so() -> None:
    assert "over all looks" in sentence(certificate(look=3), "val")
    assert "over all looks" not in sentence(certificate(), "val")


def test_the_headline_of_many_counts_every_status() -> None:
    said = headline([phase(status, name=str(status).lower()) for status in Status])
    assert said.startswith("Of 5 trained models, measured on held-out inputs, 1 (certified) has a code that is not")
    for status in Status:
        assert f"1 ({str(status).lower()})" in said


def test_the_headline_of_many_states_the_least_of_the_bounds() -> None:
    said = headline([phase(margin_lower=0.7), phase(margin_lower=0.3), phase(margin_lower=0.5)])
    assert said.startswith("Of 3 trained models, measured on held-out inputs, all of them have a code")
    assert "each carries at least 0.300\xa0nats" in said


def test_the_headline_claims_no_common_confidence_where_there_is_none() -> None:
    said = headline([phase(confidence=0.95), phase(confidence=0.9)])
    assert "% confidence" not in said
    assert "at the confidence given below" in said


def test_the_headline_of_many_says_what_the_rows_are() -> None:
    assert "measured on validation inputs," in headline([phase(split="val"), phase(split="val")])
    assert "measured on held-out or validation inputs," in headline([phase(), phase(split="val")])


def test_without_a_certificate_nothing_is_said_to_be_carried() -> None:
    said = headline([phase(Status.NOT_CERTIFIED), phase(Status.PARTIAL, "rescue")])
    assert said.startswith("None of 2 trained models, measured on held-out inputs, is certified")
    assert "carries" not in said


def test_the_headline_of_one_is_its_sentence() -> None:
    assert headline([phase()]) == sentence(certificate(), "test")


def test_phases_that_share_a_name_with_others_are_not_named() -> None:
    said = headline([phase(), phase(Status.NOT_CERTIFIED)])
    assert "(full)" not in said


def test_limits_are_those_of_the_certificates() -> None:
    def said(*phases: Phase) -> str:
        return " ".join(limits(phases))

    for text in ("disentangled", "this teacher, this witness and these rows", "mean of the code", "only say yes"):
        assert text in said(phase())
    assert "'normal' is approximate" in said(phase())
    assert "'normal' is approximate" not in said(phase(method="bernstein"))
    assert "drawn independently" in said(phase(method="bernstein"))
    assert "describes its rows alone" in said(phase(method="plugin"))
    assert ("not all of them at once" in said(phase()), "not all of them at once" in said(phase(), phase())) == (
        False,
        True,
    )
    assert ("during training" in said(phase()), "during training" in said(phase(split="val"))) == (False, True)


def read(reading: Reading, proved: bool = True) -> dict[str, Any]:
    """Fields of a certificate that was read so, from bounds at 90 % confidence."""
    sides = InformationBracket(0.5, 0.9, 0.5, 0.9, 0.6, 0.8, 0.8, 3.9, 50, 1, 0.9, proved)
    return {"reading": reading, "information": sides}


@pytest.mark.parametrize(
    ("reading", "proved", "found"),
    [
        (Reading.INFORMATIVE, True, "but it does carry information, as the bounds below show at 90\xa0% confidence"),
        (Reading.INFORMATIVE, False, "but it does carry information, as the bounds below show at about 90\xa0%"),
        (Reading.COLLAPSED, True, "and it carries next to nothing, as the bounds below show at about 90\xa0%"),
        (Reading.UNDECIDED, True, "this does not prove that it has collapsed"),
    ],
)
def test_an_uncertified_code_is_called_what_its_bounds_show(reading: Reading, proved: bool, found: str) -> None:
    said = sentence(certificate(Status.NOT_CERTIFIED, **read(reading, proved)), "test")
    assert found in said
    assert ("does not prove" in said) == (reading is Reading.UNDECIDED)


def test_the_headline_of_many_tells_the_informative_from_the_collapsed() -> None:
    names = {reading: str(reading).lower() for reading in (Reading.INFORMATIVE, Reading.COLLAPSED, Reading.UNDECIDED)}
    said = headline([phase(Status.NOT_CERTIFIED, name, **read(reading)) for reading, name in names.items()])
    assert "of 1 (informative) the code carries information (confidence below), but not where the witness" in said
    assert "of 1 (collapsed) the code carries next to nothing, whatever reads it (confidence below)" in said
    assert "for 1 (undecided) this is not shown, which does not prove collapse" in said


def test_a_certificate_of_version_0_1_was_not_asked_for_a_reading() -> None:
    assert read_as(certificate(components=[])) is None
    assert read_as(certificate()) is Reading.ALIGNED


def test_where_a_reading_says_collapsed_the_limits_say_from_what() -> None:
    collapsed = phase(Status.NOT_CERTIFIED, **read(Reading.COLLAPSED))
    assert "Collapse is shown by the reading, from an upper bound" in " ".join(limits([collapsed]))
    assert "said by its reading" not in " ".join(limits([phase(Status.NOT_CERTIFIED)]))
