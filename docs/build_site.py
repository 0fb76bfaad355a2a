"""Build the site: ``python docs/build_site.py`` (``make site``). Committed notebooks are shown, and not run again.

README, docs, notebooks, results and figures are copied into one folder with the layout they have here, so that every
link between them is a link on the site. ``docs/site_pages.py`` gives the copies their numbered figures, citations and
links to the glossary.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import site_pages

ROOT = Path(__file__).parents[1]
SOURCE, SITE = ROOT / "runs" / "site" / "source", ROOT / "runs" / "site" / "html"
MATHJAX = "mathjax@3.2.2"
COPIED = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "LICENSE", "pyproject.toml")
FOLDERS = {
    "docs": ("*.md", "*.svg", "*.bib"),
    "notebooks": ("*.ipynb",),
    "results": ("**/*.md",),
    "figures": ("**/*.png",),
    "data": ("README.md",),
    "zspag": ("**/*.py",),
}
CONTENTS = """

```{toctree}
:hidden:
:caption: Chapters
:glob:

notebooks/*
```

```{toctree}
:hidden:
:caption: Use it

docs/own_model
docs/experiments
data/README
docs/extend
```

```{toctree}
:hidden:
:caption: What was found

results/README
results/TABLES
docs/performance
results/removal/README
results/external/README
results/external/CHOICES
Benchmarks <results/bench/README>
results/bench/GROWTH
results/spread/README
results/peers/README
results/scenarios/README
```

```{toctree}
:hidden:
:caption: About

docs/design
docs/choices
docs/glossary
docs/references
CONTRIBUTING
CHANGELOG
reference/index
```
"""


def assemble() -> None:
    """Copy what is shown into ``SOURCE``, anew."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    wanted = [ROOT / name for name in COPIED]
    wanted += [path for folder, patterns in FOLDERS.items() for one in patterns for path in (ROOT / folder).glob(one)]
    for path in wanted:
        target = SOURCE / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    with (SOURCE / "README.md").open("a", encoding="utf-8") as page:
        page.write(CONTENTS)
    static = SOURCE / "_static"
    static.mkdir()
    shutil.copyfile(ROOT / "docs" / "site.css", static / "site.css")
    rewrite()


def rewrite() -> None:
    """Give the copies figures with numbers, citations, and tables whose heads are linked to the glossary."""
    glossary, references = (SOURCE / "docs" / f"{name}.md" for name in ("glossary", "references"))
    terms = {term.lower(): term for row in site_pages.glossary_terms(_text(glossary)) for term in row}
    cited = site_pages.citations(_text(references))
    for page in SOURCE.rglob("*.md"):
        text = site_pages.with_citations(site_pages.with_figures(site_pages.with_own_links(_text(page))), {})
        if page.is_relative_to(SOURCE / "results"):
            text = site_pages.with_linked_heads(text, terms)
        page.write_text(site_pages.with_glossary(text) if page == glossary else text, encoding="utf-8")
    for path in (SOURCE / "notebooks").glob("*.ipynb"):
        notebook = json.loads(_text(path))
        site_pages.with_numbered_figures(notebook)
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = site_pages.with_citations(site_pages.with_own_links(cell["source"]), cited)
        path.write_text(json.dumps(notebook), encoding="utf-8")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def bring_mathjax() -> None:
    """Put MathJax beside the pages, so that formulas need no other server; without npm they come from the web."""
    npm = shutil.which("npm")
    if npm is None:
        return
    kept = SITE.parent / "mathjax.tgz"
    if not kept.is_file():
        done = subprocess.run(
            [npm, "pack", "--silent", MATHJAX], cwd=SITE.parent, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.stderr.write("MathJax cannot be fetched: formulas will come from the web\n")
            return
        (SITE.parent / done.stdout.split()[-1]).rename(kept)
    with tarfile.open(kept) as archive:
        for member in archive.getmembers():
            name = member.name.removeprefix("package/es5/")
            if name == "tex-mml-chtml.js" or name.startswith("output/chtml/fonts/woff-v2/"):
                member.name = name
                archive.extract(member, SOURCE / "_static" / "mathjax", filter="data")


def main() -> int:
    """Assemble and build; a warning is an error."""
    assemble()
    bring_mathjax()
    environment = os.environ | {"ZSPAG_SITE_SOURCE": str(SOURCE)}
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-c", str(ROOT / "docs"), "--keep-going", "-W", "-q"]
    code = subprocess.run([*command, str(SOURCE), str(SITE)], env=environment, check=False).returncode
    if code == 0:
        (SITE / "index.html").write_text('<meta http-equiv="refresh" content="0; url=README.html">\n', encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
