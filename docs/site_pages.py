"""What a page becomes on the site: numbered figures, citations, a glossary that tables link to.

The files stay plain markdown and notebooks, so that they can be read where they lie. ``docs/build_site.py`` rewrites
its copies with the functions below: text in, text out.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

# A picture in a paragraph of its own, and the caption below it if there is one: *Figure. Where the numbers come from.*
PICTURE = re.compile(
    r"^!\[(?P<alt>[^\]]+)\]\((?P<path>[^)\s]+\.(?:png|svg))\)$(?:\n\n\*Figure\. (?P<caption>.+?)\*$(?=\n\n|\n?\Z))?",
    re.MULTILINE | re.DOTALL,
)
CAPTION = re.compile(r"\A\*Figure (?P<number>\d\d\.\d+)\. (?P<text>.+?)\*(?=\n\n|\s*\Z)", re.DOTALL)  # of a notebook
MENTION = re.compile(r"\bFigure (\d\d\.\d+)\b")
SHOWN = re.compile(r"<figure \w+: (?P<alt>.+)>", re.DOTALL)  # what page.plot prints beside a picture
CITATION = re.compile(r"\[(?P<text>[^\]]+)\]\((?:\S*/)?references\.bib#(?P<key>\w+)\)")
HEAD = re.compile(r"^\|(?P<cells>.+)\|\n\|(?P<rule>[ :|-]+)\|$", re.MULTILINE)
ROW = re.compile(r"^\| (?P<terms>[^|]+?) \| (?P<meaning>.+?) \|$", re.MULTILINE)
BADGE = re.compile(r"^\[!\[.+\n", re.MULTILINE)
MODULE = re.compile(r"\]\((?:\.\./)*zspag/(?P<path>[a-z]\w*(?:/[a-z]\w*)*)(?:/__init__)?\.py\)")
GLOSSARY = re.compile(r"^\| term \| meaning \|\n\|[ |-]+\|\n(?P<rows>(?:\|.+\|\n?)+)", re.MULTILINE)
BIBLIOGRAPHY = "<!-- bibliography -->"


def label(number: str) -> str:
    """Return the label of a notebook's figure, from its number: "00.2" is "figure-00-2"."""
    return f"figure-{number.replace('.', '-')}"


def with_own_links(text: str) -> str:
    """Let links to a module lead to its page of the reference, and leave badges out: they need another server."""

    def page(found: re.Match[str]) -> str:
        return f"](/reference/zspag/zspag.{found['path'].replace('/', '.')}.md)"

    return MODULE.sub(page, BADGE.sub("", text))


def with_figures(text: str) -> str:
    """Give every picture of a page a number; ``[the figure](#figure-NAME)`` then names it by its number."""

    def figure(found: re.Match[str]) -> str:
        name = found["path"].rpartition("/")[2].partition(".")[0].replace("_", "-")
        caption = " ".join((found["caption"] or f"{found['alt'].rstrip('.')}.").split())
        options = f":name: figure-{name}\n:alt: {found['alt']}\n:class: dark-light"
        return f"```{{figure}} {found['path']}\n{options}\n\n{caption}\n```"

    return re.sub(r"\[[^\]]+\]\(#(figure-[\w-]+)\)", r"{numref}`\1`", PICTURE.sub(figure, text))


def citations(text: str) -> dict[str, str]:
    """Return the keys of the works that a page cites, by the words that it cites them with."""
    return {found["text"]: found["key"] for found in CITATION.finditer(text)}


def with_citations(text: str, known: Mapping[str, str]) -> str:
    """Turn links into the bibliography into citations, and the words of ``known`` wherever they stand."""
    text = CITATION.sub(lambda found: f"{{cite:t}}`{found['key']}`", text)
    for words, key in known.items():
        text = text.replace(words, f"{{cite:t}}`{key}`")
    return text.replace(BIBLIOGRAPHY, "```{bibliography}\n:all:\n```")


def glossary_terms(text: str) -> Iterator[list[str]]:
    """Yield the terms of each row of the glossary: the first is the entry, the others mean the same.

    Yields:
        Terms as they are written, without the head of the table.
    """
    for row in ROW.finditer(text):
        if row["terms"] != "term" and set(row["terms"]) != {"-"}:
            yield row["terms"].split(", ")


def with_glossary(text: str) -> str:
    """Turn the tables of the glossary into entries that other pages can link to."""

    def entries(table: re.Match[str]) -> str:
        rows = [(row["terms"].split(", "), row["meaning"]) for row in ROW.finditer(table["rows"])]
        return "```{glossary}\n" + "\n".join("\n".join(terms) + f"\n  {said}\n" for terms, said in rows) + "```\n"

    return GLOSSARY.sub(entries, text)


def heads(text: str) -> Iterator[str]:
    """Yield every term in the heads of a page's tables: without halves ("first: "), seeds, units and machines.

    Yields:
        Terms as they are written, in the order of the page; "lost, median" is two terms.
    """
    for table in HEAD.finditer(text):
        for cell in table["cells"].split("|"):
            yield from (term for term, _ in _terms(cell.strip()) if term)


def _terms(cell: str) -> Iterator[tuple[str, str]]:
    """Split the head of a column into terms and what stands before or after them.

    Yields:
        Pairs of a term and a text; one of the two is empty.
    """
    half, told = re.match(r"(first: |second: |seed \d+: |)(.*)", cell).groups()
    told, unit = re.match(r"(.*?)( \([^)]*\)| at [\d.]+|)$", told).groups()
    told, machine = (told[:5], told[5:]) if told.startswith("hours, ") else (told, "")
    yield "", half
    for place, term in enumerate(told.split(", ")):
        yield "", ", " if place else ""
        yield term, ""
    yield "", machine + unit


def with_linked_heads(text: str, terms: Mapping[str, str]) -> str:
    """Link the heads of a page's tables to the glossary, where it has an entry; ``terms``: its own, by lower case."""

    def linked(term: str) -> str:
        found = terms.get(term.lower())
        return term if found is None else f"{{term}}`{term} <{found}>`"

    def head(table: re.Match[str]) -> str:
        cells = [
            "".join(linked(term) or text for term, text in _terms(cell.strip())) for cell in table["cells"].split("|")
        ]
        return f"| {' | '.join(cells)} |\n|{table['rule']}|"

    return HEAD.sub(head, text)


def with_numbered_figures(notebook: dict[str, Any]) -> None:
    """Make the pictures of a notebook figures with captions, in place; text that names one by its number gets a link.

    The caption is the first paragraph of the text below, as the notebook has it: *Figure 00.2. What is seen.*
    """
    cells = notebook["cells"] = [part for cell in notebook["cells"] for part in _split(cell)]
    captions: dict[int, str] = {}  # labels of figures, by the place of their cell
    for place, cell in enumerate(cells):
        if alt := _alt_of(cell):
            shown: dict[str, Any] = {"image": {"alt": alt}}
            below = next((one for one in cells[place:] if one["cell_type"] == "markdown"), {"source": ""})
            if found := CAPTION.match(below["source"]):
                captions[place] = label(found["number"])
                shown["figure"] = {"caption": " ".join(found["text"].split()), "name": captions[place]}
                below["source"] = below["source"][found.end() :].lstrip("\n")
            cell["metadata"]["mystnb"] = shown
    for place, cell in enumerate(cells):
        if cell["cell_type"] == "markdown":
            cell["source"] = MENTION.sub(lambda found: f"{{numref}}`{label(found[1])}`", cell["source"])
            coming = next((name for other, name in captions.items() if other > place), None)
            if coming is not None:
                cell["source"] = re.sub(r"\b[Tt]he figure below\b", f"{{numref}}`{coming}`", cell["source"])


def _split(cell: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Give what a cell shows beside a picture a cell of its own, without code: a caption belongs to all of a cell.

    Yields:
        The cell with its first output, and then cells with the others.
    """
    cell["source"] = "".join(cell["source"])
    outputs = cell.get("outputs", [])
    if _alt_of(cell) and len(outputs) > 1:
        cell["outputs"] = outputs[:1]
        yield cell
        hidden = {"tags": ["remove-input"]}
        for place, one in enumerate(outputs[1:], start=1):
            alone = {"id": f"{cell['id']}-{place}", "source": "", "metadata": dict(hidden), "outputs": [one]}
            yield {**cell, **alone}
    else:
        yield cell


def _alt_of(cell: Mapping[str, Any]) -> str:
    """Return the alt text of a cell's picture, "" if it shows none."""
    for output in cell.get("outputs", ()):
        if "image/png" in output.get("data", {}):
            found = SHOWN.fullmatch("".join(output["data"]["text/plain"]))
            return " ".join(found["alt"].split()) if found else "The figure that the text below explains"
    return ""
