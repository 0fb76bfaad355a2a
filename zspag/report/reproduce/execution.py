"""One notebook, executed with papermill in a kernel of the running interpreter, and judged by us.

Invariant: ``runs/<profile>/executed/NN_name.ipynb`` appears only after a success: no exception of any kind, no error in
any output, every code cell has run, and the seal that the notebook wrote in this very run names files that exist with
the contents it names. papermill alone calls ``sys.exit(0)`` a success and a cell behind a dead kernel "completed".
"""

import importlib.util
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
from zspag.report.page import sha256
from zspag.report.reproduce.changes import inputs

if TYPE_CHECKING:
    from nbformat import NotebookNode

KERNEL = "python3"
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_ADDED = {"injected-parameters", "papermill-error-cell-tag"}  # cells of papermill, not of the notebook
_LAST_LINES = 8
_CLOCK_SLACK = 2.0  # seconds: file systems round modification times


class NotebookFailed(RuntimeError):  # noqa: N818  reads as a fact, and the driver prints it as one
    """A notebook did not succeed; the message says which, where, why, and where its executed copy lies."""


class KernelMissing(RuntimeError):  # noqa: N818
    """There is no kernel to run notebooks with."""


@contextmanager
def own_kernel(name: str) -> Generator[None, None, None]:
    """Make the kernel called "python3" this interpreter with this package, whatever the user's settings say.

    A kernel specification in a temporary folder goes before all others. The kernel reads no start-up files of the user,
    and its connection file lies in the same folder, so that nothing outlives the run. Any other kernel must be
    installed.

    Raises:
        KernelMissing: If there is no such kernel; the message says how to get one.
    """
    if importlib.util.find_spec("ipykernel") is None:
        raise KernelMissing(f"{Path(sys.executable).name} has no ipykernel: pip install 'zspag[notebooks]'")
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    package = Path(__file__).parents[3]
    # Installed packages are importable as they are; PYTHONPATH would put them before the standard library.
    first = [] if package.name == "site-packages" else [str(package)]
    with tempfile.TemporaryDirectory(prefix="zspag-kernel-", ignore_cleanup_errors=True) as folder:
        kernel = {
            "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            "display_name": "Python 3",
            "language": "python",
            "env": {
                "PYTHONPATH": _joined(*first, os.environ.get("PYTHONPATH")),
                "IPYTHONDIR": str(Path(folder) / "ipython"),
                "ZSPAG_ROOT": str(files.repository_root().resolve()),
            },
        }
        files.write_json(Path(folder) / "kernels" / KERNEL / "kernel.json", kernel)
        path, runtime = _joined(folder, os.environ.get("JUPYTER_PATH")), str(Path(folder) / "run")
        places = {"JUPYTER_PATH": path, "JUPYTER_RUNTIME_DIR": runtime}
        before = {variable: os.environ.get(variable) for variable in places}
        os.environ.update(places)
        try:
            KernelSpecManager().get_kernel_spec(name)
            yield
        except NoSuchKernel as error:
            raise KernelMissing(
                f"there is no Jupyter kernel called {name!r}: use {KERNEL!r}, which is always this interpreter, or"
                f" install one with python -m ipykernel install --user --name {name}"
            ) from error
        finally:
            for variable, value in before.items():
                del os.environ[variable]
                if value is not None:
                    os.environ[variable] = value


def _joined(*paths: str | None) -> str:
    return os.pathsep.join(path for path in paths if path)


def execute(
    source: Path, *, profile: str, parameters: Mapping[str, Any], cell_timeout: int, kernel_name: str, around: str
) -> dict[str, Any]:
    """Execute one notebook inside ``own_kernel`` and return its seal, as ``zspag.report.page.Page.seal`` wrote it.

    Args:
        source: The notebook; its folder is the kernel's working directory, as in JupyterLab and nbval.
        profile: Name of the profile, passed as a parameter.
        parameters: Further parameters.
        cell_timeout: Seconds one cell may take; 0 allows any time.
        kernel_name: Name of the kernel.
        around: What ``changes.surroundings`` returned before: what changes meanwhile counts as changed.

    Raises:
        NotebookFailed: If anything is missing from a success.
    """
    import nbformat  # late, both: redrawing recorded figures and `zspag --help` need no Jupyter
    import papermill

    source, runs = source.resolve(), files.repository_root().resolve() / "runs" / profile
    seal = runs / "seals" / f"{source.stem}.json"
    target = runs / "executed" / source.name
    failed, working = target.with_suffix(".failed.ipynb"), target.with_name(f".{source.stem}.running.ipynb")
    target.parent.mkdir(parents=True, exist_ok=True)
    told: dict[str, Any] = {"profile": profile, "parameters": parameters, "kernel_name": kernel_name}
    read = inputs(nbformat.read(source, as_version=4), around, **told)
    seal.unlink(missing_ok=True)  # a seal that is there afterwards is of this run
    started, error = time.time(), None
    try:
        try:
            papermill.execute_notebook(
                *(str(path).replace("{", "{{").replace("}", "}}") for path in (source, working)),  # it formats paths
                {"profile": profile, **parameters},
                kernel_name=kernel_name,
                language="python",  # a notebook written by a program may not say so
                cwd=str(source.parent),
                progress_bar=False,
                # Not interrupt_on_timeout: it waits without end for a cell that ignores the interrupt.
                execution_timeout=cell_timeout or None,
                shutdown_kernel="immediate",  # takes the worker processes along, without a traceback of the kernel's
                iopub_timeout=30,
                coalesce_streams=True,
                extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
            )
        except Exception as caught:  # noqa: BLE001  a failing cell, a timeout, a dead kernel, a full disk: no common base
            error = caught
        notebook = nbformat.read(working if working.exists() else source, as_version=4)
        trouble = _trouble_in_cells(notebook, error, cell_timeout)
        if trouble is None and (wrong := _trouble_in_seal(seal, started)) is not None:
            trouble = f"after its last cell:\n  it {wrong}"
        if trouble is not None:
            with files.replacing(failed) as temporary:
                nbformat.write(notebook, temporary)
            raise NotebookFailed(f"{source.stem} failed {trouble}\nexecuted copy: {files.shown(failed)}") from error
        content: dict[str, Any] = files.read_json(seal) | {"inputs": read}
        notebook.metadata["zspag"] = {"provenance": content["provenance"]}
        with files.replacing(target) as temporary:
            nbformat.write(notebook, temporary)
        failed.unlink(missing_ok=True)
        files.write_json(seal, content)
    finally:
        working.unlink(missing_ok=True)
    return content


def _trouble_in_cells(notebook: "NotebookNode", error: Exception | None, cell_timeout: int) -> str | None:
    """Return what went wrong while cells ran, from "in cell ..." on, or None."""
    own = [cell for cell in notebook.cells if not _ADDED & set(cell.metadata.get("tags", []))]
    code = {
        f"in cell {number} of {len(own)}: {cell.source.strip().splitlines()[0]}": cell
        for number, cell in enumerate(own, start=1)
        if cell.cell_type == "code" and cell.source.strip()
    }
    if not isinstance(error, TimeoutError):  # a cell stopped by the timeout may also show a KeyboardInterrupt
        for place, cell in code.items():
            for output in cell.outputs:
                if output.output_type == "error":
                    return _lines(place, *output.get("traceback", []), message=f"{output.ename}: {output.evalue}")
    if error is not None:
        # After a dead kernel papermill calls every cell completed; a start time is written only as a cell starts.
        begun = [place for place, cell in code.items() if cell.metadata.get("papermill", {}).get("start_time")]
        place = begun[-1] if begun else "before its first cell:"
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, TimeoutError):
            reason = f"the cell was still running after {cell_timeout} s; allow more with --cell-timeout (0: any time)"
        elif type(error).__name__ == "DeadKernelError":
            reason = "the kernel died: it was killed (often for want of memory) or crashed in native code"
        return _lines(place, reason)
    never = [place for place, cell in code.items() if cell.execution_count is None]
    return _lines(never[0], "the cell never ran, though papermill reports no error") if never else None


def _lines(place: str, *texts: str, message: str = "") -> str:
    """Return a place and, indented, the last lines of texts; ``message`` is added where they do not contain it."""
    lines = [line for line in _ANSI.sub("", "\n".join(texts)).splitlines() if line.strip()][-_LAST_LINES:]
    message = message.rstrip(": ")
    if message and message.splitlines()[0] not in "\n".join(lines):
        lines.append(message)
    return "\n".join([place, *(f"  {line}" for line in lines)])


def _trouble_in_seal(seal: Path, started: float) -> str | None:
    """Return what is wrong with the declared outputs, or None."""
    if not seal.is_file():
        return f"wrote no seal ({files.shown(seal)}); its last code cell must call page.seal()"
    root = files.repository_root().resolve()
    for name, digest in files.read_json(seal)["outputs"].items():
        path = root / name
        if not path.is_file():
            return f"declared {name}, which is not there"
        if path.stat().st_mtime < started - _CLOCK_SLACK:
            return f"declared {name}, which is older than this run"
        if sha256(path) != digest:
            return f"declared {name}, which has changed since its seal"
    return None
