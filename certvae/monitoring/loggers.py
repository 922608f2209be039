"""Sends a certificate to loggers: axes, settings, summaries, images, artifacts and alerts.

Loggers are recognized by class name, which is the same under ``pytorch_lightning`` and ``lightning.pytorch``. wandb is
imported only if its logger is in use. Only rank 0 sends anything, without collectives. An error in a logger ends the
run, as it does when Lightning logs a scalar.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import yaml
from pytorch_lightning import LightningModule, Trainer

from certvae.certificate.certificate import Certificate
from certvae.certificate.curve import Curve
from certvae.certificate.figures import certificate_figure, components_figure, pixels
from certvae.io.files import sha256_file
from certvae.monitoring.artifacts import log_certificate, log_config, use_teacher
from certvae.monitoring.run_facts import flat, hyper_parameters, options, run_facts
from certvae.teachers import Teacher

__all__ = [
    "LOGGED",
    "CertificateLog",
    "end_runs",
    "log_facts",
    "log_image",
    "log_yaml",
    "plot_against_epoch",
    "takes_images",
]

LOGGED = (
    "teacher_information",
    "alignment_loss",
    "margin",
    "margin_lower",
    "channel_margin",
    "rate",
    "witness_information",
    "information_lower",
    "information_upper",
    "fitted_margin",
    "certified",
    "informative",
    "collapsed",
)
SHOWN = ("status", "reading", "margin", "margin_lower", "num_samples")  # metadata of a certificate's artifact
IDENTITY = (
    "num_components",
    "temperature",
    "floor",
    "seed",
    "information_train",
    "information_held_out",
    "fingerprint",
)
CHARTED = 64  # validations with a chart each; the chart's table grows by one row per validation
WANDB, TENSORBOARD, MLFLOW = "WandbLogger", "TensorBoardLogger", "MLFlowLogger"


class CertificateLog:
    """Sends the certificates of one callback to the trainer's loggers.

    Args:
        name: name of the callback; the first part of each key.
        safety_margin: safety margin of its certificates in nats.

    Attributes:
        curve: the validations of a fit; saved in checkpoints.
    """

    def __init__(self, name: str, safety_margin: float) -> None:
        self.name, self.curve = name, Curve(safety_margin)

    def start(self, trainer: Trainer, pl_module: LightningModule, teacher: Teacher, settings: dict[str, Any]) -> None:
        """Set epochs as the axis, and record the run's settings and teacher; call it before anything is logged.

        Args:
            trainer: trainer with the loggers.
            pl_module: the module.
            teacher: the teacher.
            settings: settings of the certificate, plain values.
        """
        plot_against_epoch(trainer, [f"{stage}{self.name}/{key}" for stage in ("", "test_") for key in LOGGED], "last")
        plot_against_epoch(trainer, [f"{name}/components" for name in (self.name, f"test_{self.name}")])
        plot_against_epoch(trainer, [f"{self.name}/curve", f"{self.name}/threshold_table"])
        loggers = _loggers(trainer, WANDB, TENSORBOARD, MLFLOW)
        if not loggers:
            return
        with TemporaryDirectory() as folder:
            path = teacher.save(Path(folder) / "teacher.safetensors")
            values = {self.name: {**settings, "teacher": _identity(teacher, path)}}
            for _, logger in _loggers(trainer, WANDB):
                use_teacher(logger.experiment, path)
        log_facts(trainer, pl_module)
        for kind, logger in loggers:
            if kind == TENSORBOARD:
                logger.experiment.add_text(f"{self.name}/settings", f"    {json.dumps(values)}")
                all_values = {**hyper_parameters(pl_module), "run": run_facts(trainer, pl_module), **values}
                _log_hparams(logger, all_values, f"{self.name}/margin_lower")
            else:
                logger.log_hyperparams(values)

    def add(self, trainer: Trainer, certificate: Certificate) -> None:
        """Log summaries after a validation of a fit, an alert if certification was lost, and sometimes the figures."""
        self.curve.add(certificate, trainer.current_epoch)
        for _, logger in _loggers(trainer, WANDB):
            logger.experiment.summary.update(self._summary())
            if self.curve.lost:
                logger.experiment.alert(f"{self.name} lost in epoch {trainer.current_epoch}", str(certificate), "WARN")
        count = len(self.curve.points)
        if count & (count - 1) == 0:  # drawing takes longer than an epoch of a small model
            self._draw(trainer)
        elif count <= CHARTED:
            _log_threshold(trainer, self.curve, f"{self.name}/threshold")

    def _summary(self) -> dict[str, Any]:
        best, first = self.curve.best, self.curve.first_certified_epoch
        last = self.curve.points[-1]
        values: dict[str, Any] = {"status": last.status, "reading": last.reading}
        if best is not None:
            values |= {"best_margin_lower": best.margin_lower, "best_epoch": best.epoch}
        if first is not None:
            values["first_certified_epoch"] = first
        return {f"{self.name}/{key}": value for key, value in values.items()}

    def _draw(self, trainer: Trainer) -> None:
        if self.curve.points and trainer.is_global_zero and takes_images(trainer):
            image = pixels(certificate_figure(self.curve, self.name))
            log_image(trainer, f"{self.name}/curve", image, self.curve.points[-1].epoch)
            _log_threshold(trainer, self.curve, f"{self.name}/threshold")

    def finish(self, trainer: Trainer, certificate: Certificate, stage: str) -> None:
        """Log the certificate file, its components and a fit's last figure; call it at the end of a run.

        Args:
            trainer: trainer with the loggers.
            certificate: latest certificate of ``stage``.
            stage: ``"val"`` or ``"test"``.
        """
        if trainer.state.fn == "fit":
            self._draw(trainer)
        if certificate.components:
            _log_components(trainer, certificate, f"{'test_' if stage == 'test' else ''}{self.name}/components")
        for kind, logger in _loggers(trainer, WANDB, MLFLOW):
            with TemporaryDirectory() as folder:
                path = certificate.save(Path(folder) / f"{self.name}_{stage}.json")
                if kind == MLFLOW:
                    logger.experiment.log_artifact(logger.run_id, str(path))
                else:
                    values = certificate.to_dict()
                    log_certificate(logger.experiment, path, {key: values[key] for key in SHOWN})


def takes_images(trainer: Trainer) -> bool:
    """Whether a logger of the trainer accepts images; the same on all processes."""
    return any(_kind(logger) for logger in trainer.loggers)


def log_image(trainer: Trainer, key: str, image: np.ndarray, epoch: int) -> None:
    """Log an image to Weights & Biases, TensorBoard and MLflow.

    Args:
        trainer: trainer with the loggers.
        key: key of the image.
        image: image, uint8, shape ``(height, width, 3)``.
        epoch: epoch at which Weights & Biases shows it.
    """
    for _, logger in _loggers(trainer, WANDB):
        import wandb

        logger.log_metrics({key: [wandb.Image(image)], "epoch": epoch}, trainer.global_step)
    _log_plain_image(trainer, key, image)


def _log_plain_image(trainer: Trainer, key: str, image: np.ndarray) -> None:
    """Log an image to TensorBoard and MLflow."""
    for kind, logger in _loggers(trainer, TENSORBOARD, MLFLOW):
        if kind == TENSORBOARD:
            logger.experiment.add_image(key, image, trainer.global_step, dataformats="HWC")
        else:
            logger.experiment.log_image(logger.run_id, image, key=key, step=trainer.global_step)


def plot_against_epoch(trainer: Trainer, keys: Iterable[str], summary: str | None = None) -> None:
    """Make Weights & Biases plot keys against ``epoch``, which Lightning logs too, instead of steps.

    Each key is defined by its full name: a pattern such as ``certificate/*`` may lose to Lightning's ``*``.
    """
    for _, logger in _loggers(trainer, WANDB):
        for key in keys:
            logger.experiment.define_metric(key, step_metric="epoch", summary=summary)


def end_runs(trainer: Trainer) -> None:
    """End the runs of Weights & Biases, so that a later trainer in this process starts a new one."""
    for _, logger in _loggers(trainer, WANDB):
        logger.experiment.finish()


def _loggers(trainer: Trainer, *kinds: str) -> list[tuple[str, Any]]:
    """Kind and logger of each logger of the given kinds; empty on ranks other than 0."""
    found = [(_kind(logger), logger) for logger in trainer.loggers if trainer.is_global_zero]
    return [(kind, logger) for kind, logger in found if kind in kinds]


def _kind(logger: Any) -> str:
    names = {cls.__name__ for cls in type(logger).__mro__}
    return next((kind for kind in (WANDB, TENSORBOARD, MLFLOW) if kind in names), "")


def _log_components(trainer: Trainer, certificate: Certificate, key: str) -> None:
    """Log the margin of each component: a table for Weights & Biases, a figure for TensorBoard and MLflow."""
    for _, logger in _loggers(trainer, WANDB):
        import wandb

        table = wandb.Table(["component", "name", "share", "margin", "information"], _component_rows(certificate))
        logger.log_metrics({key: table, "epoch": certificate.provenance["epoch"]}, trainer.global_step)
    if _loggers(trainer, TENSORBOARD, MLFLOW):
        _log_plain_image(trainer, key, pixels(components_figure(certificate, key)))


def _component_rows(certificate: Certificate) -> list[list[Any]]:
    """Number from 0, name, share, margin and information (nats) of each component."""
    named = zip(certificate.component_names, certificate.components, strict=True)
    return [[k, name, part.share, part.margin, part.information] for k, (name, part) in enumerate(named)]


def _log_threshold(trainer: Trainer, curve: Curve, key: str) -> None:
    """Log an interactive chart to Weights & Biases: alignment loss, its upper bound and the threshold in nats."""
    points = curve.points
    lines: dict[str, list[float | None]] = {
        "alignment loss": [point.alignment_loss for point in points],
        "its upper bound": [_finite(point.teacher_information - point.margin_lower) for point in points],
        "certified below": [point.teacher_information - curve.safety_margin for point in points],
        "teacher information": [point.teacher_information for point in points],
    }
    for _, logger in _loggers(trainer, WANDB):
        import wandb

        title = "alignment loss against the threshold (nats)"
        chart = wandb.plot.line_series(curve.positions(), list(lines.values()), list(lines), title, "epoch")
        logger.log_metrics({key: chart, "epoch": points[-1].epoch}, trainer.global_step)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _log_hparams(logger: Any, values: dict[str, Any], metric: str) -> None:
    """Log hyper-parameters to TensorBoard with a metric, so that it shows the metric's last scalar.

    TensorBoard keeps the first hyper-parameters that a run writes. Lightning writes the module's later, after the
    callbacks' ``setup``, and without this metric.
    """
    if find_spec("tensorboard"):
        from torch.utils.tensorboard.summary import hparams
    else:
        from tensorboardX.summary import hparams  # type: ignore[no-redef]
    for summary in hparams(flat(values), {metric: 0.0}):
        logger.experiment._get_file_writer().add_summary(summary)


def log_facts(trainer: Trainer, pl_module: LightningModule) -> None:
    """Log the run's settings under ``run`` in Weights & Biases and MLflow."""
    for kind, logger in _loggers(trainer, WANDB, MLFLOW):
        phase = logger.experiment.job_type if kind == WANDB else None
        logger.log_hyperparams({"run": run_facts(trainer, pl_module) | ({"phase": phase} if phase else {})})


def log_yaml(trainer: Trainer, path: Path) -> None:
    """Log the YAML of a run to Weights & Biases: as a file, and its model and data under ``yaml`` of the settings."""
    for _, logger in _loggers(trainer, WANDB):
        log_config(logger.experiment, path)
        values = yaml.safe_load(path.read_text())
        logger.log_hyperparams({"yaml": {name: options(values.get(name)) for name in ("model", "data")}})


def _identity(teacher: Teacher, path: Path) -> dict[str, Any]:
    """Values that identify a teacher; ``sha256`` is the digest of its saved file."""
    card = asdict(teacher.card)
    return {"kind": teacher.kind, **{key: card[key] for key in IDENTITY}, "sha256": sha256_file(path)}
