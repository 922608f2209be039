"""The two results of a certificate: the verdict on the raw witness, and the reading of the code."""

from enum import StrEnum

__all__ = ["Reading", "Status"]


class Status(StrEnum):
    """Verdict of a certificate.

    ``NOT_CERTIFIED`` does not prove collapse, because the test is one-sided.
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
    """Whether the code that the decoder receives carries any information about the input.

    Attributes:
        ALIGNED: the status is ``CERTIFIED``.
        INFORMATIVE: the status is not ``CERTIFIED``, but the code carries more nats than the safety margin.
        COLLAPSED: the code carries fewer nats than the safety margin, for any reader.
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
