"""Sphinx configuration of the site: ``make site`` copies what is shown into one folder and builds it there."""

import os
from pathlib import Path

SOURCE = Path(os.environ["ZSPAG_SITE_SOURCE"])  # the folder that docs/build_site.py has filled

project = "zspag"
copyright = "the zspag authors"  # noqa: A001  Sphinx reads this name
extensions = ["myst_nb", "autodoc2", "sphinx_copybutton"]
root_doc = "README"
exclude_patterns = ["**/.ipynb_checkpoints"]

nb_execution_mode = "off"  # the committed notebooks carry their outputs
nb_merge_streams = True
myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = [
    "misc.highlighting_failure",  # a listing of a report is no program
    "myst.header",  # a page may begin with a second-level title after its generated part
    "myst.xref_missing",  # the code's own cross references name files
]
numfig = True

autodoc2_packages = [{"path": "zspag", "auto_mode": True}]  # from the folder of sources
autodoc2_output_dir = "reference"
autodoc2_hidden_objects = {"private", "dunder", "inherited"}
autodoc2_render_plugin = "myst"

html_theme = "sphinx_book_theme"
html_title = "zspag"
html_theme_options = {"show_toc_level": 2, "use_fullscreen_button": False}
if (SOURCE / "_static" / "mathjax" / "tex-mml-chtml.js").is_file():  # fetched by docs/build_site.py; else from the web
    html_static_path = [str(SOURCE / "_static")]
    mathjax_path = "mathjax/tex-mml-chtml.js"
