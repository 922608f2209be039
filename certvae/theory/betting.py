r"""Lower confidence bound on the population's margin by betting, with an unknown average teacher.

Notation: independent rows :math:`i = 1..n` with scores :math:`a_i = \sum_k T_{ik} \log S_{ik}`; average teacher
:math:`\bar T` of the population, :math:`\hat T` of the sample. For any ``q`` on the simplex with
:math:`q_k \ge \epsilon_T / K` let

.. math:: g_i(q) = a_i - \sum_k T_{ik} \log q_k, \qquad K_n(m, q) = \prod_i (1 + \lambda_i(m) (g_i(q) - m)).

The bet :math:`\lambda_i(m) \ge 0` uses the rows before ``i`` only. So at the true margin and average
:math:`K_n(M, \bar T)` is the last value of a nonnegative martingale that starts at 1, and is at least
:math:`1/\alpha` with probability at most :math:`\alpha`. The bound excludes every ``m`` with
:math:`\min_q K_n(m, q) \ge 1/\alpha`. No union bound over ``q`` is needed, because only the true ``q`` enters the
proof. The page *Mathematics* has the complete proof.

:func:`bet_schedule` chooses the bets. They affect the width of the bound, not its validity.
:class:`~certvae.theory.wealth.WealthFloor` bounds :math:`\min_q \log K_n(m, q)` from below. :func:`betting` finds the
bound.

Sources: Waudby-Smith and Ramdas, 2023, https://arxiv.org/abs/2010.09686 (bounds by betting); Browne, 1999, *Reaching
goals by a deadline*, Advances in Applied Probability 31 (the bet); Voracek and Orabona, 2025,
https://arxiv.org/abs/2505.22422 (a goal and a deadline, for bounds). The treatment of an unknown average is ours.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from certvae.theory.wealth import CAP, WealthFloor, capped

__all__ = ["BetSchedule", "bet_schedule", "betting"]

_FEW = 200  # with fewer rows the bets do not depend on the margin
_EARLY = 0.3  # share of the rows that are read before the cells are chosen
_WARM_UP, _GROWTH = 8, 1.25  # early blocks: rows of the first block, ratio of successive ends
_LATE_BLOCKS = 64
_SPACING, _REACH = 0.07, 3.0  # cells: spacing in standard errors of all rows, reach in those of the remaining rows
_MOST_CELLS = 300


def betting(
    teacher_probs: Tensor, scores: Tensor, alpha: float, *, teacher_floor: float, witness_floor: float
) -> float:
    r"""Rigorous lower bound on the margin in nats, valid for every ``n``; close to the normal bound for many rows.

    Assumes independent draws from one population. Their order and number, the teacher and the witness must be fixed
    before the values are seen, with :math:`T_{ik} \ge \epsilon_T / K` and :math:`S_{ik} \ge \epsilon_S / K`. Another
    order of the rows gives another valid bound. A smaller ``alpha`` can, in rare cases, give a higher bound.

    Args:
        teacher_probs: :math:`T`, float64, shape ``(n, K)``. Rows sum to 1.
        scores: :math:`a_i` in nats, float64, shape ``(n,)``. Each may be a mean over draws of the row's code.
        alpha: allowed error probability, in (0, 1).
        teacher_floor: :math:`\epsilon_T`, in (0, 1).
        witness_floor: :math:`\epsilon_S`, in (0, 1).

    Returns:
        Lower bound in nats, at most the plug-in margin. With too few rows it is :math:`\log(\epsilon_S / K)` less
        1e-9, which no score and no margin can be below.

    Raises:
        ValueError: if shapes do not agree, ``alpha`` or a floor is not in (0, 1), or a score is below
            :math:`\log(\epsilon_S / K)`.
    """
    lowest = _check(teacher_probs, scores, alpha, teacher_floor, witness_floor)
    schedule = bet_schedule(teacher_probs, scores, alpha, lowest)
    wealth = WealthFloor(teacher_probs, scores, teacher_floor, lowest)
    quick = wealth.at_cells(schedule.sizes, schedule.cell_ends, schedule.bets).tolist()
    goal = -math.log(alpha)
    excluded = min(lowest, wealth.margin)
    ends = schedule.cell_ends.tolist()
    for cell, end in enumerate([*ends, math.inf]):  # the last cell has no upper end
        if end < wealth.margin and quick[cell] >= goal:
            excluded = end
            continue
        bets, limit = schedule.row_bets(min(cell, len(ends) - 1)), min(end, wealth.margin)
        over = wealth.at(limit, bets) - goal
        if over < 0 and cell == 0:
            return _bisect(wealth, bets, goal, excluded, limit)
        if over < 0:
            return _false_position(wealth, bets, goal, excluded, limit, over)
        excluded = limit
        if end >= wealth.margin:
            break
    return excluded


def _check(teacher: Tensor, scores: Tensor, alpha: float, teacher_floor: float, witness_floor: float) -> float:
    """Check the arguments; returns the lowest score that the floors allow, less 1e-9 for rounding."""
    if teacher.ndim != 2 or scores.shape != teacher.shape[:1] or len(scores) == 0 or teacher.shape[1] < 2:
        raise ValueError(
            "`teacher_probs` must have the shape (n, K) and `scores` (n,), with n >= 1 and K >= 2, got "
            f"{tuple(teacher.shape)} and {tuple(scores.shape)}."
        )
    for name, value in (("alpha", alpha), ("teacher_floor", teacher_floor), ("witness_floor", witness_floor)):
        if not 0 < value < 1:
            raise ValueError(f"`{name}` must be between 0 and 1, got {value}.")
    lowest = math.log(witness_floor) - math.log(teacher.shape[1]) - 1e-9
    if not float(scores.min()) >= lowest:
        raise ValueError(
            f"`scores` must be at least log(witness_floor / K) = {lowest:.6g}, got {float(scores.min()):.6g}. Mix the "
            "floor into the witness before its logarithm is taken."
        )
    return lowest


def _closest(wealth: WealthFloor, low: float) -> float:
    """How close a search for the bound comes: a thousandth of the width, nats."""
    return 1e-3 * (wealth.margin - low) + 1e-9


def _bisect(wealth: WealthFloor, bets: Tensor, goal: float, low: float, high: float) -> float:
    """The largest margin that is found to be excluded in the first cell, else ``low``; ``high`` is not excluded.

    Near the lowest score the cap is loose, and there the floor of the wealth need not fall as the margin grows.
    """
    while high - low > _closest(wealth, low):
        middle = (low + high) / 2
        if wealth.at(middle, bets) >= goal:
            low = middle
        else:
            high = middle
    return low


def _false_position(wealth: WealthFloor, bets: Tensor, goal: float, low: float, high: float, below: float) -> float:
    """The largest margin that is found to be excluded in a later cell, where the wealth falls as the margin grows.

    By false position in the Illinois variant (Dowell and Jarratt, 1971, *A modified regula falsi method for computing
    the root of an equation*, BIT 11). The wealth at ``high`` is ``below`` nats over the goal: negative.
    """
    above = wealth.at(low, bets) - goal
    if above < 0:
        return low
    moved = 0  # 1: the last step raised `low`; -1: it lowered `high`
    while high - low > (most := _closest(wealth, low)):
        crossing = low + (high - low) * above / max(above - below, 1e-300)
        middle = max(crossing - most / 2, low + most / 2)
        over = wealth.at(middle, bets) - goal
        if over >= 0:
            low, above, below, moved = middle, over, below / 2 if moved > 0 else below, 1
        else:
            high, below, above, moved = middle, over, above / 2 if moved < 0 else above, -1
    return low


@dataclass(frozen=True)
class BetSchedule:
    r"""The bets on each row, as a function of the tested margin ``m``.

    Cells :math:`(-\infty, m_1], (m_1, m_2], \dots` divide the line of margins; the last has no upper end. Before the
    cap, all margins in a cell have the same bets.

    Attributes:
        sizes: number of rows of each block, shape ``(B,)``.
        cell_ends: :math:`m_j` in nats, increasing, shape ``(J,)``.
        bets: one bet for each block of rows and each cell of margins, per nat, shape ``(B, J)``.
    """

    sizes: Tensor
    cell_ends: Tensor
    bets: Tensor

    def row_bets(self, cell: int) -> Tensor:
        """The bets of a cell, one for each row, shape ``(n,)``."""
        return self.bets[:, cell].repeat_interleave(self.sizes)


def bet_schedule(
    teacher: Tensor, scores: Tensor, alpha: float, lowest: float, margin: float | None = None
) -> BetSchedule:
    r"""Bets that depend on earlier rows only and aim at the wealth :math:`1/\alpha` after the last row.

    The rows are divided into blocks. The bets of a block are computed from the rows before it. If the scores were a
    Brownian motion with deviation :math:`\sigma` a row, the following bet would lead from wealth ``W`` to the goal
    ``G`` within ``r`` rows with the highest probability:

    .. math:: \lambda = \frac{\varphi(u)}{p\, \sigma \sqrt r}, \qquad p = W / G, \quad u = \Phi^{-1}(p)

    (Browne, 1999). The bound would then be the normal one, :math:`z_{1-\alpha}` standard errors wide. Constant bets
    need :math:`\sqrt{2 \log(1/\alpha)}` standard errors. The wealth depends on ``m``, so the bets do too, cell by cell.
    The cells are chosen after the first 30 % of the rows, whose bets do not depend on ``m``.

    Args:
        teacher: :math:`T`, shape ``(n, K)``.
        scores: :math:`a_i` in nats, shape ``(n,)``.
        alpha: allowed error probability.
        lowest: :math:`\log(\epsilon_S / K)`.
        margin: if given, only the cell that contains it is returned, nats.
    """
    rows, components = teacher.shape
    early, late = _blocks(rows)
    sizes = torch.tensor([block.stop - block.start for block in (*early, *late)], device=teacher.device)
    goal = -math.log(alpha)
    earlier = _sums_before(teacher, sizes)
    opening = _opening_bets(teacher, scores, early, earlier[: len(early)], goal)
    if not late:
        return BetSchedule(sizes, scores.new_tensor([math.inf]), opening[:, None])
    first = late[0].start
    past = _Past.of(teacher[:first], scores[:first], earlier[len(early)])
    typical = min(math.sqrt(2 * goal / rows) / past.deviation, CAP / max(past.margin - lowest, 1e-12))
    ends = _lay_cells(teacher[:first], past, rows, typical, goal, lowest)
    if margin is not None:
        ends = ends[min(int((ends < margin).sum()), len(ends) - 1)][None]
    pilot = _Pilot(ends, components, lowest)
    for block, bet in zip(early, opening, strict=True):
        pilot.add(teacher[block], scores[block], past.mean, bet)
    goal += 0.03 + 0.3 * typical + 0.3 * typical**2 * components  # approximates the pilot's error
    bets = []
    for block, total in zip(late, earlier[len(early) :], strict=True):
        if block.start > 1.05 * past.rows:  # an estimate reads all rows so far, so it is not made at every block
            past = _Past.of(teacher[: block.start], scores[: block.start], total)
        bets.append(_browne_bet(pilot.log_wealth(), goal, past.deviation, rows - block.start))
        pilot.add(teacher[block], scores[block], past.mean, bets[-1])
    opening = opening[:, None].expand(-1, len(pilot.cell_ends))
    return BetSchedule(sizes, pilot.cell_ends, torch.cat([opening, torch.stack(bets)]))


def _blocks(rows: int) -> tuple[list[slice], list[slice]]:
    """Blocks before and after the cells are chosen; they first grow, then shrink towards the last row."""
    first = round(_EARLY * rows) if rows >= _FEW else rows
    early, end = {0, first}, float(_WARM_UP)
    while end < first:
        early.add(int(end))
        end *= _GROWTH
    count = min(_LATE_BLOCKS, 1 + rows // 16)
    late = {first + round((rows - first) * (1 - (1 - block / count) ** 2)) for block in range(count + 1)}
    return [slice(*ends) for ends in pairwise(sorted(early))], [slice(*ends) for ends in pairwise(sorted(late))]


def _sums_before(teacher: Tensor, sizes: Tensor) -> Tensor:
    """For each block the sum of all rows before it, shape ``(B, K)``."""
    sums = torch.stack([block.sum(dim=0) for block in teacher.split(sizes.tolist())])
    return torch.cat([torch.zeros_like(sums[:1]), sums.cumsum(dim=0)[:-1]])


def _opening_bets(teacher: Tensor, scores: Tensor, blocks: list[slice], earlier: Tensor, goal: float) -> Tensor:
    """Bets that do not depend on the margin, as if each block were the first, shape ``(blocks,)``."""
    pasts = [
        _Past.of(teacher[: block.start], scores[: block.start], total)
        for block, total in zip(blocks, earlier, strict=True)
    ]
    return torch.cat([_browne_bet(scores.new_zeros(1), goal, past.deviation, len(scores)) for past in pasts])


def _browne_bet(log_wealth: Tensor, log_goal: float, deviation: float, remaining: int) -> Tensor:
    """The bet of :func:`bet_schedule`; 0 once the goal is reached."""
    share = (log_wealth - log_goal).exp().clamp(min=1e-300, max=1)
    density = (-torch.special.ndtri(share).square() / 2).exp() / math.sqrt(2 * math.pi)
    bet: Tensor = density / share / (deviation * math.sqrt(remaining))
    return bet


@dataclass(frozen=True)
class _Past:
    """Statistics of earlier rows: their number, average teacher, plug-in margin and deviation of plug-in scores.

    One pseudo-row, a nat away from the margin, keeps the deviation above 0 if rows are few or equal.
    """

    rows: int
    mean: Tensor
    margin: float
    deviation: float

    @classmethod
    def of(cls, teacher: Tensor, scores: Tensor, total: Tensor) -> "_Past":
        """Of the rows in ``teacher`` and ``scores``; ``total`` is the sum of ``teacher``, shape ``(K,)``."""
        rows, components = teacher.shape
        if rows == 0:
            return cls(0, teacher.new_full((components,), 1 / components), 0.0, 1.0)
        mean = total / rows
        plugin = scores - teacher @ mean.log()
        deviation = math.sqrt((1 + rows * float(plugin.var(correction=0))) / (rows + 1))
        return cls(rows, mean, float(plugin.mean()), deviation)


def _lay_cells(teacher: Tensor, past: _Past, rows: int, bet: float, goal: float, lowest: float) -> Tensor:
    """Ends of cells around the expected bound, estimated from the first rows, nats, shape ``(J,)``.

    To first order the plug-in margin of ``s`` rows is ``dispersion / 2s`` nats below the population's.
    """
    first = len(teacher)
    dispersion = float((torch.linalg.vector_norm(teacher, dim=0).square() / (first * past.mean)).sum()) - 1
    margin = past.margin + dispersion / 2 * (1 / first - 1 / rows)
    width = goal / (rows * bet) + bet * past.deviation**2 / 2  # with constant bets
    reach = _REACH * past.deviation * math.sqrt(1 / first - 1 / rows)
    spacing = _SPACING * past.deviation / math.sqrt(rows)
    low = max(margin - 1.1 * width - reach, lowest + spacing)
    high = max(margin - 0.5 * width + reach, low + spacing)
    count = min(_MOST_CELLS, 1 + math.ceil((high - low) / spacing))
    return torch.linspace(low, high, count, dtype=teacher.dtype, device=teacher.device)


class _Pilot:
    r"""An estimate of the log-wealth at the end of each cell, at the least favorable average teacher.

    .. math:: \log K(m_j, q) \approx C_j - \sum_k w_{kj} \log q_k,

    expanded around the average teacher of the rows before each block, is smallest at :math:`q \propto w_j`. It only
    guides the bets; the proof does not use it.
    """

    def __init__(self, cell_ends: Tensor, components: int, lowest: float) -> None:
        self.cell_ends = cell_ends
        self._lowest = lowest
        self._constant = torch.zeros_like(cell_ends)
        self._weights = cell_ends.new_zeros(components, len(cell_ends))

    def add(self, teacher: Tensor, scores: Tensor, mean: Tensor, bets: Tensor) -> None:
        """Add a block of rows, with the bet of each cell."""
        bets = capped(bets, self.cell_ends, self._lowest)
        gains = bets * ((scores - teacher @ mean.log())[:, None] - self.cell_ends)
        weights = teacher.T @ (bets / (1 + gains))
        self._constant += gains.log1p().sum(dim=0) + mean.log() @ weights
        self._weights += weights

    def log_wealth(self) -> Tensor:
        """The estimate in nats, shape ``(J,)``."""
        worst = self._weights / self._weights.sum(dim=0)
        return self._constant - (self._weights * worst.log()).sum(dim=0)
