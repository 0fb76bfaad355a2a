"""Executed notebooks as they are committed: outputs kept, everything that differs from run to run or machine removed.

Invariant: no committed notebook names a path of the machine that ran it, and none is larger than a repository browser
shows.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from zspag.report import files

if TYPE_CHECKING:
    from nbformat import NotebookNode

MAX_BYTES = 2_000_000
MACHINE_PATH = re.compile(r"(?<![\w<./:-])/(?:[\w.+-]+/)+[\w.+-]+|\b[A-Z]:\\\w+")


def output_texts(output: "NotebookNode") -> Iterator[str]:
    """Yield every text of an output (streams, tracebacks, and each representation that is not an image)."""
    if "text" in output:
        yield output.text
    yield from output.get("traceback", [])
    for kind, content in output.get("data", {}).items():
        if kind.startswith("text/") or kind == "image/svg+xml":
            yield content if isinstance(content, str) else "".join(content)


def strip(notebook: "NotebookNode") -> "NotebookNode":
    """Return ``notebook`` for the repository: no papermill cells or metadata, no times, counts from 1 on.

    Warnings on the error stream that name a path are dropped: they tell about one machine, and a reader cannot act.
    """
    import nbformat  # late: the better part of a second that `zspag --help` does not need

    kept = nbformat.from_dict(notebook)
    kept.cells = [cell for cell in kept.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    kept.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
            "zspag": notebook.metadata.get("zspag", {}),
        }
    )
    count = 0
    for cell in kept.cells:
        for noise in ("papermill", "execution"):
            cell.metadata.pop(noise, None)
        if not cell.metadata.get("tags", ["kept"]):
            del cell.metadata["tags"]  # papermill gives every cell an empty list
        if cell.cell_type != "code":
            continue
        cell.outputs = [output for output in cell.outputs if not _is_noise(output)]
        count += 1
        cell.execution_count = count
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = count
    return kept


def _is_noise(output: "NotebookNode") -> bool:
    return output.get("name") == "stderr" and MACHINE_PATH.search(output.text) is not None


def write_back(executed: Iterable[Path], folder: Path) -> list[Path]:
    """Put executed notebooks into ``folder`` as they are committed; all of them or, if one is unfit, none.

    Args:
        executed: Executed copies.
        folder: Where the sources lie; each keeps its name.

    Returns:
        The files written.

    Raises:
        ValueError: If a notebook is too large, or an output names a path of this machine.
    """
    import nbformat  # late: the better part of a second that `zspag --help` does not need

    pages = {folder / path.name: nbformat.writes(_fit(path)) + "\n" for path in executed}
    for path, text in pages.items():
        if len(text.encode()) > MAX_BYTES:
            raise ValueError(
                f"{path.name} would have {len(text.encode()) / 1e6:.1f} MB, and {MAX_BYTES / 1e6} MB is the most:"
                " show fewer or smaller figures"
            )
    for path, text in pages.items():
        with files.replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return list(pages)


def _fit(path: Path) -> "NotebookNode":
    import nbformat  # late: the better part of a second that `zspag --help` does not need

    notebook = strip(nbformat.read(path, as_version=4))
    for number, cell in enumerate(notebook.cells, start=1):
        for output in cell.get("outputs", []):
            for text in output_texts(output):
                if found := MACHINE_PATH.search(text):
                    raise ValueError(f"{path.name}, cell {number}: its output names {found[0]}, a path of this machine")
    return notebook
