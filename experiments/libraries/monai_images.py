"""Autoencoders of MONAI in a plain loop.

python -m experiments.libraries.monai_images
"""

from dataclasses import replace
from typing import Any

import torch
from monai.networks.nets import VQVAE, AutoencoderKL, VarAutoEncoder
from torch import Tensor, nn

from certvae import codebook_information
from certvae.callbacks import Latents
from experiments.libraries.comparison import Case, Watched, digits, main, watched_loop


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL to N(0, 1), nats, mean over rows."""
    return ((mean**2 + log_variance.exp() - log_variance - 1) / 2).flatten(1).sum(1).mean()


def variational(watching: bool) -> Watched:
    """Gives ``(reconstruction, mu, logvar, z)``."""
    model = VarAutoEncoder(2, (1, 8, 8), out_channels=1, latent_size=10, channels=(8, 16), strides=(1, 2))

    def loss(batch: Any) -> Tensor:
        images, mean, log_variance, _ = model(batch[0])
        error = nn.functional.mse_loss(images, batch[0], reduction="sum") / len(images)
        return error + 0.1 * divergence(mean, log_variance)

    latents = Latents(lambda model, batch: model(batch[0]), "1,2")
    return watched_loop(model, loss, latents, model.encode_forward, watching)


def kl_autoencoder(watching: bool) -> Watched:
    """Its ``encode`` gives a mean and a standard deviation, as maps."""
    model = AutoencoderKL(
        2,
        in_channels=1,
        out_channels=1,
        channels=(8, 16),
        num_res_blocks=1,
        attention_levels=(False, False),
        latent_channels=2,
        norm_num_groups=4,
        with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
    )

    def loss(batch: Any) -> Tensor:
        images, mean, deviation = model(batch[0])
        error = nn.functional.mse_loss(images, batch[0], reduction="sum") / len(images)
        return error + 0.1 * divergence(mean, 2 * deviation.log())

    def own(images: Tensor) -> tuple[Tensor, Tensor]:
        mean, deviation = model.encode(images)
        return mean, 2 * deviation.log()

    latents = Latents(lambda model, batch: model.encode(batch[0]), spatial="flatten", scale="std")
    return watched_loop(model, loss, latents, own, watching)


def quantized(watching: bool) -> Watched:
    """A VQ-VAE: the certificate of what it quantizes, and the entropy of its indices."""
    model = VQVAE(
        2,
        in_channels=1,
        out_channels=1,
        channels=(8, 16),
        num_res_channels=(8, 16),
        num_res_layers=1,
        downsample_parameters=((2, 4, 1, 1), (2, 4, 1, 1)),
        upsample_parameters=((2, 4, 1, 1, 0), (2, 4, 1, 1, 0)),
        num_embeddings=16,
        embedding_dim=4,
    )

    def loss(batch: Any) -> Tensor:
        images, quantization = model(batch[0])
        return nn.functional.mse_loss(images, batch[0]) + quantization

    latents = Latents(lambda model, batch: model.encode(batch[0]), spatial="flatten", deterministic=True)
    found = watched_loop(model, loss, latents, lambda images: (model.encode(images), None), watching)
    with torch.no_grad():
        indices = torch.cat([model.index_quantize(images) for images, _ in digits()[1]])
    return replace(found, codebook=(codebook_information(indices, size=16).estimate, indices))


CASES = [
    Case("monai", "VarAutoEncoder", variational, source=(watched_loop,), outside=1),
    Case("monai", "AutoencoderKL", kl_autoencoder, source=(watched_loop,), outside=1),
    Case("monai", "VQVAE", quantized, source=(watched_loop,), outside=1),
]

if __name__ == "__main__":
    main(__file__, CASES)
