"""Autoencoders of diffusers in a plain loop.

python -m experiments.libraries.diffusers_images
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from diffusers import AsymmetricAutoencoderKL, AutoencoderKL, AutoencoderTiny, VQModel
from torch import Tensor, nn

from certvae import codebook_information
from certvae.callbacks import Latents
from experiments.libraries.comparison import Case, Watched, digits, main, watched_loop

SMALL: dict[str, Any] = {
    "in_channels": 1,
    "out_channels": 1,
    "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
    "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"),
    "latent_channels": 2,
    "norm_num_groups": 4,
}
DISTRIBUTION = Latents(lambda vae, batch: vae.encode(batch[0]).latent_dist, spatial="flatten")
LATENTS = Latents(lambda vae, batch: vae.encode(batch[0]).latents, spatial="flatten", deterministic=True)


def kl_autoencoder(make: Callable[[], Any], watching: bool) -> Watched:
    """A VAE whose ``encode`` gives a ``DiagonalGaussianDistribution``."""
    vae = make()

    def loss(batch: Any) -> Tensor:
        posterior = vae.encode(batch[0]).latent_dist
        images = vae.decode(posterior.sample()).sample
        return nn.functional.mse_loss(images, batch[0], reduction="sum") / len(images) + 0.1 * posterior.kl().mean()

    def own(images: Tensor) -> tuple[Tensor, Tensor]:
        posterior = vae.encode(images).latent_dist
        return posterior.mean, posterior.logvar

    return watched_loop(vae, loss, DISTRIBUTION, own, watching)


def tiny(watching: bool) -> Watched:
    """An autoencoder without noise."""
    vae = AutoencoderTiny(
        in_channels=1,
        out_channels=1,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=2,
        upsampling_scaling_factor=2,
    )
    return watched_loop(
        vae,
        lambda batch: nn.functional.mse_loss(vae(batch[0]).sample, batch[0]),
        LATENTS,
        lambda images: (vae.encode(images).latents, None),
        watching,
    )


def quantized(watching: bool) -> Watched:
    """A VQ-VAE: the certificate of what it quantizes, and the entropy of its indices."""
    vae = VQModel(**SMALL, block_out_channels=(8, 16), num_vq_embeddings=16, vq_embed_dim=2)

    def loss(batch: Any) -> Tensor:
        decoded = vae(batch[0])
        return nn.functional.mse_loss(decoded.sample, batch[0]) + decoded.commit_loss.mean()

    found = watched_loop(vae, loss, LATENTS, lambda images: (vae.encode(images).latents, None), watching)
    with torch.no_grad():
        indices = torch.cat([vae.quantize(vae.encode(images).latents)[2][2] for images, _ in digits()[1]])
    codes = indices.view(len(found.labels), -1)
    return replace(found, codebook=(codebook_information(codes, size=16).estimate, codes))


CASES = [
    Case(
        "diffusers",
        "AutoencoderKL",
        lambda watching: kl_autoencoder(lambda: AutoencoderKL(**SMALL, block_out_channels=(8, 16)), watching),
        source=(watched_loop,),
        outside=1,
    ),
    Case(
        "diffusers",
        "AsymmetricAutoencoderKL",
        lambda watching: kl_autoencoder(
            lambda: AsymmetricAutoencoderKL(**SMALL, down_block_out_channels=(8, 16), up_block_out_channels=(8, 16)),
            watching,
        ),
        source=(watched_loop,),
        outside=1,
    ),
    Case("diffusers", "AutoencoderTiny", tiny, source=(watched_loop,), outside=1),
    Case("diffusers", "VQModel", quantized, source=(watched_loop,), outside=1),
]

if __name__ == "__main__":
    main(__file__, CASES)
