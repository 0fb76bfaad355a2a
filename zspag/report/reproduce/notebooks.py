"""Notebooks as files: which ones run, with which parameters, and the form in which they are committed.

Invariants: a parameter that a notebook does not declare never reaches it (papermill would inject it with a warning). No
committed notebook names a path of the machine that ran it, and none is larger than a repository browser shows.
"""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zspag.report import files

if TYPE_CHECKING:
    from nbformat import NotebookNode

MAX_BYTES = 2_000_000
MACHINE_PATH = re.compile(r"(?<![\w<./:-])/(?:[\w.+-]+/)+[\w.+-]+|\b[A-Z]:\\\w+")
_NUMBERED = re.compile(r"\d\d_\w+\.ipynb")
_WORDS = {"true": True, "false": False, "none": None, "null": None}  # papermill's own -p makes "false" a true string


def find_notebooks(folder: Path, only: Sequence[str] | None) -> list[Path]:
    """Return the notebooks of ``folder`` that start with two digits, in order; ``only`` keeps some of the numbers.

    Raises:
        ValueError: If there is none, two share a number, or a number in ``only`` does not exist.
    """
    found = sorted(path for path in folder.glob("*.ipynb") if _NUMBERED.fullmatch(path.name))
    if not found:
        raise ValueError(f"no notebook called like 00_name.ipynb lies in {folder}")
    numbers = [path.name[:2] for path in found]
    if twice := sorted({number for number in numbers if numbers.count(number) > 1}):
        raise ValueError(f"two notebooks share the number {', '.join(twice)}: rename one of them")
    if only is None:
        return found
    if unknown := sorted(set(only) - set(numbers)):
        raise ValueError(f"there is no notebook {', '.join(unknown)}; there are {', '.join(numbers)}")
    return [path for path in found if path.name[:2] in only]


def literal_parameters(notebook: "NotebookNode", name: str) -> dict[str, Any]:
    """Return what the parameters cell of a notebook assigns; its name is for messages.

    Raises:
        ValueError: If not exactly one cell is tagged "parameters", or it holds anything but ``name = literal``.
    """
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise ValueError(f"{name} has {len(tagged)} cells tagged 'parameters'; it must have exactly one")
    defaults: dict[str, Any] = {}
    try:
        for statement in ast.parse(tagged[0].source).body:
            match statement:
                case ast.Assign(targets=[ast.Name(id=target)], value=value):
                    defaults[target] = ast.literal_eval(value)
                case _:
                    raise ValueError(f"line {statement.lineno}: {ast.unparse(statement)}")
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"the parameters cell of {name} must hold only name = literal lines ({error})") from error
    return defaults


def check_parameters(notebooks: Iterable[Path], parameters: Mapping[str, Any]) -> None:
    """Refuse what papermill would let through: unknown names, and values of another kind than the default.

    Raises:
        ValueError: If a notebook does not declare a parameter; the message names both and what it does declare.
        TypeError: If a value is of another kind than the notebook's default.
    """
    import nbformat  # late: it takes most of a second, and `zspag --help` does not need it

    kinds = {float: (float, int), list: (list, tuple), tuple: (list, tuple)}  # where a value may have another type
    for path in notebooks:
        declared = literal_parameters(nbformat.read(path, as_version=4), path.name)
        if unknown := sorted(set(parameters) - set(declared)):
            raise ValueError(
                f"{path.name} has no parameter {', '.join(unknown)}; it has {', '.join(declared) or 'none'}"
                " (choose notebooks with --only)"
            )
        for name, value in parameters.items():
            default = declared[name]
            if default is not None and type(value) not in kinds.get(type(default), (type(default),)):
                raise TypeError(f"{name} of {path.name} is {default!r}, so it cannot become {value!r}")


def parse_parameters(pairs: Iterable[str]) -> dict[str, Any]:
    """Read ``name=value`` from the command line; a value is a Python literal, true, false or null, else a string.

    Raises:
        ValueError: If a pair has no equals sign, or sets the profile, which has its own option.

    Example:
        >>> parse_parameters(["epochs=3", "quick=false", "title=two words", "seeds=(0, 1)"])
        {'epochs': 3, 'quick': False, 'title': 'two words', 'seeds': [0, 1]}
    """
    parsed: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = (part.strip() for part in pair.partition("="))
        if not equals or not name.isidentifier():
            raise ValueError(f"a parameter is given as name=value, got {pair!r}")
        if name == "profile":
            raise ValueError("the profile is chosen with --profile, not with -p profile=...")
        try:
            value = _WORDS[text.lower()] if text.lower() in _WORDS else ast.literal_eval(text)
        except (SyntaxError, ValueError):
            value = text
        parsed[name] = list(value) if isinstance(value, tuple) else value  # papermill turns a tuple into a string
    return parsed


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
    import nbformat  # late, as above

    kept = nbformat.from_dict(notebook)
    kept.cells = [cell for cell in kept.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    kept.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
            "zspag": notebook.metadata.get("zspag", {}),
        }
    )
    for cell in kept.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if not cell.metadata.get("tags", ["kept"]):
            del cell.metadata["tags"]  # papermill gives every cell an empty list
    for count, cell in enumerate((cell for cell in kept.cells if cell.cell_type == "code"), start=1):
        cell.execution_count = count
        cell.outputs = [
            output for output in cell.outputs if output.get("name") != "stderr" or not MACHINE_PATH.search(output.text)
        ]
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = count
    return kept


def write_back(executed: Iterable[Path], folder: Path) -> list[Path]:
    """Put executed notebooks into ``folder`` as they are committed; all of them or, if one is unfit, none.

    Raises:
        ValueError: If a notebook is too large, or an output names a path of this machine.
    """
    import nbformat  # late, as above

    pages: dict[Path, str] = {}
    for path in executed:
        notebook = strip(nbformat.read(path, as_version=4))
        for number, cell in enumerate(notebook.cells, start=1):
            for text in (text for output in cell.get("outputs", []) for text in output_texts(output)):
                if found := MACHINE_PATH.search(text):
                    raise ValueError(f"{path.name}, cell {number}: its output names {found[0]}, a path of this machine")
        page = nbformat.writes(notebook) + "\n"
        if (size := len(page.encode())) > MAX_BYTES:
            raise ValueError(
                f"{path.name} would have {size / 1e6:.1f} MB, and {MAX_BYTES / 1e6} MB is the most:"
                " show fewer or smaller figures"
            )
        pages[folder / path.name] = page
    for path, page in pages.items():
        files.write_text(path, page)
    return list(pages)
