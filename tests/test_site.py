"""The site holds every page that its contents name, and every page that there is."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def site(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("build_site", ROOT / "docs" / "build_site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SOURCE", tmp_path / "source")
    module.assemble()
    return module


def named(site):
    """Return what the contents name, one entry a line; "notebooks/*" stands for all of them."""
    return [line for line in site.CONTENTS.splitlines() if re.fullmatch(r"[A-Za-z/*_0-9]+", line)]


def test_every_entry_of_the_contents_is_there_and_nothing_is_left_out(site):
    generated = {"reference/index"}
    entries = set(named(site)) - generated - {"notebooks/*"}
    missing = [entry for entry in sorted(entries) if not (site.SOURCE / f"{entry}.md").is_file()]
    assert missing == []
    pages = {path.relative_to(site.SOURCE).with_suffix("").as_posix() for path in site.SOURCE.rglob("*.md")}
    assert pages - {"README"} == entries
    assert {path.name for path in (site.SOURCE / "notebooks").iterdir()} == {
        path.name for path in (ROOT / "notebooks").glob("*.ipynb")
    }


def test_links_between_pages_lead_somewhere_on_the_site(site):
    broken = []
    for page in site.SOURCE.rglob("*.md"):
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http") and not (page.parent / target).exists():
                broken.append((page.relative_to(site.SOURCE).as_posix(), target))
    assert [one for one in broken if not one[1].endswith(".json")] == []  # records stay in the repository
