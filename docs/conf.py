"""How Sphinx builds the documentation: ``make docs``."""

import sys
from importlib import metadata
from pathlib import Path

# Extensions of these pages, and benchmarks.paper, which is not installed.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

project = "reidguard"
author = "The reidguard developers"
release = version = metadata.version("reidguard")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "executed",
    "markdown",
    "option_tables",
    "reference",
]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"reidguard {release}"
html_static_path = ["static"]
html_css_files = ["pages.css"]
html_show_copyright = False
html_show_sourcelink = False
pygments_style = "default"
pygments_dark_style = "github-dark"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
python_maximum_signature_line_length = 88  # one argument a line beyond that
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # else attributes would be described twice
napoleon_use_rtype = False

# Broken references are errors (make docs); those to other projects are shown as plain text.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|np|numpy|nn|PIL|Image|contextlib|typing_extensions)(\..*)?"),
    (r"py:class", r"[0-9A-Z]"),  # of a shape such as (3, H, W)
    (
        r"py:class",
        r"(dict|tuple|collections\.abc\.Mapping)\[\w+|Reduction|BatchNormPolicy|AttackMode|"
        r"Regularizer|Divergence|Loss",
    ),  # in a signature
]
