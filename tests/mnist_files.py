"""Files in MNIST's format, made from scikit-learn's digits."""

import struct
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

__all__ = ["write_mnist"]


def write_mnist(folder: Path, train: int, test: int) -> tuple[np.ndarray, np.ndarray]:
    """Write the four files to ``folder/MNIST/raw``; return all images and labels, the training rows first."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    digits = load_digits()
    rows = np.arange(train + test) % len(digits.target)
    enlarged = np.kron(digits.images[rows] * (255 / 16), np.ones((3, 3)))
    images = np.pad(enlarged.astype(np.uint8), ((0, 0), (2, 2), (2, 2)))
    labels = digits.target[rows].astype(np.uint8)
    for name, part in {"train": slice(train), "t10k": slice(train, None)}.items():
        chosen = images[part]
        header = struct.pack(">IIII", 2051, *chosen.shape)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(header + chosen.tobytes())
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, len(chosen)) + labels[part].tobytes())
    return images, labels
