"""Files of a run in Weights & Biases: teacher, YAML, checkpoint and certificate, each under one name everywhere.

Equal files under one name are one version of one artifact. So the teacher that a search has logged, a fit uses, and a
certificate names is one node of the lineage graph.
"""

from pathlib import Path
from typing import Any

from certvae.io.files import sha256_file

__all__ = ["log_certificate", "log_checkpoint", "log_config", "log_file", "use_teacher"]


def log_file(run: Any, path: Path, kind: str, name: str, file: str, metadata: dict[str, Any] | None = None) -> None:
    """Log a file as an artifact.

    Args:
        run: of Weights & Biases.
        path: of the file.
        kind: type of the artifact.
        name: of the artifact.
        file: name of the file in it.
        metadata: plain values that are shown beside it.
    """
    run.log_artifact(_artifact(path, kind, name, file, metadata))


def log_certificate(run: Any, path: Path, metadata: dict[str, Any]) -> None:
    """Log a certificate, ``certificate.json`` or one of a callback, as ``<its name>-<id of the run>``."""
    log_file(run, path, "certificate", f"{path.stem}-{run.id}", path.name, metadata)


def log_config(run: Any, path: Path) -> None:
    """Log the YAML that a run is made with."""
    log_file(run, path, "config", f"config-{run.id}", "config.yaml")


def log_checkpoint(run: Any, path: Path) -> None:
    """Log a checkpoint under the name that Lightning's ``WandbLogger(log_model=True)`` gives it."""
    log_file(run, path, "model", f"model-{run.id}", "model.ckpt")


def use_teacher(run: Any, path: Path) -> None:
    """Declare a teacher as an input of the run.

    Without network there are no inputs: Weights & Biases refuses them. Then the teacher is logged, so that it is there
    after ``wandb sync``.
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
