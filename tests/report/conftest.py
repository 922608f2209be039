"""Real runs that the tests of the report share; a test that changes one changes its own copy."""

import shutil
from pathlib import Path

import pytest

from certvae.cli import main
from certvae.commands.protocol import Protocol, run_protocol
from tests.commands.test_cli import EXPERIMENTS
from tests.plain_vae import UserVAE, fit, plain_loader, watch
from tests.runs import digits_teacher


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A protocol on digits, two epochs a phase, with a given teacher."""
    folder = tmp_path_factory.mktemp("report")
    teacher = digits_teacher(10, information_held_out=1.0, choice="Chosen for tests.").save(
        folder / "teacher.safetensors"
    )
    changes = {"teachers": (teacher,), "max_epochs": 2, "output_dir": folder / "demo"}
    run_protocol(Protocol.read(EXPERIMENTS / "digits.yaml", **changes))
    return folder / "demo"


@pytest.fixture(scope="session")
def report(finished: Path) -> Path:
    """The report of that protocol, with images."""
    path = finished.parent / "report.html"
    assert main(["report", str(finished), "--output", str(path)]) == 0
    return path


@pytest.fixture
def demo(finished: Path, tmp_path: Path) -> Path:
    """A copy of the protocol's folder."""
    return Path(shutil.copytree(finished, tmp_path / "demo"))


@pytest.fixture(scope="session")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a callback leaves of somebody else's model, without noise in its code, without YAML and checkpoint."""
    folder = tmp_path_factory.mktemp("watched")
    runner, model = fit(folder, watch(save_dir=folder / "theirs"), lambda: UserVAE("mean"), max_epochs=2)
    runner.test(model, plain_loader(), verbose=False)
    return folder / "theirs"


@pytest.fixture
def foreign(watched: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    return Path(shutil.copytree(watched, tmp_path / "theirs"))
