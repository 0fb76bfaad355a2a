"""Three storeys: the method, the reports that read files, and the laboratory; what each may import.

"Zero-shot" is a claim about what the code can reach. It is held here: by what each module imports, and by signatures
in which retain data has no place.
"""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import zspag

PACKAGE = Path(zspag.__file__).parent
MOST_AT_THE_TOP = 15
PLAIN = {"zspag.config", "zspag.profiles", "zspag.process.allocator"}  # of the method, and without torch
LIBRARIES = {"torch", "numpy", "tqdm"}
DRAW = ("zspag.outcome", "zspag.outcome.plot")  # a run's own figure; the second is imported by the call alone
CLASS_NUMBERS = {"int", "Sequence[int]", "tuple[int, ...]"}


def _name(path):
    parts = ("zspag", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(path): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}
DOORS = ("zspag", "zspag.__main__")


def _storey(name):
    if name in DOORS:
        return "door"
    inside = name.split(".")[1]
    return inside if inside in {"report", "lab"} else "method"


STOREYS = {storey: [name for name in MODULES if _storey(name) == storey] for storey in ("method", "report", "lab")}


def _imported(source, package="zspag"):
    """Return the full names of all imported modules and names, wherever the statement stands."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def _ours(source):
    """Return the modules of the package that a source imports."""
    names = {name if name in MODULES else name.rpartition(".")[0] for name in _imported(source)}
    return {name for name in names if name in MODULES} - {"zspag"}


def _upward(name, source):
    """Return what a module imports although its storey stands below."""
    storey = _storey(name)
    allowed = {
        "method": lambda other: _storey(other) == "method",
        "report": lambda other: _storey(other) == "report" or other in PLAIN,
        "lab": lambda other: _storey(other) != "door",
        "door": lambda other: True,
    }[storey]
    return {other for other in _ours(source) if not allowed(other)}


def _foreign(source):
    roots = {name.split(".")[0] for name in _imported(source)}
    return roots - {"zspag"} - set(sys.stdlib_module_names)


def _early(source):
    """Return a source cut down to what runs when it is imported."""
    top = [node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)]
    return "\n".join(map(ast.unparse, top))


def _circle(table):
    """Return the modules of a table of imports that import one another."""
    rest = dict(table)
    while free := {name for name, others in rest.items() if not others & rest.keys()}:
        rest = {name: others for name, others in rest.items() if name not in free}
    return set(rest)


def _revealing(source):
    """Return the parameters of public functions that could carry retain or test data; class numbers are no data."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            taken = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
            found |= {f"{node.name}({argument.arg})" for argument in taken if argument and _could_carry(argument)}
    return found


def _could_carry(argument):
    named = "retain" in argument.arg or "test" in argument.arg.split("_")
    return named and ast.unparse(argument.annotation or ast.Constant(None)) not in CLASS_NUMBERS


@pytest.mark.parametrize("name", MODULES)
def test_no_module_imports_from_a_storey_above_it(name):
    assert not _upward(name, MODULES[name])


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("zspag.proxies", "from zspag.lab import data"),
        ("zspag.proxies", "def f():\n    import zspag.lab.data.splits"),
        ("zspag.proxies", "from .report.files import read_json"),
        ("zspag.proxies", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from zspag.lab import data"),
        ("zspag.report.plots", "from zspag.lab.runs import run"),
        ("zspag.report.plots", "from zspag import subspaces"),
    ],
)
def test_an_upward_import_is_found_however_it_is_written(name, source):
    assert _upward(name, source)
    assert not _upward(name, "import torch\nfrom zspag.config import ProxyConfig")


def test_no_modules_import_one_another():
    table = {name: _ours(source) - {name} for name, source in MODULES.items() if name not in DOORS}
    assert not _circle(table)
    assert _circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == {"a", "b", "c"}


def test_the_method_can_be_seen_at_once():
    assert len([path for path in PACKAGE.glob("*.py")]) <= MOST_AT_THE_TOP


@pytest.mark.parametrize("name", STOREYS["method"])
def test_the_method_stands_on_torch_alone_and_imports_nothing_by_a_computed_name(name):
    source = MODULES[name]
    assert _foreign(source) <= LIBRARIES | ({"matplotlib"} if name in DRAW else set())
    assert _foreign(_early(source)) <= LIBRARIES or name == DRAW[-1]
    assert "importlib" not in _imported(source)
    assert "import_module" not in source
    assert "__import__" not in source


def test_a_foreign_import_is_found():
    assert _foreign("import os\nfrom torch import nn\nfrom zspag import config\nimport numpy as np") == {
        "torch",
        "numpy",
    }


@pytest.mark.parametrize("name", STOREYS["method"])
def test_no_public_function_of_the_method_could_be_handed_retain_or_test_data(name):
    assert not _revealing(MODULES[name])


@pytest.mark.parametrize("name", ["retain", "retained", "retain_images", "test_set", "images_test"])
@pytest.mark.parametrize(
    "form", ["def f({0}): ...", "class A:\n    def f(self, *, {0}: Tensor): ...", "def f(*{0}: Tensor): ..."]
)
def test_a_parameter_that_could_carry_them_is_found(form, name):
    assert _revealing(form.format(name)) == {f"f({name})"}


def test_class_numbers_and_forget_data_are_no_retain_data():
    assert not _revealing("def f(forget_images: Tensor, *, retained: Sequence[int], latest: Tensor): ...")
    assert not _revealing("def _inner(retain_images: Tensor): ...")


def test_what_only_reads_files_does_not_load_torch():
    names = [*STOREYS["report"], *PLAIN, *DOORS, "zspag.outcome"]
    program = f"import sys, {', '.join(names)}; sys.exit('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", program], cwd=PACKAGE.parent, check=False, capture_output=True)
    assert ended.returncode == 0, ended.stderr.decode() or "one of them loads torch"


def test_loading_torch_would_be_noticed():
    program = "import sys, zspag.runtime; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=PACKAGE.parent, check=False).returncode == 1


def test_sub_commands_import_late():
    assert all(_storey(name) != "lab" for name in _ours(_early(MODULES["zspag.__main__"])))
    assert _ours(_early("from zspag.lab import data\ndef f():\n    from zspag.lab import models")) == {"zspag.lab.data"}


FAMILIES = [name for name in MODULES if name.startswith("zspag.lab.methods.")]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_of_methods_uses_no_other_so_that_its_own_code_is_all_its_runs_depend_on(name):
    others = {other for other in _ours(MODULES[name]) if other in FAMILIES} - {name}
    assert others <= {"zspag.lab.methods.method"}
    assert len(FAMILIES) > 2


def test_no_module_is_a_heap():
    names = {part for name in MODULES for part in name.split(".")}
    assert not {name for name in names if {"utils", "util", "helpers", "common", "misc"} & set(name.split("_"))}


def test_every_exported_name_is_there_and_an_unknown_one_is_named():
    for name in zspag.__all__:
        assert getattr(zspag, name) is not None
        assert name in dir(zspag)
    with pytest.raises(AttributeError, match="module 'zspag' has no attribute 'forget'; it has .*zero_shot_unlearn"):
        zspag.forget  # noqa: B018
