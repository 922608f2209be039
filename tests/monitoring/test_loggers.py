"""The same scalars in every logger, pictures and settings in those that take them, and no need of any."""

import csv
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger

from certvae import Certificate
from certvae.monitoring.loggers import LOGGED
from tests.logged import run
from tests.wandb_file import finished, offline, run_files  # noqa: F401

pytestmark = pytest.mark.slow


def test_several_loggers_get_the_same_scalars(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    loggers = [WandbLogger(save_dir=tmp_path), TensorBoardLogger(tmp_path, "tb"), CSVLogger(tmp_path, "csv")]
    run(tmp_path, loggers)
    (file,) = run_files(tmp_path)
    board = tensorboard(Path(str(loggers[1].log_dir)))
    with open(Path(str(loggers[2].log_dir)) / "metrics.csv") as table:
        rows = [row for row in csv.DictReader(table) if row["certificate/margin"]]
    for key in (f"certificate/{name}" for name in LOGGED):
        expected = [value for _, value in file.column(key)]
        assert [float(row[key]) for row in rows] == pytest.approx(expected), key
        assert [event.value for event in board.Scalars(key)] == pytest.approx(expected), key


def tensorboard(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder))
    board.Reload()
    return board


def hparams_of(board: Any) -> list[str]:
    """The metrics of the hyper-parameters' tab; the parameters are checked here."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    tags = ("_hparams_/experiment", "_hparams_/session_start_info")
    content = [HParamsPluginData.FromString(board.SummaryMetadata(tag).plugin_data.content) for tag in tags]
    values = content[1].session_start_info.hparams
    assert values["run/batch_size"].number_value == 64
    assert values["run/objective"].string_value == "ELBO"
    assert values["certificate/safety_margin"].number_value == 0.05
    assert values["alignment_weight"].number_value == 200.0  # of the module
    return [metric.name.tag for metric in content[0].experiment.metric_infos]


def test_tensorboard_shows_pictures_and_the_teacher(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    logger = TensorBoardLogger(tmp_path, "tb")
    run(tmp_path, logger)
    board = tensorboard(Path(logger.log_dir))
    assert set(board.Tags()["images"]) == {
        "certificate/curve",
        "certificate/components",
        "images/reconstructions",
        "images/samples",
    }
    curve = board.Images("certificate/curve")[-1]
    assert (curve.width, curve.height) == (640, 400)
    assert hparams_of(board) == ["certificate/margin_lower"]
    assert board.Scalars("certificate/margin_lower")
    (text,) = board.Tensors("certificate/settings/text_summary")
    assert '"kind": "gaussian_mixture"' in text.tensor_proto.string_val[0].decode()


def test_mlflow_shows_scalars_pictures_the_teacher_and_the_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    from pytorch_lightning.loggers import MLFlowLogger

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = MLFlowLogger("certvae", tracking_uri=(tmp_path / "mlruns").as_uri())
    run(tmp_path, logger)
    client, saved = logger.experiment, Certificate.load(tmp_path / "certificate_val.json")
    values = client.get_run(logger.run_id).data
    assert values.metrics["certificate/margin"] == pytest.approx(saved.margin)
    assert values.params["certificate/teacher/kind"] == "gaussian_mixture"
    assert Certificate.load(client.download_artifacts(logger.run_id, "certificate_val.json")) == saved
    pictures = {Path(item.path).name.partition("+")[0] for item in client.list_artifacts(logger.run_id, "images")}
    assert pictures == {"certificate~curve", "certificate~components", "images~reconstructions", "images~samples"}


@pytest.mark.parametrize("logger", [False, True])
def test_a_run_needs_no_wandb(tmp_path: Path, logger: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # `import wandb` raises
    runner = run(tmp_path, [CSVLogger(tmp_path)] if logger else False)
    assert float(runner.callback_metrics["certificate/certified"]) == 1.0
    assert [type(item).__name__ for item in cast(Any, runner).callbacks] == [
        "CertificateCallback",
        "ReconstructionImages",
    ]
    monkeypatch.undo()
