"""The shape of every notebook: a reader finds the same things in the same places, and more text than code.

Each rule is a function from notebooks to complaints; a page that keeps all rules, spoilt in one place at a time, shows
that each rule can fail.
"""

import ast
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from zspag.report import notebook_heads
from zspag.report.files import read_json
from zspag.report.reproduce.notebooks import (
    MACHINE_PATH,
    MAX_BYTES,
    find_notebooks,
    literal_parameters,
    output_texts,
)
from zspag.report.reproduce.report import TIMES

FOLDER = Path(__file__).parents[1] / "notebooks"
PATHS = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))
MOST = {"cells": 40, "figures": 5, "lines": 14, "columns": 88, "code cells in a row": 4}
HEAD = ("Question.", "You will build", "You need", "Time.")
END = ("What to take with you", "Checks", "Exercises")  # the appendix has no exercises
LEAST_SOLUTIONS = 3


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
    both = [call for cell in code_cells(page) for kind in ("plot", "result") for call in calls(cell.source, kind)]
    first = [call.args[0] if call.args else None for call in both]
    return [node.value if isinstance(node, ast.Constant) else None for node in first]


def title_complaints(name, page):
    first = page.cells[0]
    if first.cell_type != "markdown" or not first.source.startswith(f"# {name[:2]} "):
        return [f"the first cell is no markdown title '# {name[:2]} ...'"]
    missing = [word for word in HEAD if not re.search(rf"^\*\*{re.escape(word)}", first.source, re.MULTILINE)]
    return [f"the title cell has no line '**{word}'" for word in missing]


def time_complaints(name, page):
    line = notebook_heads.LINE.search(page.cells[0].source)
    stale = line is not None and line[0] != notebook_heads.time_line(page, seconds_of(name), number=name[:2])
    return [f"'{line[0]}' is out of date: make readme"] if stale else []


def seconds_of(name):
    recorded = read_json(FOLDER.parent / "results" / "digits" / TIMES)["notebooks"]
    return recorded.get(name, {}).get("seconds")


def folded_complaints(name, page):
    """JupyterLab folds by one mark, the site by the other; what a reader is told to change stays open."""
    complaints = []
    for number, cell in enumerate(page.cells, 1):
        tags, shut = cell.metadata.get("tags", []), cell.metadata.get("jupyter", {}).get("source_hidden", False)
        if shut != (notebook_heads.SHUT in tags):
            complaints.append(f"cell {number} must have both the tag {notebook_heads.SHUT} and source_hidden, or none")
        if shut and (cell.cell_type != "code" or "parameters" in tags):
            complaints.append(f"cell {number} must not be folded")
    return complaints


def end_complaints(name, page):
    text = "\n".join(cell.source for cell in page.cells if cell.cell_type == "markdown")
    appendix = name.endswith("_appendix")
    wanted = [title for title in END if not (appendix and title == "Exercises")]
    found = [f"it has no section '## {title}'" for title in wanted if f"\n## {title}" not in f"\n{text}"]
    solutions = text.count("<details>")
    few = not appendix and solutions < LEAST_SOLUTIONS
    return found + ([f"it has {solutions} folded solutions, {LEAST_SOLUTIONS} is the least"] if few else [])


def parameter_complaints(name, page):
    try:
        declared = literal_parameters(page, name)
    except ValueError as error:
        return [str(error)]
    found = [] if declared.get("profile", "absent") is None else ["the parameters cell lacks profile = None"]
    missing = [f"the parameters cell lacks {word}" for word in ("forget", "seed") if word not in declared]
    bare = [line for line in tagged(page, "parameters")[0].source.splitlines() if "=" in line and "#" not in line]
    return found + missing + [f"'{line}' has no comment" for line in bare]


def bootstrap_complaints(name, page):
    installs = 'find_spec("zspag")' in code_cells(page)[1].source
    return [] if installs else ["the second code cell does not install the package where it is missing"]


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
    drawn = sum(len(calls(cell.source, "plot")) for cell in code_cells(page))
    kinds = "".join(cell.cell_type[0] for cell in page.cells)
    counts = {"cells": len(page.cells), "figures": drawn}
    counts["code cells in a row"] = max(map(len, re.findall("c+", kinds)), default=0)
    found = [f"it has {count} {what}, {MOST[what]} is the most" for what, count in counts.items() if count > MOST[what]]
    for number, cell in enumerate(page.cells, 1):
        if cell.cell_type == "code":
            lines = [line for line in cell.source.split("\n") if line]
            sizes = {"lines": len(lines), "columns": max(map(len, lines), default=0)}
            found += [
                f"cell {number} has {size} {what} of code, {MOST[what]} is the most"
                for what, size in sizes.items()
                if size > MOST[what]
            ]
    return found


def format_complaints(name, page):
    skipped = [number for number, cell in enumerate(page.cells, 1) if re.search(r"# fmt: *(skip|off)", cell.source)]
    return [f"cell {number} keeps the formatter out" for number in skipped]


def record_complaints(name, page):
    """Complain of cells that take the first of the recorded files: there may be none, as after a bare install."""
    cells = [(number, cell) for number, cell in enumerate(page.cells, 1) if cell.cell_type == "code"]
    taken = [number for number, cell in cells if re.search(r"next\([^\n]*glob\(|glob\([^\n]*\)\)?\[0\]", cell.source)]
    return [f"cell {number} takes the first of files that may be missing" for number in taken]


def text_complaints(name, page):
    text, code = (
        sum(len(cell.source.split()) for cell in page.cells if cell.cell_type == kind) for kind in ("markdown", "code")
    )
    return [] if text >= code else [f"{text} words of text to {code} of code"]


def caption_complaints(name, page):
    captions = [cell.cell_type == "markdown" and cell.source.startswith("*Figure") for cell in page.cells]
    drawing = [cell.cell_type == "code" and calls(cell.source, "plot") for cell in page.cells]
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
    time_complaints,
    folded_complaints,
    end_complaints,
    bootstrap_complaints,
    parameter_complaints,
    seal_complaints,
    name_complaints,
    length_complaints,
    format_complaints,
    record_complaints,
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


def test_the_first_four_chapters_take_an_hour_to_read(pages):
    minutes = {name: notebook_heads.reading_minutes(page) for name, page in pages.items() if name[:2] <= "03"}
    assert sum(minutes.values()) <= 60, minutes


def test_nothing_used_by_two_notebooks_lives_in_a_notebook(pages):
    assert shared({name: functions(page) for name, page in pages.items()}) == {}
    assert shared({name: output_names(page) for name, page in pages.items()}) == {}


def reads_records(page):
    return any(re.search(r"""repository_root\(\) / "results\"""", cell.source) for cell in code_cells(page))


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_that_reads_records_runs_where_there_are_none(pages, path, tmp_path):
    if not reads_records(pages[path.stem]):
        pytest.skip("reads no records")
    cells = [cell.source for cell in code_cells(pages[path.stem])]
    program = tmp_path / "cells.py"
    program.write_text("\n".join(f"exec(compile({source!r}, '<cell>', 'exec'))" for source in cells))
    ours = {"ZSPAG_PROFILE": "smoke", "ZSPAG_ROOT": str(tmp_path), "ZSPAG_DATA": str(tmp_path / "data")}
    ours["PYTHONPATH"] = str(FOLDER.parent)
    run = subprocess.run([sys.executable, program], env=os.environ | ours, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert not (tmp_path / "results").exists()


def good_page():
    picture = new_output("display_data", data={"text/plain": "<figure 03_bars>"})
    text = "The reasoning stands in the text between the cells, and there is more of it than there is code. " * 4
    head = "**Question.** Which?\n**You will build** one figure.\n**You need** 02.\n**Time.** Soon."
    parameters = "profile = None  # the one of the environment\nforget = 3  # class\nseed = 0  # which original"
    solutions = "\n".join(["<details><summary>Solution</summary>\n\nYes.\n\n</details>"] * 3)
    end = f"## What to take with you\nThis.\n## Checks\nNone.\n## Exercises\n{solutions}"
    cells = [
        new_markdown_cell(f"# 03 Three\n\n{head}"),
        new_code_cell(parameters, metadata={"tags": ["parameters"]}, execution_count=1),
        new_code_cell('find_spec("zspag")', execution_count=2),
        new_markdown_cell(text),
        new_code_cell("page.plot('03_bars', bars, frame, alt='x')", execution_count=3, outputs=[picture]),
        new_markdown_cell(f"*Figure 03.1. Bars.*\n\n{end}"),
        new_code_cell("page.result('03_sum', {})", execution_count=4),
        new_code_cell("page.seal()", metadata={"tags": ["seal"]}, execution_count=5),
    ]
    page = new_notebook(cells=cells)
    page.cells[0].source = notebook_heads.headed(page, None, number="03")["cells"][0]["source"]
    page.cells[0].source = "".join(page.cells[0].source)
    return page


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


def edit(index, old, new, count=-1):
    def spoil(page):
        page.cells[index].source = page.cells[index].source.replace(old, new, count)

    return spoil


def insert_many(index, number):
    def spoil(page):
        for _ in range(number):
            insert(index, new_code_cell("1"))(page)

    return spoil


def show(**output):
    return change(4, outputs=[new_output(**output)])


SPOILT = {
    "no title": (change(0, source="# Three"), "the first cell is no markdown title '# 03 ...'"),
    "no time": (edit(0, "**Time.**", "Time:"), r"has no line '\*\*Time\.'"),
    "other time": (edit(0, "minutes", "hours"), "is out of date: make readme"),
    "no checks": (edit(5, "## Checks", ""), "it has no section '## Checks'"),
    "half folded": (change_tags(6, "hide-input"), "cell 7 must have both the tag hide-input and source_hidden"),
    "parameters folded": (
        change(
            1, metadata=nbformat.from_dict({"tags": ["hide-input", "parameters"], "jupyter": {"source_hidden": True}})
        ),
        "cell 2 must not be folded",
    ),
    "two solutions": (edit(5, "<details>", "<p>", 1), "it has 2 folded solutions, 3 is the least"),
    "no bootstrap": (change(2, source="import zspag"), "does not install the package"),
    "no seed": (edit(1, "seed", "shift"), "the parameters cell lacks seed"),
    "no comment": (edit(1, "  # class", ""), "'forget = 3' has no comment"),
    "six figures": (change(6, source="\n".join(f"page.plot('03_{k}')" for k in "abcde")), "it has 6 figures, 5 is"),
    "five in a row": (insert_many(4, 4), "it has 5 code cells in a row, 4 is the most"),
    "wide": (change(6, source="x = " + "1" * 85), "cell 7 has 89 columns of code, 88 is the most"),
    "no parameters": (change_tags(1), "has 0 cells tagged 'parameters'"),
    "two parameters": (change_tags(2, "parameters"), "has 2 cells tagged 'parameters'"),
    "derived value": (
        change(1, source="profile = None  # a\nforget = 3  # b\nseed = 2 * 8  # c"),
        r"must hold only name = literal lines",
    ),
    "other profile": (edit(1, "None", "'digits'"), "lacks profile = None"),
    "no seal": (change(7, source="print(page.seal)"), "must call page.seal"),
    "untagged seal": (change_tags(7), "alone tagged 'seal'"),
    "foreign name": (change(6, source="page.result('04_sum', {})"), "output '04_sum' is not called 03_"),
    "computed name": (change(6, source="page.result(f'03_{profile}', {})"), "output None is not called 03_"),
    "name twice": (change(6, source="page.result('03_bars', {})"), "output '03_bars' is made twice"),
    "long cell": (change(6, source="x = 1\n\n" * 15), "cell 7 has 15 lines of code, 14 is the most"),
    "not formatted": (change(6, source="x = 1  # fmt: skip"), "cell 7 keeps the formatter out"),
    "first record": (change(6, source="x = next(folder.glob('*.json'))"), "cell 7 takes the first of files"),
    "little text": (change(6, source="\n".join(["y = 0" + " + 1" * 14] * 6)), r"\d+ words of text to \d+ of code"),
    "no caption": (edit(5, "*Figure", "Figure"), "figure of cell 5 has no caption"),
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
    if fault not in ("no time", "other time", "no title"):  # or a changed text also changes how long it takes
        page.cells[0].source = "".join(notebook_heads.headed(page, None, number="03")["cells"][0]["source"])
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
