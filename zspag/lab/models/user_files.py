"""Models of other people: a function or class in a Python file, in an installed package, or a name that timm knows.

Invariant: a file is imported as Python would import it, so it may import its neighbours, hold dataclasses and read its
own command line; the search path and the command line of this process are as they were afterwards.
"""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

MARK = "__from_a_user_file__"
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
    guessed = guessed or {}
    if is_file_place(place):
        path = Path(place.rpartition(":")[0])
        if not path.is_file():
            raise ValueError(f"there is no file {path}: give the path of a Python file before ':'")
        name = _free_name(path)  # before its own folder is searched, too
        with _standing_in(path):
            return _called(_in_file(place, path, name), place, known, guessed)
    module, _, name = place.partition(":")
    if not module or not name:
        raise ValueError(
            f"a model is given as path/to/file.py:factory, torchvision.models:resnet18 or timm:name, got {place!r}"
        )
    if module == "timm":
        return _from_timm(name, known)
    return _called(_attribute(_installed(module, place), name, place), place, known, guessed)


def _from_timm(name: str, known: Facts) -> tuple[nn.Module, dict[str, int]]:
    place = f"timm:{name}"
    create = _attribute(_installed("timm", place), "create_model", place)
    names = {"num_classes": "num_classes", "in_channels": "in_chans"}
    options = {names[fact]: value for fact, value in known.items() if fact in names}
    model = _attempt(lambda: create(name, pretrained=False, **options), place)
    return _module(model, place), {fact: value for fact, value in known.items() if fact in names}


def _installed(module: str, place: str) -> ModuleType:
    """Import a module; it may lie in the current folder, as for ``python -m``.

    Raises:
        ValueError: If it is missing, or cannot be imported.
    """
    search = list(sys.path)
    sys.path.append(str(Path.cwd()))
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ValueError(
            f"{place} needs the package {package} ({error}): install it, or give path/to/file.py:factory"
        ) from error
    finally:
        sys.path[:] = search


def _attribute(module: ModuleType, name: str, place: str) -> Callable[..., object]:
    factory = getattr(module, name, None)
    if not callable(factory):
        where = place.rpartition(":")[0]
        raise ValueError(
            f"{where} has no function {name!r}; give {where}:factory with a function or class defined there"
        )
    found: Callable[..., object] = factory
    return found


def _in_file(place: str, path: Path, name: str) -> Callable[..., object]:
    """Import a Python file and return the factory in it.

    Raises:
        ValueError: If the file cannot be imported, or has no such factory.
    """
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # a file with the suffix .py always has a spec
    assert spec.loader is not None  # and that a loader
    module, before = importlib.util.module_from_spec(spec), sys.modules.get(name)
    setattr(module, MARK, True)
    sys.modules[name] = module  # dataclasses and pickle look a class up by the name of its module
    try:
        spec.loader.exec_module(module)
    except SystemExit as error:
        _restore(name, before)
        raise ValueError(
            f"{path} ends the program when it is imported (SystemExit: {error}): put what it runs as a script under"
            " `if __name__ == '__main__':`"
        ) from error
    except Exception as error:
        _restore(name, before)
        raise ValueError(f"{path} cannot be imported ({_words(error)})") from error
    return _attribute(module, place.rpartition(":")[2], place)


def _free_name(path: Path) -> str:
    """Return the name under which Python would import the file, unless another module is or would be found by it."""
    loaded = sys.modules.get(path.stem)
    if loaded is not None:
        origin = getattr(loaded, "__file__", None)
        free = getattr(loaded, MARK, False)  # a file of another folder, which was asked for before
    else:
        spec = importlib.util.find_spec(path.stem) if path.stem.isidentifier() else None
        origin, free = (None, True) if spec is None else (spec.origin, False)
    ours = free or (origin is not None and Path(origin).resolve() == path.resolve())
    return path.stem if ours else f"_user_{path.stem}"


def _restore(name: str, before: ModuleType | None) -> None:
    if before is None:
        del sys.modules[name]
    else:
        sys.modules[name] = before


@contextmanager
def _standing_in(path: Path) -> Generator[None, None, None]:
    """Set the search path and the command line as ``python file.py`` would; both are restored.

    Yields:
        Nothing.
    """
    search, line = list(sys.path), sys.argv
    sys.path.insert(0, str(path.resolve().parent))
    sys.argv = [str(path)]
    try:
        yield
    finally:
        sys.path[:] = search
        sys.argv = line


def _called(
    factory: Callable[..., object], place: str, known: Facts, guessed: Facts
) -> tuple[nn.Module, dict[str, int]]:
    """Call a factory with the facts that it takes.

    Raises:
        ValueError: If it needs anything else, or fails.
    """
    try:
        parameters = dict(inspect.signature(factory).parameters)
    except (TypeError, ValueError):  # something built in, which does not tell
        parameters = {}
    rest = [name for name, parameter in parameters.items() if parameter.kind is parameter.VAR_KEYWORD]
    needed = [name for name, p in parameters.items() if p.default is p.empty and p.kind in _NAMED]
    if lacking := [name for name in needed if name not in known and name not in guessed]:
        raise ValueError(
            f"{place} needs {'arguments' if len(lacking) > 1 else 'an argument'} ({', '.join(lacking)}): wrap it in a"
            " function without arguments and give that; only num_classes can be given beside it (--num-classes)"
        )
    options = {name: guessed[name] for name in needed if name in guessed}
    options |= {name: value for name, value in known.items() if rest or name in parameters}
    return _module(_attempt(lambda: factory(**options), place), place), options


def _attempt(build: Callable[[], Any], place: str) -> object:
    try:
        return build()
    except SystemExit as error:
        raise ValueError(f"{place} ended the program when it was called (SystemExit: {error})") from error
    except Exception as error:
        raise ValueError(f"{place} could not be built ({_words(error)})") from error


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _module(model: object, place: str) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise ValueError(f"{place} returned {type(model).__name__}; a factory must return a torch.nn.Module")
    return model
