"""Encoders and decoders for inputs of any shape: multilayer perceptrons and strided convolutions."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from certvae.theory.posterior import Posterior

__all__ = ["ConvDecoder", "ConvEncoder", "MLPDecoder", "MLPEncoder"]

_KERNEL = 4


def _shape(image_shape: Sequence[int], latent_dim: int, width: int, axes: int | None = None) -> tuple[int, ...]:
    shape = tuple(int(size) for size in image_shape)
    if not shape or min(shape) < 1 or (axes is not None and len(shape) != axes):
        expected = "(channels, height, width)" if axes else "positive sizes"
        raise ValueError(f"`image_shape` must hold {expected}, got {shape}.")
    if latent_dim < 1 or width < 1:
        raise ValueError(f"`latent_dim` and `width` must be at least 1, got {latent_dim} and {width}.")
    return shape


class MLPEncoder(nn.Module):
    """Multilayer perceptron from inputs of any shape to a posterior.

    Args:
        image_shape: shape of one input.
        latent_dim: size of the latent.
        width: units of each hidden layer.
        depth: hidden layers.
    """

    def __init__(self, image_shape: Sequence[int], latent_dim: int, width: int = 256, depth: int = 2) -> None:
        super().__init__()
        sizes = [math.prod(_shape(image_shape, latent_dim, width)), *[width] * depth]
        self.image_shape, self.latent_dim = tuple(image_shape), latent_dim
        self.body = nn.Sequential(nn.Flatten(), *_perceptron(sizes))
        self.head = nn.Linear(sizes[-1], 2 * latent_dim)

    def forward(self, images: Tensor) -> Posterior:
        """Posterior of inputs, shape ``(B, *image_shape)``."""
        return Posterior(*self.head(self.body(images)).chunk(2, dim=1))


class MLPDecoder(nn.Module):
    """Multilayer perceptron from latents to inputs of any shape; arguments as for :class:`MLPEncoder`.

    Args:
        skip: whether every layer receives the latent (skip-VAE): see :class:`ConvDecoder`.
    """

    def __init__(
        self, image_shape: Sequence[int], latent_dim: int, width: int = 256, depth: int = 2, skip: bool = False
    ) -> None:
        super().__init__()
        shape = _shape(image_shape, latent_dim, width)
        sizes = [latent_dim, *[width] * depth]
        self.body = nn.Sequential(*_perceptron(sizes), nn.Linear(sizes[-1], math.prod(shape)), nn.Unflatten(1, shape))
        self.skips = _skips(self.body, latent_dim) if skip else nn.ModuleDict()

    def forward(self, latents: Tensor) -> Tensor:
        """Mean of the input, shape ``(B, *image_shape)``."""
        return _decode(self.body, self.skips, latents)


def _perceptron(sizes: list[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.SiLU()]
    return layers


def _levels(height: int, width: int, smallest: int = 4) -> list[tuple[int, int]]:
    """Image sizes from the input down: halved and rounded up until a side is at most ``smallest``."""
    sizes = [(height, width)]
    while min(sizes[-1]) > smallest:
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return sizes


class ConvEncoder(nn.Module):
    """Strided convolutions that halve the image until a side is at most 4, then a posterior.

    Args:
        image_shape: ``(channels, height, width)``, of any size.
        latent_dim: size of the latent.
        width: channels after the first convolution; they double at each level, up to eight times.
    """

    def __init__(self, image_shape: Sequence[int], latent_dim: int, width: int = 32) -> None:
        super().__init__()
        channels, height, side = _shape(image_shape, latent_dim, width, axes=3)
        self.image_shape, self.latent_dim = tuple(image_shape), latent_dim
        sizes = _levels(height, side)
        planes = _planes(width, len(sizes) - 1)
        layers: list[nn.Module] = []
        for (rows, columns), (inputs, outputs) in zip(sizes, _pairs([channels, *planes]), strict=False):
            if rows % 2 or columns % 2:
                layers.append(nn.ZeroPad2d((0, columns % 2, 0, rows % 2)))
            layers += [nn.Conv2d(inputs, outputs, _KERNEL, stride=2, padding=1), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Flatten())
        last = planes[-1] if planes else channels
        self.head = nn.Linear(last * math.prod(sizes[-1]), 2 * latent_dim)
        self.to(memory_format=torch.channels_last)  # faster convolutions

    def forward(self, images: Tensor) -> Posterior:
        """Posterior of images, shape ``(B, *image_shape)``."""
        return Posterior(*self.head(self.body(images)).chunk(2, dim=1))


class ConvDecoder(nn.Module):
    """Transposed convolutions from latents to images; arguments as for :class:`ConvEncoder`.

    Args:
        skip: whether every layer after the first also receives the latent, through a linear map added to its output
            (skip-VAE: Dieng et al., 2019, https://arxiv.org/abs/1807.04863).
    """

    def __init__(self, image_shape: Sequence[int], latent_dim: int, width: int = 32, skip: bool = False) -> None:
        super().__init__()
        channels, height, side = _shape(image_shape, latent_dim, width, axes=3)
        sizes = _levels(height, side)[::-1]
        planes = _planes(width, len(sizes) - 1)[::-1]
        first = planes[0] if planes else channels
        layers: list[nn.Module] = [
            nn.Linear(latent_dim, first * math.prod(sizes[0])),
            nn.Unflatten(1, (first, *sizes[0])),
        ]
        for (rows, columns), (inputs, outputs) in zip(sizes[1:], _pairs([*planes, channels]), strict=True):
            layers += [nn.SiLU(), nn.ConvTranspose2d(inputs, outputs, _KERNEL, stride=2, padding=1)]
            if rows % 2 or columns % 2:
                layers.append(nn.ZeroPad2d((0, -(columns % 2), 0, -(rows % 2))))
        self.body = nn.Sequential(*layers)
        self.skips = _skips(self.body, latent_dim) if skip else nn.ModuleDict()
        self.to(memory_format=torch.channels_last)

    def forward(self, latents: Tensor) -> Tensor:
        """Mean of the images, shape ``(B, *image_shape)``."""
        return _decode(self.body, self.skips, latents)


def _skips(body: nn.Sequential, latent_dim: int) -> nn.ModuleDict:
    """Linear maps from the latent to the channels of every layer with weights except the first, by layer name."""
    layers = {name: layer for name, layer in body.named_children() if isinstance(layer, nn.Linear | nn.ConvTranspose2d)}
    widths = {name: layer.weight.shape[0 if isinstance(layer, nn.Linear) else 1] for name, layer in layers.items()}
    return nn.ModuleDict({name: nn.Linear(latent_dim, widths[name]) for name in list(widths)[1:]})


def _decode(body: nn.Sequential, skips: nn.ModuleDict, latents: Tensor) -> Tensor:
    hidden = latents
    for name, layer in body.named_children():
        hidden = layer(hidden)
        if name in skips:
            code = skips[name](latents)
            hidden = hidden + code.view(*code.shape, *[1] * (hidden.ndim - 2))
    return hidden


def _planes(width: int, levels: int) -> list[int]:
    return [width * min(2**level, 8) for level in range(levels)]


def _pairs(values: list[int]) -> list[tuple[int, int]]:
    return list(itertools.pairwise(values))
