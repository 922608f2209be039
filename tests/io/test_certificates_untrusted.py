"""Certificates and histories from strangers: each bad one ends in one clear error, and costs little."""

import json
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from certvae import Certificate, certify
from certvae.certificate.certificate import CERTIFICATE_LIMIT, digest
from certvae.certificate.history import HISTORY_LIMIT, append_history, read_history
from certvae.cli import main
from certvae.commands.verify import Refusal
from tests.conftest import random_probs
from tests.untrusted import NO_FILES, SCRAPS, Box, box, slow, sparse, unreadable

__all__ = ["box"]

Write = Callable[[Path], Any]


@cache
def certificate(epoch: int = 0) -> Certificate:
    teacher = random_probs(50, 3, seed=0)
    made = certify(teacher, teacher.log(), channel_logits=teacher.log()[None], rate=torch.ones(50), permutations=9)
    made.provenance = {"epoch": epoch, "look": epoch + 1}
    return made


def signed(values: dict[str, Any]) -> str:
    """The text of a certificate with a right digest, whatever its values."""
    try:
        return json.dumps({**values, "sha256": digest(values)})
    except ValueError:  # NaN and infinities have no digest
        return json.dumps({**values, "sha256": ""})


def changed(**values: Any) -> str:
    return signed({**certificate().to_dict(), **values})


GOOD = signed(certificate().to_dict())
TEXTS: dict[str, str | bytes] = {
    "a million deep": "[" * 10**6,
    "500,000 deep in objects": '{"a":' * 500_000,
    "a field 100,000 deep": GOOD.replace('"leaks": []', f'"leaks": {"[" * 100_000}{"]" * 100_000}'),
    "provenance 900 deep": changed(provenance=json.loads("[" * 900 + "]" * 900)[0]),
    "provenance 40 deep": changed(provenance={"a": json.loads("[" * 40 + "]" * 40)}),
    "a key twice": GOOD[:-1] + ', "margin": 9.0}',
    "a key of the provenance twice": GOOD.replace('{"epoch": 0, "look": 1}', '{"epoch": 0, "epoch": 1, "look": 1}'),
    "two objects": GOOD + GOOD,
    "a list of it": f"[{GOOD}]",
    "text of it": json.dumps(GOOD),
    "number": "5",
    "null": "null",
    "1e999": GOOD.replace('"epoch": 0', '"epoch": 1e999'),
    "5000 digits": GOOD.replace('"epoch": 0', f'"epoch": {"9" * 5000}'),
    "no UTF-8": GOOD.encode().replace(b"epoch", b"\xff\xfe\x00"),
    "UTF-16": GOOD.encode("utf-16"),
    "other schema": changed(schema="certvae.certificate.certificate/2"),
    "schema is a list": changed(schema=["certvae.certificate/1"]),
    "unknown status": changed(status="FINE"),
    "unknown field": changed(extra=1),
    "100,000 unknown fields": changed(**{f"{n:0>30}": 1 for n in range(100_000)}),
    "no fields": signed({"schema": "certvae.certificate/1"}),
    "no digest": json.dumps(certificate().to_dict()),
    "other digest": json.dumps({**certificate().to_dict(), "sha256": "0" * 64}),
    "digest is a list": json.dumps({**certificate().to_dict(), "sha256": []}),
    "escape codes in a leak": changed(leaks=["\x1b[2J\x1b[1;31mCERTIFIED"]),
    "escape codes in the method": changed(method="normal\x1b]0;owned\x07"),
    "half a surrogate in a leak": changed(leaks=["\ud800"]),
    "leak of 5 MB": changed(leaks=["a" * 5 * 10**6]),
    "first half": GOOD[: len(GOOD) // 2],
}
OF_ANOTHER_TYPE: list[Any] = ["0.5", True, [0.5], {"value": 0.5}, None, float("nan"), float("inf"), 10**400, -(10**19)]
OPTIONAL = [
    "p_value",
    "channel_margin",
    "calibrated_channel_margin",
    "rate",
    "look",
    "information",
    "fitted",
    "escape_force",
]
BOUNDS = ["margin_lower", "channel_margin_lower", "calibrated_channel_margin_lower"]  # null is minus infinity
NOT_NUMBERS = ["status", "method", "leaks", "provenance"]
FITTING: dict[str, Any] = {"method": "0.5", "provenance": {"value": 0.5}}
WHOLE = ["num_samples", "num_components", "look"]
FIELDS = [
    pytest.param(item.name, value, id=f"{item.name} {str(value)[:12]}")
    for item in fields(Certificate)
    for value in OF_ANOTHER_TYPE
    if not (value is None and item.name in (*OPTIONAL, *BOUNDS))
    and value != FITTING.get(item.name, "")
    and not (value == -(10**19) and item.name not in (*WHOLE, *NOT_NUMBERS))
]


REASONS = {
    **{name: "nested deeper than" for name in TEXTS if " deep" in name},
    "a key twice": "occurs twice",
    "a key of the provenance twice": "occurs twice",
    "1e999": "not finite",
    "no digest": "its digest does not fit",
    "escape codes in a leak": "printable",
    "escape codes in the method": "printable",
    "half a surrogate in a leak": "printable",
    "leak of 5 MB": "may have at most",
    "large": "may have at most",
}


def refused(box: Box, write: Write, error: type[Exception] = ValueError, reason: str = "") -> None:
    """Both by the library and by the command, which prints one line and exits with its status."""
    path = box.path / "certificate.json"
    write(path)
    with box.refuses(error, reason):
        Certificate.load(path)
    assert main(["verify", str(path), "--claims-only"]) == Refusal.FILE


def as_file(content: str | bytes) -> Write:
    data = content.encode(errors="surrogatepass") if isinstance(content, str) else content
    return lambda path: path.write_bytes(data)


def test_the_certificate_that_is_altered_here_is_good(tmp_path: Path) -> None:
    as_file(GOOD)(tmp_path / "certificate.json")
    assert Certificate.load(tmp_path / "certificate.json") == certificate()


@pytest.mark.parametrize("name", slow(TEXTS, "100,000 unknown fields"))
def test_texts_that_are_no_certificate_are_refused(box: Box, name: str) -> None:
    refused(box, as_file(TEXTS[name]), reason=REASONS.get(name, ""))


@pytest.mark.parametrize(("name", "value"), FIELDS)
def test_fields_of_another_type_are_refused(box: Box, name: str, value: Any) -> None:
    refused(box, as_file(changed(**{name: value})))


PATHS: dict[str, Write] = {**NO_FILES, **SCRAPS, "large": sparse(CERTIFICATE_LIMIT + 1), "not readable": unreadable}
ERRORS = {**dict.fromkeys(NO_FILES, FileNotFoundError), "not readable": PermissionError}


@pytest.mark.parametrize("name", PATHS)
def test_paths_without_a_certificate_are_refused(box: Box, name: str) -> None:
    refused(box, PATHS[name], ERRORS.get(name, ValueError), REASONS.get(name, ""))


# Histories.


def lines(*contents: str | bytes) -> Write:
    """A history of one good line and these."""
    good = json.dumps(certificate().to_dict())
    parts = [content.encode() if isinstance(content, str) else content for content in (good, *contents)]
    return lambda path: path.write_bytes(b"\n".join(parts))


LINES: dict[str, str | bytes] = {
    "words": "all is well",
    "number": "5",
    "list": "[]",
    "empty object": "{}",
    "deep line": '{"a":' * 10**6,
    "deep and whole line": '{"a":' * 500 + "1" + "}" * 500,
    "key twice": '{"schema": 1, "schema": 1}',
    "NaN": '{"schema": NaN}',
    "no UTF-8": b'{"\xff": 1}',
    "margin is text": json.dumps({**certificate().to_dict(), "margin": "1"}),
    "rows are a truth value": json.dumps({**certificate().to_dict(), "num_samples": True}),
    "no look": json.dumps({**certificate().to_dict(), "provenance": {}}),
    "look is text": json.dumps({**certificate().to_dict(), "provenance": {"look": "1"}}),
    "look is a truth value": json.dumps({**certificate().to_dict(), "provenance": {"look": True}}),
}
HISTORIES: dict[str, Write] = {name: lines(content) for name, content in LINES.items()} | {
    "one byte": SCRAPS["one byte"],
    "noise": SCRAPS["noise"],
    "large": sparse(HISTORY_LIMIT + 1),
}


@pytest.mark.parametrize("name", [*HISTORIES, *NO_FILES])
def test_histories_of_something_else_are_refused(box: Box, name: str) -> None:
    path = box.path / "certificates_val.jsonl"
    {**HISTORIES, **NO_FILES}[name](path)
    with box.refuses(ERRORS.get(name, ValueError)):
        read_history(path)


@pytest.mark.slow
def test_a_kill_within_a_line_costs_the_history_that_line_only(tmp_path: Path) -> None:
    path = tmp_path / "certificates_val.jsonl"
    append_history(path, certificate(0))
    first = len(path.read_bytes())
    append_history(path, certificate(1))
    content = path.read_bytes()
    for kept in [*range(first, len(content), 13), len(content) - 1]:
        path.write_bytes(content[:kept])
        append_history(path, certificate(2))
        assert [item.provenance["epoch"] for item in read_history(path)] == [0, 2]
