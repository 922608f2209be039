"""A table that compares the settings of runs, with differing settings first."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from certvae.commands.certify import CONFIG_LIMIT
from certvae.io.untrusted import parse_json, read_limited
from certvae.report.runs import Phase, plain_config, readable

__all__ = ["Settings", "settings_of", "settings_table"]

PARTS = ("seed_everything", "model", "data", "trainer")
PLACES = {"default_root_dir", "save_dir", "dirpath", "label", "logger", "init_weights_from"}  # no settings
MOST, LONGEST = 300, 80  # settings per run, characters per setting


@dataclass(frozen=True)
class Settings:
    """Settings of several fits.

    Attributes:
        columns: label of each fit.
        differing: name and one value per fit, for settings that differ.
        same: name and value of the other settings.
    """

    columns: list[str]
    differing: list[tuple[str, list[str]]]
    same: list[tuple[str, str]]


def settings_table(phases: Sequence[Phase], labels: Sequence[str]) -> Settings | None:
    """The settings of the fits whose settings are known; None if there are none.

    Args:
        phases: the fits.
        labels: label of each fit.
    """
    every = {label: found for phase, label in zip(phases, labels, strict=True) if (found := settings_of(phase))}
    if not every:
        return None
    names = list(dict.fromkeys(name for found in every.values() for name in found))
    values = {name: [found.get(name, "") for found in every.values()] for name in names}
    differing = [(name, row) for name, row in values.items() if len(set(row)) > 1]
    same = [(name, row[0]) for name, row in values.items() if len(set(row)) == 1]
    return Settings(list(every), differing, same)


def settings_of(phase: Phase) -> dict[str, str]:
    """Names and values from a fit's YAML, or from the settings its callback saved; empty if both are missing."""
    try:
        config = plain_config(phase.config)
        parts = {name: config[name] for name in PARTS if name in config} or _kept(phase)
    except ValueError:  # links out of the folder are not followed
        return {}
    found = list(_flat("", parts))[:MOST]
    return {readable(name)[:LONGEST]: readable(value)[:LONGEST] for name, value in found}


def _kept(phase: Phase) -> dict[str, Any]:
    path = phase.folder / f"{phase.callback}_settings.json"
    if not path.is_file():
        return {}
    values = parse_json(read_limited(phase.own(path), CONFIG_LIMIT, "settings"))
    return values if isinstance(values, dict) else {}


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Values by dotted name; a class gives its name, and its arguments below it."""
    if isinstance(value, Mapping) and "class_path" in value:
        own = str(value["class_path"]).rpartition(".")[2]
        yield name, own
        yield from _flat(name, value.get("init_args") or {})
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if str(key) not in PLACES:
                yield from _flat(f"{name}.{key}".lstrip("."), item)
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for item in value:
            own = str(item.get("class_path")).rpartition(".")[2] if isinstance(item, Mapping) else str(item)
            yield from _flat(f"{name}.{own}", item)
    else:
        yield name, value if isinstance(value, str) else json.dumps(value, default=str)
