"""How Sphinx builds the documentation: ``make docs``."""

import sys
from importlib import metadata
from pathlib import Path

# Extensions of these pages, and benchmarks.paper, which is not installed.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

project = "reidguard"
author = "the reidguard developers"
release = version = metadata.version("reidguard")

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "executed", "option_tables"]
exclude_patterns = ["_build"]

html_theme = "alabaster"
html_theme_options = {
    "description": "Attack and harden person re-identification models",
    "page_width": "1080px",
}
html_show_copyright = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # else attributes would be described twice
