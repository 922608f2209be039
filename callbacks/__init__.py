"""Lightning callbacks that measure, log and keep the certificate of a VAE."""

from certvae.callbacks.alignment import AlignmentCallback
from certvae.callbacks.certificate import CertificateCallback
from certvae.callbacks.codebook import CodebookCallback
from certvae.callbacks.decoder_check import DecoderCheck, DecoderLosses
from certvae.callbacks.diagnostics import CollapseDiagnostics
from certvae.callbacks.guard import CertificateGuard, CertificateLostError
from certvae.callbacks.images import ReconstructionImages
from certvae.callbacks.information import InformationCallback
from certvae.callbacks.lagging import LaggingInference
from certvae.callbacks.last_checkpoint import CheckpointError, LastCheckpoint
from certvae.callbacks.prefit import PrefitCallback
from certvae.callbacks.probe import ProbeCallback
from certvae.callbacks.status import StatusLine
from certvae.monitoring.dual_controller import DualController
from certvae.reading.latents import Latents

__all__ = [
    "AlignmentCallback",
    "CertificateCallback",
    "CertificateGuard",
    "CertificateLostError",
    "CheckpointError",
    "CodebookCallback",
    "CollapseDiagnostics",
    "DecoderCheck",
    "DecoderLosses",
    "DualController",
    "InformationCallback",
    "LaggingInference",
    "LastCheckpoint",
    "Latents",
    "PrefitCallback",
    "ProbeCallback",
    "ReconstructionImages",
    "StatusLine",
]
