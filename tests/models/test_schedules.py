"""Schedules have the values that their sources state."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certvae.models.schedules import CyclicalSchedule, LinearSchedule, value_at


def test_a_line_of_ten_epochs() -> None:
    line = LinearSchedule(0.1, 1.0, 10.0)
    moments = (0.0, 2.5, 5.0, 10.0, 11.0, math.inf)
    assert [line(moment) for moment in moments] == pytest.approx([0.1, 0.325, 0.55, 1.0, 1.0, 1.0])


def test_a_line_may_fall() -> None:
    assert LinearSchedule(1.0, 0.0, 4.0)(1.0) == 0.75


def test_four_cycles_each_rise_for_their_half_and_then_stay() -> None:
    cycles = CyclicalSchedule(epochs=20.0, cycles=4, rising=0.5)
    one = {0.0: 0.0, 1.25: 0.5, 2.5: 1.0, 4.9: 1.0}
    for start in (0, 5, 10, 15):
        assert [cycles(start + moment) for moment in one] == pytest.approx(list(one.values()))
    assert cycles(20.0) == cycles(23.0) == cycles(math.inf) == 1.0


@given(progress=st.floats(0, 100), cycles=st.integers(1, 9), rising=st.floats(0.01, 1), epochs=st.floats(0.1, 50))
def test_values_stay_between_first_and_last(progress: float, cycles: int, rising: float, epochs: float) -> None:
    assert 0.2 <= CyclicalSchedule(epochs, cycles, rising, 0.2, 0.7)(progress) <= 0.7 + 1e-12


def test_a_number_is_a_constant_schedule() -> None:
    assert value_at(3.0, 7.5) == 3.0
    assert value_at(LinearSchedule(0.0, 2.0, 4.0), 1.0) == 0.5


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (LinearSchedule, {"first": -1.0}, "`first` must be at least 0, got -1.0"),
        (LinearSchedule, {"last": math.nan}, "`last` must be at least 0, got nan"),
        (LinearSchedule, {"epochs": 0.0}, "`epochs` must be positive, got 0.0"),
        (CyclicalSchedule, {"epochs": math.inf}, "`epochs` must be positive, got inf"),
        (CyclicalSchedule, {"epochs": 1.0, "cycles": 0}, "`cycles` must be at least 1, got 0"),
        (CyclicalSchedule, {"epochs": 1.0, "rising": 0.0}, "`rising` must be above 0 and at most 1, got 0.0"),
    ],
)
def test_bad_arguments_are_refused(kind: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**arguments)
