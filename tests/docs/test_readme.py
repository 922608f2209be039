"""Every Python block of the README runs, and what it points to is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from certvae.callbacks import CertificateCallback, CertificateGuard, CollapseDiagnostics, ProbeCallback
from certvae.callbacks.certificate import LOGGED
from certvae.datamodules import DigitsDataModule
from tests.runs import digits_teacher, small_vae, trainer

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_every_python_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.slow
def test_the_table_of_keys_is_what_a_run_logs(tmp_path: Path) -> None:
    rows = re.findall(r"^\| (`(?:certificate|probe|diagnostics)/.*?`) \|", README, flags=re.MULTILINE)
    told = {key for row in rows for key in re.findall(r"`([\w/]+)`", row)}
    callbacks = [CertificateCallback(), CertificateGuard(0.3), ProbeCallback(), CollapseDiagnostics()]
    run = trainer(tmp_path, callbacks=callbacks)
    run.fit(small_vae(digits_teacher()), datamodule=DigitsDataModule(subset=256))
    assert told <= set(run.callback_metrics)
    assert {f"certificate/{name}" for name in LOGGED} <= told


@pytest.mark.slow
def test_the_plain_pytorch_example_is_certified() -> None:
    script = ROOT / "experiments" / "examples" / "plain_pytorch.py"
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("CERTIFIED")
