"""The reference of every module that no page names, and links to whatever is documented under another name."""

import pkgutil
import re
from importlib import import_module
from pathlib import Path
from pydoc import locate
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

import certvae

PLACE = "% every other module"
NAMED = re.compile(r"automodule:: (certvae[\w.]*)")


def fill(app: Sphinx, name: str, source: list[str]) -> None:
    """Put the modules that are left where a page says :data:`PLACE`."""
    if PLACE in source[0]:
        named = {found for page in Path(app.srcdir).rglob("*.md") for found in NAMED.findall(page.read_text())}
        names = [item.name for item in pkgutil.walk_packages(certvae.__path__, "certvae.")]
        source[0] = source[0].replace(PLACE, "".join(_section(name) for name in names if name not in named))


def _section(name: str) -> str:
    module, outer = import_module(name), import_module(name.rpartition(".")[0])
    public = {item: getattr(module, item) for item in getattr(module, "__all__", []) if item not in outer.__all__}
    is_package = hasattr(module, "__path__")  # what a package lends its name to is documented there, and nowhere else
    kinds = {item: _kind(value) for item, value in public.items() if is_package or _home(value) == name}
    options = "".join(f".. auto{kind}:: {name}.{item}\n" for item, kind in kinds.items() if kind)
    if not options:
        return ""
    return f"## {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n   :no-members:\n\n{options}```\n\n"


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
