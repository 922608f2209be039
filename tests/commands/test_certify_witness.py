"""The published certificate of a model without a witness of its own: the teacher's, at the scale of the run."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from certvae import Certificate, certify, load_teacher
from certvae.cli import main
from certvae.commands.certify import CertifyOptions, _witness, build, certify_checkpoint
from certvae.io.checkpoints import load_weights
from certvae.monitoring.encoded_rows import encode_rows
from certvae.theory.permutation import permutation_p_value
from tests.commands.test_certify import arguments, status_of
from tests.plain_vae import UserVAE
from tests.runs import digits_teacher

pytestmark = pytest.mark.slow


class PlainVAE(UserVAE):
    """Knows no teacher and no witness; its ``forward`` gives the code."""

    def forward(self, images: Tensor) -> Any:
        return self.encoder(images)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files of a VAE without a witness of its own, as it is before training."""
    folder = tmp_path_factory.mktemp("plain")
    torch.manual_seed(0)
    torch.save({"state_dict": PlainVAE().state_dict()}, folder / "plain.ckpt")
    parts = {"model": "tests.commands.test_certify_witness.PlainVAE", "data": "certvae.datamodules.DigitsDataModule"}
    (folder / "plain.yaml").write_text(yaml.safe_dump({name: {"class_path": path} for name, path in parts.items()}))
    return {
        "ckpt": folder / "plain.ckpt",
        "teacher": digits_teacher().save(folder / "teacher.safetensors"),
        "config": folder / "plain.yaml",
    }


def rows_of(files: dict[str, Path]) -> tuple[Tensor, Tensor]:
    """Teacher probabilities and mean codes of the rows kept for the certificate."""
    model, data = build(files["config"], files["teacher"])
    load_weights(model, files["ckpt"])
    rows = encode_rows(model, load_teacher(files["teacher"]), data.test_dataloader(), data)
    return rows.teacher_probs, rows.mean


def test_the_witness_scale_of_a_run_is_certified_recorded_and_verified(plain: dict[str, Path], tmp_path: Path) -> None:
    teacher, codes = rows_of(plain)
    path = tmp_path / "certificate.json"
    for given, scale in (([], 2.0), (["--witness_scale=0.5"], 0.5)):
        assert main(["certify", *arguments(plain), *given, "--permutations=0", f"--output={path}"]) == 0
        published = Certificate.load(path)
        margin = certify(
            teacher, load_teacher(plain["teacher"]).witness(6, scale)(codes), teacher_floor=published.teacher_floor
        ).margin
        assert published.margin == pytest.approx(margin, abs=1e-9)
        assert published.provenance["witness_scale"] == scale
        assert status_of(plain, path) == 0


def test_the_p_value_is_that_of_the_floored_witness(plain: dict[str, Path]) -> None:
    """As :func:`certvae.certify` computes it; without the floor it is another."""
    teacher, codes = rows_of(plain)
    options = CertifyOptions(method="bernstein", permutations=99, witness_scale=200.0)
    published = certify_checkpoint(plain["ckpt"], plain["teacher"], plain["config"], options)
    logits = load_teacher(plain["teacher"]).witness(6, 200.0)(codes)
    floors: dict[str, Any] = {"method": "bernstein", "teacher_floor": published.teacher_floor}
    generator = torch.Generator().manual_seed(options.seed)
    assert published.p_value == certify(teacher, logits, permutations=99, generator=generator, **floors).p_value
    assert published.p_value != permutation_p_value(teacher, logits, 99, generator.manual_seed(options.seed))


def test_an_empty_sequential_is_a_witness() -> None:
    """It answers with the code, and is not taken for none."""
    model = PlainVAE()
    model.witness = nn.Sequential()
    assert _witness(model, digits_teacher(), 6, CertifyOptions()) is model.witness
