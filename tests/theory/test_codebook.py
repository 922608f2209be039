"""Use and information of discrete codes, against closed forms, brute force and simulated populations."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from torch import Tensor

from certvae import codebook_information
from certvae.theory.codebook import information_of_sums
from certvae.theory.codebook_sums import codebook_sums
from certvae.theory.information import entropy
from certvae.theory.self_bounding import information_growth, information_step

SEEDS = st.integers(0, 2**16)


def random_probs(seed: int, *shape: int, sharpness: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(*shape, generator=generator, dtype=torch.float64)).softmax(dim=-1)


def random_indices(seed: int, size: int, *shape: int) -> Tensor:
    return torch.randint(size, shape, generator=torch.Generator().manual_seed(seed))


def figures(found: Any) -> Any:
    return pytest.approx(found.to_dict(), abs=1e-9)


@pytest.mark.parametrize("size", [2, 7, 512])
def test_every_code_equally_often_carries_the_logarithm_of_the_size(size: int) -> None:
    found = codebook_information(torch.arange(20 * size) % size, size)
    assert found.estimate == pytest.approx(math.log(size))
    assert found.perplexity == pytest.approx(size)
    assert found.lower <= math.log(size) == pytest.approx(found.upper)
    assert (found.used, found.dead, found.rows, found.codes) == (size, 0, 20 * size, 1)
    assert found.rate == pytest.approx(math.log(size))


def test_one_code_for_every_row_carries_nothing() -> None:
    found = codebook_information(torch.full((5000,), 3), 16)
    assert (found.lower, found.estimate, found.perplexity, found.used, found.dead) == (0, 0, 1, 1, 15)
    assert found.upper < 0.02


def test_distributions_that_do_not_depend_on_the_row_carry_nothing_whatever_their_rate() -> None:
    found = codebook_information(torch.tensor([0.7, 0.2, 0.1]).repeat(5000, 1))
    assert found.rate > 0.29
    assert (found.lower, found.used) == (0, 1)
    assert found.estimate == pytest.approx(0, abs=1e-12)
    assert found.upper < 0.02
    assert found.perplexity == pytest.approx(math.exp(0.8018), abs=1e-3)


def test_a_noisy_channel_has_its_closed_form() -> None:
    """Four inputs whose code is right in 7 of 10 cases: log 4 less the entropy of an answer."""
    probs = (0.6 * torch.eye(4) + 0.1)[torch.arange(4000) % 4]
    truth = math.log(4) + 0.7 * math.log(0.7) + 0.3 * math.log(0.1)
    for found in (codebook_information(probs), codebook_information(probs.log() + 5.0, kind="logits")):
        assert found.estimate == pytest.approx(truth, abs=1e-6)
        assert found.rate == pytest.approx(truth, abs=1e-6)
        assert found.lower <= truth <= found.upper < truth + 0.05


@pytest.mark.slow
@given(rows=st.integers(2, 30), size=st.integers(2, 6), codes=st.integers(1, 5), each=st.booleans(), seed=SEEDS)
def test_sure_distributions_are_indices(rows: int, size: int, codes: int, each: bool, seed: int) -> None:
    indices, positions = random_indices(seed, size, rows, codes), "each" if each else "shared"
    sure = codebook_sums(torch.nn.functional.one_hot(indices, size).double(), axis=-1, positions=positions)  # type: ignore[arg-type]
    hard = codebook_sums(indices, size, kind="indices", positions=positions)  # type: ignore[arg-type]
    assert torch.allclose(sure.pack(), hard.pack(), atol=1e-9)
    soft, plain = information_of_sums(sure), information_of_sums(hard)
    assert (soft.estimate, soft.lower, soft.used) == pytest.approx((plain.estimate, plain.lower, plain.used))
    assert soft.upper >= plain.upper - 1e-9  # it shares its error probability with the rate


@pytest.mark.slow
@given(rows=st.integers(2, 40), size=st.integers(2, 6), seed=SEEDS, soft=st.booleans(), each=st.booleans())
def test_any_split_of_the_rows_gives_the_same(rows: int, size: int, seed: int, soft: bool, each: bool) -> None:
    codes = random_probs(seed, rows, 4, size) if soft else random_indices(seed, size, rows, 2, 3)
    arguments: Any = {"positions": "each" if each else "shared", "kind": None if soft else "indices"}
    arguments |= {"axis": -1} if soft else {"size": size}
    whole = codebook_sums(codes, **arguments)
    parts = [codebook_sums(part, **arguments) for part in codes.split(1 + seed % 7)]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    assert information_of_sums(total).to_dict() == figures(information_of_sums(whole))
    books, entries = whole.weights.shape
    again = type(whole).unpack(whole.pack(), entries, books, whole.codes, whole.soft)
    assert information_of_sums(again) == information_of_sums(whole)
    if not soft:
        assert torch.equal(total.weights, whole.weights)


def test_large_inputs_are_taken_in_pieces_of_the_same_value(monkeypatch: pytest.MonkeyPatch) -> None:
    probs = random_probs(0, 50, 3, 5)
    whole = codebook_information(probs, 5)
    monkeypatch.setattr("certvae.theory.codebook_sums.CHUNK", 1)
    assert codebook_information(probs, 5).to_dict() == figures(whole)


@pytest.mark.slow
@given(rows=st.integers(2, 12), size=st.integers(2, 5), codes=st.integers(1, 4), seed=SEEDS)
def test_figures_are_their_definitions(rows: int, size: int, codes: int, seed: int) -> None:
    """Brute force in numpy, over rows and positions."""
    probs = random_probs(seed, rows, codes, size).numpy()
    shared = codebook_information(probs, axis=2)
    each = codebook_information(probs, axis=2, positions="each")

    def nats(values: Any) -> float:
        return float(-(values * np.log(values)).sum())

    noise = sum(nats(q) for row in probs for q in row) / rows / codes
    assert shared.estimate == pytest.approx(max(0, nats(probs.mean(axis=(0, 1))) - noise), abs=1e-9)
    assert each.estimate == pytest.approx(np.mean([nats(q) for q in probs.mean(axis=0)]) - noise, abs=1e-9)
    assert shared.perplexity == pytest.approx(math.exp(nats(probs.mean(axis=(0, 1)))))
    assert shared.used == len(set(probs.argmax(axis=2).flatten()))
    assert each.used == sum(len(set(column)) for column in probs.argmax(axis=2).T)
    assert each.estimate <= shared.estimate + 1e-9  # concavity of the entropy
    assert (shared.codebooks, each.codebooks) == (1, codes)


@pytest.mark.slow
@given(rows=st.integers(2, 12), codes=st.integers(1, 4), size=st.integers(2, 4), seed=SEEDS)
def test_no_row_adds_more_than_the_step_and_all_of_them_not_more_than_the_growth(
    rows: int, codes: int, size: int, seed: int
) -> None:
    """The conditions of the two tails, for n times the information of rows, and of rows and positions."""
    probs = random_probs(seed, rows, codes, size, sharpness=6.0)
    step, growth = information_step(rows), information_growth(rows)
    kinds: list[tuple[Callable[[Tensor], float], float]] = [
        (lambda q: len(q) * float(entropy(q.mean(dim=(0, 1))) - entropy(q.mean(dim=1)).mean()), step),
        (
            lambda q: len(q) * float(entropy(q.mean(dim=(0, 1))) - entropy(q).mean()),
            step + math.log(min(size, codes)),
        ),
    ]
    for total, most in kinds:
        whole = total(probs)
        added = [whole - total(torch.cat([probs[:row], probs[row + 1 :]])) for row in range(rows)]
        assert min(added) >= -1e-9
        assert max(added) <= most + 1e-9
        assert sum(added) <= growth * whole + 1e-9


def test_a_row_unlike_all_others_adds_the_whole_step() -> None:
    indices = torch.tensor([1] + [0] * 9)
    whole = 10 * codebook_information(indices, 2).estimate
    assert whole == pytest.approx(information_step(10))


@pytest.mark.slow
@given(size=st.integers(2, 6), rows=st.integers(2, 12), seed=SEEDS)
def test_the_bias_is_at_most_what_the_page_says(size: int, rows: int, seed: int) -> None:
    """Of an index, by the binomial law of each count."""
    law = random_probs(seed, size).numpy()
    counts = np.arange(rows + 1)
    share = counts / rows
    terms = -share * np.log(np.maximum(share, 1e-300))
    expected = sum(float((binom.pmf(counts, rows, p) * terms).sum()) for p in law)
    truth = float(-(law * np.log(law)).sum())
    assert 0 <= truth - expected <= math.log1p((size - 1) / rows) + 1e-12


REPETITIONS = 250


def misses(draw: Callable[[int], Tensor], truth: float, **arguments: Any) -> tuple[int, int]:
    """How often the lower and the upper side fail, of 250 samples at 80 %."""
    found = [codebook_information(draw(seed), confidence=0.8, **arguments) for seed in range(REPETITIONS)]
    return sum(one.lower > truth + 1e-9 for one in found), sum(one.upper < truth - 1e-9 for one in found)


@pytest.mark.parametrize("rows", [5, 60])
@pytest.mark.parametrize("law", [[0.97, 0.01, 0.01, 0.01], [0.25] * 4, [0.5, 0.3, 0.15, 0.05], [1, 0, 0, 0]])
def test_bounds_of_an_index_hold(law: list[float], rows: int) -> None:
    """Both are proved, so that they fail far less often than they may."""
    probs = torch.tensor(law, dtype=torch.float64)

    def draw(seed: int) -> Tensor:
        return torch.multinomial(probs, rows, True, generator=torch.Generator().manual_seed(seed))

    assert max(misses(draw, float(entropy(probs)), size=4)) <= binom.ppf(0.999, REPETITIONS, 0.2)


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.02, 0.3, 0.75])
def test_bounds_of_a_distribution_hold(noise: float) -> None:
    """Four inputs, of unequal probability, through a symmetric channel."""
    inputs = torch.tensor([0.7, 0.1, 0.1, 0.1], dtype=torch.float64)
    channel = (1 - noise * 4 / 3) * torch.eye(4, dtype=torch.float64) + noise / 3
    truth = float(entropy(inputs @ channel) - inputs @ entropy(channel))

    def draw(seed: int) -> Tensor:
        return channel[torch.multinomial(inputs, 40, True, generator=torch.Generator().manual_seed(seed))]

    assert max(misses(draw, truth)) <= binom.ppf(0.999, REPETITIONS, 0.2)


@pytest.mark.parametrize("positions", ["shared", "each"])
@pytest.mark.parametrize("kind", ["constant", "copies", "independent"])
def test_bounds_of_several_codes_hold_for_all_of_a_row_together(kind: str, positions: str) -> None:
    """Six positions that hold the same for every input, one value six times, or a value of their own each."""
    truth = {"constant": 0.0, "copies": math.log(6), "independent": 6 * math.log(6)}[kind]

    def draw(seed: int) -> Tensor:
        if kind == "constant":
            return torch.arange(6).repeat(30, 1)
        codes = random_indices(seed, 6, 30, 1 if kind == "copies" else 6)
        return codes.expand(30, 6)

    low, high = misses(draw, truth, size=6, kind="indices", positions=positions)
    assert max(low, high) <= binom.ppf(0.999, REPETITIONS, 0.2)


def test_a_map_that_is_the_same_for_every_input_carries_nothing_however_many_codes_it_uses() -> None:
    """Its entropy over positions is log 6, which is no lower bound of anything."""
    found = codebook_information(torch.arange(6).repeat(1000, 1), 6, kind="indices")
    assert found.estimate == pytest.approx(math.log(6))
    assert found.lower == 0
    each = codebook_information(torch.arange(6).repeat(1000, 1), 6, kind="indices", positions="each")
    assert (each.estimate, each.lower) == (0, 0)
    assert each.upper < 0.4


def test_positions_with_codebooks_of_their_own_show_the_best_of_them() -> None:
    """One codebook that tells inputs apart, and three that do not."""
    codes = torch.zeros(5000, 4, dtype=torch.long)
    codes[:, 2] = torch.arange(5000) % 16
    found = codebook_information(codes, 16, positions="each")
    assert 2.5 < found.lower <= math.log(16) <= found.upper < 3.3
    assert (found.used, found.dead, found.codebooks) == (19, 45, 4)


def test_the_place_of_the_entries_is_found_or_asked_for() -> None:
    probs = random_probs(0, 20, 3, 4, 6)
    last = codebook_information(probs, 6)
    assert codebook_information(probs.movedim(-1, 1), 6) == last
    assert codebook_information(probs.movedim(-1, 2), axis=2) == last
    assert codebook_information(probs[:, 0, 0]).codes == 1
    with pytest.raises(
        ValueError, match="`axis` must be given for `codes` of shape .*: the axis of the entries, 1 or -1"
    ):
        codebook_information(probs)
    with pytest.raises(ValueError, match="`axis` must be given for `codes`"):
        codebook_information(random_probs(0, 5, 6, 6), 6)


def test_any_kind_of_integer_and_float_is_taken() -> None:
    indices = random_indices(0, 5, 100)
    expected = codebook_information(indices, 5)
    for given_codes in (indices.numpy(), indices.tolist(), indices.to(torch.uint8), indices.int()):
        assert codebook_information(given_codes, 5) == expected
    half = codebook_information(random_probs(0, 100, 8).bfloat16())
    assert half.estimate == pytest.approx(codebook_information(random_probs(0, 100, 8)).estimate, abs=0.02)


def test_lines_say_what_is_known() -> None:
    line = codebook_information(torch.arange(1000) % 8, 16).line()
    assert line.startswith("8 of 16 codes used, perplexity 8; the code carries between 1.")
    assert line.endswith("of 2.77 possible nats (95 % confidence, 1,000 rows)")
    nothing = codebook_information(torch.zeros(1000, dtype=torch.long), 16).line()
    assert "1 of 16 codes used, perplexity 1; the code carries at most 0.0" in nothing
    books = codebook_information(random_indices(0, 16, 1000, 2), 16, positions="each").line()
    assert books.startswith("32 of 2 x 16 codes used")
    assert "the 2 codes of a row carry between 2." in books


def test_few_are_used_only_where_there_were_enough_rows_for_more() -> None:
    assert codebook_information(torch.arange(1000) % 8, 16).few_used
    assert not codebook_information(torch.arange(1000) % 9, 16).few_used
    assert not codebook_information(torch.arange(5), 100).few_used


def test_what_cannot_work_says_why() -> None:
    indices, probs = random_indices(0, 5, 10, 2), random_probs(0, 10, 5)
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (indices, {}, "`size` must be given with indices"),
        (indices, {"size": 1}, "`size` must be at least 2, got 1"),
        (indices, {"size": 3}, "`codes` must be indices from 0 to 2 for size=3, got 0 to 4. Give the codebook's"),
        (indices - 1, {"size": 5}, "got -1 to 3. Give the codebook's true size, and leave out rows that are masked"),
        (indices[:0], {"size": 5}, r"`codes` must hold at least one code, got shape \(0, 2\)"),
        (indices[:1], {"size": 5}, "at least 2 rows, to compare one with another, got 1"),
        (indices, {"size": 5, "kind": "index"}, "`kind` must be 'indices', 'logits', 'probs' or None, got 'index'"),
        (indices, {"size": 5, "positions": "all"}, "`positions` must be 'shared' or 'each', got 'all'"),
        (indices, {"size": 5, "confidence": 1.0}, "`confidence` must lie between 0 and 1"),
        (torch.eye(5).long(), {"size": 5}, "look one-hot"),
        (probs, {"size": 4}, "`codes` must have size=4 entries on their last axis or on axis 1"),
        (probs, {"axis": 0}, "`axis` must be an axis of `codes`"),
        (probs * 3, {}, "`codes` must hold non-negative rows that sum to 1.*softmax"),
        (probs[0], {}, r"`codes` must have shape \(N, ..., size\)"),
        (probs / 0, {"kind": "logits"}, "`codes` must be finite"),
    ]
    for codes, arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            codebook_information(codes, **arguments)
    for codes, arguments, message in (
        (probs, {"size": 5, "kind": "indices"}, "must be integers, got torch.float64; give codes.long()"),
        (indices, {"size": 5, "kind": "probs"}, "must be floats, got torch.int64"),
        (indices, {"size": 5.0}, "`size` must be a whole number"),
    ):
        with pytest.raises(TypeError, match=message):
            codebook_information(codes, **arguments)
    with pytest.raises(ValueError, match="2 indices a row over 5 entries and 1 distributions a row over 5 entries"):
        codebook_sums(indices, 5) + codebook_sums(probs)
