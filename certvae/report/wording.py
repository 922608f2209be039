"""Sentences on certificates, no stronger than their guarantee, and on what they do not show."""

import math
from collections.abc import Iterable, Sequence

from certvae.certificate.certificate import Certificate, Reading, Status
from certvae.report.runs import Phase
from certvae.theory.bounds import find_bound

__all__ = [
    "DASH",
    "MINUS",
    "at_least",
    "headline",
    "limits",
    "number",
    "read_as",
    "sentence",
    "status_name",
    "unknown_confidence",
    "what_it_is",
]

FEW_ROWS = 1000
MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table: rounded, a dash for None, with a non-breaking minus sign."""
    if value is None:
        return DASH
    if math.isinf(value):
        return f"{MINUS}\N{INFINITY}"
    text = f"{value:.{digits}f}".replace("-", MINUS)
    return text.removeprefix(MINUS) if float(f"{value:.{digits}f}") == 0 else text


def at_least(nats: float) -> str:
    """A positive lower bound in nats and bits, each rounded down to three digits."""
    return f"{_floor(nats)}\u00a0nats ({_floor(nats / math.log(2))}\u00a0bits)"


def _floor(value: float) -> str:
    digits = max(0, 2 - math.floor(math.log10(value)))
    return f"{math.floor(value * 10**digits) / 10**digits:.{digits}f}"


def status_name(status: Status) -> str:
    """The status with spaces instead of underscores."""
    return str(status).replace("_", " ")


def read_as(certificate: Certificate) -> Reading | None:
    """The reading; None for a certificate of version 0.1, which has none."""
    return certificate.reading if certificate.components or certificate.information is not None else None


def _percent(confidence: float) -> str:
    return f"{100 * confidence:.10g}\u00a0%"


_ROWS = {"test": "held-out", "val": "validation"}


def _rows(certificate: Certificate, split: str) -> str:
    watched = " (which were watched during training)" if split == "val" else ""
    return f"{certificate.num_samples:,} {_ROWS[split]} inputs{watched}"


def _confidence(certificate: Certificate, split: str) -> str:
    c = certificate
    looks = ", over all looks that the run's ledger has recorded," if c.look is not None else ""
    single = ", for a single look," if split == "val" and c.look is None else ""
    if unknown_confidence(c):
        unknown = f"by the bound '{c.method}', whose confidence is not known for fewer than {FEW_ROWS:,} rows,"
        return f"{unknown[:-1]}{looks or single or ','}"
    text = find_bound(c.method).confidence_text.format(_percent(c.confidence))
    return text if c.method == "plugin" else f"{text}{looks}{single}"


def unknown_confidence(c: Certificate) -> bool:
    """Whether the bound is a large-sample approximation from few rows; then no percentage is stated."""
    return c.method != "plugin" and not find_bound(c.method).rigorous and c.num_samples < FEW_ROWS


WHAT = {
    "full": "trained with alignment from the first epoch",
    "no_align": "the same without alignment",
    "rescue": "continues from no_align, with alignment",
    "ablate": "continues from full, without alignment",
    "guarded": "continues from no_align; a guard finds the weight",
    "prefit": "trained with alignment, from a code that was fitted first",
}


def what_it_is(phase: Phase) -> str:
    """Description of a protocol's phase; empty for other fits."""
    return WHAT.get(phase.name, "") if phase.seed else ""


def _uncertified(c: Certificate) -> str:
    """What is known of a code that is not certified; collapse and information are stated only with a reading."""
    part = c.information or c.fitted
    if part is None or read_as(c) not in (Reading.INFORMATIVE, Reading.COLLAPSED):
        return "it is not shown that this model's code depends on the input; this does not prove that it has collapsed"
    proved = c.reading is Reading.INFORMATIVE and (c.information is None or c.information.lower_proved)
    found = "but it does carry information" if c.reading is Reading.INFORMATIVE else "and it carries next to nothing"
    return (
        f"this model's code is not seen to hold the teacher's answer, {found}, as the bounds below show at "
        f"{'' if proved else 'about '}{_percent(part.confidence)} confidence"
    )


def sentence(certificate: Certificate, split: str) -> str:
    """The verdict on one model, for a reader who does not know the terms."""
    c, rows = certificate, _rows(certificate, split)
    return {
        Status.CERTIFIED: lambda: (
            f"Measured on {rows}, this model's code is not the same for every input: {_confidence(c, split)} it "
            f"carries at least {at_least(c.margin_lower)} of information about the input."
        ),
        Status.NOT_CERTIFIED: lambda: f"Measured on {rows}, {_uncertified(c)}.",
        Status.VACUOUS: lambda: (
            f"Nothing can be said about this model: on {rows} its teacher answers nearly the same for all, so there is "
            "nothing that a code could be seen to carry."
        ),
        Status.LEAKING: lambda: (
            f"No number here can be trusted, because a leak test failed ({'; '.join(c.leaks) or 'no detail given'})."
        ),
        Status.PARTIAL: lambda: f"There is no verdict on this model: only a part of the set was measured ({rows}).",
    }[c.status]()


_CLAUSES: dict[Status | Reading, str] = {
    Status.NOT_CERTIFIED: "for {which} this is not shown, which does not prove collapse",
    Reading.INFORMATIVE: "of {which} the code carries information (confidence below), but not where the witness looks",
    Reading.COLLAPSED: "of {which} the code carries next to nothing, whatever reads it (confidence below)",
    Status.VACUOUS: "for {which} nothing can be said, because the teacher hardly varies",
    Status.LEAKING: "of {which} no number can be trusted, because a leak test failed",
    Status.PARTIAL: "for {which} there is no verdict, because only a part of the set was measured",
}


def headline(phases: Sequence[Phase]) -> str:
    """The verdict on all models in one sentence."""
    if len(phases) == 1:
        return sentence(phases[0].certificate, phases[0].split)
    by_status: dict[Status | Reading, list[Phase]] = {
        status: [p for p in phases if p.certificate.status is status] for status in Status
    }
    certified = by_status.pop(Status.CERTIFIED)
    uncertified = by_status.pop(Status.NOT_CERTIFIED)
    for reading in (Reading.INFORMATIVE, Reading.COLLAPSED):
        found = [phase for phase in uncertified if read_as(phase.certificate) is reading]
        uncertified = [phase for phase in uncertified if phase not in found]
        by_status[reading] = found
    by_status = {Status.NOT_CERTIFIED: uncertified, **by_status}
    clauses = [_CLAUSES[status].format(which=_count(found, phases)) for status, found in by_status.items() if found]
    splits = [name for split, name in _ROWS.items() if any(phase.split == split for phase in phases)]
    measured = f"{len(phases)} trained models, measured on {' or '.join(splits)} inputs,"
    if not certified:
        return f"None of {measured} is certified: {'; '.join(clauses)}."
    least = min(certified, key=lambda phase: phase.certificate.margin_lower)
    same = len({_confidence(phase.certificate, phase.split) for phase in certified}) == 1
    confidence = f" {_confidence(least.certificate, least.split)}" if same else ", at the confidence given below"
    first = (
        f"{_count(certified, phases)} {'has' if len(certified) == 1 else 'have'} a code that is not the same for every "
        f"input:{confidence if same else ''} {'it' if len(certified) == 1 else 'each'} carries at least "
        f"{at_least(least.certificate.margin_lower)} of information about the input{'' if same else confidence}"
    )
    return f"Of {measured} {'; '.join([first, *clauses])}."


def _count(found: Sequence[Phase], every: Sequence[Phase]) -> str:
    """Number of models, with their names if these are distinctive."""
    if len(found) == len(every):
        return "all of them"
    names = _unique(phase.name for phase in found)
    telling = not set(names) & {phase.name for phase in every if phase not in found} and len(", ".join(names)) <= 60
    return f"{len(found)} ({', '.join(names)})" if telling else f"{len(found)}"


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def limits(phases: Sequence[Phase]) -> list[str]:
    """Sentences on what the verdict on these certificates does not show."""
    every = [phase.certificate for phase in phases]
    methods = {c.method for c in every}
    said = [
        "It does not say that the code is disentangled, that it is useful for another task, or that samples are good.",
        "It applies only to this teacher, this witness and these rows, and to inputs drawn like them; another teacher "
        "may find more or less in the same code.",
        "It is about the mean of the code. The decoder receives noisy draws around that mean, which may carry less or, "
        "through their variance, something else. The channel margin and the rate below describe these draws.",
        "A model without certificate has not been shown to have collapsed. The test can only say yes, or 'not shown'.",
    ]
    if any(read_as(c) is Reading.COLLAPSED for c in every):
        said[-1] = (
            "The teacher's test can only say yes, or 'not shown'. Collapse is shown by the reading, "
            "from an upper bound on what any reader can find in the code, which holds for many rows."
        )
    said += sorted({find_bound(method).sentence for method in methods})
    if any(not find_bound(c.method).rigorous and c.num_samples < FEW_ROWS for c in every):
        said.append(f"Some of these sets have fewer than {FEW_ROWS:,} rows.")
    if len(every) > 1:
        said.append("Each certificate holds at its confidence by itself, not all of them at once.")
    if any(phase.split == "val" for phase in phases):
        said.append(
            "Validation rows were used during training. To publish, make a certificate once on other rows, with "
            "'certvae certify'."
        )
    return said
