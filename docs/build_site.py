"""Build the site: ``python docs/build_site.py`` (``make site``). Committed notebooks are shown, and not run again.

README, docs, notebooks, results and figures are copied into one folder with the layout they have here, so that every
link between them is a link on the site.
"""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE, SITE = ROOT / "runs" / "site" / "source", ROOT / "runs" / "site" / "html"
MATHJAX = "mathjax@3.2.2"
COPIED = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "LICENSE", "pyproject.toml")
FOLDERS = {
    "docs": ("*.md", "*.svg"),
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
results/bench/README
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
