"""Functions that change the values of a run's YAML: set by name, move paths, complete for a start.

Values are the result of ``yaml.safe_load`` for a complete configuration of ``certvae fit``.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

__all__ = ["complete", "move_paths", "part_of", "set_value"]


def complete(values: Mapping[str, Any], *, seed: int, label: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a run in a series: with a seed, changes, and a status line instead of the progress bar.

    Args:
        values: values of the run's YAML; not modified.
        seed: seed of the run.
        label: name of the run in the status line.
        changes: new values by their names on the command line, such as ``model.objective.beta``.

    Raises:
        ValueError: if a name leads to no part of the YAML.
    """
    config = deepcopy(dict(values))
    for name, value in {"seed_everything": seed, "trainer.enable_progress_bar": False, **changes}.items():
        set_value(config, name, value)
    status = {"class_path": "certvae.callbacks.StatusLine", "init_args": {"label": label}}
    config["trainer"]["callbacks"] = [*config["trainer"].get("callbacks", []), status]
    return config


def set_value(values: dict[str, Any], name: str, value: Any) -> None:
    """Set the value with the command-line name ``name``, such as ``model.objective.beta``.

    Raises:
        ValueError: if the name leads to no part of the YAML.
    """
    part, last = part_of(values, name)
    part[last] = value


def part_of(values: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    """The mapping and the key of the value with the command-line name ``name``.

    Raises:
        ValueError: if the name leads to no part of the YAML.
    """
    *parents, last = name.split(".")
    node = values
    for parent in parents:
        if not isinstance(node.get(parent), dict):
            raise ValueError(f"`{name}` must name a part of the YAML; there is no {parent!r} among {sorted(node)}.")
        node = node[parent]
        node = node.setdefault("init_args", {}) if "class_path" in node else node
    return node, last


def move_paths(value: Any, old: str, new: str) -> Any:
    """Values in which the paths ``old`` and below are moved to ``new``."""
    if isinstance(value, dict):
        return {key: move_paths(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [move_paths(item, old, new) for item in value]
    if isinstance(value, str) and (value == old or value.startswith(old + "/")):
        return new + value[len(old) :]
    return value
