"""The driver on tiny notebooks: it says yes to one that is whole, and no to every way of being less than that."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from zspag.report import files, provenance
from zspag.report import reproduce as driver
from zspag.report.reproduce import KernelMissing, NotebookFailed, add_arguments, changes, reproduce, run
from zspag.report.reproduce.notebooks import (
    MACHINE_PATH,
    MAX_BYTES,
    check_parameters,
    find_notebooks,
    literal_parameters,
    parse_parameters,
    strip,
    write_back,
)
from zspag.report.reproduce.progress import Clock
from zspag.report.reproduce.report import TIMES, compare, record

PAGE = "from zspag.report.page import Page\npage = Page('{name}', profile)"
RESULT = "page.result('{number}_sum', {{'parts': [1, 2, 4]}}, numbers={{'sum': ({value}, 0.5)}})"
SEAL = "page.seal()"


@pytest.fixture
def root(tmp_path, monkeypatch):
    folder = tmp_path / "a {strange} place"  # papermill formats every path it is given
    folder.mkdir()
    monkeypatch.setenv("ZSPAG_ROOT", str(folder))
    monkeypatch.delenv("ZSPAG_PROFILE", raising=False)
    return folder


def write(root, name, *cells, parameters=("profile = None\nfactor = 3",), tags=None):
    """Write a notebook whose code cells are ``cells``; its first cells are a title and the parameters."""
    head = [new_markdown_cell(f"# {name}")]
    head += [new_code_cell(source, metadata={"tags": ["parameters"]}) for source in parameters]
    path = root / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=head + [new_code_cell(cell) for cell in cells]), path)
    return path


def write_good(root, name, *, value=7):
    return write(root, name, PAGE.format(name=name), RESULT.format(number=name[:2], value=value), SEAL)


def go(root, **options):
    return reproduce(**{"profile": "smoke", "notebooks": root / "notebooks"} | options)


def executed(root):
    return sorted(path.name for path in (root / "runs" / "smoke" / "executed").iterdir())


def test_good_notebooks_run_in_order_and_are_compared_with_what_was_recorded(root):
    write_good(root, "01_later", value="2 * factor")
    write_good(root, "00_first")
    files.write_json(root / "runs/smoke/executed/00_first.failed.ipynb", {})  # of an earlier run: a success removes it
    (root / "runs/smoke/checkpoints").mkdir(parents=True)  # an empty folder is no cache
    lines = []
    report = go(root, record=True, say=lines.append)

    assert [line.split()[1] for line in lines if line.startswith("[")] == ["00_first", "01_later"]
    assert executed(root) == ["00_first.ipynb", "01_later.ipynb"]
    assert (report.numbers, report.unrecorded) == (0, ("00_sum", "01_sum"))
    assert "no recorded results of profile smoke" in str(report)
    copy = nbformat.read(root / "runs/smoke/executed/00_first.ipynb", as_version=4)
    assert copy.metadata.zspag.provenance.config.name == "smoke"
    times = files.read_json(root / "results/smoke" / TIMES)["notebooks"]
    assert set(times) == {"00_first", "01_later"}
    assert all(cost["seconds"] > 0 and cost["peak_memory_mib"]["self"] > 10 and cost["cold"] for cost in times.values())

    lines.clear()
    (root / "runs/smoke/checkpoints/original.safetensors").write_bytes(b"")
    write_good(root, "00_first", value=8)  # recorded 7, tolerance 0.5
    report = go(root, record=True, say=lines.append)
    assert "left in all" in lines[0]  # the first run has timed them
    assert (report.numbers, report.agreed, report.values, report.identical) == (2, 1, 6, 6)
    assert "00_sum: sum: recorded 7, now 8, tolerance 0.5" in str(report)
    assert files.read_json(root / "runs/smoke/report.json")["disagreements"][0]["now"] == 8
    assert not any(cost["cold"] for cost in files.read_json(root / "results/smoke" / TIMES)["notebooks"].values())


def test_kernel_is_this_interpreter_whatever_the_user_has_installed_and_gets_the_parameters(root, monkeypatch):
    kernel = {"argv": ["/no/such/python", "{connection_file}"], "display_name": "x", "language": "python"}
    files.write_json(root / "elsewhere" / "kernels" / "python3" / "kernel.json", kernel)
    monkeypatch.setenv("JUPYTER_PATH", str(root / "elsewhere"))
    package = str(Path(driver.__file__).parents[2] / "__init__.py")
    write(
        root,
        "00_where",
        f"import os, sys, zspag\nassert (sys.executable, zspag.__file__) == {(sys.executable, package)!r}",
        f"assert (os.getcwd(), factor) == {(str(root / 'notebooks'), 4)!r}",
        PAGE.format(name="00_where"),
        SEAL,
    )
    go(root, parameters={"factor": 4})
    assert executed(root) == ["00_where.ipynb"]
    assert os.environ["JUPYTER_PATH"] == str(root / "elsewhere")


FAILURES = {  # cells, and what is said
    "failing cell": (["x = 1", "y = 2\n1 / 0", SEAL], r"in cell 5 of 6: y = 2\n(.*\n)*  ZeroDivisionError: division"),
    "sys.exit(0)": (["import sys\nsys.exit(0)", SEAL], r"in cell 4 of 5: import sys\n(.*\n)*  .*SystemExit: 0"),
    "sys.exit(0) at the end": ([SEAL, "import sys; sys.exit(0)"], r"in cell 5 of 5(.*\n)*  .*SystemExit: 0"),
    "killed kernel": (["import os\nos.kill(os.getpid(), 9)", SEAL], r"in cell 4 of 5: import os\n  the kernel died"),
    "timeout": (
        ["import time", "time.sleep(60)", SEAL],
        r"cell 5 of 6: time.sleep\(60\)\n  .* running after 2 s.*--cell",
    ),
    "no seal": (["x = 1"], r"it wrote no seal \(.*/runs/smoke/seals/00_bad.json\).*page.seal\(\)"),
    "output missing": (
        ["page.result('00_gone', {})", SEAL, "(page._root / 'runs/smoke/results/00_gone.json').unlink()"],
        "declared runs/smoke/results/00_gone.json, which is not there",
    ),
    "output changed": (
        ["page.result('00_odd', {})", SEAL, "(page._root / 'runs/smoke/results/00_odd.json').write_text('{}')"],
        "declared runs/smoke/results/00_odd.json, which has changed since its seal",
    ),
    "stale output": (
        [
            "page.result('00_old', {})",
            SEAL,
            "import os; os.utime(page._root / 'runs/smoke/results/00_old.json', (1, 1))",
        ],
        "declared runs/smoke/results/00_old.json, which is older than this run",
    ),
}
OFTEN = ("failing cell", "killed kernel", "no seal")


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in OFTEN else pytest.mark.slow) for case in FAILURES]
)
def test_whatever_is_less_than_success_is_a_failure(root, case):
    cells, message = FAILURES[case]
    write(root, "00_bad", PAGE.format(name="00_bad"), *cells)
    write_good(root, "01_after")
    seal = root / "runs/smoke/seals/00_bad.json"
    files.write_json(seal, {"outputs": {}, "seconds": 1.0, "provenance": {}})  # of an earlier run: must not count

    with pytest.raises(NotebookFailed, match=rf"^00_bad failed (.*\n)*.*{message}") as caught:
        go(root, cell_timeout=2 if case == "timeout" else 0)

    assert str(caught.value).endswith(f"executed copy: {root}/runs/smoke/executed/00_bad.failed.ipynb")
    assert executed(root) == ["00_bad.failed.ipynb"]  # the notebook after it was not run, and no file is half-written
    nbformat.validate(nbformat.read(root / "runs/smoke/executed/00_bad.failed.ipynb", as_version=4))


def write_pair(root, *, patience=120):
    """Write 00_a and 01_b, which wait for each other."""
    meet = "import pathlib, time\npathlib.Path('{0}').touch()\nend = time.monotonic() + {2}"
    meet += "\nwhile not pathlib.Path('{1}').exists() and time.monotonic() < end:\n    time.sleep(0.05)"
    meet += "\nassert pathlib.Path('{1}').exists()"
    for here, there in (("00_a", "01_b"), ("01_b", "00_a")):
        write(root, here, meet.format(here, there, patience), PAGE.format(name=here), SEAL)


def test_as_many_run_at_once_as_the_profile_has_workers(root):
    write_pair(root)
    lines = []
    go(root, profile="digits", say=lines.append)
    assert [line[:10] for line in lines[:2]] == ["[1/2] 00_a", "[2/2] 01_b"]
    assert sorted(path.stem for path in (root / "runs/digits/executed").iterdir()) == ["00_a", "01_b"]


@pytest.mark.slow
def test_where_times_are_recorded_one_runs_at_a_time(root):
    write_pair(root, patience=1)
    lines = []
    with pytest.raises(NotebookFailed, match="00_a failed"):
        go(root, profile="digits", record=True, say=lines.append)
    assert [line[:10] for line in lines] == ["[1/2] 00_a"]


@pytest.mark.slow
def test_after_a_failure_no_other_starts_and_those_under_way_end(root):
    write(root, "00_a", "1 / 0", SEAL)
    write(root, "01_b", "import time\ntime.sleep(15)", PAGE.format(name="01_b"), SEAL)
    write_good(root, "02_c")
    with pytest.raises(NotebookFailed, match="00_a failed"):
        go(root, profile="digits")
    names = sorted(path.name for path in (root / "runs/digits/executed").iterdir())
    assert names == ["00_a.failed.ipynb", "01_b.ipynb"]


def test_a_driver_that_is_killed_is_a_failure(root):
    write(root, "00_a", "import os\nos.kill(os.getppid(), 9)", PAGE.format(name="00_a"), SEAL)
    with pytest.raises(NotebookFailed, match="00_a failed: the process that drove it ended with exit code -9"):
        go(root)


@pytest.fixture
def ran(root):
    """Run two good notebooks and return which of them started; ``ran.reports`` holds what was reported each time."""
    for name in ("00_first", "01_later"):
        write_good(root, name)

    def run_again(**options):
        lines = []
        run_again.reports.append(go(root, say=lines.append, **options))
        return [line.split()[1] for line in lines if line.startswith("[")]

    run_again.reports = []
    return run_again


def test_a_notebook_runs_again_only_if_it_or_what_it_made_has_changed(root, ran):
    assert ran() == ["00_first", "01_later"]
    assert ran() == []
    assert ran.reports[0] == ran.reports[1]  # kept results are compared like fresh ones
    write_good(root, "00_first", value=8)
    assert ran() == ["00_first"]
    (root / "runs/smoke/results/01_sum.json").write_text("{}")
    assert ran() == ["01_later"]


@pytest.mark.slow
def test_a_notebook_runs_again_if_anything_that_it_reads_has_changed(root, ran, monkeypatch):
    one = {"only": ["01"], "parameters": {"factor": 4}}
    assert ran(**one) == ["01_later"]
    monkeypatch.setenv("ZSPAG_DATA", str(root / "data"))
    assert ran(**one) == ["01_later"]
    (root / "data").mkdir()
    (root / "data" / "more.bin").write_bytes(b"1")
    assert ran(**one) == ["01_later"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert ran(**one) == ["01_later"]
    monkeypatch.setattr(provenance, "installed", lambda package: "another")
    assert ran(**one) == ["01_later"]
    assert ran(**one) == []
    assert ran(**one, again=True) == ["01_later"]
    assert ran(only=["01"], record=True) == ["01_later"]
    write(root, "01_later", "1 / 0", SEAL)
    for _ in range(2):  # a failure is not kept
        with pytest.raises(NotebookFailed):
            ran(**one)


def test_the_key_of_a_notebook_holds_every_line_of_the_package(root, monkeypatch):
    notebook = nbformat.read(write_good(root, "00_first"), as_version=4)
    told = {"profile": "smoke", "parameters": {}, "kernel_name": "python3"}
    before = changes.inputs(notebook, changes.surroundings(), **told)
    assert before == changes.inputs(notebook, changes.surroundings(), **told)
    package = root / "zspag"
    package.mkdir()
    (package / "influence.py").write_text("a = 1")
    monkeypatch.setattr(changes, "_PACKAGE", package)
    one = changes.inputs(notebook, changes.surroundings(), **told)
    (package / "influence.py").write_text("a = 2")
    assert len({before, one, changes.inputs(notebook, changes.surroundings(), **told)}) == 3
    before = changes.surroundings()
    (root / "docs").mkdir()
    (root / "docs" / "method.svg").write_text("<svg/>")  # notebook 00 shows it
    assert changes.surroundings() != before


def test_a_missing_kernel_and_unknown_parameters_are_refused_before_anything_starts(root, monkeypatch):
    write_good(root, "00_good")
    with pytest.raises(KernelMissing, match="no Jupyter kernel called 'fortran'.*use 'python3'"):
        go(root, kernel_name="fortran")
    assert not (root / "runs").exists()
    monkeypatch.setattr(driver, "own_kernel", lambda name: pytest.fail("a kernel was about to start"))
    for options, error, message in (
        ({"parameters": {"facter": 4}}, ValueError, "00_good.ipynb has no parameter facter; it has profile, factor"),
        ({"parameters": {"factor": "many"}}, TypeError, "factor of 00_good.ipynb is 3, so it cannot become 'many'"),
        ({"profile": "huge"}, ValueError, "there is no profile 'huge'; choose one of .*smoke"),
        ({"parameters": {"factor": 4}, "record": True}, ValueError, "factor changed are not the profile's"),
    ):
        with pytest.raises(error, match=message):
            go(root, **options)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (("profile = None", "factor = 1"), "00_odd.ipynb has 2 cells tagged 'parameters'; it must have exactly one"),
        ((), "has 0 cells tagged"),
        (("profile = None\nwidth = 2 * 8",), r"must hold only name = literal lines"),
        (("profile = None\nprint(profile)",), r"line 2: print\(profile\)"),
    ],
)
def test_a_parameters_cell_is_one_and_holds_literals(root, cells, message):
    with pytest.raises(ValueError, match=message):
        literal_parameters(nbformat.read(write(root, "00_odd", parameters=cells), as_version=4), "00_odd.ipynb")


def test_parameters_may_take_several_lines_and_keep_their_kind(root):
    path = write(root, "00_odd", parameters=("profile = None  # which\nseeds = [\n    0,\n    1,\n]\nrate = -0.1",))
    declared = literal_parameters(nbformat.read(path, as_version=4), path.name)
    assert declared == {"profile": None, "seeds": [0, 1], "rate": -0.1}
    check_parameters([path], {"rate": 1, "seeds": (2,), "profile": "smoke"})
    for wrong in ({"rate": True}, {"rate": "1"}, {"seeds": 2}):
        with pytest.raises(TypeError, match="of 00_odd.ipynb is .*, so it cannot become"):
            check_parameters([path], wrong)


@pytest.mark.parametrize(
    ("pair", "message"), [("epochs", "name=value, got 'epochs'"), ("profile=digits", "chosen with --profile")]
)
def test_parameters_of_the_command_line_are_checked(pair, message):
    with pytest.raises(ValueError, match=message):
        parse_parameters([pair])


def test_notebooks_are_found_by_number(root):
    for name in ("02_two", "00_nought", "notes", "01_one"):
        write(root, name)
    folder = root / "notebooks"
    assert [path.stem for path in find_notebooks(folder, None)] == ["00_nought", "01_one", "02_two"]
    assert [path.stem for path in find_notebooks(folder, ["02", "00"])] == ["00_nought", "02_two"]
    with pytest.raises(ValueError, match="there is no notebook 07; there are 00, 01, 02"):
        find_notebooks(folder, ["07"])
    write(root, "01_another")
    with pytest.raises(ValueError, match="share the number 01"):
        find_notebooks(folder, None)
    with pytest.raises(ValueError, match="no notebook called like 00_name.ipynb"):
        find_notebooks(root, None)


def result(numbers, data=(), **provenance):
    return {"numbers": numbers, "data": {"y": list(data)}, "provenance": {"threads": 1, **provenance}, "draw": None}


def test_report_counts_and_names_every_disagreement():
    recorded = {
        "00_a": result({"inside": [1.0, 0.1], "outside": [1.0, 0.1], "seconds": [3.0, None]}, [1, 2, 3]),
        "00_b": result({"gone": [2.0, 9.0]}, [5], versions={"torch": "2.14.1"}),
        "00_c": result({"lost": [4.0, 9.0]}, [5, 6]),
    }
    fresh = {
        "00_a": result(
            {"inside": [1.1, 0.1], "outside": [1.1001, 5.0], "seconds": [9.0, None]}, [1, 2, 4, 4], threads=4
        ),
        "00_b": result({}, [5], versions={"torch": "2.13.0"}),
        "00_d": result({}),
    }
    report = compare(recorded, fresh, profile="digits")
    assert (report.numbers, report.agreed, report.values, report.identical) == (4, 1, 6, 3)
    apart = [(item.name, item.now) for item in report.disagreements]
    assert apart == [("outside", 1.1001), ("gone", None), ("lost", None)]
    assert report.unrecorded == ("00_d",)
    assert report.environment == ("threads: recorded 1, now 4", "torch: recorded 2.14.1, now 2.13.0")
    text = str(report)
    assert text.startswith(
        "Of 4 recorded numbers 1 agreed, 3 differed, and 0 agreed but could hardly have failed (a tolerance as large as"
        " the number); 3 of 6 plotted values"
    )
    assert "00_c: lost: recorded 4, not computed, tolerance 9" in text
    assert "Not recorded yet: 00_d." in text

    same = compare(fresh, fresh, profile="digits")
    assert (same.agreed, same.loose, same.identical, same.disagreements, same.environment) == (1, 1, 5, (), ())
    assert str(same).count("\n") == 0  # nothing to say


@pytest.mark.parametrize(
    ("value", "tolerance", "now", "outcome"),
    [
        (0.01, "x3", 0.03, "agreed"),
        (0.01, "x3", 0.0033334, "agreed"),
        (0.01, "x3", 0.0301, "differed"),
        (0.01, "x3", 0.0033, "differed"),
        (0.01, "x3", 0.0, "differed"),
        (0.01, "x3", -0.01, "differed"),
        (0.0, "x3", 1e-9, "differed"),
        (0.0, "x3", 0.0, "agreed"),
        (-0.01, "x3", -0.02, "agreed"),
        (0.0002, 0.005, 0.0051, "loose"),  # 25 times as much
        (0.0002, 0.005, 0.0053, "differed"),
        (-0.0004, 0.005, 0.001, "loose"),
        (0.0, 0.005, 0.004, "agreed"),  # nothing is a number that more than a little contradicts
        (0.5, 0.1, 0.55, "agreed"),
    ],
)
def test_a_number_agrees_differs_or_could_hardly_have_failed(value, tolerance, now, outcome):
    report = compare({"00_a": result({"x": [value, tolerance]})}, {"00_a": result({"x": [now, 0.0]})}, profile="digits")
    counts = {"agreed": report.agreed, "loose": report.loose, "differed": len(report.disagreements)}
    assert counts == {name: int(name == outcome) for name in counts}


def test_recording_replaces_one_notebook_and_leaves_the_others(root):
    for name in ("00_stale", "00_kept", "01_other"):
        files.write_json(root / "results/smoke" / f"{name}.json", result({"n": [1.0, 0.0]}))
    files.write_json(root / "results/smoke" / TIMES, {"notebooks": {"00_old_name": {}, "01_x": {"seconds": 5.0}}})
    files.write_json(root / "results/smoke/cifar.json", {"from": "another command"})
    files.write_json(root / "runs/smoke/results/00_kept.json", result({"n": [2.0, 0.0]}))
    outputs = {"runs/smoke/results/00_kept.json": "", "figures/smoke/00_kept.png": ""}
    costs = dict.fromkeys(("seconds", "peak_memory_mib", "peak_device_memory_mib", "device", "threads"))
    seal = {"outputs": outputs, **costs, "provenance": {"versions": {}, "started": "now"}}
    record({"00_new_name": seal}, profile="smoke", root=root, cold=False)
    names = sorted(path.stem for path in (root / "results/smoke").iterdir())
    assert names == ["00_kept", "01_other", "cifar", "time_and_memory"]
    assert files.read_json(root / "results/smoke/00_kept.json")["numbers"] == {"n": [2.0, 0.0]}
    assert list(files.read_json(root / "results/smoke" / TIMES)["notebooks"]) == ["00_new_name", "01_x"]


def executed_page(text="fine", *, stderr="", size=0):
    shown = nbformat.v4.new_output("display_data", data={"image/png": "A" * size, "text/plain": text})
    seen = nbformat.v4.new_output("execute_result", data={"text/plain": "7"}, execution_count=12)
    warning = nbformat.v4.new_output("stream", name="stderr", text=stderr or "a warning for the reader\n")
    cells = [
        new_markdown_cell("# 00", metadata={"tags": [], "papermill": {"duration": 1}}),
        new_code_cell("profile = None", metadata={"tags": ["parameters"]}, execution_count=10),
        new_code_cell("profile = 'smoke'", metadata={"tags": ["injected-parameters"]}, execution_count=11),
        new_code_cell("page", metadata={"papermill": {}}, execution_count=12, outputs=[shown, warning, seen]),
    ]
    return new_notebook(cells=cells, metadata={"papermill": {"input_path": "x"}, "zspag": {"provenance": {"seed": 3}}})


def test_pages_are_committed_without_what_differs_from_run_to_run():
    page = strip(executed_page(stderr="/home/someone/.venv/lib/thing.py:3: UserWarning: beware\n"))
    assert [cell.source for cell in page.cells] == ["# 00", "profile = None", "page"]
    assert [cell.execution_count for cell in page.cells[1:]] == [1, 2]
    assert [output.output_type for output in page.cells[2].outputs] == ["display_data", "execute_result"]
    assert page.cells[2].outputs[1].execution_count == 2
    assert "papermill" not in json.dumps(page)
    assert page.metadata.zspag.provenance.seed == 3
    assert strip(executed_page()).cells[2].outputs[1].text == "a warning for the reader\n"
    nbformat.validate(page)


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (executed_page("saved to /home/someone/x.png"), "01_odd.ipynb, cell 3: .*names /home/someone/x.png"),
        (executed_page(size=MAX_BYTES), "01_odd.ipynb would have 2.0 MB, and 2.0 MB is the most"),
    ],
)
def test_an_unfit_page_stops_all_from_being_written_back(root, page, message):
    copies = [root / "00_good.ipynb", root / "01_odd.ipynb"]
    nbformat.write(executed_page(), copies[0])
    nbformat.write(page, copies[1])
    (root / "notebooks").mkdir()
    with pytest.raises(ValueError, match=message):
        write_back(copies, root / "notebooks")
    assert list((root / "notebooks").iterdir()) == []
    assert write_back(copies[:1], root / "notebooks") == [root / "notebooks/00_good.ipynb"]


@pytest.mark.parametrize(
    "text", ["retain/forget/both", "<b>a</b> <td>1/2</td>", "https://a.org/b/c", "1 / 2 / 3", "x -> y"]
)
def test_what_is_no_machine_path_is_left_alone(text):
    assert MACHINE_PATH.search(text) is None


def test_the_clock_adds_up_what_is_left_and_learns():
    lines, seconds = [], [0.0]
    clock = Clock({"00_a": None, "01_b": 5.0, "02_c": 70.0, "03_d": 30.0}, say=lines.append, now=lambda: seconds[0])
    for name in ("00_a", "01_b", "02_c"):
        clock.starts(name)
        seconds[0] += 10.0
        clock.ends(name)
    assert lines == [
        "[1/4] 00_a (not timed before)",
        "[2/4] 01_b (about 1 min 45 s left in all)",
        "[3/4] 02_c (about 3 min 20 s left in all)",  # 01_b took twice as long as before
    ]
    assert clock.left() == 30.0 * 20.0 / 75.0


def test_of_notebooks_that_run_at_once_the_longest_is_left_at_the_end():
    seconds = [0.0]
    clock = Clock({"00_a": 50.0, "01_b": 10.0, "02_c": 20.0}, at_once=2, say=lambda line: None, now=lambda: seconds[0])
    assert clock.left() == 50.0
    clock.starts("00_a")
    clock.starts("01_b")
    seconds[0] = 10.0
    assert clock.left() == 40.0  # 01_b overdue, 02_c after it, 00_a for 40 s more
    clock.ends("01_b")
    clock.starts("02_c")
    seconds[0] = 30.0
    clock.ends("02_c")
    assert clock.left() == 20.0


def command(root, *words):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    lines = []
    code = run(parser.parse_args(["--profile", "smoke", *words]), say=lines.append)
    return code, "\n".join(lines)


def test_command_line_exit_codes(root):
    write_good(root, "00_good")
    assert command(root, "--only", "05") == (2, "zspag reproduce: there is no notebook 05; there are 00")
    assert command(root, "--recorded", "--record")[0] == 2
    code, said = command(root, "--record", "--write-back")
    assert code == 0
    assert "wrote 1 executed notebooks back" in said
    page = nbformat.read(root / "notebooks/00_good.ipynb", as_version=4)
    assert [cell.get("execution_count") for cell in page.cells] == [None, 1, 2, 3, 4]
    recorded = root / "results/smoke/00_sum.json"
    files.write_json(recorded, files.read_json(recorded) | {"numbers": {"sum": [700.0, 0.5]}})
    code, said = command(root)
    assert code == 3
    assert "Of 1 recorded numbers 0 agreed, 1 differed" in said
    write(root, "00_good", "1 / 0")
    code, said = command(root)
    assert code == 1
    assert "00_good failed in cell 3 of 3: 1 / 0" in said


def test_recorded_figures_are_redrawn_without_torch_or_a_kernel(root):
    code, said = command(root, "--recorded")
    assert (code, f"no figure is recorded in {root}/results/smoke" in said) == (2, True)
    made = result({}, config={}, commit=None)
    drawn = {"draw": "bars", "profile": "smoke", "data": {"panels": [{"groups": ["a"], "series": {"b": [1.0]}}]}}
    files.write_json(root / "results/smoke/00_a.json", made | drawn)
    files.write_json(root / "results/smoke/00_b.json", made)
    program = (
        "import sys; from zspag.__main__ import main; code = main(['reproduce', '--profile', 'smoke', '--recorded'])\n"
        "assert not {'torch', 'papermill'} & set(sys.modules), 'heavy imports'\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (root / "figures/smoke").iterdir()] == ["00_a.png"]
    assert provenance.read_record(root / "figures/smoke/00_a.png") == made["provenance"]


SLOW_SIGNALS = [pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGINT, signal.SIGKILL)]


@pytest.mark.parametrize("number", [signal.SIGTERM, *SLOW_SIGNALS])
def test_an_interrupt_leaves_no_kernel_no_worker_and_no_half_file(root, number):
    busy = (
        "import os, subprocess, time, pathlib\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        "pathlib.Path('{0}.tmp').write_text(f'{{os.getpid()}} {{child.pid}}'); os.rename('{0}.tmp', '{0}.pids')\n"
        "time.sleep(600)"
    )
    for name in ("00_busy", "01_busy"):
        write(root, name, PAGE.format(name=name), busy.format(name), SEAL)
    script = (
        "import signal, sys\nfrom zspag.__main__ import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs start without one
        "sys.exit(main(['reproduce', '--profile', 'digits']))"
    )
    command = [sys.executable, "-c", script]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    pids = [root / "notebooks" / f"{name}.pids" for name in ("00_busy", "01_busy")]
    try:
        wait_for(lambda: all(path.exists() for path in pids))
        process.send_signal(number)
        said, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130, said
        assert said.splitlines()[2:] == [
            "Interrupted: nothing half-written was left behind, and the same command goes on where this one stopped."
        ]
    wait_for(lambda: not any(alive(int(pid)) for path in pids for pid in path.read_text().split()))
    wait_for(lambda: list((root / "runs/digits/executed").iterdir()) == [])


def wait_for(condition, seconds=120.0):  # far more than it takes, for a machine that is busy otherwise
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # a zombie has ended; whoever adopted it has not asked yet
