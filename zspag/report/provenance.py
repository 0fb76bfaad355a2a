"""The record that every result, checkpoint, notebook and figure carries: what made it, from what, when and on what.

Invariant: a record is plain JSON, can be read back from any of these files without torch, and names nothing of the
machine but its system and architecture.
"""

import ast
import hashlib
import importlib.util
import json
import os
import platform
import struct
import subprocess
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from zspag.report.files import own_root, read_json, repository_root

KEY = "zspag"
PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "matplotlib", "papermill", "zspag")
TRAINING_CODE = (
    "zspag.lab.models.building",
    "zspag.lab.models.layers",
    "zspag.lab.training",
)  # and the architecture's own module
# Modules that draw, drive or show; what they do is in no number.
SHOWING = tuple(
    f"zspag.{name}"
    for name in (
        "__main__",
        "outcome_plot",
        "preflight.progress",
        "lab.cluster",
        "report.plots",
        "report.readme",
        "report.reproduce",
        "report.reproducible",
    )
)
GENERATED = ("figures", "results", "README.md")  # what a run itself rewrites does not make the code that ran dirty


def record(
    *, config: dict[str, Any], seed: int | None, data_sha256: str | None, device: str, threads: int, started: float
) -> dict[str, Any]:
    """Return the provenance of what has just been computed.

    Args:
        config: The resolved configuration, as plain JSON values.
        seed: The seed of the run, or None where nothing is random.
        data_sha256: Hash of the data set, or None where none was read.
        device: Kind of device, such as "cpu".
        threads: Intra-op threads; other counts give other bits.
        started: ``time.time()`` at the start of the computation.

    Returns:
        A dictionary of JSON values; ``commit`` and ``dirty`` are None outside a git checkout.
    """
    commit, dirty = _commit()
    return {
        "commit": commit,
        "dirty": dirty,
        "config": json.loads(_canonical(config)),
        "config_sha256": digest(config),
        "seed": seed,
        "data_sha256": data_sha256,
        "versions": {"python": platform.python_version()} | {name: installed(name) for name in PACKAGES},
        "platform": {"system": platform.system(), "machine": platform.machine()},
        "device": device,
        "threads": threads,
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - started, 3),
    }


def digest(value: Any) -> str:
    """Return the SHA-256 (hex) of ``value`` as canonical JSON: key order is irrelevant, a tuple equals a list.

    Example:
        >>> digest({"a": 1, "b": (2, 3)}) == digest({"b": [2, 3], "a": 1}) != digest({"a": 1, "b": [3, 2]})
        True
    """
    return hashlib.sha256(_canonical(value).encode()).hexdigest()


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def differences(one: Any, other: Any, *, names: tuple[str, str]) -> list[str]:
    """Name the values in which two nested dictionaries differ; tuples and lists are one value and equal each other.

    Args:
        one: The first, of what JSON holds.
        other: The second.
        names: What the two are called.

    Example:
        >>> differences({"train": {"lr": 0.1}}, {"train": {"lr": 0.3, "pad": 4}}, names=("wanted", "stored"))
        ['train.lr: 0.1 wanted, 0.3 stored', 'train.pad: absent wanted, 4 stored']
    """
    first, second = _leaves(one), _leaves(other)
    return [
        f"{leaf}: {first.get(leaf, 'absent')} {names[0]}, {second.get(leaf, 'absent')} {names[1]}"
        for leaf in sorted(first.keys() | second.keys())
        if first.get(leaf) != second.get(leaf)
    ]


def _leaves(value: Any, name: str = "") -> dict[str, str]:
    """Flatten nested dictionaries to ``{"train.lr": "0.1"}``; everything else, lists too, is a leaf."""
    if not isinstance(value, dict):
        return {name: _canonical(value)}
    found: dict[str, str] = {}
    for key, child in value.items():
        found |= _leaves(child, f"{name}.{key}" if name else str(key))
    return found


def code_hash(module_names: Iterable[str]) -> str:
    """Return one SHA-256 (hex) over the syntax trees of modules; comments, layout and docstrings do not count.

    Args:
        module_names: Full names such as "zspag.proxies", in any order. A package counts with all its files.

    Returns:
        The hash; no module is imported for it.

    Raises:
        ValueError: If a name has no source file.
    """
    sources = []
    for name in sorted(set(module_names)):
        origin = _source_of(name)
        sources.append([name, normalized(origin.read_text(encoding="utf-8"))])
        if origin.name == "__init__.py":
            inside = {path.relative_to(origin.parent).as_posix(): path for path in origin.parent.rglob("*.py")}
            del inside[origin.name]
            sources += [
                [f"{name}/{place}", normalized(path.read_text(encoding="utf-8"))]
                for place, path in sorted(inside.items())
            ]
    return digest(sources)


def closure_hash(module_names: Iterable[str], *, without: Iterable[str] = ()) -> str:
    """Return one SHA-256 (hex) over the syntax trees of modules and of all that they import: what keys of caches hold.

    Args:
        module_names: As for ``code_hash``; a package counts with its ``__init__`` alone.
        without: As for ``import_closure``.

    Raises:
        ValueError: If a name has no source file.
    """
    return digest([[name, _read(name)[0]] for name in import_closure(module_names, without=without)])


def import_closure(module_names: Iterable[str], *, without: Iterable[str] = ()) -> list[str]:
    """Return modules and all modules of their own packages that they import, directly or not, sorted.

    Imports are read in the source, those inside functions and under ``TYPE_CHECKING`` too; nothing is imported for it.

    Args:
        module_names: Full names such as "zspag.proxies".
        without: Modules that are left out, with what only they import. ``SHOWING`` always is, and so is the package
            itself, whose ``__init__`` names everything.

    Raises:
        ValueError: If a name has no source file.
    """
    waiting, left_out = list(module_names), {*without, *SHOWING}
    packages = {name.partition(".")[0] for name in waiting}
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in found or name in left_out:
            continue
        found.add(name)
        inside = [one for one in _read(name)[1] if one.partition(".")[0] in packages - {one}]
        waiting += [one for one in inside if _file_of(one) is not None]
    return sorted(found)


def _read(name: str) -> tuple[str, tuple[str, ...]]:
    """Return a module's normalized source and what it may import."""
    path = _source_of(name)
    state = path.stat()
    return _parsed(path, state.st_mtime_ns, state.st_size)


@cache
def _parsed(path: Path, _changed: int, _size: int) -> tuple[str, tuple[str, ...]]:
    source = path.read_text(encoding="utf-8")
    return normalized(source), tuple(_imported(ast.parse(source)))


def _imported(tree: ast.Module) -> Iterator[str]:
    """Yield every name that may be a module of those that a module imports: of ``from a import b`` both a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _source_of(name: str) -> Path:
    """Return the file of a module, without importing anything.

    Raises:
        ValueError: If it has no source file.
    """
    if (path := _file_of(name)) is None:
        raise ValueError(f"{name} is not a module with source code, so its code cannot be hashed")
    return path


def _file_of(name: str) -> Path | None:
    top, _, rest = name.partition(".")
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        return None
    places = [Path(spec.origin)]
    if rest:
        inside = Path(spec.origin).parent.joinpath(*rest.split("."))
        places = [inside.with_suffix(".py"), inside / "__init__.py"] if spec.submodule_search_locations else []
    return next((path for path in places if path.suffix == ".py" and path.is_file()), None)


def normalized(source: str) -> str:
    """Return Python source as its syntax tree says it: without comments, layout and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)  # not ast.dump, whose form changes with the version of Python


def installed(package: str) -> str | None:
    """Return the installed version of a package, or None."""
    try:
        return version(package)  # from the metadata: importing torch for its version would make every reader slow
    except PackageNotFoundError:
        return None


def _commit() -> tuple[str | None, bool | None]:
    changes = git("status", "--porcelain", "--", ".", *(f":(exclude){path}" for path in GENERATED))
    return git("rev-parse", "--verify", "--quiet", "HEAD"), None if changes is None else bool(changes)


def git(*arguments: str) -> str | None:
    """Return what git says in the repository; None where it fails, or where this is no checkout of its own."""
    root = own_root()
    if root is None:
        return None  # an installed package: the current folder may be a checkout, but of something else
    root = root.resolve()
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root:
        return None  # installed somewhere inside another project's checkout: its commit says nothing about us
    return _git(root, *arguments)


def git_is_installed() -> bool:
    """Tell whether there is a git to ask, whatever it says of this folder."""
    return _git(repository_root().resolve(), "--version") is not None


def _git(root: Path, *arguments: str) -> str | None:
    # Inside a git hook GIT_DIR and its kin point at whatever repository runs the hook.
    plain = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, env=plain, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def png_metadata(record: dict[str, Any]) -> dict[str, str]:
    """Return ``record`` as text chunks, for ``figure.savefig(path, metadata=...)``."""
    return {KEY: _canonical(record)}


def read_record(path: str | Path) -> dict[str, Any]:
    """Read the provenance out of a result (.json), a figure (.png), a notebook (.ipynb) or a checkpoint (.safetensors).

    Args:
        path: The file.

    Returns:
        The record.

    Raises:
        ValueError: If the kind of file is unknown, the file is damaged, or it carries no record.
    """
    path = Path(path)
    if path.suffix not in _READERS:
        raise ValueError(f"{path} is none of the files that carry provenance: {', '.join(sorted(_READERS))}")
    try:
        found = _READERS[path.suffix](path)
    except (KeyError, TypeError):
        found = None
    except (struct.error, zlib.error, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); make it again") from error
    if not isinstance(found, dict):
        raise ValueError(
            f"{path} carries no provenance: it was not written by zspag, or another program saved it since"
        )
    return found


def _from_png(path: Path) -> Any:
    chunks = path.read_bytes()
    if chunks[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError(f"{path} is not a PNG file, whatever its name says; make it again")
    offset = 8
    while offset < len(chunks):
        length, kind = struct.unpack_from(">I4s", chunks, offset)
        if offset + 12 + length > len(chunks):
            raise ValueError(f"{path} is damaged (it ends within a chunk); make it again")
        body = chunks[offset + 8 : offset + 8 + length]
        if kind in (b"tEXt", b"iTXt") and body.split(b"\0", 1)[0] == KEY.encode():
            return json.loads(_png_text(kind, body))
        offset += 12 + length
    return None


def _png_text(kind: bytes, body: bytes) -> str:
    text = body.split(b"\0", 1)[1]
    if kind == b"tEXt":
        return text.decode("latin-1")
    packed, text = text[0], text[2:].split(b"\0", 2)[2]  # flag, method, language, translated keyword
    return (zlib.decompress(text) if packed else text).decode("utf-8")


def read_header(path: Path) -> dict[str, Any]:
    """Return the JSON header of a .safetensors file, without reading its tensors.

    Raises:
        ValueError: If the file ends within its header.
    """
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > path.stat().st_size - 8:
            raise ValueError(f"{path} is damaged (it ends within its header); make it again")
        header: dict[str, Any] = json.loads(file.read(length).decode("utf-8"))
    return header


_READERS: dict[str, Callable[[Path], Any]] = {
    ".json": lambda path: read_json(path)["provenance"],
    ".ipynb": lambda path: read_json(path)["metadata"][KEY]["provenance"],
    ".png": _from_png,
    ".safetensors": lambda path: json.loads(read_header(path)["__metadata__"][KEY]),
}


def describe(record: dict[str, Any]) -> str:
    """Return ``record`` as a few lines for people; what it does not hold is left out."""
    commit = record.get("commit")
    code = f"{commit}{' with uncommitted changes' if record.get('dirty') else ''}" if commit else "not from a checkout"
    lines = {
        "code": code,
        "configuration": record.get("config_sha256"),
        "seed": record.get("seed"),
        "data": record.get("data_sha256"),
        "versions": ", ".join(f"{name} {value}" for name, value in record.get("versions", {}).items() if value),
        "machine": " ".join(record.get("platform", {}).values()),
        "device": record.get("device"),
        "threads": record.get("threads"),
        "started": record.get("started"),
        "took": f"{record['seconds']} s" if "seconds" in record else None,
    }
    head = "\n".join(f"{name:<14}{value}" for name, value in lines.items() if value not in (None, ""))
    return head + "\n" + json.dumps(record.get("config", {}), indent=1, ensure_ascii=False)
