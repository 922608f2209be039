"""Views of images, and an encoder that sees a view while the teacher and the decoder's target stay clean."""

import math

import torch
from torch import Tensor, nn

from certvae.theory.posterior import Posterior
from certvae.theory.row_noise import row_uniform

__all__ = ["KINDS", "ViewEncoder", "Views", "view", "view_numbers"]

KINDS = ("shift", "noise", "color")


def view_numbers(kind: str, image_shape: tuple[int, ...]) -> int:
    """Number of uniform random numbers for a view of one image."""
    return {"shift": 2, "noise": math.prod(image_shape), "color": 2 * image_shape[0]}[kind]


def view(images: Tensor, kind: str, strength: float, uniforms: Tensor) -> Tensor:
    """Augmented images.

    Args:
        images: values in [0, 1], shape ``(B, C, H, W)``.
        kind: ``"shift"``: moved by up to ``strength`` pixels along each axis, black outside (a random crop of the
            padded image); ``"noise"``: Gaussian noise of standard deviation ``strength``; ``"color"``: in each
            channel, contrast times ``1 - strength`` to ``1 + strength`` and brightness plus ``-strength / 2`` to
            ``strength / 2``.
        strength: at least 0; 0 changes nothing.
        uniforms: numbers in (0, 1), shape ``(B, view_numbers(kind, image_shape))``.

    Returns:
        Images in [0, 1], of the same shape and type.
    """
    if kind == "shift":
        return _shift(images, int(strength), uniforms)
    if kind == "noise":
        normal = math.sqrt(2) * torch.erfinv(2 * uniforms.double() - 1)
        changed = images + strength * normal.view(images.shape).to(images.dtype)
    else:
        gain, offset = (2 * uniforms.to(images.dtype) - 1)[..., None, None].chunk(2, dim=1)
        changed = (images - 0.5) * (1 + strength * gain) + 0.5 + strength / 2 * offset
    return changed.clamp(0, 1)


def _shift(images: Tensor, most: int, uniforms: Tensor) -> Tensor:
    rows, channels, height, width = images.shape
    padded = nn.functional.pad(images, (most, most, most, most))
    start = (uniforms * (2 * most + 1)).long().clamp(max=2 * most).to(images.device)
    each = torch.arange(rows, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    row = (start[:, :1] + torch.arange(height, device=images.device))[:, None, :, None]
    column = (start[:, 1:] + torch.arange(width, device=images.device))[:, None, None, :]
    return padded[each, channel, row, column]


class Views(nn.Module):
    """Random views of images.

    In training every pass draws new views. In evaluation the view of an image depends only on its content and the seed.
    So a certificate can be recomputed with the rows in any order, and the rows stay independent.

    Args:
        kind: see :func:`view`.
        strength: at least 0.
        seed: seed of the views in evaluation.

    Raises:
        ValueError: if ``kind`` is unknown, or ``strength`` negative or, for shifts, not whole.
    """

    def __init__(self, kind: str, strength: float, seed: int = 0) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"`kind` must be one of {', '.join(KINDS)}, got {kind!r}.")
        if strength < 0 or (kind == "shift" and strength != int(strength)):
            raise ValueError(f"`strength` must be at least 0, for shifts a number of pixels, got {strength}.")
        self.kind, self.strength, self.seed = kind, strength, seed

    def forward(self, images: Tensor) -> Tensor:
        """Views of images in [0, 1], shape ``(B, C, H, W)``."""
        count = view_numbers(self.kind, tuple(images.shape[1:]))
        if self.training:
            uniforms = torch.rand(len(images), count, device=images.device, dtype=torch.float64)
            uniforms = uniforms.clamp(min=2.0**-54)  # `rand` may be 0, whose normal quantile is infinite
        else:
            uniforms = row_uniform(_keys(images), count, self.seed)
        return view(images, self.kind, self.strength, uniforms)


class ViewEncoder(nn.Module):
    """An encoder of random views of its images; other arguments as for :class:`Views`.

    Args:
        encoder: any encoder, with ``latent_dim``.
    """

    def __init__(self, encoder: nn.Module, kind: str, strength: float, seed: int = 0) -> None:
        super().__init__()
        self.encoder, self.views = encoder, Views(kind, strength, seed)
        self.latent_dim: int = encoder.latent_dim  # type: ignore[assignment]
        self.image_shape = getattr(encoder, "image_shape", None)

    def forward(self, images: Tensor) -> Posterior:
        """Posterior of views of the images."""
        return self.encoder(self.views(images))


def _keys(images: Tensor) -> Tensor:
    """One integer for the content of each image, at 8 bits a value."""
    values = (images.flatten(start_dim=1) * 255).round().long()
    weights = (row_uniform(torch.arange(values.shape[1], device=images.device), 1)[:, 0] * 2**62).long()
    return (values * weights).sum(dim=1)
