"""The handwritten digits of scikit-learn: 1,797 images of 8 x 8 pixels, without a download."""

import numpy as np

from certvae.datamodules.arrays import ImageArrays, ImageDataModule

__all__ = ["DigitsDataModule"]


class DigitsDataModule(ImageDataModule):
    """Digits of scikit-learn (Alpaydin and Kaynak, 1998), shape ``(1, 8, 8)``, ten labels.

    There is no official split; a fixed permutation gives 1,197 training rows and 600 held-out rows. Arguments as for
    :class:`certvae.datamodules.ImageDataModule`.
    """

    held_out = 600

    def load(self) -> ImageArrays:
        from sklearn.datasets import load_digits

        digits = load_digits()
        order = np.random.default_rng(0).permutation(len(digits.target))
        images = np.round(digits.images[order, None] * (255 / 16)).astype(np.uint8)
        labels = digits.target[order].astype(np.int64)
        return ImageArrays(images, labels, len(order) - self.held_out, tuple(str(digit) for digit in range(10)))
