"""YAMLs from strangers: values that multiply, large numbers and loops end in one error, in bounded time and memory."""

import pytest
import yaml

from certvae.io.untrusted import MOST_LARGE, YAML_NODES, parse_yaml
from tests.untrusted import Box, box, slow

__all__ = ["box"]


def doubled(line: str, times: int = 40) -> str:
    lines = [f"a{n}: &a{n} {line.replace('?', f'*a{n - 1}')}" for n in range(1, times)]
    return "\n".join(["a0: &a0 {k: 1}", *lines])


FORGED = {
    "merge keys": (doubled("{<<: [?, ?]}"), "its aliases written out"),
    "aliases": (doubled("[?, ?]"), "its aliases written out"),
    "aliases in keys' values": (doubled("{x: ?, y: ?}"), "its aliases written out"),
    "itself": ("&a [*a]", "its aliases written out"),
    "itself, merged": ("&a {<<: *a}", "its aliases written out"),
    "keys of one hash": ("\n".join(f"{n * (2**61 - 1)}: 1" for n in range(MOST_LARGE + 9)), "whole numbers"),
    "a number of 60,000 digits by 60": (":".join(["1"] * 60_000), "whole numbers"),
    "a number of 100,000 digits by 16": ("0x" + "f" * 100_000, "whole numbers"),
}


@pytest.mark.parametrize("name", slow(FORGED, "keys of one hash"))
def test_forged_yamls_are_refused(box: Box, name: str) -> None:
    text, reason = FORGED[name]
    with box.refuses(ValueError, reason):
        parse_yaml(text)


def test_plain_yamls_with_a_few_aliases_are_read() -> None:
    text = "a: &a {x: 1, y: [1, 2.5, null, yes]}\nb: {<<: *a, x: 2}\nc: [*a, *a]\nseed: 18446744073709551615\n"
    assert parse_yaml(text) == yaml.safe_load(text)
    assert parse_yaml("") is None
    assert parse_yaml(b"[" + b"1," * (YAML_NODES // 10) + b"]") == [1] * (YAML_NODES // 10)
    with pytest.raises(yaml.YAMLError):
        parse_yaml("!!python/object/apply:os.mkdir [code-ran]")
