"""Whatever is handed in: a sound result, or an error that names the argument.

Run with ``-rP`` for a table of how the calls ended.
"""

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.awkward import outcome
from tests.fuzz_cases import CASES


@pytest.mark.parametrize("name", CASES)
def test_every_call_ends_in_a_sound_result_or_an_error_that_names_the_argument(name: str) -> None:
    ends: Counter[str] = Counter()

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def attempt(data: st.DataObject) -> None:
        call, check = CASES[name](data.draw)
        ends[outcome(call, check)] += 1

    attempt()
    print(f"| {name} | {ends.total()} | {ends['result']} | {ends['ValueError']} | {ends['TypeError']} |")
    assert ends["result"] > EXAMPLES // 10
    assert ends["ValueError"] + ends["TypeError"] > EXAMPLES // 10


EXAMPLES = 100
