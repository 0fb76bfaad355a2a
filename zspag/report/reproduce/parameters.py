"""Which notebooks run, and with which parameters: all of it decided before a kernel starts.

Invariant: a parameter that a notebook does not declare never reaches it. papermill would inject it with a warning and
leave the notebook as it was.
"""

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbformat import NotebookNode


_NUMBERED = re.compile(r"\d\d_\w+\.ipynb")
_WORDS = {"true": True, "false": False, "none": None, "null": None}  # papermill's own -p makes "false" a true string


def find_notebooks(folder: Path, only: Sequence[str] | None) -> list[Path]:
    """Return the numbered notebooks of ``folder`` in order.

    Args:
        folder: Where they lie; files that do not start with two digits are left alone.
        only: Numbers to keep, such as ``["00", "03"]``; None keeps all.

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


def declared_parameters(path: Path) -> dict[str, Any]:
    """Return the parameters of the notebook at ``path`` with their defaults; see ``literal_parameters``."""
    import nbformat  # late: the better part of a second that `zspag --help` does not need

    return literal_parameters(nbformat.read(path, as_version=4), path.name)


def literal_parameters(notebook: "NotebookNode", name: str) -> dict[str, Any]:
    """Return the parameters of a notebook with their defaults, read from its source without a kernel.

    Args:
        notebook: The notebook.
        name: What to call it in messages.

    Note:
        papermill's own ``inspect_notebook`` reads the cell with regular expressions and misses values that span lines.

    Raises:
        ValueError: If not exactly one cell is tagged ``parameters``, or it holds anything but ``name = literal``.
    """
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise ValueError(f"{name} has {len(tagged)} cells tagged 'parameters'; it must have exactly one")
    defaults: dict[str, Any] = {}
    try:
        for statement in ast.parse(tagged[0].source).body:
            target, value = _assignment(statement)
            defaults[target] = ast.literal_eval(value)
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"the parameters cell of {name} must hold only name = literal lines ({error})") from error
    return defaults


def _assignment(statement: ast.stmt) -> tuple[str, ast.expr]:
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target, value = statement.targets[0], statement.value
        if isinstance(target, ast.Name):
            return target.id, value
    raise ValueError(f"line {statement.lineno}: {ast.unparse(statement)}")


def check_parameters(notebooks: Iterable[Path], parameters: Mapping[str, Any]) -> None:
    """Refuse what papermill would let through: unknown names, and values of another kind than the default.

    Raises:
        ValueError: If a notebook does not declare a parameter; the message names both and what it does declare.
        TypeError: If a value is of another kind than the notebook's default.
    """
    for path in notebooks:
        declared = declared_parameters(path)
        if unknown := sorted(set(parameters) - set(declared)):
            raise ValueError(
                f"{path.name} has no parameter {', '.join(unknown)}; it has {', '.join(declared) or 'none'}"
                " (choose notebooks with --only)"
            )
        for name, value in parameters.items():
            if not _same_kind(value, declared[name]):
                raise TypeError(f"{name} of {path.name} is {declared[name]!r}, so it cannot become {value!r}")


def _same_kind(value: Any, default: Any) -> bool:
    if default is None:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, float):
        return isinstance(value, (int, float))
    if isinstance(default, (list, tuple)):
        return isinstance(value, (list, tuple))
    return isinstance(value, type(default))


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
        name, equals, text = pair.partition("=")
        if not equals or not name.strip().isidentifier():
            raise ValueError(f"a parameter is given as name=value, got {pair!r}")
        if name.strip() == "profile":
            raise ValueError("the profile is chosen with --profile, not with -p profile=...")
        parsed[name.strip()] = _value(text.strip())
    return parsed


def _value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
    return list(value) if isinstance(value, tuple) else value  # papermill turns a tuple into a string
