"""The reference of whole packages, and links to whatever is documented under another name.

A page that says ``% modules of certvae.theory`` gets a section for every module of that package, so that a new file
needs no new page. A name is documented once: in the outermost package whose ``__all__`` has it, else in its module.
"""

import pkgutil
import re
from functools import cache
from importlib import import_module
from pydoc import locate
from types import ModuleType
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

import certvae

PLACE = re.compile(r"^% modules of (certvae[\w.]*)$", re.MULTILINE)


def fill(app: Sphinx, name: str, source: list[str]) -> None:
    """Put a package's modules where a page says :data:`PLACE`."""
    source[0] = PLACE.sub(lambda place: _package(place[1]), source[0])


def _package(name: str) -> str:
    path = getattr(import_module(name), "__path__", [])
    names = [name, *(item.name for item in pkgutil.walk_packages(path, f"{name}."))]
    return "".join(map(_section, names))


def _section(name: str) -> str:
    module = import_module(name)
    public = {item: getattr(module, item) for item in getattr(module, "__all__", [])}
    kinds = {item: _kind(value) for item, value in public.items() if _documented_in(value) == name}
    options = "".join(f".. auto{kind}:: {name}.{item}\n" for item, kind in kinds.items() if kind)
    if not options:
        return ""
    return f"## {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n   :no-members:\n\n{options}```\n\n"


def _documented_in(value: object) -> str:
    return next((package.__name__ for package in _packages() if _lends(package, value)), _home(value))


@cache
def _packages() -> list[ModuleType]:
    inner = [item.name for item in pkgutil.walk_packages(certvae.__path__, "certvae.") if item.ispkg]
    return [import_module(name) for name in sorted(["certvae", *inner], key=lambda name: name.count("."))]


def _lends(package: ModuleType, value: object) -> bool:
    return any(getattr(package, name) is value for name in getattr(package, "__all__", []))


def _home(value: object) -> str:
    return str(getattr(value, "__module__", ""))


def _kind(value: object) -> str:
    if isinstance(value, type):
        return "exception" if issubclass(value, BaseException) else "class"
    return "function" if callable(value) else ""


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, text: nodes.Element) -> nodes.Element | None:
    """Find ``certvae.certificate.verdict.certify``, which is documented as ``certvae.certify``."""
    target, own = str(node["reftarget"]), locate(str(node["reftarget"]))
    if own is None or not target.startswith("certvae."):
        return None
    for name, entry in env.domains.python_domain.objects.items():
        if name.rpartition(".")[2] == target.rpartition(".")[2] and locate(name) is own:
            return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, text)
    return None


def setup(app: Sphinx) -> dict[str, Any]:
    """Listen to pages as they are read, and to references that are not found."""
    app.connect("source-read", fill)
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True}
