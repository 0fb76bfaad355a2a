"""The one cache of the laboratory: trained models, proxy statistics, rows of grids, ablations and audits.

An entry is a file named by the hash of everything that determines it: configuration, data, version of torch, kind of
device, threads, and the code with all that it imports.

Invariant: an entry is whole or absent, and one that was changed after it was written is refused.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from zspag.lab import checkpoints, models
from zspag.profiles import Profile
from zspag.report import files, provenance

Record = dict[str, Any]
Rows = list[dict[str, Any]]

_TRAINING_CODE = ("zspag.lab.training", "zspag.lab.models.building")


def code_of(profile: Profile, *further: str, without: Iterable[str] = ()) -> str:
    """Hash the code that trains the profile's net, and further modules, with all that they import.

    Args:
        profile: Says which architecture counts; the others do not. A file of the user's is in the key itself.
        further: Full names of modules.
        without: Modules that do not count.
    """
    factory = models.ARCHITECTURES.get(profile.arch)
    own = () if factory is None else (factory.__module__,)
    others = {made.__module__ for made in models.ARCHITECTURES.values()}.difference(own)
    return code_hash((*_TRAINING_CODE, *own, *further), frozenset(others | {*without}))


@lru_cache(maxsize=64)
def code_hash(code: tuple[str, ...], without: frozenset[str]) -> str:
    """Hash once per process: the code that runs is the code that was there when it started, and parsing takes time."""
    return provenance.closure_hash(code, without=without)


def tensors_path(profile: Profile, kind: str, key: Mapping[str, Any]) -> Path:
    """Return where tensors of a kind (a folder, such as "original") lie, or would lie."""
    folder = files.repository_root() / "runs" / profile.name / "checkpoints"
    return folder / kind / f"{provenance.digest(key)}.safetensors"


def kept_tensors(
    path: Path, make: Callable[[], tuple[Mapping[str, Tensor], Record]], *, made: Callable[..., Record]
) -> tuple[dict[str, Tensor], Record]:
    """Return named tensors and their record from a file, making and writing them first if there is none.

    Args:
        path: The file.
        make: Makes the tensors, and what shall stand in the record beside their provenance.
        made: Returns their provenance, given ``started`` (``time.time()``).

    Raises:
        CorruptCheckpoint: If a byte of the file changed.
    """
    if not path.exists():
        started = time.time()
        tensors, facts = make()
        checkpoints.save(path, tensors, made(started=started) | facts)
    return checkpoints.load(path)


def kept_rows(path: Path, make: Callable[[], Iterable[dict[str, Any]]], *, made: Callable[..., Record]) -> Rows:
    """Return rows of what JSON holds from a file, making and writing them first if there is none.

    Args:
        path: The file.
        make: Makes the rows.
        made: Returns their provenance, given ``started`` (``time.time()``).

    Raises:
        ValueError: If the file's rows are not those that were written.
    """
    if not path.exists():
        started, rows = time.time(), list(make())
        record = made(started=started)
        files.write_json(path, {"schema": 2, "rows": rows, "sha256": provenance.digest(rows), "provenance": record})
    return read_rows(path)


def read_rows(path: Path) -> Rows:
    """Return the rows of a finished file.

    Raises:
        ValueError: If they are not those that were written.
    """
    found = files.read_json(path)
    rows: Rows = found["rows"]
    if provenance.digest(rows) != found.get("sha256"):
        raise ValueError(
            f"{path} was changed after it was written (its rows do not have its hash); delete it and run again"
        )
    return rows
