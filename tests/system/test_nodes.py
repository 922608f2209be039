"""Two nodes of two processes give the numbers of one process.

Two agents of ``torchrun`` meet at a rendezvous on loopback, once, and their processes run all jobs of
:mod:`tests.distributed.node_jobs`. Networks compute in float64, so that differences are those of the sums.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from certvae.callbacks import CertificateCallback
from certvae.datamodules import DigitsDataModule
from tests.distributed.differences import JOBS, largest_differences
from tests.distributed.jobs import vae, validated
from tests.distributed.launch import common, launch_nodes
from tests.distributed.sets import BATCH
from tests.distributed.worker import run_jobs
from tests.system.test_distributed import OF_PLACES, assert_same

pytestmark = pytest.mark.slow

LIMIT = 400.0
Results = dict[str, Any]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run_jobs(JOBS, tmp_path_factory.mktemp("one"), world=1)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> list[Results]:
    return launch_nodes(tmp_path_factory.mktemp("nodes"), 2, 2, LIMIT, JOBS)


def test_every_reported_number_is_that_of_one_process(one: Results, many: list[Results]) -> None:
    """Certificates, brackets, codebooks, diagnostics, probe, guards, trained weights and the searched teacher."""
    found = largest_differences(many, one)
    assert {"margin", "margin_lower", "lower", "upper", "gap", "means", "choice", "beta", "soft/lower"} <= set(found)
    assert max(found.values()) < 1e-10, {name: value for name, value in found.items() if value > 1e-12}


def test_a_process_without_rows_changes_nothing_but_the_noise(one: Results, many: list[Results]) -> None:
    seen, expected = common(many, "first_process_idle"), one["first_process_idle"]["result"]
    assert_same({**seen, **{name: expected[name] for name in OF_PLACES & set(expected)}}, expected)


def test_validation_within_a_fit_measures_the_weights_of_that_epoch(many: list[Results], tmp_path: Path) -> None:
    seen, model, callback = common(many, "fitted_101"), vae().double(), CertificateCallback(channel_samples=2)
    model.load_state_dict(torch.load(seen["weights"], weights_only=True))
    expected = validated(tmp_path, 1, model, DigitsDataModule(BATCH, subset=101), callback)
    del seen["certificate"]["provenance"], expected["provenance"]
    assert_same(seen["certificate"], expected)


def test_a_teacher_that_no_process_can_read_is_refused_on_all(many: list[Results]) -> None:
    assert common(many, "teacher_of_nobody").startswith("no teacher at ")


def test_images_are_decoded_once_a_node(many: list[Results]) -> None:
    decoded = [process["decoded"]["result"] for process in many]
    assert [item["calls"] for item in decoded] == [int(item["first_of_node"]) for item in decoded] == [1, 0, 1, 0]


def test_the_first_process_alone_writes_files(many: list[Results]) -> None:
    """Each process was given a folder of its own; a file that two of them wrote would be in two."""
    first, *others = (process["written"]["result"] for process in many)
    kept = [
        f"certificate_{name}"
        for name in ("looks.json", "settings.json", "teacher.safetensors", "test.json", "val.json")
    ]
    assert first == ["candidates.csv", *kept, "certificates_val.jsonl", "last.ckpt", "teacher.safetensors"]
    assert others == [[], [], []]
