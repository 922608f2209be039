"""What `certvae certify` and `certvae verify` do with bad files, bad options in a certificate, and bad YAMLs."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from certvae import Certificate
from certvae.cli import main
from certvae.commands.certify import CONFIG_LIMIT, CertifyOptions, certify_checkpoint
from certvae.commands.verify import Refusal
from certvae.io.files import sha256_file
from tests.io.test_certificates_untrusted import Write, as_file
from tests.io.test_checkpoints_untrusted import saved
from tests.runs import digits_teacher, small_vae
from tests.untrusted import NO_FILES, SCRAPS, Box, Planted, box, sparse

pytestmark = pytest.mark.slow

__all__ = ["box"]


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
        name: {"class_path": f"certvae.models.networks.MLP{name.capitalize()}", "init_args": sizes}
        for name in ("encoder", "decoder")
    }
    model = {"class_path": "certvae.VAE", "init_args": {**parts, "teacher": str(files["teacher"])}}
    data = {"class_path": "certvae.datamodules.DigitsDataModule"}
    files["config"].write_text(yaml.safe_dump({"model": model, "data": data}))
    options = CertifyOptions(permutations=0, channel_samples=0, calibration_rows=0)
    certify_checkpoint(files["ckpt"], files["teacher"], files["config"], options).save(folder / "certificate.json")
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
    "doubled": as_file("\n".join(["a0: &a0 [1]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40))])),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_yamls_that_are_none_of_a_run_are_refused(box: Box, run: dict[str, Path], name: str) -> None:
    path = box.path / "run.yaml"
    CONFIGS[name](path)
    with box.refuses(ValueError):
        certify_checkpoint(run["ckpt"], run["teacher"], path, CertifyOptions())


@pytest.mark.parametrize("command", ["certify", "verify"])
def test_help_says_that_a_yaml_is_code(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert "A YAML is code: the classes that --config names are imported and run." in capsys.readouterr().out
