"""The record that every result, checkpoint, notebook and figure carries: what made it, from what, when and on what.

Invariant: a record is plain JSON, can be read back from any of these files without torch, and names nothing of the
machine but its system and architecture.
"""

import ast
import hashlib
import importlib.util
import io
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from zspag.report.files import own_root, read_json

KEY = "zspag"
PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "matplotlib", "papermill", "zspag")
# Modules that draw, drive or show: no number depends on them.
SHOWING = (
    "zspag.__main__",
    "zspag.outcome.plot",
    "zspag.process.progress",
    "zspag.lab.cluster",
    "zspag.report.plots",
    "zspag.report.readme",
    "zspag.report.reproduce",
    "zspag.report.reproducible",
)
GENERATED = ("figures", "results", "README.md")  # a run rewrites these itself: the code that ran is not dirty by them


def record(
    *, config: dict[str, Any], seed: int | None, data_sha256: str | None, device: str, threads: int, started: float
) -> dict[str, Any]:
    """Return the provenance of what has just been computed as JSON values; see ``describe`` for their meaning.

    Args:
        config: The resolved configuration, as plain JSON values.
        seed: The seed of the run, or None where nothing is random.
        data_sha256: Hash of the data set, or None where none was read.
        device: Kind of device, such as "cpu".
        threads: Intra-op threads; other counts give other bits.
        started: ``time.time()`` at the start of the computation.
    """
    changes = git("status", "--porcelain", "--", ".", *(f":(exclude){path}" for path in GENERATED))
    return {
        "commit": git("rev-parse", "--verify", "--quiet", "HEAD"),
        "dirty": None if changes is None else bool(changes),
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

    A package such as "zspag.report" counts with its ``__init__`` alone.

    Raises:
        ValueError: If a name has no source file.
    """
    return digest([[name, _read(name)[0]] for name in sorted(set(module_names))])


def closure_hash(module_names: Iterable[str], *, without: Iterable[str] = ()) -> str:
    """Return the ``code_hash`` of an ``import_closure``: what keys of caches hold."""
    return code_hash(import_closure(module_names, without=without))


def import_closure(module_names: Iterable[str], *, without: Iterable[str] = ()) -> list[str]:
    """Return modules and all modules of their own packages that they import, directly or not, sorted.

    The imports are read in the source, also those inside functions and under ``TYPE_CHECKING``. No module is run. The
    modules of ``without`` and ``SHOWING`` are left out, with what only they import, and so is the package itself, whose
    ``__init__`` names everything.

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


def _read(name: str) -> tuple[str, set[str]]:
    """Return a module's normalized source and the names that it may import as modules.

    Raises:
        ValueError: If the module has no source file.
    """
    path = _file_of(name)
    if path is None:
        raise ValueError(f"{name} is not a module with source code, so its code cannot be hashed")
    state = path.stat()
    return _parsed(path, state.st_mtime_ns, state.st_size)


@cache
def _parsed(path: Path, _changed: int, _size: int) -> tuple[str, set[str]]:
    tree, imported = ast.parse(path.read_text(encoding="utf-8")), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:  # of `from a import b`, both a and a.b
            imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return normalized(tree), imported


def _file_of(name: str) -> Path | None:
    """Return the source file of a module without importing it."""
    top, _, rest = name.partition(".")
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        return None
    places = [Path(spec.origin)]
    if rest:
        inside = Path(spec.origin).parent.joinpath(*rest.split("."))
        places = [inside.with_suffix(".py"), inside / "__init__.py"] if spec.submodule_search_locations else []
    return next((path for path in places if path.suffix == ".py" and path.is_file()), None)


def normalized(tree: ast.Module) -> str:
    """Take the docstrings out of a syntax tree and return it as source, which has no comments and one layout."""
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


def git(*arguments: str) -> str | None:
    """Return what git says in the repository; None where it fails, or in the checkout of another project."""
    root = own_root()
    if root is None:
        return None
    # Inside a git hook GIT_DIR and its kin point at whatever repository runs the hook.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def ask(*words: str) -> str:
        command = ["git", "-C", str(root.resolve()), *words]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=30, check=True)
        return done.stdout.strip()

    try:
        own = Path(ask("rev-parse", "--show-toplevel")).resolve() == root.resolve()
        return ask(*arguments) if own else None
    except (OSError, subprocess.SubprocessError):
        return None


def png_metadata(record: dict[str, Any]) -> dict[str, str]:
    """Return ``record`` as text chunks, for ``figure.savefig(path, metadata=...)``."""
    return {KEY: _canonical(record)}


def read_record(path: str | Path) -> dict[str, Any]:
    """Read the provenance out of a result (.json), a figure (.png), a notebook (.ipynb) or a checkpoint (.safetensors).

    Raises:
        ValueError: If the kind of file is unknown, the file is damaged, or it carries no record.
    """
    path = Path(path)
    try:
        match path.suffix:
            case ".json":
                found = read_json(path)["provenance"]
            case ".ipynb":
                found = read_json(path)["metadata"][KEY]["provenance"]
            case ".png":
                found = json.loads(_png_texts(path)[KEY])
            case ".safetensors":
                found = json.loads(safetensors_metadata(path)[KEY])
            case _:
                raise ValueError(f"{path} carries no provenance: only .ipynb, .json, .png and .safetensors files do")
    except (KeyError, TypeError):
        found = None
    if isinstance(found, dict):
        return found
    raise ValueError(f"{path} carries no provenance: it was not written by zspag, or another program saved it since")


def _png_texts(path: Path) -> dict[Any, Any]:
    from PIL import Image

    content = io.BytesIO(path.read_bytes())
    try:
        with Image.open(content, formats=["PNG"]) as picture:
            picture.load()
            return picture.info
    except (OSError, SyntaxError, ValueError) as error:  # all that Pillow raises on what is no whole PNG
        raise ValueError(f"{path} is not a whole PNG file ({error}); make it again") from error


def safetensors_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a .safetensors file, without reading its tensors.

    Raises:
        ValueError: If the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); make it again") from error


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
