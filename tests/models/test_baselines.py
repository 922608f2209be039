"""Every baseline is a small change to one base, with the same raw witness and no alignment, and it trains."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pytorch_lightning.cli import LightningCLI

from certvae import Certificate
from certvae.callbacks.lagging import LaggingInference
from certvae.commands.lightning import run_lightning
from certvae.io.files import write_atomic
from certvae.models.constrained_encoders import BatchNormEncoder, DeltaEncoder
from certvae.models.objectives import Capacity, FreeBits, InfoVAE
from certvae.models.priors import VampPrior
from certvae.models.schedules import CyclicalSchedule, LinearSchedule
from experiments.baselines import study as STUDY
from tests.runs import digits_teacher

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[2] / "experiments" / "baselines"
PROPERTIES = {
    "vae": lambda cli: cli.model.objective.beta == 1.0,
    "beta_vae": lambda cli: cli.model.objective.beta == 16.0,
    "kl_annealing": lambda cli: isinstance(cli.model.objective.beta, LinearSchedule),
    "cyclical_annealing": lambda cli: isinstance(cli.model.objective.beta, CyclicalSchedule),
    "capacity": lambda cli: isinstance(cli.model.objective, Capacity) and cli.model.objective.gamma == 1000.0,
    "free_bits": lambda cli: isinstance(cli.model.objective, FreeBits) and cli.model.objective.floor == 0.25,
    "delta_vae": lambda cli: isinstance(cli.model.encoder, DeltaEncoder) and cli.model.encoder.rate == 0.15,
    "bn_vae": lambda cli: isinstance(cli.model.encoder, BatchNormEncoder),
    "skip_vae": lambda cli: len(cli.model.decoder.skips) > 0,
    "info_vae": lambda cli: isinstance(cli.model.objective, InfoVAE) and cli.model.objective.mmd_weight == 100.0,
    "sigma_vae": lambda cli: cli.model.observation_std == "optimal",
    "vamp_prior": lambda cli: isinstance(cli.model.prior, VampPrior) and len(cli.model.prior.pseudo_inputs) == 500,
    "lagging": lambda cli: any(isinstance(callback, LaggingInference) for callback in cli.trainer.callbacks),
}


def test_every_yaml_of_the_folder_is_a_baseline_of_the_study() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} - {"base", "quick"} == set(STUDY.BASELINES) == set(PROPERTIES)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    digits_teacher().save(path)
    return path


@pytest.mark.parametrize("name", STUDY.BASELINES)
def test_each_yaml_trains_on_digits_is_certified_and_has_its_property(
    name: str, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    values = STUDY.compose(name, quick=True)
    values["model"]["init_args"]["teacher"] = str(teacher)
    values["trainer"] |= {"max_epochs": 1, "enable_progress_bar": False, "num_sanity_val_steps": 0}
    cli = run_lightning(["fit", "--config", str(write_atomic(tmp_path / "run.yaml", yaml.safe_dump(values)))])
    cli.trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)
    assert PROPERTIES[name](cli)
    assert cli.model.alignment_weight == 0
    certificate = Certificate.load(tmp_path / "runs/baselines/run/certificate_test.json")
    assert certificate.teacher_information > 0
    assert not certificate.leaks


def parsed(*configs: Path) -> LightningCLI:
    options = [option for config in configs for option in ("--config", str(config))]
    return run_lightning([*options, "--model.init_args.teacher=null"], run=False)


def kinds_of_callbacks(cli: Any) -> list[type]:
    return [type(item) for item in cli.trainer.callbacks]


@pytest.mark.parametrize("name", STUDY.BASELINES)
def test_two_configs_on_the_command_line_are_what_the_study_composes(name: str, tmp_path: Path) -> None:
    composed = write_atomic(tmp_path / "run.yaml", yaml.safe_dump(STUDY.compose(name, quick=False)))
    one, other = parsed(FOLDER / "base.yaml", FOLDER / f"{name}.yaml"), parsed(composed)
    assert PROPERTIES[name](one)
    first, second = (cli.parser.dump(cli.config, skip_none=False) for cli in (one, other))
    assert first.split("model:")[1] == second.split("model:")[1]
    assert kinds_of_callbacks(one) == kinds_of_callbacks(other)


@pytest.mark.parametrize("quick", [False, True])
def test_baselines_differ_only_in_objective_networks_prior_and_likelihood(quick: bool) -> None:
    base = STUDY.compose("vae", quick)
    for name in STUDY.BASELINES:
        values = STUDY.compose(name, quick)
        for key in ("teacher", "witness_scale", "witness_prior", "alignment_weight", "alignment_path", "learning_rate"):
            assert values["model"]["init_args"][key] == base["model"]["init_args"][key]
        assert values["data"] == base["data"]
        assert values["trainer"]["max_epochs"] == base["trainer"]["max_epochs"]
        assert base["model"]["init_args"]["alignment_weight"] == 0


def test_the_study_runs_reports_and_keeps_what_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "out"
    (folder / "seed0" / "search").mkdir(parents=True)
    digits_teacher().save(folder / "seed0" / "search" / "teacher.safetensors")
    options = ["--quick", "--max_epochs", "1", "--output_dir", str(folder), "--sweep", "--only", "vae", "info_vae_1000"]
    lines = STUDY.main(options)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("certificate.json")}
    assert STUDY.main(options) == lines
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("certificate.json")} == times
    written = yaml.safe_load((folder / "seed0" / "info_vae_1000" / "run.yaml").read_text())
    assert written["model"]["init_args"]["objective"]["init_args"]["mmd_weight"] == 1000.0
    rows = (folder / "baselines.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["baseline", "vae", "info_vae_1000"]
    assert (folder / "baselines.png").stat().st_size > 0
    assert re.search(r"\| vae \| 0 \| [A-Z]+ \| NOT_CERTIFIED \|", capsys.readouterr().out)


def test_a_probe_reads_what_the_code_says_and_guesses_what_it_does_not(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    (folder / "seed0" / "search").mkdir(parents=True)
    digits_teacher().save(folder / "seed0" / "search" / "teacher.safetensors")
    alive, shut = STUDY.main(
        ["--quick", "--max_epochs", "20", "--output_dir", str(folder), "--only", "vae", "capacity", "--seeds", "0"]
    )
    assert alive["component_accuracy"] > 2 * alive["component_most_frequent"]
    assert alive["mutual_information"] > 1
    assert alive["mean_squared_error"] < 0.7 * alive["constant_squared_error"]
    assert shut["rate"] > alive["rate"]  # a rate is no information
    assert shut["mutual_information"] < 0.5


def test_a_run_that_the_study_does_not_have_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        STUDY.main(["--quick", "--only", "vqvae"])
    assert "--only must name one of vae, beta_vae, " in capsys.readouterr().err
