"""DataModules that keep whole image sets in memory as uint8 and yield batches ``(images, label, index)``."""

from certvae.datamodules.arrays import DataError, ImageArrays, ImageDataModule
from certvae.datamodules.cifar100 import CIFAR100DataModule
from certvae.datamodules.digits import DigitsDataModule
from certvae.datamodules.mnist import MNISTDataModule
from certvae.datamodules.tiny_imagenet import TinyImageNetDataModule

__all__ = [
    "CIFAR100DataModule",
    "DataError",
    "DigitsDataModule",
    "ImageArrays",
    "ImageDataModule",
    "MNISTDataModule",
    "TinyImageNetDataModule",
]
