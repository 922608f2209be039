"""Certificates, histories and YAMLs from strangers, and the commands that read them."""

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from certvae import Certificate, certify
from certvae.callbacks.history import HISTORY_LIMIT, append_history, read_history
from certvae.certificate import CERTIFICATE_LIMIT, digest
from certvae.cli import main
from certvae.files import sha256_file
from certvae.publish import CONFIG_LIMIT, PublishOptions, publish
from certvae.verify import Refusal
from tests.conftest import random_probs
from tests.runs import digits_teacher, small_vae
from tests.strangers import NO_FILES, SCRAPS, Box, Planted, box, sparse, unreadable
from tests.test_strangers import saved

__all__ = ["box"]

Write = Callable[[Path], Any]


def certificate(epoch: int = 0) -> Certificate:
    teacher = random_probs(50, 3, seed=0)
    made = certify(teacher, teacher.log(), channel_logits=teacher.log()[None], rate=torch.ones(50), permutations=9)
    made.provenance = {"epoch": epoch}
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
    "a million deep in objects": '{"a":' * 10**6,
    "a field 100,000 deep": GOOD.replace('"leaks": []', f'"leaks": {"[" * 100_000}{"]" * 100_000}'),
    "provenance 900 deep": changed(provenance=json.loads("[" * 900 + "]" * 900)[0]),
    "provenance 40 deep": changed(provenance={"a": json.loads("[" * 40 + "]" * 40)}),
    "a key twice": GOOD[:-1] + ', "margin": 9.0}',
    "a key of the provenance twice": GOOD.replace('{"epoch": 0}', '{"epoch": 0, "epoch": 1}'),
    "two objects": GOOD + GOOD,
    "a list of it": f"[{GOOD}]",
    "text of it": json.dumps(GOOD),
    "number": "5",
    "null": "null",
    "1e999": GOOD.replace('"epoch": 0', '"epoch": 1e999'),
    "5000 digits": GOOD.replace('"epoch": 0', f'"epoch": {"9" * 5000}'),
    "no UTF-8": GOOD.encode().replace(b"epoch", b"\xff\xfe\x00"),
    "UTF-16": GOOD.encode("utf-16"),
    "other schema": changed(schema="certvae.certificate/2"),
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
OPTIONAL = ["p_value", "channel_margin", "calibrated_channel_margin", "rate", "look"]
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
    "a key twice": "stands twice",
    "a key of the provenance twice": "stands twice",
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


@pytest.mark.parametrize("name", TEXTS)
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


HISTORIES: dict[str, Write] = {
    name: lines(content)
    for name, content in {
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
        "no epoch": json.dumps({**certificate().to_dict(), "provenance": {}}),
        "epoch is text": json.dumps({**certificate().to_dict(), "provenance": {"epoch": "1"}}),
        "epoch is a truth value": json.dumps({**certificate().to_dict(), "provenance": {"epoch": True}}),
    }.items()
} | {"one byte": SCRAPS["one byte"], "noise": SCRAPS["noise"], "large": sparse(HISTORY_LIMIT + 1)}


@pytest.mark.parametrize("name", [*HISTORIES, *NO_FILES])
def test_histories_of_something_else_are_refused(box: Box, name: str) -> None:
    path = box.path / "certificates_val.jsonl"
    {**HISTORIES, **NO_FILES}[name](path)
    with box.refuses(ERRORS.get(name, ValueError)):
        read_history(path)


def test_a_kill_at_any_byte_costs_the_history_its_last_line_only(tmp_path: Path) -> None:
    path = tmp_path / "certificates_val.jsonl"
    append_history(path, certificate(0))
    first = len(path.read_bytes())
    append_history(path, certificate(1))
    content = path.read_bytes()
    for kept in range(first, len(content)):
        path.write_bytes(content[:kept])
        append_history(path, certificate(2))
        assert [item.provenance["epoch"] for item in read_history(path)] == [0, 2]


# The commands.


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint, a teacher, a YAML and their certificate, without training."""
    folder = tmp_path_factory.mktemp("run")
    teacher = digits_teacher()
    files = {"ckpt": folder / "last.ckpt", "teacher": folder / "teacher.safetensors", "config": folder / "run.yaml"}
    teacher.save(files["teacher"])
    files["ckpt"].write_bytes(saved({"state_dict": small_vae(teacher).state_dict()}))
    sizes = {"image_shape": [1, 8, 8], "latent_dim": 6, "width": 32, "depth": 1}
    parts = {
        name: {"class_path": f"certvae.networks.MLP{name.capitalize()}", "init_args": sizes}
        for name in ("encoder", "decoder")
    }
    model = {"class_path": "certvae.VAE", "init_args": {**parts, "teacher": str(files["teacher"])}}
    data = {"class_path": "certvae.datamodules.DigitsDataModule"}
    files["config"].write_text(yaml.safe_dump({"model": model, "data": data}))
    options = PublishOptions(permutations=0, channel_samples=0, calibration_rows=0)
    publish(files["ckpt"], files["teacher"], files["config"], options).save(folder / "certificate.json")
    return {**files, "certificate": folder / "certificate.json"}


def arguments(files: dict[str, Path]) -> list[str]:
    return [f"--{name}={files[name]}" for name in ("ckpt", "teacher", "config")]


def with_provenance(run: dict[str, Path], path: Path, **entries: Any) -> Path:
    made = Certificate.load(run["certificate"])
    made.provenance.update(entries)
    return made.save(path)


BAD_FILES = {"code": lambda path: path.write_bytes(saved(Planted(path.parents[2] / "code-ran"))), **NO_FILES, **SCRAPS}


@pytest.mark.parametrize("bad", BAD_FILES)
@pytest.mark.parametrize(
    ("part", "status"), [("ckpt", Refusal.CHECKPOINT), ("teacher", Refusal.TEACHER), ("config", 1)]
)
def test_the_commands_refuse_bad_files_in_one_line(
    box: Box, run: dict[str, Path], capsys: pytest.CaptureFixture[str], part: str, status: int, bad: str
) -> None:
    """Also where a certificate states the digest of the bad file."""
    files, before = {**run, part: box.path / "bad"}, box.outside()
    BAD_FILES[bad](files[part])
    key = {"ckpt": "checkpoint_sha256", "teacher": "teacher_sha256"}.get(part, "other")
    stated = {key: sha256_file(files[part])} if files[part].is_file() else {}
    assert main(["certify", *arguments(files), "--output", str(box.path / "new.json")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    forged = with_provenance(run, box.path / "forged.json", **stated)
    assert main(["verify", str(forged), *arguments(files)]) == status
    assert not (box.path / "new.json").exists()
    assert not box.marker.exists()
    assert box.outside() == before


OPTIONS = [
    {"permutations": 10**12},
    {"permutations": 10**400},
    {"permutations": True},
    {"channel_samples": 10**9},
    {"channel_samples": "4"},
    {"calibration_rows": 0.5},
    {"calibration_rows": None},
    {"confidence": 2.0},
    {"confidence": "high"},
    {"safety_margin": -1.0},
    {"method": "magic"},
    {"method": ["normal"]},
    {"split": "train"},
    {"split": ["test"]},
    {"seed": 10**30},
    {"latents": ["encoder"]},
    {"unknown": 1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=[f"{item}"[:40] for item in OPTIONS])
def test_options_that_would_not_end_or_do_not_exist_are_refused(
    box: Box, run: dict[str, Path], options: dict[str, Any]
) -> None:
    stated = {**Certificate.load(run["certificate"]).provenance["options"], **options}
    forged = with_provenance(run, box.path / "forged.json", options=stated)
    assert main(["verify", str(forged), *arguments(run)]) == Refusal.CLAIMS


CONFIGS: dict[str, Write] = {
    "no YAML": as_file("model: [1, 2"),
    "deep": as_file("[" * 10**5),
    "list": as_file("[model, data]"),
    "no data": as_file("model: {class_path: certvae.VAE}"),
    "model is text": as_file("{model: certvae.VAE, data: {}}"),
    "arguments are a list": as_file("{model: {init_args: []}, data: {}}"),
    "python object": as_file("{model: {}, data: !!python/object/apply:os.mkdir [code-ran]}"),
    "no UTF-8": as_file(b"\xff\xfe\x00model"),
    "large": sparse(CONFIG_LIMIT + 1),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_yamls_that_are_none_of_a_run_are_refused(box: Box, run: dict[str, Path], name: str) -> None:
    path = box.path / "run.yaml"
    CONFIGS[name](path)
    with box.refuses(ValueError):
        publish(run["ckpt"], run["teacher"], path, PublishOptions())


@pytest.mark.parametrize("command", ["certify", "verify"])
def test_help_says_that_a_yaml_is_code(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert "A YAML is code: the classes that --config names are imported and run." in capsys.readouterr().out
