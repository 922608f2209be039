"""A testable certificate against constant collapse in variational autoencoders.

What needs Lightning or scikit-learn is imported when it is first used: :func:`certify` on arrays needs neither.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from certvae.certificate.certificate import Certificate, Reading, Status
    from certvae.certificate.metric import CertificateMetric
    from certvae.certificate.settings import CertificateSettings
    from certvae.certificate.verdict import certify
    from certvae.models.vae import VAE
    from certvae.monitoring.plain_loop import watch
    from certvae.teachers import load_teacher
    from certvae.teachers.search import TeacherSearch
    from certvae.theory.bracket import InformationBracket, information_bracket, information_bracket_of
    from certvae.theory.codebook import CodebookInformation, codebook_information
    from certvae.theory.raw_head import RawHead
    from certvae.theory.witness import SimplexWitness

__version__ = "0.2.0.dev0"
__all__ = [
    "VAE",
    "Certificate",
    "CertificateMetric",
    "CertificateSettings",
    "CodebookInformation",
    "InformationBracket",
    "RawHead",
    "Reading",
    "SimplexWitness",
    "Status",
    "TeacherSearch",
    "certify",
    "codebook_information",
    "information_bracket",
    "information_bracket_of",
    "load_teacher",
    "watch",
]


def __getattr__(name: str) -> Any:
    value = _load(name)
    globals()[name] = value
    return value


def _load(name: str) -> Any:
    if name in ("Certificate", "Reading", "Status"):
        from certvae.certificate import certificate

        return getattr(certificate, name)
    if name == "CertificateSettings":
        from certvae.certificate.settings import CertificateSettings

        return CertificateSettings
    if name == "certify":
        from certvae.certificate.verdict import certify

        return certify
    if name == "CertificateMetric":
        from certvae.certificate.metric import CertificateMetric

        return CertificateMetric
    if name in ("InformationBracket", "information_bracket", "information_bracket_of"):
        from certvae.theory import bracket

        return getattr(bracket, name)
    if name in ("CodebookInformation", "codebook_information"):
        from certvae.theory import codebook

        return getattr(codebook, name)
    if name == "RawHead":
        from certvae.theory.raw_head import RawHead

        return RawHead
    if name == "SimplexWitness":
        from certvae.theory.witness import SimplexWitness

        return SimplexWitness
    if name == "load_teacher":
        from certvae.teachers import load_teacher

        return load_teacher
    if name == "TeacherSearch":
        from certvae.teachers.search import TeacherSearch

        return TeacherSearch
    if name == "watch":
        from certvae.monitoring.plain_loop import watch

        return watch
    if name == "VAE":
        from certvae.models import VAE

        return VAE
    raise AttributeError(f"module 'certvae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
