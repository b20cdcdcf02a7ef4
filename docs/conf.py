"""Configuration of the documentation site: `make docs`.

Sphinx, because the docstrings have tables and literal blocks in reST; MyST reads the Markdown pages of this folder.
"""

import re

import lgf_kernels

project = "lgf-kernels"
version = release = lgf_kernels.__version__
copyright = "the authors of lgf-kernels, Apache-2.0"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"lgf-kernels {release}"
html_theme_options = {"navigation_with_keys": True}
html_static_path = ["static"]
html_css_files = ["site.css"]

nitpicky = True  # a reference that leads nowhere is a warning, and `make docs` turns warnings into errors
default_role = "code"  # of `single backticks`
highlight_language = "none"  # of formulas; Markdown names the language of code, and doctests are known by >>>
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings give shapes and types
napoleon_use_rtype = False
napoleon_use_param = False
napoleon_use_ivar = False
napoleon_custom_sections = ["Shapes"]


def without_folders(_app, _page, source: list[str]) -> None:
    """Show links to folders of the repository, which a site cannot serve, as their text."""
    source[0] = re.sub(r"\[([^]]+)\]\(\.\./[\w/]+\)", r"`\1`", source[0])


def setup(app) -> None:
    app.connect("source-read", without_folders)
