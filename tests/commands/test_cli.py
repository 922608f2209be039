"""Every shipped YAML runs through the real command line."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from certvae.cli import main
from tests.datamodules.test_tiny_imagenet import made_up_set

pytestmark = pytest.mark.slow

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
DATASETS = ("digits", "cifar100", "tiny_imagenet")
SHORT_SEARCH = (
    "--model.em_iterations=2",
    "--model.pca_passes=2",
    "--model.components=[5]",
    "--model.temperatures=[1]",
    "--model.initializations=1",
)
WIDE_CRITERIA = "--model.criteria={max_energy: 1e6, max_use: 1.0, min_use: 0.0, max_drift: 1e6}"


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, list[str]]]:
    """A folder with a teacher and a collapsed checkpoint where the YAMLs expect them, made by the YAMLs themselves."""
    made: dict[str, tuple[Path, list[str]]] = {}

    def prepare(dataset: str) -> tuple[Path, list[str]]:
        if dataset not in made:
            folder = tmp_path_factory.mktemp(dataset)
            options = data_options(dataset, folder)
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                assert (
                    main(["fit", "--config", shipped(dataset, "search"), *SHORT_SEARCH, WIDE_CRITERIA, *options]) == 0
                )
                short = ("--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1")
                assert main(["fit", "--config", shipped(dataset, "no_align"), *short, *options]) == 0
            made[dataset] = folder, options
        return made[dataset]

    return prepare


def shipped(dataset: str, run: str) -> str:
    return str(EXPERIMENTS / dataset / f"{run}.yaml")


def data_options(dataset: str, folder: Path) -> list[str]:
    if dataset == "tiny_imagenet":  # made up: decoding the real images takes most of a minute
        return [f"--data.data_dir={made_up_set(folder / 'data' / 'tiny-imagenet-200', 100, 60).parent}"]
    if dataset == "cifar100":
        where = os.environ.get("CERTVAE_DATA_DIR")
        if not where:
            pytest.skip(f"CERTVAE_DATA_DIR is not set, so there are no files of {dataset}")
        return ["--data.subset=300", f"--data.data_dir={where}"]
    return ["--data.subset=300"]


@pytest.mark.parametrize("run", ["search", "full", "no_align", "rescue", "guarded", "prefit"])
@pytest.mark.parametrize("dataset", DATASETS)
def test_every_shipped_yaml_runs_with_fast_dev_run(
    dataset: str,
    run: str,
    prepared: Callable[[str], tuple[Path, list[str]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, options = prepared(dataset)
    monkeypatch.chdir(folder)
    assert main(["fit", "--config", shipped(dataset, run), "--trainer.fast_dev_run=true", *options]) == 0


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_the_other_commands_run_on_a_checkpoint(
    command: str, prepared: Callable[[str], tuple[Path, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, options = prepared("digits")
    monkeypatch.chdir(folder)
    checkpoint = "--ckpt_path=runs/digits/no_align/checkpoints/last.ckpt"
    assert main([command, "--config", shipped("digits", "no_align"), checkpoint, *options]) == 0


def test_every_yaml_is_shipped_complete_and_opens_with_its_command() -> None:
    for dataset in DATASETS:
        for run in ("search", "full", "no_align", "rescue", "ablate", "guarded", "prefit"):
            text = Path(shipped(dataset, run)).read_text()
            assert f"# certvae fit --config experiments/{dataset}/{run}.yaml" in text
            assert {"seed_everything", "trainer", "model", "data"} <= set(yaml.safe_load(text))
        assert f"# certvae protocol experiments/{dataset}.yaml" in (EXPERIMENTS / f"{dataset}.yaml").read_text()


def test_phases_of_a_protocol_differ_only_where_they_must() -> None:
    for dataset in DATASETS:
        runs = {run: yaml.safe_load(Path(shipped(dataset, run)).read_text()) for run in ("full", "no_align", "rescue")}
        arguments = {run: config["model"]["init_args"] for run, config in runs.items()}
        assert arguments["no_align"].pop("alignment_weight") == 0.0
        assert arguments["full"].pop("alignment_weight") == arguments["rescue"].pop("alignment_weight") > 0
        assert arguments["rescue"].pop("init_weights_from").endswith("no_align/checkpoints/last.ckpt")
        assert arguments["full"] == arguments["no_align"] == arguments["rescue"]


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "protocol" in capsys.readouterr().out


def test_an_error_that_the_user_can_mend_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["protocol", "missing.yaml"]) == 1
    error = capsys.readouterr().err
    assert error == "certvae: FileNotFoundError: no protocol at missing.yaml.\n"


def test_a_missing_teacher_says_what_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", shipped("digits", "full")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("certvae: FileNotFoundError: no teacher at runs/digits/search/teacher.safetensors")
    assert error.count("\n") == 1
