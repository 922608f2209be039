"""Streams: what their length hides, and rows that are counted more than once."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from certvae.reading.streams import CountedRows, drops_rows, goes_on, is_stream, own_index
from certvae.teachers.search import EvenBatches, TeacherSearchError
from certvae.teachers.search.streams import check_all_read
from certvae.theory.row_noise import row_hash

ONE: Any = SimpleNamespace(strategy=SimpleNamespace(all_gather=lambda values: values))


class Claims(IterableDataset[Tensor]):
    """Rows, and a length that may be another number."""

    def __init__(self, rows: int, claimed: int) -> None:
        self.rows, self.claimed = rows, claimed

    def __len__(self) -> int:
        return self.claimed

    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.arange(self.rows).double())


@pytest.mark.parametrize(
    ("rows", "claimed", "more"), [(101, 101, False), (101, 96, True), (96, 96, False), (10, 96, False)]
)
def test_a_stream_goes_on_if_it_has_batches_beyond_its_length(rows: int, claimed: int, more: bool) -> None:
    loader = DataLoader(Claims(rows, claimed), 16)
    state = torch.get_rng_state()
    assert [goes_on(loader, len(loader)) for _ in range(2)] == [more, more]
    assert torch.equal(torch.get_rng_state(), state)


def test_an_endless_stream_is_not_read_to_its_end() -> None:
    class Endless(Claims):
        def __iter__(self) -> Iterator[Tensor]:
            while True:
                yield torch.zeros(())

    loader = DataLoader(Endless(0, 32), 16)
    assert goes_on(loader, len(loader))
    assert not goes_on(loader, float("inf"))


def test_only_a_stream_drops_rows_unseen() -> None:
    """Of a set with places the sampler says what it drops."""
    data = TensorDataset(torch.zeros(10, 2))
    assert not is_stream(DataLoader(data, 4, drop_last=True))
    assert not drops_rows(DataLoader(data, 4, drop_last=True))
    assert drops_rows(DataLoader(Claims(10, 10), 4, drop_last=True))
    assert not drops_rows(DataLoader(Claims(10, 10), 4))


@pytest.mark.parametrize("index", [None, torch.tensor([0, 0, 1]), torch.tensor([0, 1]), torch.tensor([-1, 0, 1])])
def test_an_index_that_does_not_name_each_row_is_left_aside(index: Tensor | None) -> None:
    assert own_index(DataLoader(Claims(3, 3), 3), index, 3) is None


def test_rows_of_a_set_with_places_keep_them() -> None:
    index = torch.tensor([5, 6, 7])
    assert own_index(DataLoader(TensorDataset(torch.zeros(3))), index, 3) is None
    assert torch.equal(own_index(DataLoader(Claims(3, 3), 3), index, 3), index)  # type: ignore[arg-type]


def found(*batches: tuple[Tensor, Tensor | None], size: int = 64) -> str:
    """What one process finds in its own batches."""
    counted = CountedRows(size)
    for inputs, index in batches:
        counted.add(inputs, index)
    return counted.gather(ONE, torch.device("cpu"))


@pytest.mark.parametrize("size", [64, 4096])
def test_a_row_that_one_process_reads_twice_is_found_by_its_index(size: int) -> None:
    rows, index = torch.randn(1000, 3), torch.arange(1000)
    assert found((rows, index), size=size) == ""
    again = found((rows, index), (rows[:500], index[:500]), size=size)
    assert "had been counted before" in again
    assert ("500 of 1,500 rows" in again) == (size == 4096)


@pytest.mark.parametrize("index", [None, torch.arange(1000) % 10, torch.arange(1000)])
def test_equal_rows_of_a_set_are_no_repeats(index: Tensor | None) -> None:
    """Coarse measurements repeat by themselves; neither a class nor an own index makes them one row."""
    assert found((torch.randint(0, 3, (1000, 4)).double(), index)) == ""


def test_rows_without_contents_or_of_several_lengths_are_left_aside() -> None:
    ragged = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])
    assert found((torch.zeros(0, 3), None), (ragged, torch.arange(2))) == ""


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16, torch.uint8])
def test_a_hash_is_that_of_the_row_in_any_order(kind: torch.dtype) -> None:
    rows = (10 * torch.rand(50, 2, 3)).to(kind)
    order = torch.randperm(50)
    assert torch.equal(row_hash(rows)[order], row_hash(rows[order]))
    assert row_hash(rows).unique().numel() == rows.float().flatten(1).unique(dim=0).shape[0]
    assert not torch.equal(row_hash(rows, order), row_hash(rows))


def test_on_one_process_the_batches_are_those_of_the_stream() -> None:
    loader = DataLoader(Claims(10, 10), 4)
    assert [len(batch) for batch in EvenBatches(loader)] == [4, 4, 2]
    with pytest.raises(TeacherSearchError, match="gives 1 of 1 processes no batch"):
        list(EvenBatches(DataLoader(Claims(0, 0), 4)))


@pytest.mark.parametrize(
    ("loader", "word"),
    [
        (DataLoader(Claims(10, 10), 4, drop_last=True), "must see all rows: the stream drops"),
        (DataLoader(Claims(10, 4), 4), "must see all rows: the stream goes on"),
    ],
)
def test_a_search_over_a_part_of_a_stream_is_refused(loader: DataLoader[Any], word: str) -> None:
    trainer: Any = SimpleNamespace(
        world_size=1, strategy=SimpleNamespace(reduce_boolean_decision=lambda value, all: value)
    )
    with pytest.raises(TeacherSearchError, match=word):
        check_all_read(trainer, loader, len(loader))
