"""Where files lie, how they are written (whole or not at all), and JSON that people can read.

Invariant: no reader ever sees half of a file, whenever the writer is killed.
"""

import json
import math
import os
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any


def repository_root() -> Path:
    """Return the folder of runs/, results/, figures/ and data/: ``own_root``, else the current folder."""
    return own_root() or Path.cwd()


def own_root() -> Path | None:
    """Return ``ZSPAG_ROOT`` or the checkout, else None: the current folder may belong to another project."""
    named = os.environ.get("ZSPAG_ROOT")
    return Path(named) if named else checkout_above(Path(__file__).parents[1])


@cache
def checkout_above(package: Path) -> Path | None:
    """Return the folder above ``package`` if it is a checkout or an unpacked source archive of zspag, else None.

    The pyproject.toml must name zspag: with ``pip install --target .`` the package lies beside that of another project.
    """
    try:
        project = (package.parent / "pyproject.toml").read_text(encoding="utf-8")
    except OSError:
        return None
    return package.parent if 'name = "zspag"' in project.splitlines() else None


def data_root() -> Path:
    """Return the folder of the data sets: what ``ZSPAG_DATA`` names, or ``data/`` of the root."""
    return Path(os.environ.get("ZSPAG_DATA") or repository_root() / "data")


def shown(path: str | Path) -> str:
    """Return a path for messages: relative if it lies in the current folder, else as it is."""
    path, here = Path(path), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


@contextmanager
def replacing(path: str | Path) -> Generator[Path, None, None]:
    """Yield a temporary path beside ``path``; on success it is synced and renamed to ``path``, on failure removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # mkstemp makes 0600 files; results are for everybody
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as readable JSON, atomically; a list of numbers or words stands on one line.

    Raises:
        ValueError: If a number is NaN or infinite; the old file stays.
    """
    write_text(path, _readable(value, "\n") + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write a text, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _readable(value: Any, newline: str) -> str:
    inner = newline + " "
    if isinstance(value, dict) and value:
        parts = [f"{json.dumps(str(key), ensure_ascii=False)}: {_readable(item, inner)}" for key, item in value.items()]
        return "{" + inner + f",{inner}".join(parts) + newline + "}"
    if isinstance(value, (list, tuple)) and any(isinstance(item, (dict, list, tuple)) for item in value):
        return "[" + inner + f",{inner}".join(_readable(item, inner) for item in value) + newline + "]"
    return json.dumps(value, allow_nan=False, ensure_ascii=False)


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: If the file is not JSON; the message names it.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable as JSON ({error}); delete it and run again") from error


def plain(value: Any, where: str) -> Any:
    """Return numbers, words, arrays, tensors and nests of them as plain Python, floats with 6 significant digits.

    Messages name the place of a value in the whole, such as ``data.accuracy``, which begins with ``where``.

    Raises:
        ValueError: If a number is NaN or infinite.
        TypeError: If something has no place in JSON.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if hasattr(value, "tolist"):  # numpy scalars and arrays, torch tensors, without importing either
        return plain(value.tolist(), where)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}: a result holds finite numbers only, write None where there is none")
        return float(f"{value:.6g}")
    raise TypeError(f"{where} is a {type(value).__name__}: a result holds numbers, strings, lists and mappings only")
