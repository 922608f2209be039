"""What is installed is what is in the folders, and importing it loads no more than is needed."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

import certvae
import certvae.callbacks
import certvae.datamodules

ROOT = Path(__file__).parents[2]
FOLDERS = {"certvae.callbacks": "callbacks", "certvae.datamodules": "datamodules"}
HEAVY = ("lightning", "matplotlib", "pytorch_lightning", "sklearn", "torchmetrics", "wandb")


def modules_in_the_folders() -> set[str]:
    own = {path.relative_to(ROOT).as_posix() for path in (ROOT / "certvae").rglob("*.py")}
    own = {path for path in own if path.split("/")[1] not in FOLDERS.values()}
    mapped = {
        f"certvae/{path.relative_to(ROOT)}" for folder in FOLDERS.values() for path in (ROOT / folder).rglob("*.py")
    }
    return own | mapped


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout in a folder named ``certvae``, so that no build folder is left in the checkout."""
    target = tmp_path_factory.mktemp("above") / "certvae"
    ignored = shutil.ignore_patterns(".*_cache", ".git", ".hypothesis", ".venv", "__pycache__", "build", "runs")
    shutil.copytree(ROOT, target, symlinks=True, ignore=ignored)
    return target


def python(*arguments: str, cwd: Path, executable: Path | str = sys.executable, path: str | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = path
    command = [str(executable), *arguments]
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
def test_the_wheel_of_the_source_distribution_holds_every_module(clone: Path, tmp_path: Path) -> None:
    python("-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(clone), cwd=tmp_path)
    with ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    assert {name for name in names if name.endswith(".py")} == modules_in_the_folders()
    assert {"certvae/py.typed", "certvae/report/page.html", "certvae/report/style.css"} <= names
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "certvae").rglob("*.safetensors")} <= names


def editable_install(source: Path, folder: Path) -> Path:
    """A virtual environment that sees this one's packages, with ``source`` as an editable install; its Python."""
    python("-m", "venv", "--without-pip", str(folder / "venv"), cwd=folder)
    build = f"from hatchling.build import build_editable; build_editable({str(folder)!r})"
    python("-c", build, cwd=source)
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    with ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(packages)
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "venv" / "bin" / "python"


@pytest.mark.slow
def test_an_editable_install_works_in_the_folder_above_the_clone(clone: Path, tmp_path: Path) -> None:
    """There ``certvae`` is also the name of a folder without an ``__init__.py``."""
    code = "import certvae, certvae.datamodules; print(certvae.certify.__name__, certvae.__file__)"
    printed = python("-c", code, cwd=clone.parent, executable=editable_install(clone, tmp_path))
    assert printed.split() == ["certify", str(clone / "certvae" / "__init__.py")]


def loaded_by(code: str, folder: Path) -> dict[str, Any]:
    """What ``code`` leaves in ``result``, and the top names of all modules, of a process of its own."""
    ending = "\nimport sys, json; print(json.dumps([result, sorted({name.split('.')[0] for name in sys.modules})]))"
    last = python("-c", code + ending, cwd=folder, path=str(ROOT)).splitlines()[-1]
    result, names = json.loads(last)
    return {"result": result, "names": set(names)}


@pytest.mark.slow
def test_certify_on_arrays_loads_neither_lightning_nor_scikit_learn(tmp_path: Path) -> None:
    code = """
import numpy as np, certvae
teacher = 0.9 * np.eye(3).repeat(100, axis=0) + 0.1 / 3
result = certvae.certify(teacher, np.log(teacher)).status.name
"""
    loaded = loaded_by(code, tmp_path)
    assert loaded["result"] == "CERTIFIED"
    assert loaded["names"] & set(HEAVY) == set()


@pytest.mark.slow
def test_a_fit_without_a_search_needs_no_scikit_learn(tmp_path: Path) -> None:
    code = "import certvae.commands.lightning, certvae.callbacks, certvae.datamodules, certvae.models; result = None"
    assert loaded_by(code, tmp_path)["names"] & {"pandas", "sklearn"} == set()


@pytest.mark.parametrize(("arguments", "status"), [("--help", 0), ("--version", 0), ("protocl", 2)])
def test_what_needs_no_torch_is_answered_without_it(arguments: str, status: int, tmp_path: Path) -> None:
    loaded = loaded_by(f"from certvae.cli import main; result = main([{arguments!r}])", tmp_path)
    assert loaded["result"] == status
    assert loaded["names"] & {"numpy", "torch", *HEAVY} == set()


def test_links_and_mapping_give_one_module() -> None:
    for name, folder in FOLDERS.items():
        link = ROOT / "certvae" / folder
        assert link.is_symlink()
        assert link.resolve() == ROOT / folder
        assert sys.modules[name].__file__ is not None
        assert Path(str(sys.modules[name].__file__)).resolve().parent == ROOT / folder
    assert "callbacks" not in sys.modules
    assert "datamodules" not in sys.modules


def test_every_public_name_exists_and_is_documented() -> None:
    for module in (certvae, certvae.callbacks, certvae.datamodules):
        for name in module.__all__:
            assert getattr(module, name).__doc__, name
