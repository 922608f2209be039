"""Rows that wait to be counted together."""

import pytest
import torch

from certvae.monitoring import row_buffer as module
from certvae.monitoring.row_buffer import RowBlock, RowBuffer
from certvae.reading.captured import Captured


def block(rows: int, *, start: int = 0, variance: bool = True, latent_dim: int = 3) -> RowBlock:
    mean = torch.arange(start, start + rows).float()[:, None].expand(rows, latent_dim).contiguous()
    code = Captured(mean, mean - 1 if variance else None, None)
    return RowBlock(code, torch.full((rows, 4), 0.25), torch.arange(start, start + rows), torch.ones(rows))


def test_blocks_come_back_as_one_in_their_order() -> None:
    buffer = RowBuffer(4)
    for start, rows in ((0, 3), (3, 1), (4, 2)):
        buffer.add(block(rows, start=start))
    taken = buffer.take()
    assert taken is not None
    assert taken.positions.tolist() == [0, 1, 2, 3, 4, 5]
    assert taken.code.mean[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert taken.code.log_variance is not None
    assert taken.code.log_variance[:, 0].tolist() == [-1, 0, 1, 2, 3, 4]
    assert taken.code.rate is None
    assert taken.teacher_probs.shape == (6, 4)
    assert buffer.take() is None


def test_what_a_module_overwrites_is_kept_as_it_was() -> None:
    """Outputs of a compiled step are overwritten by its next call."""
    buffer, rows = RowBuffer(4), block(2)
    buffer.add(rows)
    for part in rows.parts:
        if part is not None:
            part.fill_(7)
    taken = buffer.take()
    assert taken is not None
    assert taken.code.mean[:, 0].tolist() == [0, 1]
    assert taken.weights.tolist() == [1, 1]


def test_codes_of_another_kind_do_not_wait_with_these() -> None:
    buffer = RowBuffer(4)
    assert buffer.takes(block(2))
    buffer.add(block(2))
    assert buffer.takes(block(5))
    for other in (block(2, variance=False), block(2, latent_dim=4)):
        assert not buffer.takes(other)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 70)
    buffer = RowBuffer(4)  # 4 + 3 numbers a row
    assert not buffer.full
    buffer.add(block(9))
    assert not buffer.full
    buffer.add(block(1))
    assert buffer.full
