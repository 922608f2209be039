"""Callbacks for any LightningModule."""

from certvae.callbacks.certificate import CertificateCallback
from certvae.callbacks.status import StatusLine

__all__ = ["CertificateCallback", "StatusLine"]
