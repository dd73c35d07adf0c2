"""Documentation site: ``sphinx-build -W docs docs/_build``. It needs no network to build or to read."""

import sys
from pathlib import Path

from precalloc import __version__

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "precalloc"
author = "precalloc contributors"
copyright = "precalloc contributors, Apache-2.0"  # noqa: A001 - Sphinx's name
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "docstrings",
    "generated",
    "mathml",
    "offline",
]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "precalloc"
html_copy_source = False
html_show_sphinx = False

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_class_signature = "separated"
napoleon_google_docstring = False
napoleon_use_rtype = False
default_role = "literal"  # docstrings write names in single backticks
linkcheck_timeout = 20
