"""Files that version 0.1.0 wrote load; its certificates are to be made anew before they verify.

The folder holds a certificate and its teacher as 0.1.0 wrote them, from ``certvae fit`` and ``certvae certify`` on
scikit-learn's digits.
"""

import json
from pathlib import Path

import pytest
import torch

from certvae import Certificate, Status, load_teacher
from certvae.certificate.claims import check_claims
from certvae.cli import main
from certvae.commands.verify import Refusal
from certvae.datamodules import DigitsDataModule
from certvae.io.files import sha256_file
from certvae.theory.information import teacher_information

FOLDER = Path(__file__).parent / "version_0_1_0"
CERTIFICATE, TEACHER = FOLDER / "certificate.json", FOLDER / "teacher.safetensors"
INPUTS = [f"--teacher={TEACHER}", "--ckpt=runs/full/last.ckpt", "--config=experiments/digits/full.yaml"]


def test_a_certificate_of_the_first_schema_loads_with_the_numbers_in_the_file() -> None:
    stated = json.loads(CERTIFICATE.read_text())
    loaded = Certificate.load(CERTIFICATE)
    assert stated["schema"] == "certvae.certificate/1"
    assert loaded.status is Status.CERTIFIED
    for name in set(stated) - {"schema", "sha256"}:
        assert getattr(loaded, name) == stated[name], name
    check_claims(loaded)
    assert main(["verify", str(CERTIFICATE), "--claims-only"]) == 0
    assert main(["verify", str(CERTIFICATE), "--claims_only"]) == 0


def test_a_certificate_of_the_first_schema_is_saved_and_loaded_as_one_of_today(tmp_path: Path) -> None:
    loaded = Certificate.load(CERTIFICATE)
    assert Certificate.load(loaded.save(tmp_path / "certificate.json")) == loaded


def test_an_altered_certificate_of_the_first_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "certificate.json"
    path.write_text(CERTIFICATE.read_text().replace('"margin": 1.2', '"margin": 1.3'))
    with pytest.raises(ValueError, match="was altered since it was saved"):
        Certificate.load(path)


def test_verify_asks_to_make_it_anew_whatever_model_and_data_are_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(CERTIFICATE), *INPUTS]) == Refusal.ROWS
    assert capsys.readouterr().out == (
        "REFUSED (rows): it was made by a version before 0.2, whose digest of the rows could be forged. Make it anew: "
        "certvae certify.\n"
    )


def test_a_teacher_answers_as_the_certificate_that_was_made_with_it_states() -> None:
    stated = Certificate.load(CERTIFICATE)
    assert stated.provenance["teacher_sha256"] == sha256_file(TEACHER)
    data, teacher = DigitsDataModule(), load_teacher(TEACHER)
    teacher.check_data(data.image_shape, data.fingerprint)
    answers = torch.cat([teacher(data.on_after_batch_transfer(batch, 0)[0]) for batch in data.loader("test")])
    assert len(answers) == stated.num_samples
    assert float(teacher_information(answers)) == pytest.approx(stated.teacher_information, abs=1e-5)


def test_a_teacher_is_saved_again_as_the_same_bytes(tmp_path: Path) -> None:
    assert load_teacher(TEACHER).save(tmp_path / "teacher.safetensors").read_bytes() == TEACHER.read_bytes()
