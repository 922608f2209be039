"""The reading is what the numbers prove, and each cause is found from the numbers that it leaves."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from certvae import Certificate, InformationBracket, Reading, Status, certify, information_bracket
from certvae.certificate.claims import ClaimsError, check_claims
from certvae.certificate.diagnosis import CAUSES
from certvae.certificate.fitted_margin import FittedMargin
from certvae.certificate.verdict import judge
from certvae.reading.streams import ADVICE
from tests.conftest import random_probs

NORMAL = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0))
TEACHER = 0.9 * random_probs(2000, 5, seed=0) + 0.1 / 5
OTHER = 0.9 * random_probs(2000, 5, seed=1) + 0.1 / 5


def bracket(variance: float) -> InformationBracket:
    """Of a Gaussian channel with unit marginals; 0.999 leaves 0.002 nats, 0.3 leaves 2.4."""
    mean = NORMAL * (1 - variance) ** 0.5
    return information_bracket(mean, torch.full_like(mean, variance).log())


def unaligned(information: InformationBracket | None) -> Certificate:
    return certify(TEACHER, OTHER.log(), information=information)


@pytest.mark.parametrize(
    ("variance", "reading"), [(0.3, Reading.INFORMATIVE), (0.999, Reading.COLLAPSED), (0.96, Reading.UNDECIDED)]
)
def test_what_is_not_certified_is_read_from_the_bracket(variance: float, reading: Reading) -> None:
    certificate = unaligned(bracket(variance))
    assert certificate.status is Status.NOT_CERTIFIED
    assert certificate.reading is reading
    assert certificate.line().startswith(f"{reading}, NOT_CERTIFIED (")
    assert certificate.diagnose().reading is reading


def test_what_is_certified_is_aligned_and_without_a_bracket_nothing_else_is_known() -> None:
    assert certify(TEACHER, TEACHER.log()).reading is Reading.ALIGNED
    assert unaligned(None).reading is Reading.UNDECIDED
    assert unaligned(None).diagnose().cause == "no noise known"


def test_a_part_of_a_set_and_a_leaking_witness_are_not_read() -> None:
    certificate = unaligned(bracket(0.3))
    assert judge(certificate, partial=True).reading is Reading.UNDECIDED
    assert judge(certificate, leaks=["it asks the batch"]).reading is Reading.UNDECIDED


def test_a_fitted_reader_decides_only_where_the_code_has_no_noise() -> None:
    fitted = FittedMargin(0.5, None, 0.4, 2000, 0.95, "normal")
    certificate = replace(unaligned(None), fitted=fitted)
    assert judge(certificate).reading is Reading.UNDECIDED
    assert judge(replace(certificate, provenance={"deterministic": True})).reading is Reading.INFORMATIVE


def test_a_reading_that_the_numbers_do_not_give_is_refused() -> None:
    certificate = unaligned(bracket(0.999))
    check_claims(certificate)
    with pytest.raises(ClaimsError, match="reading follows from the numbers"):
        check_claims(replace(certificate, reading=Reading.INFORMATIVE))


def test_parts_of_the_components_add_up_and_a_forged_one_is_refused() -> None:
    certificate = certify(TEACHER, OTHER.log())
    assert sum(part.margin for part in certificate.components) == pytest.approx(certificate.margin, abs=1e-12)
    total = sum(part.information for part in certificate.components)
    assert total == pytest.approx(certificate.teacher_information, abs=1e-12)
    mean = TEACHER.mean(dim=0)
    first = (TEACHER * OTHER.log()).mean(dim=0) - mean * mean.log()
    assert certificate.components[3].margin == pytest.approx(float(first[3]), abs=1e-12)
    with pytest.raises(ClaimsError, match="the components' margin adds up"):
        check_claims(
            replace(
                certificate, components=[*certificate.components[:-1], replace(certificate.components[-1], margin=1.0)]
            )
        )


def test_a_file_keeps_all_of_it(tmp_path: Path) -> None:
    fitted = FittedMargin(0.5, 0.3, float("-inf"), 2000, 0.95, "betting")
    certificate = judge(replace(unaligned(bracket(0.3)), fitted=fitted))
    assert Certificate.load(certificate.save(tmp_path / "c.json")) == certificate


def numbers(**values: float) -> Certificate:
    """A certificate of some numbers, by ``normal`` on 2,000 rows."""
    known = {"margin": -0.5, "margin_lower": -0.55, "teacher_information": 1.0, "witness_information": 0.3, "rate": 4.0}
    certificate = replace(certify(TEACHER, OTHER.log()), **known | values)  # type: ignore[arg-type]
    return replace(certificate, alignment_loss=certificate.teacher_information - certificate.margin, channel_margin=0.0)


READER = FittedMargin(0.8, 0.7, 0.6, 2000, 0.95, "normal")


@pytest.mark.parametrize(
    ("cause", "certificate"),
    [
        ("partial", judge(numbers(), partial=True)),
        ("rows counted twice", judge(numbers(), leaks=[f"rows: 10 of 20 {ADVICE}"])),
        ("leaking", judge(numbers(), leaks=["it asks the batch"])),
        ("other inputs", judge(replace(numbers(), provenance={"teacher": {"information_train": 2.5}}))),
        ("vacuous", judge(numbers(teacher_information=0.04))),
        ("certified on the mean only", judge(numbers(margin=0.5, margin_lower=0.45, rate=0.01))),
        ("certified", judge(numbers(margin=0.5, margin_lower=0.45))),
        ("too few rows", judge(numbers(margin=0.5, margin_lower=0.01))),
        ("collapsed", unaligned(bracket(0.999))),
        ("collapsed", judge(numbers(rate=0.02))),
        ("narrow channel", judge(numbers(rate=0.3))),
        ("another target", judge(replace(numbers(), fitted=FittedMargin(0.2, 0.1, 0.0, 2000, 0.95, "normal")))),
        ("not aligned", judge(replace(numbers(), fitted=FittedMargin(0.8, 0.1, 0.0, 2000, 0.95, "normal")))),
        ("witness scale too small", judge(replace(numbers(witness_information=0.01), fitted=READER))),
        ("witness scale too large", judge(replace(numbers(witness_information=0.9), fitted=READER))),
        ("not aligned", judge(replace(numbers(), fitted=READER))),
    ],
)
def test_each_cause_is_found_with_its_cure(cause: str, certificate: Certificate) -> None:
    diagnosis = certificate.diagnose()
    assert diagnosis.cause == cause
    assert diagnosis.finding.endswith(".")
    assert diagnosis.cure.endswith(".")
    assert str(diagnosis).startswith(f"{certificate.reading}: {diagnosis.finding}")


def test_where_only_the_mean_was_given_the_cure_says_how_to_name_the_log_variance() -> None:
    certificate = judge(replace(numbers(), rate=None, fitted=FittedMargin(0.8, None, 0.6, 2000, 0.95, "normal")))
    assert certificate.reading is Reading.UNDECIDED
    assert "('fc_mu', 'fc_var') for two heads" in certificate.diagnose().cure
    noiseless = judge(replace(certificate, provenance={"deterministic": True}))
    assert "fc_mu" not in noiseless.diagnose().cure + judge(replace(numbers(), fitted=READER)).diagnose().cure


PAGE = Path(__file__).parents[2] / "docs" / "not-certified.md"


def rows_of_the_page() -> list[list[str]]:
    """The cells of the page's table of measured cases."""
    lines = [line for line in PAGE.read_text().splitlines() if line.count("|") == 15]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def from_the_page(cells: list[str]) -> Certificate:
    """A certificate of a row's numbers."""
    reading, status = cells[1].split(", ")
    lower, upper = map(float, cells[3].split(" to "))
    margin, least, information, witness, rate, channel, mean, draw = map(float, cells[4:12])
    of_the_code = replace(bracket(0.3), lower=lower, upper=upper)
    recorded = 1.25 if "sees" in cells[0] or "searched" in cells[0] else information
    certificate = replace(
        numbers(margin=margin, margin_lower=least, teacher_information=information, witness_information=witness),
        rate=rate,
        channel_margin=channel,
        information=of_the_code,
        fitted=FittedMargin(mean, draw, draw, 500, 0.95, "betting"),
        provenance={"teacher": {"information_train": recorded}},
    )
    judged = judge(certificate)
    assert (judged.reading, judged.status) == (Reading(reading), Status(status)), cells[0]
    return judged


def test_the_table_of_the_page_is_diagnosed_as_it_says() -> None:
    rows = rows_of_the_page()
    assert len(rows) == 19
    for cells in rows:
        assert from_the_page(cells).diagnose().cause == cells[2], cells[0]


def test_every_cause_has_a_case() -> None:
    tested = {mark.args[1][i][0] for mark in test_each_cause_is_found_with_its_cure.pytestmark for i in range(15)}  # type: ignore[attr-defined]
    assert tested == {cause.name for cause in CAUSES} - {"no noise known"}


def test_of_few_rows_the_cure_says_that_they_are_few() -> None:
    collapsed = unaligned(bracket(0.999))
    assert "rows: validate on more" not in collapsed.diagnose().cure
    assert "These are 10 rows: validate on more" in replace(collapsed, num_samples=10).diagnose().cure
