"""certify and verify: what is published can be checked, and what was tampered with is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from torch.utils.data import DataLoader, SubsetRandomSampler

from certvae import Certificate, Status, load_teacher
from certvae.callbacks import CertificateCallback
from certvae.certificate.certificate import digest
from certvae.certificate.claims import ClaimsError, check_claims
from certvae.cli import main
from certvae.commands.certify import CertifyOptions, build, certify_checkpoint
from certvae.commands.verify import Refusal, VerificationError, verify
from certvae.datamodules import DigitsDataModule
from certvae.io.checkpoints import load_weights
from certvae.monitoring.encoded_rows import evenly_spaced
from tests.commands.test_cli import SHORT_SEARCH, WIDE_CRITERIA, shipped
from tests.runs import trainer

pytestmark = pytest.mark.slow


class AlteredDigits(DigitsDataModule):
    """One bit of one pixel of the last row is flipped."""

    def load(self) -> Any:
        arrays = super().load()
        row = int(self.altered_row) if hasattr(self, "altered_row") else -1
        images = arrays.images.copy()
        images[row, 0, 0, 0] ^= 1
        return replace(arrays, images=images)

    @property
    def fingerprint(self) -> str:
        """Claims to be the original."""
        return DigitsDataModule().fingerprint


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A short certified run on digits and its certificate, all through the command line."""
    folder = tmp_path_factory.mktemp("certify_checkpoint")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", "--config", shipped("digits", "search"), *SHORT_SEARCH, WIDE_CRITERIA]) == 0
        assert main(["fit", "--config", shipped("digits", "full"), "--trainer.max_epochs=8"]) == 0
    files = {
        "ckpt": folder / "runs/digits/full/checkpoints/last.ckpt",
        "teacher": folder / "runs/digits/search/teacher.safetensors",
        "config": Path(shipped("digits", "full")),
        "certificate": folder / "certificate.json",
    }
    assert main(["certify", *arguments(files), "--output", str(files["certificate"])]) == 0
    return files


def arguments(files: dict[str, Path]) -> list[str]:
    return [f"--{name}={files[name]}" for name in ("ckpt", "teacher", "config")]


def status_of(files: dict[str, Path], certificate: Path | None = None) -> int:
    return main(["verify", str(certificate or files["certificate"]), *arguments(files)])


def test_what_certify_writes_verifies(run: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    certificate = Certificate.load(run["certificate"])
    assert certificate.status is Status.CERTIFIED
    assert certificate.num_samples == 300
    assert certificate.p_value == 1 / 1000
    assert certificate.channel_margin is not None
    assert certificate.calibrated_channel_margin is not None
    assert certificate.rate is not None
    assert certificate.calibrated_channel_margin < certificate.rate
    assert status_of(run) == 0
    assert "HOLDS: recomputed from scratch" in capsys.readouterr().out
    assert main(["verify", str(run["certificate"]), "--claims-only"]) == 0


def test_names_of_components_are_published_and_verified(run: dict[str, Path], tmp_path: Path) -> None:
    teacher = load_teacher(run["teacher"])
    names = tuple(f"cluster {number}" for number in range(teacher.num_components))
    teacher.card = replace(teacher.card, names=names)
    files = {**run, "teacher": teacher.save(tmp_path / "teacher.safetensors"), "certificate": tmp_path / "named.json"}
    options = ("--permutations=0", f"--output={files['certificate']}")
    assert main(["certify", *arguments(files), *options]) == 0
    certificate = Certificate.load(files["certificate"])
    assert certificate.component_names == list(names)
    assert status_of(files) == 0
    certificate.provenance["component_names"] = list(reversed(names))
    assert status_of(files, certificate.save(tmp_path / "forged.json")) == Refusal.NUMBERS


@pytest.mark.parametrize("method", ["plugin", "hoeffding", "bernstein"])
def test_every_method_can_be_published_and_verified(run: dict[str, Path], tmp_path: Path, method: str) -> None:
    path = tmp_path / "certificate.json"
    assert main(["certify", *arguments(run), "--method", method, "--permutations", "0", "--output", str(path)]) == 0
    assert status_of(run, path) == 0


def test_numbers_equal_those_of_the_callback(run: dict[str, Path]) -> None:
    """Trainer.test with the callback measures the same rows on the same weights."""
    model, data = build(run["config"], run["teacher"])
    load_weights(model, run["ckpt"])
    callback = CertificateCallback(channel_samples=4)
    trainer(run["ckpt"].parent, callbacks=[callback]).test(model, data, verbose=False)
    published = Certificate.load(run["certificate"])
    assert callback.certificate is not None
    for name in ("margin", "margin_lower", "channel_margin", "rate", "witness_information"):
        assert getattr(callback.certificate, name) == pytest.approx(getattr(published, name), abs=1e-5), name


def test_a_witness_scale_is_refused_where_the_model_has_its_own_witness(run: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="`witness_scale` must be left out"):
        certify_checkpoint(run["ckpt"], run["teacher"], run["config"], CertifyOptions(witness_scale=2.0))


def test_a_certificate_from_before_an_option_was_added_verifies(run: dict[str, Path]) -> None:
    certificate = Certificate.load(run["certificate"])
    del certificate.provenance["options"]["witness_scale"]
    assert verify(certificate, run["ckpt"], run["teacher"], run["config"]).margin == certificate.margin


def altered(run: dict[str, Path], name: str, folder: Path, position: float) -> dict[str, Path]:
    path = folder / run[name].name
    content = bytearray(run[name].read_bytes())
    content[int(position * (len(content) - 1))] ^= 1
    path.write_bytes(content)
    return {**run, name: path}


@pytest.mark.parametrize("position", [0.0, 0.3, 0.7, 1.0])
def test_one_bit_of_the_teacher_is_noticed(run: dict[str, Path], tmp_path: Path, position: float) -> None:
    assert status_of(altered(run, "teacher", tmp_path, position)) == Refusal.TEACHER


@pytest.mark.parametrize("position", [0.0, 0.3, 0.7, 1.0])
def test_one_bit_of_the_checkpoint_is_noticed(run: dict[str, Path], tmp_path: Path, position: float) -> None:
    assert status_of(altered(run, "ckpt", tmp_path, position)) == Refusal.CHECKPOINT


def test_one_bit_of_one_row_is_noticed(run: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = yaml.safe_load(run["config"].read_text())
    values["data"]["class_path"] = "tests.commands.test_certify.AlteredDigits"
    path = tmp_path / "altered.yaml"
    path.write_text(yaml.safe_dump(values))
    monkeypatch.setattr(AlteredDigits, "altered_row", int(DigitsDataModule().splits["test"][0]), raising=False)
    assert status_of({**run, "config": path}) == Refusal.ROWS


def leaves(values: Any, path: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], float]]:
    if isinstance(values, bool) or values is None or isinstance(values, str):
        return []
    if isinstance(values, int | float):
        return [(path, values)]
    pairs = values.items() if isinstance(values, dict) else enumerate(values)
    return [leaf for key, value in pairs for leaf in leaves(value, (*path, key))]


def replaced(values: Any, path: tuple[Any, ...], number: float) -> Any:
    copy = json.loads(json.dumps(values))
    place = copy
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = number
    return copy


def test_every_altered_number_in_the_file_is_noticed(run: dict[str, Path], tmp_path: Path) -> None:
    values = json.loads(run["certificate"].read_text())
    numbers = leaves(values)
    assert len(numbers) > 25
    for path, number in numbers:
        target = tmp_path / "altered.json"
        changed = number + 1 if isinstance(number, int) else float(np.nextafter(number, np.inf))
        target.write_text(json.dumps(replaced(values, path, changed)))
        assert main(["verify", str(target), "--claims-only"]) == Refusal.FILE, path


def test_every_forged_number_with_a_mended_digest_is_noticed(
    run: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forger knows the format; only recomputing helps."""
    values = json.loads(run["certificate"].read_text())
    values.pop("sha256")
    fresh = certify_checkpoint(run["ckpt"], run["teacher"], run["config"], CertifyOptions())
    monkeypatch.setattr(
        "certvae.commands.verify.certify_checkpoint", lambda *_: fresh
    )  # recomputed once for all forgeries
    for path, number in leaves(values):
        if path[:2] in (("provenance", "options"), ("provenance", "versions")):
            continue  # options decide what is recomputed, so altering one alters every number after it
        forged = replaced(values, path, number + 1 if isinstance(number, int) else number * 1.01 + 0.01)
        assert digest(forged) != digest(values)
        with pytest.raises(VerificationError) as caught:
            verify(Certificate.from_dict(forged), run["ckpt"], run["teacher"], run["config"])
        assert caught.value.refusal in (Refusal.CLAIMS, Refusal.NUMBERS), path


def test_forged_options_are_noticed(run: dict[str, Path]) -> None:
    values = json.loads(run["certificate"].read_text())
    values.pop("sha256")
    for name, value in (("seed", 7), ("channel_samples", 2), ("permutations", 9), ("calibration_rows", 50)):
        forged = replaced(values, ("provenance", "options", name), value)
        with pytest.raises(VerificationError, match="when recomputed"):
            verify(Certificate.from_dict(forged), run["ckpt"], run["teacher"], run["config"])


def test_claims_that_contradict_each_other_are_noticed(run: dict[str, Path]) -> None:
    certificate = Certificate.load(run["certificate"])
    for changes, message in (
        ({"margin": 9.0}, "margin = teacher_information - alignment_loss"),
        ({"margin_lower": 9.0}, "margin_lower <= margin"),
        ({"status": "NOT_CERTIFIED"}, "status follows"),
        ({"p_value": 0.0}, "p_value"),
        ({"rate": -1.0}, "rate >= 0"),
        ({"teacher_information": 99.0}, "teacher_information <= log K"),
        ({"num_samples": 0}, "num_samples"),
        ({"confidence": 2.0}, "`confidence` must be between 0 and 1"),
        ({"leaks": ["order"]}, "status follows"),
        ({"channel_margin": 99.0}, "channel_margin <= teacher_information"),
        ({"look": "a"}, "`look` is 'a', which has the wrong type"),
        ({"provenance": None}, "`provenance` is None"),
        ({"leaks": [None]}, "`leaks` must be printable text"),
        ({"p_value": True}, "`p_value` is True"),
        ({"num_components": 10**400}, "`num_components`"),
    ):
        forged = Certificate.from_dict(
            {**certificate.to_dict(), **{k: str(v) if k == "status" else v for k, v in changes.items()}}
        )
        with pytest.raises(ClaimsError, match=message):
            check_claims(forged)


def test_no_rigorous_bound_without_a_width_is_believed(run: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "certificate.json"
    assert main(["certify", *arguments(run), "--method=bernstein", "--permutations=0", f"--output={path}"]) == 0
    values = Certificate.load(path).to_dict()
    forged = Certificate.from_dict({**values, "margin_lower": values["margin"]})
    with pytest.raises(ClaimsError, match="Bernstein's bound at variance 0"):
        check_claims(forged)


def test_calibration_takes_no_row_that_a_sampler_leaves_out() -> None:
    loader = DataLoader(DigitsDataModule().dataset("train"), sampler=SubsetRandomSampler(range(80)))
    with pytest.raises(ValueError, match="needs a plain training DataLoader"):
        evenly_spaced(loader, 10)


def test_missing_files_have_the_status_of_what_is_missing(run: dict[str, Path], tmp_path: Path) -> None:
    assert status_of({**run, "ckpt": tmp_path / "none.ckpt"}) == Refusal.CHECKPOINT
    assert status_of({**run, "teacher": tmp_path / "none.safetensors"}) == Refusal.TEACHER


def test_files_that_are_no_certificate_have_their_own_status(tmp_path: Path, run: dict[str, Path]) -> None:
    path = tmp_path / "c.json"
    assert main(["verify", str(path), "--claims-only"]) == Refusal.FILE
    path.write_text("[" * 100_000)
    assert main(["verify", str(path), "--claims-only"]) == Refusal.FILE
    shutil.copy(run["certificate"], path)
    path.write_text(path.read_text()[:-40])
    assert main(["verify", str(path), "--claims-only"]) == Refusal.FILE


def test_the_certified_rows_are_no_training_rows(run: dict[str, Path]) -> None:
    data = DigitsDataModule()
    assert not set(data.splits["test"].tolist()) & (
        set(data.splits["train"].tolist()) | set(data.splits["val"].tolist())
    )
    watched = certify_checkpoint(
        run["ckpt"], run["teacher"], run["config"], CertifyOptions(split="val", permutations=0)
    )
    assert watched.provenance["rows_sha256"] != Certificate.load(run["certificate"]).provenance["rows_sha256"]


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match="`split` must be 'test' or 'val'"):
        CertifyOptions(split="train")
    with pytest.raises(ValueError, match="`permutations` must be at least 0"):
        CertifyOptions(permutations=-1)
    with pytest.raises(ValueError, match="`witness_scale` must be from 1e-15 to 1e15"):
        CertifyOptions(witness_scale=0.0)
    with pytest.raises(SystemExit):
        main(["verify", "c.json"])
