"""Parser errors in one line, with the nearest valid name."""

import difflib
import inspect
import pydoc
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

__all__ = ["missing_file", "nearest", "one_line", "shortened"]

LONGEST = 80  # characters of a value in a message
MODULES = ("certvae.callbacks", "certvae.datamodules", "certvae.models", "certvae")  # of classes that YAMLs name


def nearest(name: str, names: Iterable[str]) -> str:
    """``" Did you mean 'other'?"`` if a name is similar, else an empty string."""
    return _did_you_mean(name, {other: other for other in names})


def _did_you_mean(name: str, shown: Mapping[str, str]) -> str:
    """As :func:`nearest`, for names that are shown in another form."""
    found = difflib.get_close_matches(name, list(shown), n=1)
    return f" Did you mean {shown[found[0]]!r}?" if found else ""


def shortened(value: object, longest: int = LONGEST) -> str:
    """The text of a value, with ``...`` after its first ``longest`` characters."""
    text = str(value)
    return text if len(text) <= longest else f"{text[:longest]} ..."


def missing_file(path: str | Path) -> str:
    """``" Did you mean 'other'?"`` if a file in that folder has a similar name, else an empty string."""
    path = Path(path)
    there = path.parent.iterdir() if path.parent.is_dir() else ()
    return nearest(str(path), [str(other) for other in there])


def one_line(message: str, options: Iterable[str]) -> str:
    """A long error message of jsonargparse in one line.

    Args:
        message: the error message.
        options: options of the command, for suggestions.
    """
    if found := re.match(r"unrecognized arguments: (-[^\s=]*)", message):
        return f"there is no option {found[1]}.{nearest(found[1], options)}"
    if found := re.search(r"File does not exist: '([^']*)'", message):
        return f"there is no file {found[1]}.{missing_file(found[1])}"
    if found := _last(r"module '([^']*)' has no attribute '([^']*)'", message):
        return f"there is no {found[1]}.{found[2]}.{nearest(found[2], dir(pydoc.locate(found[1])))}"
    if found := _last(r"class_path '([^']*)':\s*Option '([^']*)' is not accepted", message):
        return f"{found[1]} takes no {found[2]!r}.{nearest(found[2], _arguments(found[1]))}"
    if found := _last(r"class_path '([^']*)':\s*No module named '([^']*)'", message):
        return f"there is no module {found[2]!r} for {found[1]}.{nearest(found[2], _modules())}"
    return _expectation(message)


def _modules() -> list[str]:
    """Those that a user keeps in the working directory."""
    return sorted(path.stem for path in Path().glob("*.py"))


def _last(pattern: str, message: str) -> re.Match[str] | None:
    """The last match, which is the innermost part."""
    return next(reversed(list(re.finditer(pattern, message))), None)


def _arguments(path: str) -> list[str]:
    """The arguments of a class."""
    named = pydoc.locate(path)
    return list(inspect.signature(named).parameters) if isinstance(named, type) else []


def _expectation(message: str) -> str:
    """``trainer.max_epochs: Expected a <class 'int'>, got 'abc'.``, or the message without its line breaks.

    Of arguments within arguments it names the innermost, such as ``model.objective.beta``.
    """
    key = ".".join(re.findall(r'Parser key "([^"]*)"', message))
    inner = message.rpartition("Parser key")[2]
    plain = re.search(r"- (Expected a <class '(?!NoneType)[^>]*>)", inner)
    named = re.search(r"- Expected a dot import path string: (\S+)", inner)
    if named and not plain:
        return f"{key}: {named[1]!r} names no class. Write its module too.{_class_path(named[1])}"
    reason = re.search(r"- ((?:Expected|Problem) .*)(?:\n +(\w.*))?", inner)
    value = re.search(r"Given value: (.*)", inner)
    if not key or reason is None or value is None:
        return " ".join(message.split())
    detail = f" {reason[2]}" if reason[2] and reason[1].startswith("Problem") else ""
    return f"{key}: {plain[1] if plain else reason[1] + detail}, got {shortened(value[1])!r}."


def _class_path(name: str) -> str:
    """``" Did you mean 'certvae.datamodules.DigitsDataModule'?"`` if one of our classes has a similar name."""
    ours = {one: f"{module}.{one}" for module in MODULES for one in dir(pydoc.locate(module))}
    return _did_you_mean(name, ours) or f" For example: my_module.{name}"
