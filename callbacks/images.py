"""A callback that shows reconstructions and prior samples in loggers that accept images."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor
from torch.distributions import Distribution
from torchvision.utils import make_grid

from certvae.io.files import write_atomic
from certvae.models.vae import VAE
from certvae.monitoring.divergence import find_fault
from certvae.monitoring.loggers import log_image, plot_against_epoch, takes_images
from certvae.reading.inputs import InputSource, as_floats, select_inputs
from certvae.reading.latents import LatentCapture, LatentSource

__all__ = ["ReconstructionImages"]

RECONSTRUCTIONS, SAMPLES = "images/reconstructions", "images/samples"
SMALLEST = 48  # pixels per side of an image; smaller images are enlarged, because loggers blur them


class ReconstructionImages(Callback):
    """Show inputs with their reconstructions, and samples of the prior, every ``every_n_epochs`` epochs.

    Logs ``images/reconstructions`` and ``images/samples`` to Weights & Biases, TensorBoard and MLflow; with other
    loggers nothing is computed. The rows are the first of the first validation batch: the same in each epoch, unless
    the validation loader shuffles. Their codes come from the module's own step, so only the decoder is called once
    more. Random streams do not change.

    Args:
        every_n_epochs: epochs between images; the first epoch and, if ``max_epochs`` is set, the last epoch are always
            shown. 0 shows none.
        rows: number of inputs to show, at least 1.
        latents: where the code is; see :class:`certvae.callbacks.CertificateCallback`.
        images: where the input is in the batch: a position, a key, an attribute or a function of the batch. Values are
            shown as if in [0, 1].
        decoder: the submodule from codes to images or to a distribution of images, or a function ``(pl_module, codes)
            -> images``. Samples are decoded draws from ``pl_module.prior``, or from a standard normal if there is none.
        seed: seed of these draws, which are the same in each epoch.
        save_dir: folder for the latest images, ``images_reconstructions.png`` and ``images_samples.png``. ``certvae
            report`` shows them if this is the ``save_dir`` of the certificate callback. With it, no logger is needed.

    Raises:
        ValueError: if ``every_n_epochs`` is negative, or ``rows`` is below 1.

    Example:
        >>> from certvae.callbacks import ReconstructionImages
        >>> pictures = ReconstructionImages(every_n_epochs=5, latents="encoder:chunk", decoder="decoder")
    """

    def __init__(
        self,
        every_n_epochs: int = 5,
        rows: int = 8,
        latents: LatentSource | None = None,
        images: InputSource = 0,
        decoder: str | Callable[[Any, Tensor], Any] = "decoder",
        seed: int = 0,
        save_dir: str | Path | None = None,
    ) -> None:
        super().__init__()
        if every_n_epochs < 0:
            raise ValueError(f"`every_n_epochs` must be at least 0, got {every_n_epochs}.")
        if rows < 1:
            raise ValueError(f"`rows` must be at least 1, got {rows}.")
        self.every_n_epochs, self.rows, self.images = every_n_epochs, rows, images
        self.decoder, self.seed, self.save_dir = decoder, seed, save_dir
        self._capture = LatentCapture(latents)
        self._due = False
        self._shown: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage in ("fit", "validate") and self.every_n_epochs and self._wanted(trainer):
            self._shown = None
            self._capture.attach(pl_module)
            plot_against_epoch(trainer, (RECONSTRUCTIONS, SAMPLES))

    def _wanted(self, trainer: Trainer) -> bool:
        return self.save_dir is not None or takes_images(trainer)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        every, epoch = self.every_n_epochs, trainer.current_epoch
        self._due = bool(every) and not trainer.sanity_checking and self._wanted(trainer)
        if trainer.state.fn == "fit" and self._due:
            self._due = (epoch % every == 0 or epoch + 1 == trainer.max_epochs) and epoch != self._shown
            self._shown = epoch

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._capture.listen(self._due)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not self._due:
            return
        self._due = False
        inputs = as_floats(select_inputs(batch, self.images))[: self.rows]
        if inputs.ndim == 4 and inputs.shape[1] in (1, 3):
            codes = self._capture.read(pl_module, batch, outputs).mean[: self.rows]
            if fault := find_fault(torch.arange(len(codes)), mean=codes):
                # A decoder may reject such codes, as torch.distributions do; this must not end the run.
                rank_zero_warn(f"epoch {trainer.current_epoch}: {fault}. There are no pictures; the run goes on.")
                return
            self._show(trainer, pl_module, inputs, codes)
        else:
            rank_zero_warn(
                f"ReconstructionImages shows inputs of shape (B, 1, H, W) or (B, 3, H, W), got {tuple(inputs.shape)}, "
                "so there are no pictures. Let `images` be a function of the batch that gives such, or set "
                "`every_n_epochs=0`."
            )

    @torch.no_grad()
    @isolate_rng()  # the run must not depend on this callback
    def _show(self, trainer: Trainer, pl_module: LightningModule, inputs: Tensor, codes: Tensor) -> None:
        torch.manual_seed(self.seed)
        draws = getattr(getattr(pl_module, "prior", None), "draws_like", torch.randn_like)(codes)
        # On every process: calling a decoder with sharded parameters is a collective.
        reconstructions, samples = (self._decode(pl_module, z).reshape_as(inputs) for z in (codes, draws))
        for key, shown in ((RECONSTRUCTIONS, torch.cat([inputs, reconstructions])), (SAMPLES, samples)):
            picture = as_grid(shown, len(inputs))
            log_image(trainer, key, picture, trainer.current_epoch)
            if self.save_dir is not None and trainer.is_global_zero:
                write_atomic(Path(self.save_dir) / f"{key.replace('/', '_')}.png", _png(picture))

    def _decode(self, pl_module: LightningModule, codes: Tensor) -> Tensor:
        if callable(self.decoder):
            decoded = self.decoder(pl_module, codes)
        else:
            decoded = pl_module.get_submodule(self.decoder)(codes.to(pl_module.dtype))
            if isinstance(pl_module, VAE):
                decoded = pl_module.expectation(decoded)
        return decoded.mean if isinstance(decoded, Distribution) else decoded

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._capture.detach()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._capture.detach()


def _png(picture: np.ndarray) -> bytes:
    content = BytesIO()
    Image.fromarray(picture).save(content, format="png")
    return content.getvalue()


def as_grid(images: Tensor, columns: int) -> np.ndarray:
    """Images arranged in a grid, enlarged if they are small.

    Args:
        images: values in [0, 1], clipped otherwise; shape ``(B, 1, H, W)`` or ``(B, 3, H, W)``.
        columns: images per row.

    Returns:
        uint8, shape ``(height, width, 3)``.
    """
    times = -(-SMALLEST // min(images.shape[-2:]))
    large = images.float().clamp(0, 1).repeat_interleave(times, dim=2).repeat_interleave(times, dim=3)
    grid = make_grid(large, nrow=columns, pad_value=1.0)
    return (255 * grid).round().byte().permute(1, 2, 0).cpu().numpy()
