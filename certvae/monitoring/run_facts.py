"""Collects the settings of a run as plain values, so that runs can be compared."""

import os
from functools import reduce
from importlib.metadata import version
from typing import Any

from pytorch_lightning import LightningModule, Trainer

__all__ = ["flat", "hyper_parameters", "options", "run_facts"]

KL_WEIGHTS = ("objective.beta", "beta", "kl_weight")  # attributes that may hold it
PACKAGES = ("certvae", "torch", "pytorch-lightning")


def run_facts(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """Model, data, seed, objective, KL weight, batch size, epochs, precision and versions of a run.

    Args:
        trainer: trainer of the run.
        pl_module: module of the run. The KL weight is its ``objective.beta``, ``beta`` or ``kl_weight``.

    Returns:
        Plain values by name; unknown ones are left out.
    """
    data, objective = getattr(trainer, "datamodule", None), getattr(pl_module, "objective", None)
    seed = os.environ.get("PL_GLOBAL_SEED")
    facts = {
        "model": type(pl_module).__name__,
        "data": None if data is None else type(data).__name__,
        "batch_size": getattr(data, "batch_size", None),
        "seed": None if seed is None else int(seed),
        "objective": None if objective is None else type(objective).__name__,
        "kl_weight": _kl_weight(pl_module),
        "epochs": trainer.max_epochs,
        "precision": str(trainer.precision),
    }
    known = {key: value for key, value in facts.items() if value is not None}
    return {**known, "versions": {name.replace("-", "_"): version(name) for name in PACKAGES}}


def _kl_weight(pl_module: LightningModule) -> float | str | None:
    """The KL weight as a number, or the name and arguments of its schedule."""
    found = (_attribute(pl_module, path) for path in KL_WEIGHTS)
    value = next((weight for weight in found if weight is not None), None)
    if value is None or isinstance(value, int | float):
        return value
    numbers = ", ".join(f"{key}={item:g}" for key, item in getattr(value, "__dict__", {}).items() if _plain(item))
    return f"{type(value).__name__}({numbers})"


def _attribute(part: Any, path: str) -> Any:
    return reduce(lambda one, name: getattr(one, name, None), path.split("."), part)


def _plain(value: object) -> bool:
    return isinstance(value, int | float)


def hyper_parameters(pl_module: LightningModule) -> dict[str, Any]:
    """The module's hyper-parameters from ``save_hyperparameters``, with their initial values."""
    return dict(getattr(pl_module, "hparams_initial", None) or {})


def options(part: Any) -> Any:
    """A part of a YAML without its ``init_args``, so that names nest as on the command line: ``model.encoder.width``.

    The ``class_path`` becomes ``class``.
    """
    if isinstance(part, list):
        return [options(item) for item in part]
    if not isinstance(part, dict):
        return part
    own = {"class": part["class_path"], **(part.get("init_args") or {})} if "class_path" in part else part
    return {key: options(value) for key, value in own.items()}


def flat(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Nested values by path, such as ``run/versions/torch``; values other than numbers become text."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{above}{key}/")
        else:
            found[f"{above}{key}"] = value if isinstance(value, str) or _plain(value) else str(value)
    return found
