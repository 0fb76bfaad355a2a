"""Models of other people: a function or class in a Python file, in an installed package, or a name that timm knows.

Invariant: a file is imported as Python would import it, so it may import its neighbours, hold dataclasses and read its
own command line; the search path and the command line of this process are as they were afterwards.
"""

import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

MARK = "__from_a_user_file__"
NAMED = 8  # functions of a file that a message lists
_NAMED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
Facts = Mapping[str, int]  # num_classes, in_channels and image_size, as far as they are known


def is_file_place(place: str) -> bool:
    """Tell whether a model is given by a Python file, ``path/to/file.py:factory``."""
    return ".py:" in place


def model_of(place: str, known: Facts, *, guessed: Facts | None = None) -> tuple[nn.Module, dict[str, int]]:
    """Build a model.

    Args:
        place: ``path/to/file.py:factory``, ``package.module:factory`` of what is installed, or ``timm:name``.
        known: Facts that a factory gets if it has a parameter of that name; timm's channels are called ``in_chans``.
        guessed: Facts for parameters that have no default.

    Returns:
        The model, and the facts that the factory was handed.

    Raises:
        ValueError: If there is no such factory, it fails, needs something else, or returns no module; in one sentence.
    """
    is_file = is_file_place(place)
    where, _, name = place.rpartition(":") if is_file else place.partition(":")
    if not where or not name:
        raise ValueError(
            f"a model is given as path/to/file.py:factory, torchvision.models:resnet18 or timm:name, got {place!r}"
        )
    if where == "timm":
        timm = _imported(where, place)
        handed = {fact: value for fact, value in known.items() if fact in ("num_classes", "in_channels")}
        options = {fact.replace("in_channels", "in_chans"): value for fact, value in handed.items()}
        try:
            return _built(lambda: timm.create_model(name, pretrained=False, **options), place), handed
        except ValueError as error:
            if not hasattr(timm, "is_model") or timm.is_model(name):
                raise
            hint = _likely(name, timm.list_models(), where="timm") or "timm.list_models('*resnet*') lists names"
            raise ValueError(f"timm knows no model {name!r}: {hint}") from error
    path = Path(where)
    if is_file and not path.is_file():
        raise ValueError(f"there is no file {path}: give the path of a Python file before ':'")
    module_name = _free_name(path) if is_file else ""  # before its own folder is searched, too
    with _started_as_a_script(path if is_file else None):
        module = _executed(path, module_name) if is_file else _imported(where, place)
        factory = getattr(module, name, None)
        if not callable(factory):
            raise ValueError(f"{where} has no function {name!r}: {_hint(module, where, name)}")
        options = _options(factory, place, known, guessed or {})
        return _built(lambda: factory(**options), place), options


def _likely(name: str, known: Iterable[str], *, where: str) -> str:
    # The names that come nearest, as a question; "" where none is near.
    nearest = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"did you mean {' or '.join(f'{where}:{one}' for one in nearest)}?" if nearest else ""


def _hint(module: ModuleType, where: str, name: str) -> str:
    # What may have been meant: names that are near, or, where they are few, all that the module defines itself.
    if where == "torchvision":
        where, module = "torchvision.models", importlib.import_module("torchvision.models")
    made = {key: value for key, value in vars(module).items() if callable(value) and not key.startswith("_")}
    own = [key for key, value in made.items() if getattr(value, "__module__", None) == module.__name__]
    if near := _likely(name, made, where=where):
        return near
    listed = f"; it has {', '.join(own)}" if 0 < len(own) <= NAMED else ""
    if where == "torchvision.models":
        listed = ", such as torchvision.models:resnet18"
    return f"give {where}:factory, a function or class in it{listed}"


@contextmanager
def _started_as_a_script(path: Path | None) -> Generator[None, None, None]:
    # Search path and command line are those of `python file.py`, or of `python -m`.
    search, line = list(sys.path), sys.argv
    if path is None:
        sys.path.append(str(Path.cwd()))
    else:
        sys.path.insert(0, str(path.resolve().parent))
        sys.argv = [str(path)]
    try:
        yield
    finally:
        sys.path[:] = search
        sys.argv = line


def _imported(module: str, place: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        remedy = "install it, or give path/to/file.py:factory"
        raise ValueError(f"{place} needs the package {package} ({error}): {remedy}") from error


def _executed(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # a file with the suffix .py always has a spec
    assert spec.loader is not None  # and that a loader
    module, before = importlib.util.module_from_spec(spec), sys.modules.get(name)
    setattr(module, MARK, True)
    sys.modules[name] = module  # dataclasses and pickle look a class up by the name of its module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # nothing of it stays
        sys.modules.pop(name)
        if before is not None:
            sys.modules[name] = before
        ended = isinstance(error, SystemExit)
        remedy = ": put what it runs as a script under `if __name__ == '__main__':`" if ended else ""
        raise ValueError(f"{path} cannot be imported ({_words(error)}){remedy}") from error
    return module


def _free_name(path: Path) -> str:
    # The name under which Python would import the file, unless another module is or would be found by it.
    loaded = sys.modules.get(path.stem)
    if loaded is not None:
        origin = getattr(loaded, "__file__", None)
        free = getattr(loaded, MARK, False)  # a file of another folder, which was asked for before
    else:
        spec = importlib.util.find_spec(path.stem) if path.stem.isidentifier() else None
        origin, free = (None, True) if spec is None else (spec.origin, False)
    ours = free or (origin is not None and Path(origin).resolve() == path.resolve())
    return path.stem if ours else f"_user_{path.stem}"


def _options(factory: Callable[..., object], place: str, known: Facts, guessed: Facts) -> dict[str, int]:
    # The facts that a factory takes: those that are known, and guesses for what has no default.
    try:
        parameters = dict(inspect.signature(factory).parameters)
    except (TypeError, ValueError):  # something built in, which does not tell
        parameters = {}
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    needed = [name for name, p in parameters.items() if p.default is p.empty and p.kind in _NAMED]
    if lacking := [name for name in needed if name not in known and name not in guessed]:
        raise ValueError(
            f"{place} needs arguments ({', '.join(lacking)}): wrap it in a function without arguments and give that;"
            " only num_classes can be given beside it (--num-classes)"
        )
    options = {name: guessed[name] for name in needed if name in guessed}
    return options | {name: value for name, value in known.items() if anything or name in parameters}


def _built(build: Callable[[], Any], place: str) -> nn.Module:
    try:
        model = build()
    except (Exception, SystemExit) as error:
        raise ValueError(f"{place} could not be built ({_words(error)})") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"{place} returned {type(model).__name__}; a factory must return a torch.nn.Module")
    return model


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
