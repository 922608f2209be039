"""Publishes a certificate in a Weights & Biases run (``certify``) and fetches it (``verify``)."""

from pathlib import Path
from typing import Any

from certvae.certificate.certificate import Certificate
from certvae.monitoring.artifacts import log_certificate, log_checkpoint, log_config, use_teacher

__all__ = ["NoSuchRunError", "fetch", "publish"]

RUN = "[ENTITY/]PROJECT/RUN"
# Artifact type, and the command-line option for its file.
KINDS = {"certificate": "certificate", "teacher": "teacher", "model": "ckpt", "config": "config"}


class NoSuchRunError(ValueError):
    """The run does not exist, or lacks a file that the certificate needs."""


def publish(run_path: str, certificate: Certificate, files: dict[str, Path]) -> None:
    """Log a certificate and its input files to a new or existing run.

    Args:
        run_path: ``[ENTITY/]PROJECT/RUN`` with the run's id.
        certificate: the certificate.
        files: paths of ``certificate``, ``teacher``, ``ckpt`` and ``config``.

    Raises:
        NoSuchRunError: if ``run_path`` has another form.
    """
    import wandb

    *entity, project, name = _parts(run_path)
    run = wandb.init(entity=entity[0] if entity else None, project=project, id=name, resume="allow")
    use_teacher(run, files["teacher"])
    log_config(run, files["config"])
    log_checkpoint(run, files["ckpt"])
    values = certificate.to_dict()
    stated = {key: values["provenance"][key] for key in ("teacher_sha256", "checkpoint_sha256", "rows_sha256")}
    shown = {key: values[key] for key in ("status", "reading", "margin", "margin_lower", "num_samples")}
    log_certificate(run, files["certificate"], shown | stated)
    run.summary.update({f"published/{key}": value for key, value in shown.items()})
    run.finish()


def fetch(run_path: str, folder: Path) -> dict[str, Path]:
    """Download a run's published certificate and its input files.

    Args:
        run_path: ``[ENTITY/]PROJECT/RUN`` with the run's id.
        folder: folder for the files.

    Returns:
        Paths of ``certificate``, ``teacher``, ``ckpt`` and ``config``.

    Raises:
        NoSuchRunError: if the run does not exist or lacks one of the files.
    """
    import wandb

    _parts(run_path)
    try:
        run = wandb.Api().run(run_path)
        artifacts = [*run.used_artifacts(), *run.logged_artifacts()]
    except (wandb.errors.CommError, ValueError) as error:
        raise NoSuchRunError(f"no run {run_path} can be read from Weights & Biases: {error}") from None
    chosen = {KINDS[artifact.type]: artifact for artifact in artifacts if _is_published(artifact)}  # the latest
    missing = sorted(set(KINDS.values()) - set(chosen))
    if missing:
        raise NoSuchRunError(
            f"the run {run_path} lacks {', '.join(missing)}: publish a certificate with `certvae certify --ckpt ... "
            f"--teacher ... --config ... --wandb {run_path}`."
        )
    return {option: _only_file(artifact, folder / option) for option, artifact in chosen.items()}


def _parts(run_path: str) -> list[str]:
    parts = run_path.split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise NoSuchRunError(f"`--wandb` must be {RUN} with the run's id, got {run_path!r}.")
    return parts


def _is_published(artifact: Any) -> bool:
    """False for a callback's ``certificate_val-...``, which names no files for recomputation."""
    return artifact.type in KINDS and (artifact.type != "certificate" or artifact.name.startswith("certificate-"))


def _only_file(artifact: Any, folder: Path) -> Path:
    artifact.download(root=str(folder))
    (path,) = (path for path in folder.rglob("*") if path.is_file())
    return path
