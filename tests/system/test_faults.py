"""Every fault of the table is survived: nothing lost, a clear end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.run import FAULTS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str | bool]]:
    """All in one process of its own, which forks the runs: the imports are paid for once."""
    file = tmp_path_factory.mktemp("faults") / "verdicts.json"
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.faults.run", "--json", str(file)]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=1800)
    assert file.is_file(), ended.stderr
    return json.loads(file.read_text())


@pytest.mark.parametrize("name", [fault.name for fault in FAULTS])
def test_a_run_survives(name: str, verdicts: dict[str, dict[str, str | bool]]) -> None:
    assert verdicts[name]["survived"], verdicts[name]["happened"]
