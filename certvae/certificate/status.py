"""The two answers of a certificate: the verdict on the raw witness, and the reading of the code."""

from enum import StrEnum

__all__ = ["Reading", "Status"]


class Status(StrEnum):
    """Verdict of a certificate.

    ``NOT_CERTIFIED`` is never 'proved collapsed': the test is one-sided.
    """

    CERTIFIED = "CERTIFIED"
    NOT_CERTIFIED = "NOT_CERTIFIED"
    VACUOUS = "VACUOUS"
    LEAKING = "LEAKING"
    PARTIAL = "PARTIAL"

    @property
    def meaning(self) -> str:
        """The verdict in words."""
        return _VERDICTS[self]


class Reading(StrEnum):
    """Whether the code, as the decoder receives it, carries anything at all.

    Attributes:
        ALIGNED: the raw certificate holds.
        INFORMATIVE: it does not, but the code carries more than the safety margin.
        COLLAPSED: the code carries less than the safety margin, whatever reads it.
        UNDECIDED: neither is shown.
    """

    ALIGNED = "ALIGNED"
    INFORMATIVE = "INFORMATIVE"
    COLLAPSED = "COLLAPSED"
    UNDECIDED = "UNDECIDED"

    @property
    def meaning(self) -> str:
        """The reading in words."""
        return _READINGS[self]


_VERDICTS = {
    Status.CERTIFIED: "the latent code is not constant in the input",
    Status.NOT_CERTIFIED: "not shown to differ from a constant code (which does not prove collapse)",
    Status.VACUOUS: "the teacher varies too little to certify anything",
    Status.LEAKING: "a leak test failed, so that no number here can be trusted",
    Status.PARTIAL: "only a part of the set was seen, so there is no verdict",
}
_READINGS = {
    Reading.ALIGNED: "the code carries the teacher's answer where the witness looks for it",
    Reading.INFORMATIVE: "the code carries information, but not where the witness looks for it",
    Reading.COLLAPSED: "the code carries next to nothing, whatever reads it",
    Reading.UNDECIDED: "neither information nor collapse is shown",
}
