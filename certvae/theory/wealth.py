r"""A lower bound on the wealth of :mod:`certvae.theory.betting` over all possible average teachers."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["CAP", "WealthFloor", "capped"]

CAP = 0.95  # c: the largest share of the wealth that one row may take
_CHUNK = 8192  # rows summed at a time
_CELLS = 64  # margins bounded at a time
_STEEPEST = 2 * ((-CAP - math.log1p(-CAP)) * (1 - CAP) / CAP - CAP)
_MOST_CURVATURE = 6.0  # above the largest value of `_curvatures`, 5.64


def capped(bets: Tensor, margins: Tensor, lowest: float) -> Tensor:
    r"""Bets limited to :math:`c / (m - \log(\epsilon_S / K))`, so that each factor of the wealth is at least 1 - c."""
    return torch.minimum(bets, CAP / (margins - lowest).clamp(min=1e-12))


class WealthFloor:
    r"""A lower bound on :math:`\min_q \log K_n(m, q)` over every ``q`` with :math:`q_k \ge \epsilon_T / K`.

    With :math:`d_k = \log(\hat T_k / q_k)` and the plug-in scores :math:`\hat g_i`,
    :math:`g_i(q) = \hat g_i + \sum_k T_{ik} d_k`. Let :math:`\psi(x) = \log(1 + x)` for :math:`x \ge -c`, continued
    below :math:`-c` by its tangent. It is concave. So by Jensen's inequality, for every number :math:`\mu`,

    .. math::
        \log K_n(m, q) \ge \sum_k \Big[ \underbrace{\sum_i T_{ik}\, \psi(\lambda_i (\hat g_i + d_k - m))}_{A_k(d_k)}
            + \mu \hat T_k (e^{-d_k} - 1) \Big],

    because the last terms add up to :math:`\mu (\sum_k q_k - 1) = 0`. Each term depends on one :math:`d_k` only. On a
    cell :math:`[u, v]` the concave :math:`A_k` is at least its chord, with slope ``s``. Chord plus convex term is
    smallest at :math:`\log(\mu \hat T_k / s)`, clamped to the cell. The cells cover every possible :math:`d_k`.

    Args:
        teacher: :math:`T`, shape ``(n, K)``.
        scores: :math:`a_i` in nats, shape ``(n,)``.
        teacher_floor: :math:`\epsilon_T`.
        lowest: :math:`\log(\epsilon_S / K)`, nats.

    Attributes:
        margin: the plug-in margin, in nats.
    """

    def __init__(self, teacher: Tensor, scores: Tensor, teacher_floor: float, lowest: float) -> None:
        self._teacher = teacher
        self._lowest = lowest
        self._mean = teacher.mean(dim=0)
        self._scores = scores - teacher @ self._mean.log()
        self.margin = float(self._scores.mean())
        smallest = float(self._mean.min().log()) - 1e-6
        largest = float(self._mean.max().log()) + math.log(teacher.shape[1]) - math.log(teacher_floor) + 1e-6
        self._points = _points(smallest, largest, 2.5 / math.sqrt(len(scores))).to(teacher)

    def at(self, margin: float, bets: Tensor) -> float:
        """The bound in nats for one margin, less the possible rounding error.

        Args:
            margin: ``m`` in nats, above the lowest score.
            bets: one for each row, before the cap, shape ``(n,)``.
        """
        bets = capped(bets, self._mean.new_tensor(margin), self._lowest)
        gains = bets * (self._scores - margin)
        concave = self._concave_parts(gains, bets)
        multiplier = (bets / (1 + gains)).sum()  # nearly the best one
        return float(self._smallest(concave[..., None], multiplier)) - self._rounding(gains, bets, float(multiplier))

    def at_cells(self, sizes: Tensor, margins: Tensor, bets: Tensor) -> Tensor:
        r"""Faster but lower bounds for many margins at once, if bets are constant within blocks of rows.

        For :math:`x \ge y` and :math:`y < 0`, :math:`\psi(x) \ge x - \kappa(y) x^2`, see :func:`_curvatures`. So every
        ``A_k`` is at least a sum over the blocks that needs only their moments
        :math:`\sum_i T_{ik} (1, \hat g_i, \hat g_i^2)`. This suffices for margins far below the bound, where the wealth
        is large.

        Args:
            sizes: number of rows of each block, shape ``(B,)``.
            margins: ``m_j`` in nats, shape ``(J,)``. A margin above the plug-in margin is replaced by it.
            bets: before the cap, shape ``(B, J)``.

        Returns:
            The bounds in nats, shape ``(J,)``.
        """
        margins = margins.clamp(max=self.margin)
        blocks = _Blocks.of(self._teacher, self._scores, sizes)
        parts = zip(margins.split(_CELLS), bets.split(_CELLS, dim=1), strict=True)
        return torch.cat([self._at_cells(blocks, *part) for part in parts])

    def _at_cells(self, blocks: "_Blocks", margins: Tensor, bets: Tensor) -> Tensor:
        bets = capped(bets, margins, self._lowest)
        shifts = self._points[:, None] - margins
        multipliers = blocks.multipliers(bets, margins)
        floors = self._smallest(blocks.concave_parts(bets, shifts), multipliers)
        largest = float(bets.max() * (self._scores.abs().max() + shifts.abs().max()))
        return floors - self._error(largest + _MOST_CURVATURE * largest**2, float(multipliers.max()))

    def _smallest(self, concave: Tensor, multiplier: Tensor) -> Tensor:
        """The sum over components of the smallest value on any cell, shape ``(J,)``.

        Args:
            concave: lower bounds on ``A_k`` at the ends of the cells, shape ``(K, points, J)``.
            multiplier: shape ``(J,)``.
        """
        weights = multiplier * self._mean[:, None, None]
        left, right = self._points[:-1, None], self._points[1:, None]
        slopes = (concave.diff(dim=1) / (right - left)).clamp(min=1e-300)
        lowest = torch.minimum(torch.maximum((weights / slopes).log(), left), right)
        cells = concave[:, :-1] + slopes * (lowest - left) + weights * torch.expm1(-lowest)
        return cells.amin(dim=1).sum(dim=0)

    def _concave_parts(self, gains: Tensor, bets: Tensor) -> Tensor:
        """Every ``A_k`` at the ends of the cells, as a matrix product, shape ``(K, points)``."""
        sums = gains.new_zeros(len(self._mean), len(self._points))
        for start in range(0, len(gains), _CHUNK):
            rows = slice(start, start + _CHUNK)
            factors = torch.outer(bets[rows], self._points).add_(1 + gains[rows, None])
            kept = factors.clamp(min=1 - CAP)
            sums.addmm_(self._teacher[rows].T, factors.sub_(kept).div_(1 - CAP).add_(kept.log_()))
        return sums

    def _rounding(self, gains: Tensor, bets: Tensor, multiplier: float) -> float:
        r"""Upper bound on the rounding error of :meth:`at`; uses :math:`|\psi(x)| \le |x| / (1 - c)`."""
        largest = (gains.abs().max() + bets.max() * self._points.abs().max()) / (1 - CAP)
        return self._error(float(largest), multiplier)

    def _error(self, largest: float, multiplier: float) -> float:
        r"""Upper bound on the float64 error of sums over the rows, for terms of at most size ``largest``.

        The error of a sum of ``N`` products is at most :math:`N u` times the sum of their sizes, with ``u`` half of
        ``eps`` (Higham, 2002, *Accuracy and Stability of Numerical Algorithms*, section 3.1). The constant 1000 covers
        the few steps that compute a term; the tangent may enlarge their error 20 times.
        """
        rows, components = self._teacher.shape
        steps = min(rows, _CHUNK) + rows / _CHUNK + components + 1000
        return 2 * torch.finfo(self._mean.dtype).eps * steps * (rows * largest + multiplier)


@dataclass(frozen=True)
class _Blocks:
    r"""Moments of blocks of rows.

    Attributes:
        moments: :math:`\sum_i T_{ik} (1, \hat g_i, \hat g_i^2)`, shape ``(K, B, 3)``.
        smallest: the smallest score, shape ``(B,)``.
    """

    moments: Tensor
    smallest: Tensor

    @classmethod
    def of(cls, teacher: Tensor, scores: Tensor, sizes: Tensor) -> "_Blocks":
        powers = torch.stack([torch.ones_like(scores), scores, scores.square()], dim=1)
        blocks = sizes.tolist()
        moments = [part.T @ power for part, power in zip(teacher.split(blocks), powers.split(blocks), strict=True)]
        return cls(torch.stack(moments, dim=1), torch.stack([part.min() for part in scores.split(blocks)]))

    def multipliers(self, bets: Tensor, margins: Tensor) -> Tensor:
        r"""About :math:`\sum_i \lambda_i / (1 + \lambda_i (\hat g_i - m_j))`, to second order, shape ``(J,)``."""
        rows, first, second = (moment[:, None] for moment in self.moments.sum(dim=0).unbind(dim=1))
        squares = second - 2 * margins * first + margins**2 * rows
        return (bets * (rows - bets * (first - margins * rows) + bets**2 * squares)).sum(dim=0)

    def concave_parts(self, bets: Tensor, shifts: Tensor) -> Tensor:
        """Lower bounds on every ``A_k``, for each :math:`d - m_j` of ``shifts``, shape ``(K, points, J)``."""
        bets = bets[:, None]  # (B, 1, J)
        curvatures = _curvatures(bets * (self.smallest[:, None, None] + shifts)) * bets**2
        factors = bets * shifts - curvatures * shifts**2, bets - 2 * curvatures * shifts, -curvatures
        parts = (moment @ factor.flatten(1) for moment, factor in zip(self.moments.unbind(2), factors, strict=True))
        return torch.stack(tuple(parts)).sum(dim=0).unflatten(1, shifts.shape)


def _curvatures(smallest: Tensor) -> Tensor:
    r"""The smallest ``kappa`` with :math:`\psi(x) \ge x - \kappa x^2` for all :math:`x \ge y`, for ``y`` up to -0.001.

    Let :math:`f(x) = x - \psi(x)`. From ``-c`` on, :math:`f(x) / x^2 = \int_0^1 (1 - t) / (1 + t x)^2 dt` falls with
    ``x``. Below ``-c``, ``f`` is linear, and :math:`f(x) / x^2` is largest at :math:`2 (f(-c) / s - c)`, where
    :math:`s = c / (1 - c)`.
    """
    values = smallest.clamp(min=_STEEPEST, max=-1e-3)
    near = values.clamp(min=-CAP)
    return (values - torch.log1p(near) - (values - near) / (1 - CAP)) / values.square()


def _points(smallest: float, largest: float, width: float) -> Tensor:
    """Ends of cells that cover an interval around 0; the cells are about ``width`` wide near 0 and grow outwards."""
    first, last = math.asinh(smallest / width), math.asinh(largest / width)
    left = torch.linspace(first, 0, math.ceil(-first) + 1, dtype=torch.float64)
    right = torch.linspace(0, last, math.ceil(last) + 1, dtype=torch.float64)
    return width * torch.cat([left[:-1], right]).sinh()
