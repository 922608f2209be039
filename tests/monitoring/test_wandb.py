"""What Weights & Biases shows of a run's certificates: each key, step and value, read back from offline runs' files."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from pytorch_lightning import Callback
from pytorch_lightning.loggers import WandbLogger

import certvae
from certvae import Certificate, TeacherSearch
from certvae.callbacks import CertificateCallback, LastCheckpoint, ReconstructionImages
from certvae.certificate.history import read_history
from certvae.cli import main
from certvae.io.files import sha256_file
from certvae.monitoring.artifacts import use_teacher
from certvae.monitoring.loggers import LOGGED
from certvae.teachers.search import SelectionCriteria
from tests.logged import Collapse, data, run
from tests.runs import digits_teacher, small_vae, trainer
from tests.wandb_file import RunFile, finished, offline, run_files  # noqa: F401

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunFile]:
    """A run with W&B and nothing else that loses its certificate in epoch 2 of 4, and is tested then."""
    folder = tmp_path_factory.mktemp("lost")
    runner = run(folder, WandbLogger(save_dir=folder), [Collapse(2), CertificateCallback(save_dir=folder)], epochs=4)
    runner.test(runner.lightning_module, datamodule=data(), verbose=False)
    (file,) = run_files(folder)
    return folder, file


def test_every_certificate_is_logged_at_its_epoch(lost: tuple[Path, RunFile]) -> None:
    folder, file = lost
    certificates = read_history(folder / "certificates_val.jsonl")
    assert [certificate.certified for certificate in certificates] == [True, True, False, False]
    for key in LOGGED:
        seen = file.column(f"certificate/{key}")
        assert seen == [(epoch, pytest.approx(float(getattr(c, key)))) for epoch, c in enumerate(certificates)], key
    tested = Certificate.load(folder / "certificate_test.json")
    assert file.column("test_certificate/margin") == [(4, pytest.approx(tested.margin))]


def test_steps_and_epochs_never_go_back(lost: tuple[Path, RunFile]) -> None:
    _, file = lost
    for key in ("_step", "epoch"):
        values = [row[key] for row in file.history]
        assert values == sorted(values), key
    steps = [row["trainer/global_step"] for row in file.history if "certificate/margin" in row]
    assert steps == [5 * epoch - 1 for epoch in range(1, 5)]


def test_every_key_is_defined_against_the_epoch(lost: tuple[Path, RunFile]) -> None:
    _, file = lost
    for key in LOGGED:
        for prefix in ("certificate", "test_certificate"):
            metric = file.metrics[f"{prefix}/{key}"]
            assert metric.step_metric == "epoch"
            assert metric.summary.last
    for key in (
        "certificate/components",
        "test_certificate/components",
        "certificate/curve",
        "images/reconstructions",
        "images/samples",
    ):
        assert file.metrics[key].step_metric == "epoch"


def test_the_summary_holds_the_last_the_best_and_the_first(lost: tuple[Path, RunFile]) -> None:
    folder, file = lost
    certificates = read_history(folder / "certificates_val.jsonl")
    for key in LOGGED:
        assert file.summary[f"certificate/{key}"] == {"last": pytest.approx(float(getattr(certificates[-1], key)))}
    best = max(certificates, key=lambda certificate: certificate.margin_lower)
    assert file.summary["certificate/best_margin_lower"] == pytest.approx(best.margin_lower)
    assert file.summary["certificate/best_epoch"] == best.provenance["epoch"]
    assert file.summary["certificate/first_certified_epoch"] == 0
    assert file.summary["certificate/status"] == "NOT_CERTIFIED"
    assert file.summary["certificate/reading"] == certificates[-1].reading


def test_the_config_says_which_teacher_it_was(lost: tuple[Path, RunFile]) -> None:
    folder, file = lost
    teacher, config = digits_teacher(), file.config["certificate"]
    assert config["teacher"]["sha256"] == sha256_file(teacher.save(folder / "teacher.safetensors"))
    assert config["teacher"]["kind"] == "gaussian_mixture"
    assert config["teacher"]["num_components"] == 5
    assert config["teacher"]["information_train"] == pytest.approx(teacher.card.information_train)
    assert config["safety_margin"] == 0.05
    assert config["method"] == "betting"
    assert file.config["alignment_weight"] == 200.0  # of the module, by Lightning


def test_certificates_are_artifacts_that_load(lost: tuple[Path, RunFile]) -> None:
    folder, file = lost
    names = [artifact.name for artifact in file.of_type("certificate")]
    assert names == [f"certificate_{stage}-{file.run.run_id}" for stage in ("val", "test")]
    for artifact, stage in zip(file.of_type("certificate"), ("val", "test"), strict=True):
        saved = Certificate.load(folder / f"certificate_{stage}.json")
        assert artifact.type == "certificate"
        assert json.loads(artifact.metadata)["status"] == saved.status
        (entry,) = artifact.manifest.contents
        assert entry.path == f"certificate_{stage}.json"
        assert Certificate.load(entry.local_path) == saved


def test_the_config_says_what_the_run_was_made_with(lost: tuple[Path, RunFile]) -> None:
    made = lost[1].config["run"]
    expected = {"model": "VAE", "data": "DigitsDataModule", "objective": "ELBO", "precision": "32-true"}
    numbers = {"kl_weight": 1.0, "batch_size": 64, "epochs": 4}
    assert made | expected | numbers == made
    assert made["versions"]["certvae"] == certvae.__version__


def test_the_teacher_is_an_artifact_named_by_its_digest(lost: tuple[Path, RunFile]) -> None:
    folder, file = lost
    digest = sha256_file(digits_teacher().save(folder / "teacher.safetensors"))
    for artifact in file.of_type("teacher"):  # of the fit and of the test: one version of one artifact
        assert artifact.name == f"teacher-{digest[:12]}"
        (entry,) = artifact.manifest.contents
        assert entry.path == "teacher.safetensors"
        assert sha256_file(Path(entry.local_path)) == digest


def test_the_threshold_is_a_chart_of_every_validation(lost: tuple[Path, RunFile]) -> None:
    folder, file = lost
    tables = file.column("certificate/threshold_table")
    assert [(epoch, entry["nrows"]) for epoch, entry in tables] == [(n, 4 * (n + 1)) for n in range(4)] + [(3, 16)]
    rows = json.loads((file.folder / tables[-1][1]["path"]).read_text())["data"]
    certificates = read_history(folder / "certificates_val.jsonl")
    drawn = {key: [value for _, line, value in rows if line == key] for key in {line for _, line, _ in rows}}
    assert drawn["alignment loss"] == pytest.approx([c.alignment_loss for c in certificates])
    assert drawn["its upper bound"] == pytest.approx([c.teacher_information - c.margin_lower for c in certificates])
    assert drawn["certified below"] == pytest.approx([c.teacher_information - 0.05 for c in certificates])
    assert file.metrics["certificate/threshold_table"].step_metric == "epoch"
    assert file.config["_wandb"]["visualize"]["certificate/threshold"]["panel_type"] == "Vega2"


def test_a_teacher_is_an_input_of_the_run_where_there_is_a_server(tmp_path: Path) -> None:
    """Weights & Biases knows inputs with a server only; offline the teacher is logged."""
    for without_server, expected in ((True, "log_artifact"), (False, "use_artifact")):
        server = Mock(offline=without_server)
        use_teacher(server, digits_teacher().save(tmp_path / "teacher.safetensors"))
        assert [name for name, _, _ in server.method_calls] == [expected]


def test_a_search_shows_its_candidates_and_its_teacher(tmp_path: Path) -> None:
    search = TeacherSearch((3, 4), temperatures=(2.0,), initializations=1, pca_dim=4, output_dir=str(tmp_path))
    search.criteria = SelectionCriteria(max_energy=100.0, max_drift=1.0)
    trainer(tmp_path, max_epochs=-1, logger=WandbLogger(save_dir=tmp_path)).fit(search, datamodule=data())
    (file,) = run_files(tmp_path)
    ((_, entry),) = [(row["_step"], row["search/candidates"]) for row in file.history if "search/candidates" in row]
    table = json.loads((file.folder / entry["path"]).read_text())
    assert [dict(zip(table["columns"], row, strict=True)) for row in table["data"]] == list(map(asdict, search.rows))
    (artifact,) = file.of_type("teacher")
    assert artifact.name == f"teacher-{sha256_file(tmp_path / 'teacher.safetensors')[:12]}"


def test_the_margin_by_component_is_a_table_of_each_set_of_rows(lost: tuple[Path, RunFile]) -> None:
    folder, file = lost
    assert sum("components" in name for name in file.tables) == 2
    for key, stage, epoch in (("certificate", "val", 3), ("test_certificate", "test", 4)):
        saved = Certificate.load(folder / f"certificate_{stage}.json")
        ((seen, entry),) = file.column(f"{key}/components")
        assert (seen, entry["_type"], entry["nrows"]) == (epoch, "table-file", saved.num_components)
        table = json.loads((file.folder / entry["path"]).read_text())
        assert table["columns"] == ["component", "name", "share", "margin", "information"]
        parts = zip(saved.component_names, saved.components, strict=True)
        assert table["data"] == [
            [k, name, *map(pytest.approx, (part.share, part.margin, part.information))]
            for k, (name, part) in enumerate(parts)
        ]


def test_a_lost_certificate_is_one_alert(lost: tuple[Path, RunFile]) -> None:
    _, file = lost
    (alert,) = file.alerts
    assert alert.title == "certificate lost in epoch 2"
    assert alert.text.startswith("NOT_CERTIFIED: ")
    assert alert.level == "WARN"


def test_pictures_come_at_their_epochs(lost: tuple[Path, RunFile]) -> None:
    """The curve after 1, 2, 4, 8, ... validations and at the end; reconstructions and samples first and last."""
    _, file = lost
    epochs = {"certificate/curve": [0, 1, 3, 3], "images/reconstructions": [0, 3], "images/samples": [0, 3]}
    for key, expected in epochs.items():
        assert [epoch for epoch, _ in file.column(key)] == expected, key
        for _, entry in file.column(key):
            assert entry["_type"] == "images/separated"
            assert all((file.folder / name).stat().st_size > 0 for name in entry["filenames"])


def in_two_parts(folder: Path, callback: Callback) -> list[RunFile]:
    """Two epochs, and two more of the same run with a callback more, each in a process that knows the run's id."""
    files = []
    for epochs, resume, extra in ((2, None, []), (4, "last", [callback])):
        callbacks = [*extra, CertificateCallback(), LastCheckpoint(folder / "checkpoints")]
        logger = WandbLogger(save_dir=folder / str(epochs), id="fixed")
        run(folder, logger, callbacks, epochs, ckpt_path=resume, enable_checkpointing=True)
        files += run_files(folder / str(epochs))
    return files


def test_a_resumed_run_goes_on_in_the_same_wandb_run(tmp_path: Path) -> None:
    first, second = in_two_parts(tmp_path, Callback())
    assert first.run.run_id == second.run.run_id == "fixed"
    assert [epoch for epoch, _ in first.column("certificate/margin")] == [0, 1]
    assert [epoch for epoch, _ in second.column("certificate/margin")] == [2, 3]
    assert second.summary["certificate/first_certified_epoch"] == 0
    bounds = [value for file in (first, second) for _, value in file.column("certificate/margin_lower")]
    assert second.summary["certificate/best_margin_lower"] == pytest.approx(max(bounds))
    assert first.alerts == second.alerts == []


def test_a_certificate_lost_across_a_restart_is_an_alert_too(tmp_path: Path) -> None:
    first, second = in_two_parts(tmp_path, Collapse(2))
    assert first.alerts == []
    assert [alert.title for alert in second.alerts] == ["certificate lost in epoch 2"]


def test_two_callbacks_have_keys_of_their_own(tmp_path: Path) -> None:
    callbacks: list[Callback] = [CertificateCallback(), CertificateCallback(name="second", safety_margin=0.1)]
    run(tmp_path, WandbLogger(save_dir=tmp_path), callbacks, epochs=1)
    (file,) = run_files(tmp_path)
    for name, margin in (("certificate", 0.05), ("second", 0.1)):
        assert file.config[name]["safety_margin"] == margin
        assert file.metrics[f"{name}/margin"].step_metric == "epoch"
        assert len(file.column(f"{name}/curve")) == 2
        assert file.summary[f"{name}/status"] == "CERTIFIED"
    assert len(file.of_type("certificate")) == 2


@pytest.mark.parametrize("command", ["validate", "test"])
def test_a_certificate_without_a_fit_is_logged_too(tmp_path: Path, command: str) -> None:
    callbacks = [CertificateCallback(save_dir=tmp_path), ReconstructionImages()]
    runner = trainer(tmp_path, logger=WandbLogger(save_dir=tmp_path), callbacks=callbacks)
    getattr(runner, command)(small_vae(digits_teacher()), datamodule=data(), verbose=False)
    (file,), prefix = run_files(tmp_path), "" if command == "validate" else "test_"
    stage = "val" if command == "validate" else "test"
    saved = Certificate.load(tmp_path / f"certificate_{stage}.json")
    assert file.column(f"{prefix}certificate/margin") == [(0, pytest.approx(saved.margin))]
    assert [item.name for item in file.of_type("certificate")] == [f"certificate_{stage}-{file.run.run_id}"]
    assert len(file.column("images/samples")) == (command == "validate")


def test_wandb_may_be_disabled(tmp_path: Path) -> None:
    run(tmp_path, WandbLogger(save_dir=tmp_path, mode="disabled"), [Collapse(1), CertificateCallback()])
    assert run_files(tmp_path) == []


def test_a_trial_run_logs_nothing(tmp_path: Path) -> None:
    run(tmp_path, WandbLogger(save_dir=tmp_path), fast_dev_run=True)
    assert run_files(tmp_path) == []


@pytest.fixture(scope="module")
def phases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a seed of a protocol with W&B, and ``teacher.safetensors`` in it."""
    folder = tmp_path_factory.mktemp("protocol")
    (folder / "seed0").mkdir()
    teacher = digits_teacher(10).save(folder / "seed0" / "teacher.safetensors")
    command = ["protocol", str(ROOT / "experiments" / "digits.yaml"), "--teachers", str(teacher), "--max_epochs", "2"]
    assert main([*command, "--output_dir", str(folder), "--wandb", "certvae"]) == 0
    return folder / "seed0"


def test_each_phase_of_a_protocol_is_a_run_of_its_own(phases: Path) -> None:
    for phase in ("full", "no_align", "rescue"):
        (file,) = run_files(phases / phase)
        assert (file.run.run_group, file.run.job_type) == ("digits", phase)
        assert set(file.run.tags) == {"digits", phase, "seed0"}
        assert file.config["run"] | {"phase": phase, "seed": 0, "epochs": 2} == file.config["run"]
        network = file.config["yaml"]["model"]["encoder"]
        assert network | {"class": "certvae.models.MLPEncoder", "latent_dim": 16, "width": 128} == network
        assert file.config["yaml"]["data"]["class"] == "certvae.datamodules.DigitsDataModule"
        (yaml,) = file.of_type("config")
        assert "class_path: certvae.VAE" in Path(yaml.manifest.contents[0].local_path).read_text()
        (model,) = file.of_type("model")
        saved = phases / phase / "checkpoints" / "last.ckpt"
        assert sha256_file(Path(model.manifest.contents[0].local_path)) == sha256_file(saved)
        history = read_history(phases / phase / "certificates_val.jsonl")
        margins = [(epoch, pytest.approx(certificate.margin)) for epoch, certificate in enumerate(history)]
        assert file.column("certificate/margin") == margins
        assert [epoch for epoch, _ in file.column("test_certificate/margin")] == [2]
        assert [epoch for epoch, _ in file.column("images/samples")] == [0, 1]


class Server:
    """What ``wandb.Api()`` gives of a run that was read back from its file."""

    def __init__(self, file: RunFile, path: str) -> None:
        self.file, self.path = file, path

    def run(self, path: str) -> "Server":
        if path != self.path:
            raise ValueError(f"Could not find run {path}")
        return self

    def used_artifacts(self) -> list[Any]:
        return []

    def logged_artifacts(self) -> list[Any]:
        return [Stored(artifact) for artifact in self.file.artifacts]


class Stored:
    """An artifact as the server has it."""

    def __init__(self, record: Any) -> None:
        self.record, self.type, self.name = record, record.type, f"{record.name}:v0"

    def download(self, root: str) -> None:
        Path(root).mkdir()
        for entry in self.record.manifest.contents:
            shutil.copy(entry.local_path, Path(root) / entry.path)


def test_a_certificate_is_published_in_a_run_and_verified_from_there(
    phases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full, run_path = phases / "full", "certvae/some-run"
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    files = [f"--ckpt={full}/checkpoints/last.ckpt", f"--teacher={phases}/teacher.safetensors"]
    options = [f"--config={full}/run.yaml", f"--output={tmp_path}/certificate.json", "--permutations=0"]
    assert main(["certify", *files, *options, "--wandb", run_path]) == 0
    (file,) = run_files(tmp_path)
    assert (file.run.project, file.run.run_id) == tuple(run_path.split("/"))
    assert {artifact.type for artifact in file.artifacts} == {"teacher", "config", "model", "certificate"}
    saved = Certificate.load(tmp_path / "certificate.json")
    (artifact,) = file.of_type("certificate")
    assert json.loads(artifact.metadata)["checkpoint_sha256"] == saved.provenance["checkpoint_sha256"]
    assert file.summary["published/margin_lower"] == pytest.approx(saved.margin_lower)
    monkeypatch.setattr("wandb.Api", lambda: Server(file, run_path))
    assert main(["verify", "--wandb", run_path]) == 0
    assert "HOLDS: recomputed from scratch" in capsys.readouterr().out
    assert main(["verify", "--wandb", "certvae/other"]) == 1
    assert "no run certvae/other can be read" in capsys.readouterr().err
    for wrong in ("certvae", "a/b/c/d", "certvae/"):
        assert main(["verify", "--wandb", wrong]) == 1
        assert "must be [ENTITY/]PROJECT/RUN" in capsys.readouterr().err


def test_a_run_without_a_published_certificate_says_how_to_publish_one(
    lost: tuple[Path, RunFile], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("wandb.Api", lambda: Server(lost[1], "certvae/lost"))
    assert main(["verify", "--wandb", "certvae/lost"]) == 1
    told = capsys.readouterr().err
    assert "lacks certificate, ckpt, config: publish a certificate with `certvae certify --ckpt" in told


class Unreachable(WandbLogger):
    """A logger whose service goes away."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if "images/samples" in metrics:
            raise ConnectionError("the logging service is gone")
        super().log_metrics(metrics, step)


def test_what_a_logger_raises_ends_the_run_as_for_any_scalar(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match="the logging service is gone"):
        run(tmp_path, Unreachable(save_dir=tmp_path))


def test_the_other_import_name_of_the_logger_is_known_too(tmp_path: Path) -> None:
    theirs = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
    from tests.callbacks.test_import_names import TheirVAE
    from tests.plain_vae import plain_loader

    runner = theirs.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=theirs.loggers.WandbLogger(save_dir=tmp_path),
        callbacks=[CertificateCallback(digits_teacher(), "encoder")],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
    )
    runner.fit(TheirVAE(), plain_loader(), plain_loader())
    (file,) = run_files(tmp_path)
    assert file.metrics["certificate/margin"].step_metric == "epoch"
    assert len(file.of_type("certificate")) == 1


def test_only_rank_0_imports_wandb_and_tells_it(tmp_path: Path) -> None:
    inherited = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}  # wandb of this process
    environment = {**inherited, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    environment |= {"TORCHELASTIC_RUN_ID": "tests", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.wandb_worker", str(tmp_path)],
            env={**environment, "RANK": rank, "LOCAL_RANK": rank},
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
        )
        for rank in ("0", "1")
    ]
    try:
        assert [process.wait(timeout=900) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    (file,) = run_files(tmp_path)
    assert [epoch for epoch, _ in file.column("certificate/margin")] == [0, 1]
    assert file.summary["certificate/status"] == "CERTIFIED"
    assert len(file.of_type("certificate")) == 1
    assert len(file.column("images/samples")) == 2
