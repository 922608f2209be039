"""A testable certificate against constant collapse in variational autoencoders."""

from certvae.certificate import Certificate, Status
from certvae.metric import CertificateMetric
from certvae.search import TeacherSearch
from certvae.teachers import load_teacher
from certvae.vae import VAE
from certvae.verdict import CertificateSettings, certify
from certvae.witness import SimplexWitness

__version__ = "0.1.0"
__all__ = [
    "VAE",
    "Certificate",
    "CertificateMetric",
    "CertificateSettings",
    "SimplexWitness",
    "Status",
    "TeacherSearch",
    "certify",
    "load_teacher",
]
