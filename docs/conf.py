"""Sphinx configuration of the site: ``make site`` copies what is shown into one folder and builds it there."""

import os
import re
from pathlib import Path

SOURCE = Path(os.environ["ZSPAG_SITE_SOURCE"])  # the folder that docs/build_site.py has filled

project = "zspag"
copyright = "the zspag authors"  # noqa: A001  Sphinx reads this name
extensions = ["myst_nb", "autodoc2", "sphinx_copybutton", "sphinxcontrib.bibtex"]
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
numfig_format = {"figure": "Figure %s"}
bibtex_bibfiles = [str(SOURCE / "docs" / "references.bib")]
bibtex_reference_style = "author_year"

autodoc2_packages = [{"path": "zspag", "auto_mode": True}]  # from the folder of sources
autodoc2_output_dir = "reference"
autodoc2_hidden_objects = {"private", "dunder", "inherited"}
autodoc2_render_plugin = "myst"

html_theme = "sphinx_book_theme"
html_title = "zspag"
html_theme_options = {"show_toc_level": 2, "use_fullscreen_button": False}
html_static_path = [str(SOURCE / "_static")]
html_css_files = ["site.css"]
if (SOURCE / "_static" / "mathjax" / "tex-mml-chtml.js").is_file():  # fetched by docs/build_site.py; else from the web
    mathjax_path = "mathjax/tex-mml-chtml.js"


def number_figures(app, environment):
    """Number the figures of a notebook as it does itself, 05.1 for the first of chapter 05, and all others from 1."""
    others = sorted(
        (number, page, figure)
        for page, kinds in environment.toc_fignumbers.items()
        for figure, number in kinds.get("figure", {}).items()
        if not page.startswith("notebooks/")
    )
    for place, (_, page, figure) in enumerate(others, start=1):
        environment.toc_fignumbers[page]["figure"][figure] = (place,)
    for page, kinds in environment.toc_fignumbers.items():
        if chapter := re.match(r"notebooks/(\d\d)_", page):
            own = kinds.get("figure", {})
            for place, figure in enumerate(sorted(own, key=own.get), start=1):
                own[figure] = (chapter[1], place)
    return []


def setup(app):
    """Let the numbers be given after Sphinx has given its own."""
    app.connect("env-get-updated", number_figures, priority=900)
