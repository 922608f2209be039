"""Lightning callbacks around the certificate."""

from certvae.callbacks.capture import Latents
from certvae.callbacks.certificate import CertificateCallback
from certvae.callbacks.status import StatusLine

__all__ = ["CertificateCallback", "Latents", "StatusLine"]
