"""Principal components of streamed data, by block power iteration on additive sums."""

from typing import Any

import torch
from torch import Tensor

__all__ = ["StreamingPCA"]


class StreamingPCA:
    r"""Leading principal directions from several passes over the data, in O(D l) memory for l directions.

    Each pass sums :math:`n, \sum x` and :math:`\sum x\, (x^T Q)`. At its end ``Q`` is replaced by an orthonormal basis
    of the covariance times ``Q``. The last pass solves the small eigenproblem of :math:`Q^T C Q` (Rayleigh-Ritz).
    Source: Halko, Martinsson and Tropp, 2011, algorithm 4.4, https://arxiv.org/abs/0909.4061.

    Args:
        dim: number of values in a row, D.
        rank: number of directions; at most D.
        oversample: number of additional directions, which speed up convergence.
        generator: random generator for the first ``Q``.
        device: device of the sums.
    """

    def __init__(
        self,
        dim: int,
        rank: int,
        oversample: int = 16,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if not 1 <= rank <= dim:
            raise ValueError(f"`rank` must be between 1 and the {dim} values of a row, got {rank}.")
        self.rank = rank
        start = torch.randn(dim, min(dim, rank + oversample), generator=generator, dtype=torch.float64)
        self.basis = torch.linalg.qr(start)[0].to(device)
        self.mean = torch.zeros(dim, dtype=torch.float64, device=device)
        self.eigenvalues = torch.zeros(rank, dtype=torch.float64, device=device)
        self.projection = self.basis[:, :rank]
        self.sums = self._zeros()

    def _zeros(self) -> Tensor:
        dim, width = self.basis.shape
        return torch.zeros(dim * (width + 1) + 1, dtype=torch.float64, device=self.basis.device)

    def to(self, device: torch.device) -> "StreamingPCA":
        """Move basis and sums."""
        self.basis, self.mean, self.sums = self.basis.to(device), self.mean.to(device), self.sums.to(device)
        self.eigenvalues, self.projection = self.eigenvalues.to(device), self.projection.to(device)
        return self

    def state_dict(self) -> dict[str, Any]:
        """Everything but the sums of the current pass, as tensors."""
        return {name: getattr(self, name) for name in ("basis", "mean", "eigenvalues", "projection")}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any], sums: Tensor) -> "StreamingPCA":
        """Rebuild from the output of :meth:`state_dict` and the sums of the current pass."""
        pca = cls(*state["projection"].shape)
        pca.basis, pca.mean, pca.sums = state["basis"], state["mean"], sums
        pca.eigenvalues, pca.projection = state["eigenvalues"], state["projection"]
        return pca

    def accumulate(self, rows: Tensor) -> None:
        """Add rows, float64, shape ``(B, D)``."""
        product = rows.T @ (rows @ self.basis)
        count = torch.tensor([rows.shape[0]], dtype=torch.float64, device=rows.device)
        self.sums += torch.cat([count, rows.sum(dim=0), product.flatten()])

    def step(self, sums: Tensor) -> None:
        """End a pass, given the sums over all processes."""
        dim, width = self.basis.shape
        count, total, product = sums.split([1, dim, dim * width])
        self.mean = total / count
        covariance_basis = product.view(dim, width) / count - self.mean[:, None] * (self.mean @ self.basis)
        small = self.basis.T @ covariance_basis
        eigenvalues, vectors = torch.linalg.eigh((small + small.T) / 2)
        order = eigenvalues.argsort(descending=True)[: self.rank]
        self.eigenvalues = eigenvalues[order]
        self.projection = _fix_signs(self.basis @ vectors[:, order])
        self.basis = torch.linalg.qr(covariance_basis)[0]
        self.sums = self._zeros()

    def project(self, rows: Tensor) -> Tensor:
        """Principal components of rows, shape ``(B, rank)``."""
        return (rows - self.mean) @ self.projection


def _fix_signs(directions: Tensor) -> Tensor:
    """Make the largest entry of each column positive, so that runs can be compared."""
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    return directions * torch.where(largest < 0, -1.0, 1.0)
