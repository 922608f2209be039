"""What is installed is what is in the folders."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

import certvae
import certvae.callbacks
import certvae.datamodules

ROOT = Path(__file__).parents[2]
FOLDERS = {"certvae.callbacks": "callbacks", "certvae.datamodules": "datamodules"}


def modules_in_the_folders() -> set[str]:
    own = {path.relative_to(ROOT).as_posix() for path in (ROOT / "certvae").rglob("*.py")}
    own = {path for path in own if path.split("/")[1] not in FOLDERS.values()}
    mapped = {
        f"certvae/{path.relative_to(ROOT)}" for folder in FOLDERS.values() for path in (ROOT / folder).rglob("*.py")
    }
    return own | mapped


def test_the_package_list_names_every_folder() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {str(Path(path).parent).replace("/", ".") for path in modules_in_the_folders()}
    assert set(settings["packages"]) == set(settings["package-dir"]) == folders


def test_the_wheel_holds_every_module(tmp_path: Path) -> None:
    source = tmp_path / "source"  # a copy, so that no build folder is left in the checkout
    ignored = shutil.ignore_patterns(".git", ".venv", "runs", "build", "data")
    shutil.copytree(ROOT, source, symlinks=True, ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(command, check=True)
    with ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    assert {name for name in names if name.endswith(".py")} == modules_in_the_folders()
    assert {"certvae/py.typed", "certvae/report/page.html", "certvae/report/style.css"} <= names


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
