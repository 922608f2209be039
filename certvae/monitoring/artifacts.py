"""Logs the files of a run to Weights & Biases: teacher, YAML, checkpoint and certificate.

Equal files under the same name are one version of one artifact. So the lineage graph shows one node for a teacher that
a search logs, a fit uses and a certificate names.
"""

from pathlib import Path
from typing import Any

from certvae.io.files import sha256_file

__all__ = ["log_certificate", "log_checkpoint", "log_config", "log_file", "use_teacher"]


def log_file(run: Any, path: Path, kind: str, name: str, file: str, metadata: dict[str, Any] | None = None) -> None:
    """Log a file as an artifact.

    Args:
        run: a run of Weights & Biases.
        path: path of the file.
        kind: artifact type.
        name: artifact name.
        file: name of the file in the artifact.
        metadata: plain values to show with the artifact.
    """
    run.log_artifact(_artifact(path, kind, name, file, metadata))


def log_certificate(run: Any, path: Path, metadata: dict[str, Any]) -> None:
    """Log a certificate file, from ``certify`` or a callback, as ``<file name>-<run id>``."""
    log_file(run, path, "certificate", f"{path.stem}-{run.id}", path.name, metadata)


def log_config(run: Any, path: Path) -> None:
    """Log the YAML of a run."""
    log_file(run, path, "config", f"config-{run.id}", "config.yaml")


def log_checkpoint(run: Any, path: Path) -> None:
    """Log a checkpoint under the same name as Lightning's ``WandbLogger(log_model=True)`` does."""
    log_file(run, path, "model", f"model-{run.id}", "model.ckpt")


def use_teacher(run: Any, path: Path) -> None:
    """Declare a teacher as an input of the run.

    Offline, Weights & Biases does not accept inputs. Then the teacher is logged instead, and appears after ``wandb
    sync``.
    """
    artifact = _artifact(path, "teacher", f"teacher-{sha256_file(path)[:12]}", "teacher.safetensors", None)
    if run.offline:
        run.log_artifact(artifact)
    else:
        run.use_artifact(artifact)


def _artifact(path: Path, kind: str, name: str, file: str, metadata: dict[str, Any] | None) -> Any:
    import wandb

    artifact = wandb.Artifact(name, kind, metadata=metadata)
    artifact.add_file(str(path), name=file)
    return artifact
