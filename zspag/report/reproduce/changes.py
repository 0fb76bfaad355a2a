"""Which notebooks need not run again: those of which nothing has changed since they ran, as with make.

Invariant: a notebook counts as unchanged only if everything it may read is as it was, and everything it made is still
there, byte for byte. What cannot be told from here, such as another graphics card, needs ``--again``.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zspag.report import files, provenance
from zspag.report.page import sha256

if TYPE_CHECKING:
    from nbformat import NotebookNode

_PACKAGE = Path(__file__).parents[2]
_SETTINGS = ("ZSPAG_", "CUDA_")


def surroundings() -> str:
    """Return one SHA-256 (hex) over what every notebook may read: code, results, drawings, data, settings, versions."""
    root = files.repository_root()
    return provenance.digest(
        {
            "code": [[path.relative_to(_PACKAGE).as_posix(), sha256(path)] for path in sorted(_PACKAGE.rglob("*.py"))],
            "results": list(_stamps(root / "results")),
            "docs": list(_stamps(root / "docs")),
            "data": list(_stamps(files.data_root(), without="cache")),
            "settings": {name: value for name, value in os.environ.items() if name.startswith(_SETTINGS)},
            "versions": [sys.version, *map(provenance.installed, provenance.PACKAGES)],
        }
    )


def inputs(
    notebook: "NotebookNode", around: str, *, profile: str, parameters: Mapping[str, Any], kernel_name: str
) -> str:
    """Return one SHA-256 (hex) over all that a notebook may read: it is compared, never taken apart.

    Args:
        notebook: The notebook.
        around: Its ``surroundings``.
        profile: Name of the profile.
        parameters: Further parameters.
        kernel_name: Name of the kernel.
    """
    return provenance.digest(
        {
            "cells": [cell.source for cell in notebook.cells],  # the text too: the executed copy shows it
            "around": around,
            "profile": profile,
            "parameters": dict(parameters),
            "kernel": [kernel_name, sys.executable],
        }
    )


def _stamps(folder: Path, *, without: str = "") -> Iterator[str]:
    """Yield name, size and time of every file: data sets are too large to be read for this."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != without)
        for path in (Path(place, name) for name in sorted(names)):
            state = path.stat()
            yield f"{path.relative_to(folder)} {state.st_size} {state.st_mtime_ns}"


def unchanged(notebooks: Iterable[Path], runs: Path, around: str, **told: Any) -> dict[str, dict[str, Any]]:
    """Return the seals of those notebooks whose last run had the same inputs and whose outputs are all there.

    Args:
        notebooks: The notebooks.
        runs: Folder of the profile's runs, where their seals and executed copies lie.
        around: Their ``surroundings`` now.
        told: Profile, parameters and kernel, as for ``inputs``.
    """
    import nbformat  # late: it takes most of a second, and `zspag --help` does not need it

    root, found = files.repository_root().resolve(), {}
    for path in notebooks:
        place = runs / "seals" / f"{path.stem}.json"
        if not (place.is_file() and (runs / "executed" / path.name).is_file()):
            continue
        seal: dict[str, Any] = files.read_json(place)
        made = {root / name: digest for name, digest in seal["outputs"].items()}
        same = seal.get("inputs") == inputs(nbformat.read(path, as_version=4), around, **told)
        if same and all(one.is_file() and sha256(one) == digest for one, digest in made.items()):
            found[path.stem] = seal
    return found
