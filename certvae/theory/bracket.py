"""Lower and upper bounds on the information in a code about its input. Proofs are in docs/information.md."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from scipy.stats import t as student
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from certvae.theory.arguments import as_float64, as_number, as_tensor, as_whole_number
from certvae.theory.contrast import CHUNK, Contrast, PairDensity, contrast, gaussian_contrast
from certvae.theory.fixed_bets import lower_bound_of_mean, upper_bound_of_mean
from certvae.theory.posterior import Posterior
from certvae.theory.row_noise import as_keys, row_uniform
from certvae.theory.self_bounding import information_growth, information_step, lower_bound_of_expectation

__all__ = ["InformationBracket", "information_bracket", "information_bracket_of"]

BLOCK = 1024
MAX_LOG_VARIANCE = 500.0
SEED_OFFSET = 0x9E3779B9  # the noise must differ from a data set that was made with the same small seed
AT_CAP = 0.1  # nats: a lower bound this close to the cap is reported as limited by it
LowerMethod = Literal["proved", "normal"]


@dataclass(frozen=True)
class InformationBracket:
    r"""Lower and upper bounds on the information :math:`I(X; Z)` that a code carries about its input, in nats.

    Attributes:
        lower: lower bound for the population, with ``confidence``. Proved for independent rows if ``lower_proved``,
            otherwise an approximation for many rows.
        upper: upper bound for the population, with ``confidence``; an approximation for many rows. No upper bound can
            be proved for every population. Infinite if neither the other rows nor a rate limit it.
        rows_lower: lower bound for this data set, ``X`` uniform on its rows, with ``confidence`` over the draws.
            Proved.
        rows_upper: upper bound for this data set. Proved.
        lower_estimate: :math:`L_B`; its expectation is at most the population's information.
        upper_estimate: the smaller of :math:`U_B` and ``rate``; the expectation of each is at least the population's
            information.
        rate: average :math:`KL(q(z|x) \| p(z))`, or None.
        cap: the largest possible ``lower_estimate``, the logarithm of the number of rows in a block.
        rows: number of rows.
        blocks: number of blocks.
        confidence: of each bound.
        lower_proved: whether ``lower`` holds for any number of rows.
    """

    lower: float
    upper: float
    rows_lower: float
    rows_upper: float
    lower_estimate: float
    upper_estimate: float
    rate: float | None
    cap: float
    rows: int
    blocks: int
    confidence: float
    lower_proved: bool

    @property
    def at_cap(self) -> bool:
        """Whether the block size limits the lower bound."""
        return self.lower_estimate > self.cap - AT_CAP

    def to_dict(self) -> dict[str, float | int | bool | None]:
        """All fields as plain values; an infinite bound becomes None."""
        values = asdict(self) | {"at_cap": self.at_cap}
        return {name: None if value in (math.inf, -math.inf) else value for name, value in values.items()}

    def span(self) -> str:
        """The population's bounds in words."""
        most = "" if self.upper == math.inf else f"at most {self.upper:.3g} nats"
        if self.at_cap:
            limit = f"near {self.cap:.2f}, the most that blocks of {self.rows // self.blocks:,} rows can show"
            return f"at least {self.lower:.3g} nats, {limit}{', and ' if most else ''}{most}"
        if self.lower == 0:
            return most or "an unknown number of nats"
        return (
            f"between {_three(self.lower)} and {_three(self.upper)} nats" if most else f"at least {self.lower:.3g} nats"
        )

    def line(self) -> str:
        """The population's bounds in one sentence."""
        confidence = f"{100 * self.confidence:.4g} % confidence"
        return f"the code carries {self.span()} ({confidence}, {self.rows:,} rows)"


def _three(value: float) -> str:
    """Three digits that count, with their zeros: 2.00 beside 1.03."""
    return f"{value:#.3g}".rstrip(".")


def information_bracket(
    mean: Any,
    log_variance: Any,
    *,
    rate: Any = None,
    keys: Any = None,
    confidence: float = 0.95,
    block: int = BLOCK,
    method: LowerMethod = "proved",
    seed: int = 0,
    chunk: int = CHUNK,
) -> InformationBracket:
    r"""Bounds on :math:`I(X;Z)` in nats for a diagonal Gaussian code, from one draw a row.

    Time grows as rows times ``block``. A larger block raises the cap and hardly changes the width. The bounds also hold
    for one block of all rows.

    Args:
        mean: of the posterior, shape ``(N, latent_dim)``.
        log_variance: of the posterior, same shape.
        rate: :math:`KL(q(z|x) \| p(z))` of each row in nats for the model's prior, shape ``(N,)``. None: computed for a
            standard normal prior, which gives a valid upper bound for every model.
        keys: one integer a row, which selects the row's noise, shape ``(N,)``; None: the row's position. With keys the
            order of the rows does not matter.
        confidence: of each of the four bounds on its own, in (0, 1).
        block: largest number of rows that are compared with each other, from 3.
        method: of ``lower``: ``"proved"`` holds for any number of rows; ``"normal"`` is narrower and needs many rows.
        seed: of the draws.
        chunk: approximate number of values held in memory while rows are compared.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if there are fewer than 2 rows, ``block`` is below 3, a value is not finite or out of range, or
            shapes do not match.
    """
    posterior = _checked(mean, log_variance)
    rows = len(posterior.mean)
    identity = torch.arange(rows) if keys is None else as_keys(keys).cpu()
    _check_settings(rows, confidence, block, method)
    if len(identity) != rows:
        raise ValueError(f"`keys` must hold one integer for each of {rows} rows, got {len(identity)}.")
    rates = posterior.kl_to_standard_normal().sum(dim=1) if rate is None else _rates(rate, rows)
    order = row_uniform(identity, 1, as_whole_number(seed, "seed", 0) + 1)[:, 0].argsort()
    centered = Posterior(posterior.mean - posterior.mean.mean(dim=0), posterior.log_variance)
    parts = []
    for place in order.tensor_split(-(-rows // block)):
        few = Posterior(*(value[place.to(value.device)] for value in centered))
        parts.append(gaussian_contrast(few, identity[place], seed, as_whole_number(chunk, "chunk", 1)))
    return _bracket(parts, rates[order.to(rates.device)], True, confidence, method)


def information_bracket_of(
    posterior: Any,
    prior: Any = None,
    *,
    confidence: float = 0.95,
    method: LowerMethod = "proved",
    seed: int = 0,
    chunk: int = CHUNK,
) -> InformationBracket:
    """Bounds in nats on the information of any code with samples and a density: a flow, a mixture, categories.

    All rows form one block. The global random state does not change.

    Args:
        posterior: for N rows: a ``torch.distributions`` object whose batch shape starts with N, or any object with the
            same two methods. ``sample()`` returns N codes. ``log_prob(codes)`` takes codes ``(n, 1, ...)`` and returns
            ``(n, N)``, or ``(n, N, ...)`` whose further axes are summed.
        prior: one distribution for all rows, N(0, 1) or any other, with ``log_prob(codes)``. The rate is computed in
            closed form where torch has one, otherwise from the draws. None: no rate, so only the other rows give an
            upper bound.
        confidence: of each of the four bounds on its own, in (0, 1).
        method: see :func:`information_bracket`.
        seed: of the draws.
        chunk: approximate number of values held in memory while rows are compared.

    Raises:
        ValueError: if there are fewer than 2 rows, densities do not have one number for each pair, or a row's own
            density is not finite.
    """
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(as_whole_number(seed, "seed", 0) + SEED_OFFSET)
        draws = posterior.sample()
    rows = len(draws)
    _check_settings(rows, confidence, BLOCK, method)
    density = _pair_density(posterior, draws, as_whole_number(chunk, "chunk", 1))
    places = torch.arange(rows, device=draws.device)
    own = torch.cat([density(part)[torch.arange(len(part)), part] for part in places.split(max(1, chunk // rows))])
    if not bool(own.isfinite().all()):
        raise ValueError("`posterior` must give each row's own draw a finite log-density, got NaN or infinity.")
    rates, exact = _rates_of(posterior, prior, draws, own)
    return _bracket([contrast(density, own, chunk)], rates, exact, confidence, method)


def _pair_density(posterior: Any, draws: Tensor, chunk: int) -> PairDensity:
    rows, size = len(draws), max(1, draws[0].numel())

    def density(part: Tensor) -> Tensor:
        few = max(1, chunk // (rows * size))
        table = as_float64(torch.cat([_log_prob(posterior, draws[some].unsqueeze(1)) for some in part.split(few)]))
        if table.shape[:2] != (len(part), rows):
            raise ValueError(
                f"`posterior.log_prob` must give a number for each of {len(part)} codes and {rows} rows, got "
                f"{tuple(table.shape)}."
            )
        return table.flatten(start_dim=2).sum(dim=2) if table.ndim > 2 else table

    return density


@torch.no_grad()
def _log_prob(posterior: Any, codes: Tensor) -> Tensor:
    try:
        return posterior.log_prob(codes)
    except ValueError as error:
        if "within the support" not in str(error):
            raise
        raise ValueError(
            "`posterior.log_prob` must return -inf for codes outside a row's support, but raises an error. Construct "
            f"the {type(posterior).__name__} and its parts with validate_args=False."
        ) from None


def _rates_of(posterior: Any, prior: Any, draws: Tensor, own: Tensor) -> tuple[Tensor | None, bool]:
    if prior is None:
        return None, False
    with torch.no_grad():
        closed = _closed_rates(posterior, prior)
        known = as_float64(prior.log_prob(draws) if closed is None else closed).reshape(len(draws), -1).sum(dim=1)
    rates = own - known if closed is None else known
    if bool(rates.isnan().any()):
        raise ValueError("`prior` must give every code a log-density, or a divergence, that is a number, got NaN.")
    return rates, closed is not None


def _closed_rates(posterior: Any, prior: Any) -> Tensor | None:
    if not (isinstance(posterior, Distribution) and isinstance(prior, Distribution)):
        return None
    try:
        return kl_divergence(posterior, prior)
    except NotImplementedError:
        return None


def _checked(mean: Any, log_variance: Any) -> Posterior:
    values = [as_float64(as_tensor(mean, "mean")), as_float64(as_tensor(log_variance, "log_variance"))]
    if values[0].ndim != 2 or values[0].shape != values[1].shape or values[0].shape[1] == 0:
        shapes = [tuple(value.shape) for value in values]
        raise ValueError(f"`mean` and `log_variance` must both have shape (N, latent_dim), got {shapes}.")
    for name, value in zip(("mean", "log_variance"), values, strict=True):
        if not bool(value.isfinite().all()):
            raise ValueError(f"`{name}` must be finite, got NaN or infinity: the model has diverged.")
    if float(values[1].abs().max() if values[1].numel() else 0.0) > MAX_LOG_VARIANCE:
        raise ValueError(f"`log_variance` must lie within +-{MAX_LOG_VARIANCE:g}, got {values[1].abs().max():.4g}.")
    return Posterior(*values)


def _rates(rate: Any, rows: int) -> Tensor:
    rates = as_float64(as_tensor(rate, "rate"))
    if rates.shape != (rows,) or not bool(rates.isfinite().all()):
        raise ValueError(f"`rate` must hold a finite number for each of {rows} rows, got {tuple(rates.shape)}.")
    return rates


def _check_settings(rows: int, confidence: float, block: int, method: str) -> None:
    if not 0 < as_number(confidence, "confidence") < 1:
        raise ValueError(f"`confidence` must lie between 0 and 1, got {confidence}.")
    if method not in ("proved", "normal"):
        raise ValueError(f"`method` must be 'proved' or 'normal', got {method!r}.")
    as_whole_number(block, "block", 3)
    if rows < 2:
        raise ValueError(f"there must be at least 2 rows, to compare one with another, got {rows}; give more.")


def _bracket(
    parts: list[Contrast], rates: Tensor | None, exact: bool, confidence: float, method: str
) -> InformationBracket:
    """Compute the four bounds; ``rates`` must be in the order of the parts."""
    whole, sizes, error = (
        Contrast(*map(torch.cat, zip(*parts, strict=True))),
        [len(p.lower) for p in parts],
        1 - confidence,
    )
    rows = sum(sizes)
    lower_estimate, rate = float(whole.lower.mean()), None if rates is None else float(rates.mean())
    limits = [_normal_upper(whole.upper, whole.upper_influence, error if rates is None else error / 2)]
    if rates is not None:
        limits.append(_normal_upper(rates, rates, error / 2))
    if method == "proved":
        lower = _population_lower(_draws_lower(whole.lower, error / 2), sizes, error / 2)
    else:
        lower = -_normal_upper(-whole.lower, -whole.lower_influence, error)
    # A row determines its block, and the block carries at most the entropy of the block sizes.
    between = -sum(size / rows * math.log(size / rows) for size in sizes)
    rows_limits = [math.log(rows), upper_bound_of_mean(whole.lower, math.log(max(sizes)), error) + between]
    if rate is not None and exact:
        rows_limits.append(rate)
    upper_estimate = float(whole.upper.mean())
    return InformationBracket(
        lower=max(0.0, lower),
        upper=max(0.0, *limits) if len(limits) == 1 else max(0.0, min(limits)),
        rows_lower=max(0.0, _draws_lower(whole.lower, error)),
        rows_upper=max(0.0, min(rows_limits)),
        lower_estimate=lower_estimate,
        upper_estimate=upper_estimate if rate is None else min(upper_estimate, rate),
        rate=rate,
        cap=sum(size * math.log(size) for size in sizes) / rows,
        rows=rows,
        blocks=len(sizes),
        confidence=confidence,
        lower_proved=method == "proved",
    )


def _normal_upper(values: Tensor, influence: Tensor, error: float) -> float:
    r"""Student's upper bound on the expectation of an average; infinite if the average is infinite.

    If large values are rare, a small average has a small standard error, and Student's bound is too low too often. So
    the quantile q is raised by :math:`\gamma (2 q^2 + 1) / (6 \sqrt n)` for a skewness :math:`\gamma > 0`, the next
    term of the expansion. Source: Hall, 1992, *The Bootstrap and Edgeworth Expansion*, section 2.6.
    """
    average, rows = float(values.mean()), len(values)
    if not math.isfinite(average):
        return math.inf
    deviation = float(influence.std())
    skewness = float((influence - influence.mean()).pow(3).mean()) / deviation**3 if deviation > 0 else 0.0
    quantile = float(student.ppf(1 - error, rows - 1))
    quantile += max(0.0, skewness) * (2 * quantile**2 + 1) / (6 * math.sqrt(rows))
    return average + quantile * deviation / math.sqrt(rows)


def _draws_lower(summands: Tensor, error: float) -> float:
    """Lower bound, over the draws, on the blocks' information; a mixture keeps the summands above a floor."""
    floor = min(0.5, 10 / len(summands))  # lowers the bound by about as much as the sampling error does
    kept = torch.logaddexp(summands + math.log1p(-floor), torch.full_like(summands, math.log(floor)))
    return lower_bound_of_mean(kept, math.log(floor), error)


def _population_lower(information: float, sizes: list[int], error: float) -> float:
    r"""Lower bound for the population from that for the blocks, :math:`f = \sum_g B_g I_g`, for independent rows."""
    rows, step = sum(sizes), max(map(information_step, sizes))
    value = rows * max(0.0, information)
    return lower_bound_of_expectation(value, step, information_growth(min(sizes)), rows, error) / rows
