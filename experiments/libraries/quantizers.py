"""Quantizers of vector-quantize-pytorch in a plain loop: the certificate of what is quantized, and the indices.

python -m experiments.libraries.quantizers
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from vector_quantize_pytorch import FSQ, VectorQuantize

from certvae import codebook_information
from certvae.callbacks import Latents
from experiments.libraries.comparison import Case, Watched, digits, main, watched_loop


class Autoencoder(nn.Module):
    """Three codes of four numbers for each image."""

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 12))
        self.decoder, self.quantizer = nn.Linear(12, 64), quantizer

    def codes(self, images: Tensor) -> Tensor:
        """What is quantized, shape ``(B, 3, 4)``."""
        return self.encoder(images).unflatten(1, (3, 4))


def quantized(make: Callable[[], nn.Module], size: int, watching: bool) -> Watched:
    """An autoencoder around a quantizer with so many entries."""
    model = Autoencoder(make())

    def loss(batch: Any) -> Tensor:
        entries, _, *commitment = model.quantizer(model.codes(batch[0]))
        error = nn.functional.mse_loss(model.decoder(entries.flatten(1)), batch[0].flatten(1))
        return error + sum(term.sum() for term in commitment)

    latents = Latents(lambda model, batch: model.codes(batch[0]), spatial="flatten", deterministic=True)
    found = watched_loop(model, loss, latents, lambda images: (model.codes(images), None), watching)
    with torch.no_grad():
        indices = torch.cat([model.quantizer(model.codes(images))[1] for images, _ in digits()[1]]).long()
    return replace(found, codebook=(codebook_information(indices, size=size).estimate, indices))


CASES = [
    Case(
        "vector-quantize-pytorch",
        "VectorQuantize",
        lambda watching: quantized(lambda: VectorQuantize(dim=4, codebook_size=32), 32, watching),
        source=(watched_loop,),
        outside=1,
    ),
    Case(
        "vector-quantize-pytorch",
        "FSQ",
        lambda watching: quantized(lambda: FSQ(levels=[3, 3, 3, 3]), 81, watching),
        source=(watched_loop,),
        outside=1,
    ),
]

if __name__ == "__main__":
    main(__file__, CASES)
