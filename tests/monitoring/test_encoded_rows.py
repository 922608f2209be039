"""Rows that come twice, rows in another order, draws in blocks, and encoders that read more than a row."""

from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from certvae.certificate.settings import CertificateSettings
from certvae.commands.certify import CertifyOptions, _certificate, _refuse_more
from certvae.monitoring.encoded_rows import EncodedRows, encode_rows
from certvae.theory.posterior import Posterior
from tests.plain_vae import UserVAE, images
from tests.runs import digits_teacher


class Encoding(LightningModule):
    """A module whose ``forward`` is an encoder."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, inputs: Tensor) -> Any:
        return self.encoder(inputs)


def encoded(encoder: nn.Module, inputs: Tensor | None = None, batch: int = 32) -> EncodedRows:
    inputs = images() if inputs is None else inputs
    loader = DataLoader(TensorDataset(inputs, torch.zeros(len(inputs))), batch)
    return encode_rows(Encoding(encoder), digits_teacher(), loader)


def pair() -> nn.Module:
    torch.manual_seed(0)
    return UserVAE().encoder


@pytest.mark.slow
def test_repeated_rows_are_found_and_count_once_for_a_proven_bound() -> None:
    rows = encoded(pair(), images(30).repeat(3, 1, 1, 1))
    assert int(rows.repeats.sum()) == 60
    assert not rows.repeats[:30].any()
    teacher, options = digits_teacher(), {"permutations": 0, "calibration_rows": 0}
    counted = {
        method: _certificate(rows, teacher, teacher.witness(6), None, CertifyOptions(method=method, **options))  # type: ignore[arg-type]
        for method in ("normal", "bernstein")
    }
    assert (counted["normal"].num_samples, counted["bernstein"].num_samples) == (90, 30)
    alone = encoded(pair(), images(30))
    expected = _certificate(alone, teacher, teacher.witness(6), None, CertifyOptions(method="bernstein", **options))  # type: ignore[arg-type]
    assert counted["bernstein"].margin_lower == pytest.approx(expected.margin_lower, abs=1e-6)
    assert alone.weights(CertificateSettings(method="bernstein", teacher_floor=0.01)) is None


@pytest.mark.slow
def test_the_digest_of_rows_knows_their_number_and_not_their_order() -> None:
    rows = encoded(pair())
    assert encoded(pair(), images().flip(0)).rows_sha256 == rows.rows_sha256
    assert encoded(pair(), batch=7).rows_sha256 == rows.rows_sha256
    for other in (images(89), torch.cat([images(), images(1)]), images().index_fill(0, torch.tensor([3]), 0.5)):
        assert encoded(pair(), other).rows_sha256 != rows.rows_sha256


def test_draws_in_blocks_are_the_draws_of_all_rows() -> None:
    rows = encoded(pair())
    assert rows.log_variance is not None
    whole = Posterior(rows.mean, rows.log_variance).row_draws(torch.arange(90), 3, seed=5)
    for most in (1, 100, 10**6):
        blocks = list(rows.blocks(3, 5, most))
        assert torch.equal(torch.cat([block.draws for block in blocks], dim=1), whole)
        assert torch.equal(torch.cat([block.rows.teacher_probs for block in blocks]), rows.teacher_probs)
        assert max(block.draws.numel() for block in blocks) <= max(most, 18)
    with pytest.raises(ValueError, match="without a variance there are no draws"):
        next(encoded(UserVAE("mean").encoder).blocks(1, 0, 10))


def test_work_beyond_a_limit_is_refused_by_the_name_of_its_option() -> None:
    _refuse_more("permutations", 10, 10)
    with pytest.raises(ValueError, match="`permutations` must be lower: .* 11 numbers, and 10 are the most"):
        _refuse_more("permutations", 11, 10)
    rows, teacher = encoded(pair()), digits_teacher()
    rows.teacher_probs = torch.full((2**20, 5), 0.2)
    with pytest.raises(ValueError, match="`permutations` must be lower"):
        _certificate(rows, teacher, teacher.witness(6), None, CertifyOptions(permutations=10**5))


class Centering(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.flatten(1) - inputs.flatten(1).mean(dim=0)


class Counting(nn.Module):
    seen = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.seen += len(inputs)
        return torch.arange(self.seen, self.seen + len(inputs), dtype=torch.float32)[:, None]


class Numbering(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return torch.arange(len(inputs), dtype=torch.float32)[:, None]


@pytest.mark.parametrize("encoder", [Centering(), Counting(), Numbering()], ids=["batch", "count", "place"])
def test_an_encoder_that_reads_more_than_a_row_is_found(encoder: nn.Module) -> None:
    assert any(found.startswith("encoder:") for found in encoded(encoder).leaks)


class Convolutional(nn.Module):
    """As many write it, with batch norm; computed in bfloat16 if asked, or with a collapsed head."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1)]
        self.body = nn.Sequential(*layers, nn.BatchNorm2d(64), nn.SiLU(), nn.Flatten(), nn.Linear(256, 12))
        self.kind = kind
        self.train()(torch.rand(64, 1, 8, 8))
        if kind == "collapsed":
            nn.init.normal_(self.body[-1].weight, std=1e-6)  # type: ignore[arg-type]

    def forward(self, inputs: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.kind == "bfloat16"):
            return self.body(inputs).chunk(2, dim=1)


@pytest.mark.parametrize("batch", [7, 32, 90])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "collapsed"])
def test_an_honest_convolutional_encoder_is_not_accused(kind: str, batch: int) -> None:
    assert encoded(Convolutional(kind), batch=batch).leaks == []
