"""The site holds every page that its contents name, and every page that there is; its figures, terms and works too."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TABLES = ("results/README.md", "results/TABLES.md")
CITED = re.compile(r"\b([A-Z][\w-]+) et al\.[^;()]{0,90}?\b((?:19|20)\d\d)\b")


def program(name):
    """Return a program of docs/, as Python finds it when it is run there."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def beside(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    yield
    sys.modules.pop("site_pages", None)


@pytest.fixture
def site(tmp_path, monkeypatch, beside):
    module = program("build_site")
    monkeypatch.setattr(module, "SOURCE", tmp_path / "source")
    module.assemble()
    return module


@pytest.fixture
def pages(beside):
    return program("site_pages")


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


def named(site):
    """Return what the contents name, one entry a line; "notebooks/*" stands for all of them."""
    lines = [re.sub(r".*<(.+)>", r"\1", line) for line in site.CONTENTS.splitlines()]
    return [line for line in lines if re.fullmatch(r"[A-Za-z/*_0-9]+", line)]


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
            if target.startswith("/reference/"):  # written from the module of this name while the site is built
                module = target.removeprefix("/reference/zspag/").removesuffix(".md").replace(".", "/")
                found = (ROOT / f"{module}.py").is_file() or (ROOT / module / "__init__.py").is_file()
            else:
                found = target.startswith("http") or (page.parent / target).exists()
            if not found:
                broken.append((page.relative_to(site.SOURCE).as_posix(), target))
    assert [one for one in broken if not one[1].endswith(".json")] == []  # records stay in the repository


def test_every_figure_of_a_notebook_has_its_number_its_caption_and_an_alt_text(site):
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        typed = re.findall(
            r"^\*Figure (\d\d\.\d+)\.", "\n".join("".join(cell["source"]) for cell in cells), re.MULTILINE
        )
        assert typed == [f"{path.name[:2]}.{place}" for place in range(1, len(typed) + 1)]  # as the site numbers them
        copy = json.loads((site.SOURCE / "notebooks" / path.name).read_text(encoding="utf-8"))
        shown = [cell["metadata"]["mystnb"] for cell in copy["cells"] if "mystnb" in cell["metadata"]]
        assert [one["figure"]["name"] for one in shown if "figure" in one] == [
            f"figure-{n.replace('.', '-')}" for n in typed
        ]
        assert all(len(one["image"]["alt"].split()) > 5 for one in shown)
        pictures = [cell for cell in copy["cells"] if "image/png" in str(cell.get("outputs"))]
        assert len(pictures) == len(shown)
        assert all(len(cell["outputs"]) == 1 for cell in pictures)  # the caption would be repeated for another
        ids = [cell["id"] for cell in copy["cells"]]
        assert len(set(ids)) == len(ids)


def test_a_figure_that_is_named_is_there(site):
    known = {"figure-00-rates"}
    for path in (site.SOURCE / "notebooks").iterdir():
        known |= set(re.findall(r'"name": "(figure-[\w-]+)"', path.read_text(encoding="utf-8")))
    texts = {
        page: page.read_text(encoding="utf-8") for page in [*site.SOURCE.rglob("*.md"), *site.SOURCE.rglob("*.ipynb")]
    }
    for text in texts.values():
        known |= set(re.findall(r"^:name: (figure-[\w-]+)$", text, re.MULTILINE))
    mentioned = {label for text in texts.values() for label in re.findall(r"\{numref\}`([^`]+)`", text)}
    assert {"figure-storeys", "figure-01-4", "figure-04-1"} <= mentioned
    assert mentioned <= known
    assert not any("](#figure-" in text for text in texts.values())


def test_a_picture_becomes_a_figure_with_its_caption_or_else_its_alt_text(pages):
    picture, caption = "![What is seen](a/b_c.png)", "*Figure. Where it\ncomes from.*"
    text = f"A\n\n{picture}\n\n{caption}\n\nSee [it](#figure-b-c), ![not this](d.png).\n"
    told = pages.with_figures(text)
    assert "```{figure} a/b_c.png\n:name: figure-b-c\n:alt: What is seen\n" in told
    assert "\n\nWhere it comes from.\n```\n\nSee {numref}`figure-b-c`, ![not this](d.png).\n" in told
    assert "\n\nWhat is seen.\n```" in pages.with_figures(f"{picture}\n")


def test_every_head_of_a_column_is_in_the_glossary_and_linked_to_it(site, pages):
    terms = [term for row in pages.glossary_terms(text_of("docs/glossary.md")) for term in row]
    assert len(set(map(str.lower, terms))) == len(terms)
    heads = {head for name in TABLES for head in pages.heads(text_of(name))}
    assert len(heads) > 30
    assert sorted(head for head in heads if head.lower() not in map(str.lower, terms)) == []
    linked = (site.SOURCE / "results" / "TABLES.md").read_text(encoding="utf-8")
    assert "| {term}`method <method>` | {term}`forget % <forget %>` |" in linked
    assert (site.SOURCE / "docs" / "glossary.md").read_text(encoding="utf-8").count("```{glossary}") == 2


def test_heads_are_split_into_terms_without_halves_units_and_machines(pages):
    head = "| data, net | first: drift (nats) | hours, AMD EPYC, 2 threads | strange | 50 % back at 0.01 |"
    table = f"{head}\n| --- | --- | --- | --- | --- |\n| a, b | 1 |"
    assert list(pages.heads(table)) == ["data", "net", "drift", "hours", "strange", "50 % back"]
    told = pages.with_linked_heads(table, {"net": "Net", "drift": "drift", "hours": "hours"})
    assert told.splitlines()[0] == (
        "| data, {term}`net <Net>` | first: {term}`drift <drift>` (nats) | {term}`hours <hours>`, AMD EPYC, 2 threads"
        " | strange | 50 % back at 0.01 |"
    )
    assert told.splitlines()[1:] == table.splitlines()[1:]


def entries():
    """Return the works of the bibliography: key, and the first author's family name and the year."""
    parts = re.findall(r"^@\w+\{(\w+),(.+?)^\}", text_of("docs/references.bib"), re.MULTILINE | re.DOTALL)
    field = {name: re.compile(rf"^  {name} = \{{(.+?)\}}", re.MULTILINE | re.DOTALL) for name in ("author", "year")}
    found = {key: [field[name].search(body)[1] for name in ("author", "year")] for key, body in parts}
    return {key: (re.split(r",| and ", author)[0], year) for key, (author, year) in found.items()}


def test_every_work_that_is_cited_has_an_entry_and_every_entry_is_cited(pages):
    works = entries()
    assert len(works) == text_of("docs/references.bib").count("\n@")
    files = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "zspag").rglob("*.py")]
    texts = {path: path.read_text(encoding="utf-8") for path in files}
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        texts[path] = "\n".join("".join(cell["source"]) for cell in cells)
    cited = {(path.name, *work) for path, text in texts.items() for work in CITED.findall(text)}
    assert len(cited) > 20
    assert sorted(one for one in cited if one[1:] not in works.values()) == []
    keys = set(pages.citations(text_of("docs/references.md")).values())
    assert keys == set(works)
    for page in (ROOT / "docs").glob("*.md"):
        assert set(pages.citations(texts[page]).values()) <= keys


def test_the_diagram_of_the_storeys_shows_what_the_package_is():
    drawn = program("design_diagram")
    shown = re.findall(r"<text [^>]*>([^<]+)</text>", text_of("docs/storeys.svg"))
    inside = [name for storey in drawn.rooms().values() for name in storey]
    labels = [words for names in drawn.arrows().values() if (words := drawn.named(names))]
    titles = [words for _, *both in drawn.STOREYS.values() for words in both]
    assert sorted(shown) == sorted([*inside, *labels, *titles]), "run python docs/design_diagram.py"
    order = list(drawn.STOREYS)
    assert all(order.index(start) < order.index(target) for start, target in drawn.arrows())
