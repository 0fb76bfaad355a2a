"""The shape of every notebook: a reader finds the same things in the same places, and more text than code.

Each rule is a function from notebooks to complaints; a page that keeps all rules, spoilt in one place at a time, shows
that each rule can fail.
"""

import ast
import re
from collections import Counter
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from zspag.report.reproduce.notebooks import (
    MACHINE_PATH,
    MAX_BYTES,
    find_notebooks,
    literal_parameters,
    output_texts,
)

FOLDER = Path(__file__).parents[1] / "notebooks"
PATHS = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))
MAX_LINES = 14
HEAD = ("Paper", "Needs", "Makes", "Time")


def code_cells(page):
    return [cell for cell in page.cells if cell.cell_type == "code"]


def tagged(page, tag):
    return [cell for cell in page.cells if tag in cell.metadata.get("tags", [])]


def calls(source, method):
    """Return the calls ``page.<method>(...)`` in a cell."""
    found = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return [node for node in found if ast.unparse(node.func) == f"page.{method}"]


def output_names(page):
    """Return the literal names of all figures and results of a page; None stands for a name that is computed."""
    both = [call for cell in code_cells(page) for kind in ("figure", "result") for call in calls(cell.source, kind)]
    first = [call.args[0] if call.args else None for call in both]
    return [node.value if isinstance(node, ast.Constant) else None for node in first]


def title_complaints(name, page):
    first = page.cells[0]
    if first.cell_type != "markdown" or not first.source.startswith("# "):
        return ["the first cell is no markdown title"]
    missing = [word for word in HEAD if not re.search(rf"^[\s*_>|-]*{word}\b", first.source, re.MULTILINE)]
    return [f"the title cell has no line '{word}'" for word in missing]


def parameter_complaints(name, page):
    try:
        declared = literal_parameters(page, name)
    except ValueError as error:
        return [str(error)]
    return [] if declared.get("profile", "absent") is None else ["the parameters cell lacks profile = None"]


def seal_complaints(name, page):
    last = code_cells(page)[-1]
    sealed = tagged(page, "seal") == [last] and calls(last.source, "seal")
    return [] if sealed else ["the last code cell, alone tagged 'seal', must call page.seal()"]


def name_complaints(name, page):
    names = output_names(page)
    wrong = [item for item in names if not (isinstance(item, str) and re.fullmatch(rf"{name[:2]}_[a-z0-9_]+", item))]
    twice = [item for item, count in Counter(names).items() if count > 1]
    return [f"output {item!r} is not called {name[:2]}_..." for item in wrong] + [
        f"output {item!r} is made twice" for item in twice
    ]


def length_complaints(name, page):
    found = []
    for number, cell in enumerate(page.cells, 1):
        lines = sum(map(bool, cell.source.split("\n")))
        if cell.cell_type == "code" and lines > MAX_LINES:
            found.append(f"cell {number} has {lines} lines of code, {MAX_LINES} is the most")
    return found


def text_complaints(name, page):
    text, code = (
        sum(len(cell.source.split()) for cell in page.cells if cell.cell_type == kind) for kind in ("markdown", "code")
    )
    return [] if text >= code else [f"{text} words of text to {code} of code"]


def caption_complaints(name, page):
    captions = [cell.cell_type == "markdown" and cell.source.startswith("*Figure") for cell in page.cells]
    drawing = [cell.cell_type == "code" and calls(cell.source, "figure") for cell in page.cells]
    return [
        f"the figure of cell {index + 1} has no caption '*Figure ...' beside it"
        for index in range(len(page.cells))
        if drawing[index] and not any(captions[max(index - 1, 0) : index + 2])
    ]


def execution_complaints(name, page):
    cells = code_cells(page)
    found = []
    if [cell.execution_count for cell in cells] != list(range(1, len(cells) + 1)):
        found.append("its cells were not executed in order: make notebooks")
    if not any(cell.outputs for cell in cells):
        found.append("it has no outputs: make notebooks")
    if any(output.output_type == "error" for cell in cells for output in cell.outputs):
        found.append("a cell ended in an error")
    return found


def path_complaints(name, page):
    texts = (text for cell in code_cells(page) for output in cell.outputs for text in output_texts(output))
    paths = (MACHINE_PATH.search(text) for text in texts)
    return [f"an output names {path[0]}, a path of one machine" for path in paths if path]


def size_complaints(name, page):
    size = len(nbformat.writes(page).encode())
    return [] if size <= MAX_BYTES else [f"{size} bytes, {MAX_BYTES} is the most"]


RULES = (
    title_complaints,
    parameter_complaints,
    seal_complaints,
    name_complaints,
    length_complaints,
    text_complaints,
    caption_complaints,
    execution_complaints,
    path_complaints,
    size_complaints,
)


def functions(page):
    trees = [ast.walk(ast.parse(cell.source)) for cell in code_cells(page)]
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for tree in trees for node in tree if isinstance(node, kinds)}


def shared(groups):
    """Return the names that two of ``groups`` hold, with the groups: what two notebooks use belongs to the package."""
    owners = {}
    for owner, names in groups.items():
        for name in set(names):
            owners.setdefault(name, []).append(owner)
    return {name: found for name, found in owners.items() if len(found) > 1}


def numbering_complaints(names):
    expected = [f"{number:02d}" for number in range(len(names))]
    return [] if [name[:2] for name in names] == expected else [f"numbers run from 00 without a gap, got {names}"]


@pytest.fixture(scope="module")
def pages():
    return {path.stem: nbformat.read(path, as_version=4) for path in PATHS}


def test_the_notebooks_are_there_and_numbered_without_a_gap():
    assert PATHS, "notebooks/ holds no notebook called like 00_quickstart.ipynb"
    assert find_notebooks(FOLDER, None) == sorted(FOLDER.glob("*.ipynb")), (
        "notebooks/ holds a notebook without a number"
    )
    assert numbering_complaints([path.stem for path in PATHS]) == []


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_notebook_keeps_the_rule(pages, path, rule):
    assert rule(path.stem, pages[path.stem]) == []


def test_nothing_used_by_two_notebooks_lives_in_a_notebook(pages):
    assert shared({name: functions(page) for name, page in pages.items()}) == {}
    assert shared({name: output_names(page) for name, page in pages.items()}) == {}


def good_page():
    picture = new_output("display_data", data={"text/plain": "<figure 03_bars>"})
    text = "The reasoning stands in the text between the cells, and there is more of it than there is code. " * 3
    cells = [
        new_markdown_cell("# Three\n\n**Paper:** section 3.2\n- Needs: digits\n- Makes: one figure\n- Time: 3 s"),
        new_code_cell("profile = None", metadata={"tags": ["parameters"]}, execution_count=1),
        new_code_cell("from zspag.report.page import Page\npage = Page('03_three', profile)", execution_count=2),
        new_markdown_cell(text),
        new_code_cell("page.figure('03_bars', 'bars', {}, caption='x')", execution_count=3, outputs=[picture]),
        new_markdown_cell("*Figure 3.1. Bars.*"),
        new_code_cell("page.result('03_sum', {})", execution_count=4),
        new_code_cell("page.seal()", metadata={"tags": ["seal"]}, execution_count=5),
    ]
    return new_notebook(cells=cells)


def complaints(page):
    return [complaint for rule in RULES for complaint in rule("03_three", page)]


def test_a_good_page_has_nothing_to_complain_about():
    assert complaints(good_page()) == []


def change(index, **values):
    def spoil(page):
        page.cells[index].update(values)

    return spoil


def change_tags(index, *tags):
    return change(index, metadata=nbformat.from_dict({"tags": list(tags)}))


def insert(index, cell):
    def spoil(page):
        page.cells.insert(index, cell)
        for count, code in enumerate(code_cells(page), 1):
            code.execution_count = count

    return spoil


def show(**output):
    return change(4, outputs=[new_output(**output)])


SPOILT = {
    "no title": (change(0, source="Three"), "the first cell is no markdown title"),
    "no time": (change(0, source="# Three\nPaper: 1\nNeeds: 2\nMakes: timeless things"), "has no line 'Time'"),
    "no parameters": (change_tags(1), "has 0 cells tagged 'parameters'"),
    "two parameters": (change_tags(2, "parameters"), "has 2 cells tagged 'parameters'"),
    "derived value": (change(1, source="profile = None\nwidth = 2 * 8"), r"must hold only name = literal lines"),
    "other profile": (change(1, source="profile = 'digits'"), "lacks profile = None"),
    "no seal": (change(7, source="print(page.seal)"), "must call page.seal"),
    "untagged seal": (change_tags(7), "alone tagged 'seal'"),
    "foreign name": (change(6, source="page.result('04_sum', {})"), "output '04_sum' is not called 03_"),
    "computed name": (change(6, source="page.result(f'03_{profile}', {})"), "output None is not called 03_"),
    "name twice": (change(6, source="page.result('03_bars', {})"), "output '03_bars' is made twice"),
    "long cell": (change(6, source="x = 1\n\n" * 15), "cell 7 has 15 lines of code, 14 is the most"),
    "little text": (change(6, source="y = 0" + " + 1" * 60), r"\d+ words of text to \d+ of code"),
    "no caption": (change(5, source="Figure 3.1"), "figure of cell 5 has no caption"),
    "caption too far": (insert(5, new_code_cell("1")), "figure of cell 5 has no caption"),
    "not executed": (change(6, execution_count=None), "not executed in order"),
    "wrong order": (change(6, execution_count=9), "not executed in order"),
    "no outputs": (change(4, outputs=[]), "it has no outputs"),
    "error": (show(output_type="error", ename="E", evalue="", traceback=[]), "a cell ended in an error"),
    "path": (show(output_type="stream", name="stdout", text="in /home/someone/x.png"), "names /home/someone/x.png"),
    "size": (show(output_type="display_data", data={"image/png": "A" * MAX_BYTES}), "bytes, 2000000 is the most"),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_every_rule_can_fail(fault):
    spoil, message = SPOILT[fault]
    page = good_page()
    spoil(page)
    found = complaints(page)
    assert len(found) == 1, found
    assert re.search(message, found[0])


def test_what_notebooks_share_is_found():
    first, second = good_page(), good_page()
    first.cells[4].source = "def area(x):\n    return x"
    second.cells[4].source = "class Own: ...\nasync def area(y): ..."
    assert shared({"a": functions(first), "b": functions(second)}) == {"area": ["a", "b"]}
    assert shared({"a": output_names(first), "b": output_names(second)}) == {"03_sum": ["a", "b"]}


def test_gaps_in_the_numbers_are_found():
    assert numbering_complaints(["00_a", "01_b"]) == []
    assert numbering_complaints(["00_a", "02_b"])
    assert numbering_complaints(["01_a"])
