"""Sphinx: `make docs`. Pages are Markdown (myst), notebooks are shown as they were built."""

import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent / "_ext"), str(Path(__file__).parents[1])]

project = "ttreg_interp"
author = "The ttreg_interp developers"
release = version = version_of("ttreg-interp")

extensions = [
    "command_help",
    "docstrings",
    "public_names",
    "room",
    "script_pages",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_nb",
]
root_doc = "index"
exclude_patterns = ["_build", "_ext", "notebooks/*.py", "**/.ipynb_checkpoints"]
suppress_warnings = ["mystnb.unknown_mime_type"]

# Markdown
myst_enable_extensions = ["colon_fence", "dollarmath", "deflist"]
myst_heading_anchors = 3
myst_fence_as_directive = []
nb_execution_mode = "off"  # `make notebooks` runs them

# Docstrings: single backticks are code, as in Markdown
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Source"]
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries = False  # each module lists its names; here they would double the build

# The page
html_theme = "furo"
html_title = "ttreg_interp"
html_copy_source = False
html_show_sourcelink = False
html_static_path = []
