"""One notebook, executed with papermill in a kernel of the running interpreter, and judged by us.

Invariant: ``runs/<profile>/executed/NN_name.ipynb`` appears only after a success: no exception of any kind, no error in
any output, every code cell has run, and the seal that the notebook wrote in this very run names files that exist with
the contents it names. papermill alone calls ``sys.exit(0)`` a success and a cell behind a dead kernel "completed".
"""

import importlib.util
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zspag.report import files
from zspag.report.files import repository_root
from zspag.report.page import sha256

if TYPE_CHECKING:
    from nbformat import NotebookNode

KERNEL = "python3"
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_ADDED = ("injected-parameters", "papermill-error-cell-tag")  # cells of papermill, not of the notebook
_LAST_LINES = 8
_CLOCK_SLACK = 2.0  # seconds: file systems round modification times


class NotebookFailed(RuntimeError):  # noqa: N818  reads as a fact, and the driver prints it as one
    """A notebook did not succeed; the message says which, where, why, and where its executed copy lies."""


class KernelMissing(RuntimeError):  # noqa: N818
    """There is no kernel to run notebooks with."""


@contextmanager
def own_kernel(name: str) -> Generator[None, None, None]:
    """Make the kernel called "python3" this interpreter with this package, whatever the user's settings say.

    A kernel specification in a temporary folder goes before all others: the one in the user's home may belong to
    another environment. The kernel reads no start-up files of the user, and its connection file lies in the same
    folder, so that nothing outlives the run.

    Args:
        name: Name of the kernel; any other than "python3" must be installed.

    Raises:
        KernelMissing: If there is no such kernel; the message says how to get one.
    """
    if importlib.util.find_spec("ipykernel") is None:
        raise KernelMissing(f"{Path(sys.executable).name} has no ipykernel: pip install 'zspag[notebooks]'")
    with tempfile.TemporaryDirectory(prefix="zspag-kernel-", ignore_cleanup_errors=True) as folder:
        kernel = {
            "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            "display_name": "Python 3",
            "language": "python",
            "env": {
                "PYTHONPATH": _package_first(),
                "IPYTHONDIR": str(Path(folder) / "ipython"),
                "ZSPAG_ROOT": str(repository_root().resolve()),
            },
        }
        specification = Path(folder) / "kernels" / KERNEL / "kernel.json"
        specification.parent.mkdir(parents=True)
        specification.write_text(json.dumps(kernel), encoding="utf-8")
        private = {"JUPYTER_PATH": _before(folder, "JUPYTER_PATH"), "JUPYTER_RUNTIME_DIR": str(Path(folder) / "run")}
        with _environment(private):
            _require_kernel(name)
            yield


@contextmanager
def _environment(variables: Mapping[str, str]) -> Generator[None, None, None]:
    found = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in found.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _package_first() -> str:
    parent = Path(__file__).parents[3]
    if parent.name == "site-packages":  # importable as it is, and PYTHONPATH would put it before the standard library
        return os.environ.get("PYTHONPATH", "")
    return _before(str(parent), "PYTHONPATH")


def _before(first: str, variable: str) -> str:
    return os.pathsep.join(part for part in (first, os.environ.get(variable)) if part)


def _require_kernel(name: str) -> None:
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    try:
        KernelSpecManager().get_kernel_spec(name)
    except NoSuchKernel as error:
        raise KernelMissing(
            f"there is no Jupyter kernel called {name!r}: use {KERNEL!r}, which is always this interpreter, or install"
            f" one with python -m ipykernel install --user --name {name}"
        ) from error


def execute(
    source: Path, *, profile: str, parameters: Mapping[str, Any], cell_timeout: int, kernel_name: str
) -> dict[str, Any]:
    """Execute one notebook inside ``own_kernel`` and return its seal.

    Args:
        source: The notebook; its folder is the kernel's working directory, as in JupyterLab and nbval.
        profile: Name of the profile, passed as a parameter.
        parameters: Further parameters.
        cell_timeout: Seconds one cell may take; 0 allows any time.
        kernel_name: Name of the kernel.

    Returns:
        The seal, as ``zspag.report.page.Page.seal`` wrote it.

    Raises:
        NotebookFailed: If anything is missing from a success.
    """
    import nbformat  # late: the better part of a second that `zspag --help` does not need

    source, runs = source.resolve(), repository_root().resolve() / "runs" / profile
    seal = runs / "seals" / f"{source.stem}.json"
    target = runs / "executed" / source.name
    failed, working = target.with_suffix(".failed.ipynb"), target.with_name(f".{source.stem}.running.ipynb")
    target.parent.mkdir(parents=True, exist_ok=True)
    seal.unlink(missing_ok=True)  # a seal that is there afterwards is of this run
    started = time.time()
    try:
        error = _papermill(source, working, {"profile": profile, **parameters}, cell_timeout, kernel_name)
        notebook = nbformat.read(working if working.exists() else source, as_version=4)
        trouble = _trouble_in_cells(notebook, error, cell_timeout) or _trouble_in_seal(seal, started)
        if trouble:
            with files.replacing(failed) as temporary:
                nbformat.write(notebook, temporary)
            raise NotebookFailed(f"{source.stem} failed {trouble}\nexecuted copy: {files.shown(failed)}") from error
        content: dict[str, Any] = files.read_json(seal)
        notebook.metadata["zspag"] = {"provenance": content["provenance"]}
        with files.replacing(target) as temporary:
            nbformat.write(notebook, temporary)
        failed.unlink(missing_ok=True)
    finally:
        working.unlink(missing_ok=True)
    return content


def _papermill(
    source: Path, working: Path, parameters: Mapping[str, Any], cell_timeout: int, kernel_name: str
) -> Exception | None:
    import papermill  # late: redrawing recorded figures needs no Jupyter

    try:
        papermill.execute_notebook(
            _literal(source),
            _literal(working),
            dict(parameters),
            kernel_name=kernel_name,
            language="python",  # a notebook written by a program may not say so
            cwd=str(source.parent),
            progress_bar=False,
            # Not interrupt_on_timeout: it waits without end for a cell that ignores the interrupt.
            execution_timeout=cell_timeout or None,
            shutdown_kernel="immediate",  # takes the worker processes along and prints no traceback of the kernel's own
            iopub_timeout=30,
            coalesce_streams=True,
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
        )
    except Exception as error:  # noqa: BLE001  a failing cell, a timeout, a dead kernel and a full disk share no base
        return error
    return None


def _literal(path: Path) -> str:
    """Protect braces: papermill runs every path through ``str.format``."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _trouble_in_cells(notebook: "NotebookNode", error: Exception | None, cell_timeout: int) -> str | None:
    """Return what went wrong while cells ran, from "in cell ..." on, or None."""
    own = [cell for cell in notebook.cells if not set(_ADDED) & set(cell.metadata.get("tags", []))]
    code = [
        (number, cell) for number, cell in enumerate(own, start=1) if cell.cell_type == "code" and cell.source.strip()
    ]
    for number, cell in code:
        for output in cell.outputs:
            if output.output_type == "error" and not _is_timeout(error):
                return _at(number, len(own), cell) + _error_lines(output)
    # After a dead kernel papermill calls every cell completed; a start time is written only as a cell starts.
    begun = [(number, cell) for number, cell in code if cell.metadata.get("papermill", {}).get("start_time")]
    if error is not None:
        place = _at(begun[-1][0], len(own), begun[-1][1]) if begun else "before its first cell:\n"
        return place + _reason(error, cell_timeout)
    for number, cell in code:
        if cell.execution_count is None:
            return _at(number, len(own), cell) + "  the cell never ran, though papermill reports no error"
    return None


def _is_timeout(error: Exception | None) -> bool:
    return isinstance(error, TimeoutError)  # a cell stopped by the timeout may also show a KeyboardInterrupt


def _at(number: int, count: int, cell: "NotebookNode") -> str:
    return f"in cell {number} of {count}: {cell.source.strip().splitlines()[0]}\n"


def _error_lines(output: "NotebookNode") -> str:
    trace = _ANSI.sub("", "\n".join(output.get("traceback", []))).splitlines()
    last = [line for line in trace if line.strip()][-_LAST_LINES:]
    message = f"{output.ename}: {output.evalue}".rstrip(": ")
    if not last or message.splitlines()[0] not in "\n".join(last):
        last.append(message)
    return "\n".join(f"  {line}" for line in last)


def _reason(error: Exception, cell_timeout: int) -> str:
    if _is_timeout(error):
        return f"  the cell was still running after {cell_timeout} s; allow more with --cell-timeout (0: any time)"
    if type(error).__name__ == "DeadKernelError":
        return "  the kernel died: it was killed (often for want of memory) or crashed in native code"
    lines = _ANSI.sub("", f"{type(error).__name__}: {error}").splitlines()
    return "\n".join(f"  {line}" for line in lines[-_LAST_LINES:])


def _trouble_in_seal(seal: Path, started: float) -> str | None:
    """Return what is wrong with the declared outputs, or None."""
    if not seal.is_file():
        return (
            f"after its last cell:\n  it wrote no seal ({files.shown(seal)}); its last code cell must call page.seal()"
        )
    root = repository_root().resolve()
    for name, digest in files.read_json(seal)["outputs"].items():
        path = root / name
        if not path.is_file():
            return f"after its last cell:\n  it declared {name}, which is not there"
        if path.stat().st_mtime < started - _CLOCK_SLACK:
            return f"after its last cell:\n  it declared {name}, which is older than this run"
        if sha256(path) != digest:
            return f"after its last cell:\n  it declared {name}, which has changed since its seal"
    return None
