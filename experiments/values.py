"""A run's YAML by the names of the command line, such as ``model.objective.beta``."""

from typing import Any

__all__ = ["part_of", "set_value"]


def set_value(values: dict[str, Any], name: str, value: Any) -> None:
    """Set what the command line calls ``name``, such as ``model.objective.beta``, in a run's values.

    Raises:
        ValueError: if there is no such part.
    """
    part, last = part_of(values, name)
    part[last] = value


def part_of(values: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    """The part of a run's values that holds what the command line calls ``name``, and its key there.

    Raises:
        ValueError: if there is no such part.
    """
    *parents, last = name.split(".")
    node = values
    for parent in parents:
        if not isinstance(node.get(parent), dict):
            raise ValueError(f"`{name}` must name a part of the YAML; there is no {parent!r} among {sorted(node)}.")
        node = node[parent]
        node = node.setdefault("init_args", {}) if "class_path" in node else node
    return node, last
