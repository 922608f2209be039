"""Every Python block of the README runs, and what it points to is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from certvae.callbacks.certificate import LOGGED

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_every_python_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.runs import digits_teacher

    monkeypatch.chdir(tmp_path)
    digits_teacher().save("teacher.safetensors")
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_every_link_points_to_a_file() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_the_table_of_keys_is_what_is_logged() -> None:
    assert set(re.findall(r"^\| `certificate/(\w+)`", README, flags=re.MULTILINE)) == {*LOGGED}


def test_the_plain_pytorch_example_is_certified() -> None:
    script = ROOT / "experiments" / "examples" / "plain_pytorch.py"
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("CERTIFIED")
