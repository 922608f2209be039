"""Finding the certificate callback of a run, for callbacks that work beside it."""

from pytorch_lightning import Callback, Trainer

from certvae.callbacks.certificate import CertificateCallback

__all__ = ["find_certificate"]


def find_certificate(trainer: Trainer, name: str, asking: Callback) -> CertificateCallback:
    """The certificate callback of a run, by its name.

    Raises:
        ValueError: if there is none of this name.
    """
    found = [item for item in trainer.callbacks if isinstance(item, CertificateCallback)]  # type: ignore[attr-defined]
    for item in found:
        if item.name == name:
            return item
    raise ValueError(
        f"{type(asking).__name__} needs a CertificateCallback with name={name!r} in the same trainer, got "
        f"{[item.name for item in found] or 'none'}. Add CertificateCallback(teacher=..., latents=...)."
    )
