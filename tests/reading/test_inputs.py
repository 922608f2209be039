"""Whatever a batch is, its input and its index are found, and what is no index is not taken for one."""

from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from certvae.reading.inputs import index_of, inputs_and_index, select_inputs
from certvae.teachers import NetworkTeacher, TargetTable
from tests.plain_vae import images
from tests.runs import digits_teacher

INDEX = torch.arange(90)


class Fields(NamedTuple):
    label: Tensor
    pixels: Tensor
    index: Tensor  # type: ignore[assignment]


class Unnumbered(NamedTuple):
    pixels: Tensor
    label: Tensor
    site: Tensor


@dataclass
class Record:
    pixels: Tensor
    label: Tensor
    index: Tensor


class Slots:
    __slots__ = ("index", "label", "pixels")

    def __init__(self, pixels: Tensor, label: Tensor, index: Tensor) -> None:
        self.pixels, self.label, self.index = pixels, label, index


KINDS: list[Callable[..., Any]] = [dict, UserDict, Fields, Record, Slots, SimpleNamespace]


@pytest.mark.parametrize("kind", KINDS)
def test_measure_and_table_read_batches_with_names(kind: Callable[..., Any]) -> None:
    """As they read tuples; the table is looked up by the index that the batch names."""
    shuffled = torch.randperm(90, generator=torch.Generator().manual_seed(0))
    batch = kind(pixels=images()[shuffled], label=torch.zeros(90), index=INDEX[shuffled])
    teacher, reference = digits_teacher(), digits_teacher().measure([images()])
    teacher.measure([batch], images="pixels")
    assert teacher.card.information_train == pytest.approx(reference.card.information_train, abs=1e-12)
    table = TargetTable.from_teacher(teacher, [[batch]], images="pixels")
    assert torch.allclose(table(images(), INDEX), teacher(images()).float())


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_input_is_named_with_what_the_batch_has(kind: Callable[..., Any]) -> None:
    batch = kind(pixels=images(), label=torch.zeros(90), index=INDEX)
    with pytest.raises(ValueError, match=r"`images='x'` is not in the batch, which has .*; give a position, a key"):
        select_inputs(batch, "x")
    if kind is not Slots:
        with pytest.raises(ValueError, match="which has .*'pixels'"):
            digits_teacher().measure([batch], images="x")


def test_a_function_of_the_batch_gives_the_input() -> None:
    teacher = digits_teacher().measure([{"raw": images() * 16}], images=lambda batch: batch["raw"] / 16)
    assert teacher.card.information_train == digits_teacher().measure([images()]).card.information_train


def test_an_input_that_is_no_tensor_is_refused() -> None:
    with pytest.raises(TypeError, match="`images='name'` must give a tensor of the batch's rows, got list"):
        select_inputs({"name": ["a", "b"]}, "name")


def test_only_whole_numbers_one_for_each_row_are_an_index() -> None:
    x, numbers = torch.rand(4, 2), torch.arange(4)
    numbered: list[Any] = [(x, numbers, numbers), [x, numbers, numbers], {"x": x, "index": numbers}]
    for batch in numbered:
        assert index_of(batch) is numbers
    mask, tokens = torch.ones(4, dtype=torch.bool), torch.zeros(4, 7, dtype=torch.int64)
    for batch in (x, (x,), (x, numbers), (x, x, x), (x, x, mask), (x, x, tokens), {"x": x}, Unnumbered(x, x, numbers)):
        assert index_of(batch) is None
    for kind in (dict, UserDict):
        assert index_of(kind(index=x)) is None


def test_pixels_in_bytes_are_scaled_and_nothing_else() -> None:
    whole = (images() * 255).to(torch.uint8)
    assert torch.equal(inputs_and_index((whole,))[0], whole.float() / 255)
    assert inputs_and_index(whole.long())[0].dtype == torch.int64
    network = NetworkTeacher(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)), 3)
    assert torch.equal(network(network.prepared(whole)), network(whole.float() / 255))


def test_a_label_in_the_place_of_the_index_is_refused_by_a_table() -> None:
    batch = (images(), torch.zeros(90), torch.arange(90) % 10)
    with pytest.raises(ValueError, match="stands for rows with different targets"):
        TargetTable.from_teacher(digits_teacher(), [[batch]])
