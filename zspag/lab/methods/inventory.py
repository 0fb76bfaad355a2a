"""What ``zspag methods`` prints: every method with what it reads, where it comes from, its rates and its fixed numbers.

Invariant: nothing is typed here; the numbers are those that a method's code names, found by following that code.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from sys import modules
from types import CodeType, FunctionType
from typing import Any

from zspag.config import Ladders
from zspag.lab.methods.method import Method


def listing(methods: Mapping[str, Method], *, ladders: Ladders) -> Iterator[str]:
    """Yield the lines about every method.

    Args:
        methods: The table of methods.
        ladders: Those of the profile whose rates are printed.
    """
    for name, method in methods.items():
        yield f"{name}: {method.title}"
        if method.run.__doc__:
            yield f"  {method.run.__doc__.splitlines()[0]}"
        yield f"  reads: {method.reads}"
        yield f"  reference: {method.reference}"
        yield f"  ladder: {method.ladder}, " + ", ".join(f"{rate:g}" for rate in getattr(ladders, method.ladder))
        if found := constants(method.run):
            yield "  fixed: " + ", ".join(f"{key} = {_text(value)}" for key, value in found.items())


def constants(run: Callable[..., Any]) -> dict[str, Any]:
    """Return the options and numbers that the code of a method names, in its own module and however deep.

    An option is what a function was made with (text or number in its closure); a number is a module's constant in
    capitals, or a field of a dataclass of the module, as ``Class.field`` with its default.
    """
    module = vars(modules[run.__module__])
    options: dict[str, Any] = {}
    named: dict[str, Any] = {}
    waiting: list[Any] = [run]
    seen: set[int] = set()
    while waiting:
        part = waiting.pop()
        if id(part) in seen or not isinstance(part, FunctionType) or part.__module__ != run.__module__:
            continue
        seen.add(id(part))
        held = dict(
            zip(part.__code__.co_freevars, (cell.cell_contents for cell in part.__closure__ or ()), strict=True)
        )
        options |= {key: value for key, value in held.items() if _plain(value) and key not in named}
        names = {key: module[key] for key in _names(part.__code__) if key in module}
        named |= {key: value for key, value in names.items() if _is_constant(key) and _plain(value)}
        for value in [*held.values(), *names.values()]:
            named |= _fields(value, run.__module__)
        waiting += [*held.values(), *names.values()]
    order = {key: place for place, key in enumerate(module)}
    return options | dict(sorted(named.items(), key=lambda item: order.get(item[0].partition(".")[0], len(order))))


def _is_constant(name: str) -> bool:
    return name.isupper() and not name.startswith("_")


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_plain, value))
    return isinstance(value, int | float | str)


def _names(code: CodeType) -> Iterator[str]:
    """Yield the global names of a function and of the functions inside it."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)


def _fields(value: Any, module: str) -> dict[str, Any]:
    """Return the plain fields of a dataclass of the module, or of one of its instances; a class gives its defaults."""
    kind = value if isinstance(value, type) else type(value)
    if not is_dataclass(kind) or kind.__module__ != module:
        return {}
    held = {item.name: getattr(value, item.name, item.default) for item in fields(kind)}
    return {f"{kind.__name__}.{name}": part for name, part in held.items() if _plain(part)}
