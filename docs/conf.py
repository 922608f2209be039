"""How Sphinx builds the documentation: `make docs`. Nothing is fetched; formulas need no script."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import certvae

project = "certvae"
author = "the certvae authors"
release = certvae.__version__
copyright = "the certvae authors, Apache-2.0"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "mathml",
    "modules",
]
html_theme = "furo"
highlight_language = "none"  # a block that names no language is a command
pygments_dark_style = "github-dark"
html_title = f"certvae {release}"
html_static_path = ["_static"]
html_css_files = ["certvae.css"]
html_js_files = ["versions.js"]
templates_path = ["_templates"]
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "versions.html",
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
    ]
}
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False
exclude_patterns = ["_ext", "_static", "_templates"]
copybutton_selector = "div:not(.highlight-text) > div.highlight > pre"  # what a block prints is not copied

# `make linkcheck` asks every other site's page for a sign of life.
linkcheck_timeout = 20
linkcheck_retries = 2
linkcheck_workers = 4

myst_enable_extensions = ["dollarmath", "deflist", "colon_fence", "substitution"]
repository = os.environ.get("GITHUB_REPOSITORY")  # GitHub sets it where it builds the documentation
notebook = f"{repository}/blob/main/docs/notebooks/five_minutes.ipynb"
colab = f"[Open in Colab](https://colab.research.google.com/github/{notebook})."
myst_substitutions = {"colab": colab if repository else "Colab opens it from the repository's address."}
myst_heading_anchors = 3
suppress_warnings = ["config.cache"]

autodoc_inherit_docstrings = False  # hooks without words of ours would bring Lightning's
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
autosummary_generate = False
autodoc_default_options = {"members": True}
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_preprocess_types = False

# A reference to one of ours must resolve; what other projects document is not looked up, for that needs the network.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!certvae\.).*"),
    (r"py:class", r"certvae\.monitoring\.watching\.Named"),  # a type variable
]
