"""The import table: data flows one way, and the method can see nothing of the laboratory.

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

METHOD = (
    "surroundings",
    "inputs",
    "classifiers",
    "model_checks",
    "reachability",
    "checks",
    "progress",
    "views",
    "proxies",
    "activations",
    "folding",
    "subspaces",
    "influence",
    "pseudo_labels",
    "material",
    "projected_inputs",
    "sgd",
    "rate_search",
    "calibration",
    "head",
    "closed_row",
    "remainder",
    "unlearning",
)
MAY_IMPORT = {
    "config": set(),
    "files": set(),
    "profiles": {"config"},
    "allocator": set(),
    "outcome_plot": set(),
    "outcome": {"outcome_plot"},
    "surroundings": set(),
    "inputs": set(),
    "progress": set(),
    "runtime": {"allocator", "surroundings"},
    "provenance": {"files"},
    "proxies": {"config", "runtime", "folding", "progress"},
    "activations": {"runtime"},
    "folding": {"runtime", "activations"},
    "subspaces": {"config", "runtime", "activations"},
    "influence": {"runtime", "activations", "folding"},
    "pseudo_labels": {"config", "runtime", "proxies", "subspaces", "influence"},
    "classifiers": {"runtime", "surroundings"},
    "model_checks": {"runtime", "activations", "classifiers"},
    "reachability": {"runtime"},
    "checks": {"runtime", "inputs", "surroundings", "model_checks", "reachability"},
    "views": {"runtime"},
    "material": {"config", "runtime", "progress", "views", "proxies", "pseudo_labels", "subspaces"},
    "projected_inputs": {"activations", "subspaces"},
    "sgd": {"config", "outcome", "runtime", "influence", "pseudo_labels", "projected_inputs", "subspaces"},
    "rate_search": {"outcome"},
    "calibration": {
        "config",
        "outcome",
        "runtime",
        "progress",
        "classifiers",
        "activations",
        "subspaces",
        "pseudo_labels",
        "material",
        "sgd",
        "rate_search",
    },
    "head": {"runtime", "activations"},
    "closed_row": {"runtime", "head"},
    "remainder": {"outcome", "runtime", "head"},
    "unlearning": {
        "config",
        "outcome",
        "runtime",
        "surroundings",
        "inputs",
        "classifiers",
        "checks",
        "progress",
        "material",
        "calibration",
        "closed_row",
        "remainder",
    },
    "baselines": {"config", "outcome", "runtime", *METHOD},
    "door": {
        "config",
        "profiles",
        "outcome",
        "runtime",
        "inputs",
        "classifiers",
        "checks",
        "surroundings",
        "material",
        "sgd",
        "unlearning",
        "baselines",
    },
    "data": {"runtime", "files"},
    "models": set(),
    "training": {"config", "runtime", "files"},
    "checkpoints": {"config", "provenance", "files"},
    "evaluation": {"runtime", "activations", "subspaces"},
    "metrics": {"inputs", "classifiers", "runtime", "evaluation"},
    "relearning": {"runtime", "evaluation"},
    "roc": set(),
    "membership": {"roc"},
    "features": {"runtime", "activations", "evaluation"},
    "probes": {"features"},
    "traces": {"evaluation", "roc"},
    "residual": {"config", "runtime", "proxies", "evaluation"},
    "recovery": {"runtime", "relearning"},
    "hardening": {"config", "runtime", "proxies"},
    "plots": {"provenance", "files"},
    "readme": {"files", "profiles", "tables", "claims"},
    "tables": {"provenance", "files"},
    "contrasts": set(),
    "notebook": {"allocator", "config", "profiles", "provenance", "files", "plots"},
    "reproduce": {"config", "profiles", "provenance", "files", "notebook", "plots"},
    "claims": {"files", "profiles", "tables"},
    "reproducible": {"config", "profiles", "provenance", "files"},
    "cluster": {"runtime"},
    "__init__": {"config", "door", "metrics", "models", "outcome", "unlearning"},
}
MAY_IMPORT["experiment"] = set(MAY_IMPORT) - {
    "plots", "tables", "contrasts", "notebook", "reproduce", "reproducible", "claims", "cluster", "__init__"
}  # fmt: skip
MAY_IMPORT["audit"] = MAY_IMPORT["experiment"] | {"experiment", "tables", "runs"}
MAY_IMPORT["ablation"] = MAY_IMPORT["experiment"] | {"experiment"}
MAY_IMPORT["requests"] = MAY_IMPORT["experiment"] | {"experiment"}
MAY_IMPORT["runs"] = MAY_IMPORT["experiment"] | {"experiment", "plots"}
MAY_IMPORT["unlearn_files"] = {"config", "outcome", "runtime", "provenance", "files", "data", "models", "unlearning"}
MAY_IMPORT["sweep"] = MAY_IMPORT["runs"] | {"runs", "tables", "claims", "cluster"}
MAY_IMPORT["bench"] = MAY_IMPORT["runs"] | {"reproduce", "tables"}
MAY_IMPORT["__main__"] = set(MAY_IMPORT) - set(METHOD) - {"__init__"}

CLASS_NUMBERS = {"int", "Sequence[int]", "tuple[int, ...]"}
NO_TORCH = (
    "__init__",
    "allocator",
    "config",
    "outcome",
    "profiles",
    "files",
    "provenance",
    "plots",
    "tables",
    "contrasts",
    "notebook",
    "readme",
    "reproduce",
    "claims",
    "reproducible",
    "__main__",
)


def _sources():
    """Yield ``(component, path)``; the files of a sub-package belong to one component."""
    for path in sorted(PACKAGE.rglob("*.py")):
        inside = path.relative_to(PACKAGE)
        yield (inside.parts[0] if len(inside.parts) > 1 else inside.stem), path


SOURCES = [pytest.param(component, path, id=str(path.relative_to(PACKAGE))) for component, path in _sources()]
METHOD_SOURCES = [source for source in SOURCES if source.values[0] in METHOD]


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


def _ours(source, package="zspag"):
    return {name.split(".")[1] for name in _imported(source, package) if name.startswith("zspag.")}


def _foreign(source):
    roots = {name.split(".")[0] for name in _imported(source)}
    return roots - {"zspag"} - set(sys.stdlib_module_names)


def _forbidden(component, source, package="zspag"):
    """Return what ``component`` imports from the package although the table does not say so."""
    known = MAY_IMPORT.keys() | {"__version__"}
    return {name for name in _ours(source, package) if name in known or component != "__init__"} - (
        MAY_IMPORT[component] | {component, "__version__"}
    )


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


def _late(source):
    """Return the zspag modules imported at the top level, that is, before any function runs."""
    top = [node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)]
    return _ours("\n".join(map(ast.unparse, top)))


@pytest.mark.parametrize(("component", "path"), SOURCES)
def test_every_module_is_in_the_table_and_imports_what_it_says(component, path):
    assert component in MAY_IMPORT, f"zspag/{component} is not in the import table of this test"
    package = ".".join(("zspag", *path.relative_to(PACKAGE).parts[:-1]))
    assert not _forbidden(component, path.read_text(encoding="utf-8"), package)


FAMILIES = [path for component, path in _sources() if component == "baselines" and path.stem != "__init__"]


@pytest.mark.parametrize("path", FAMILIES, ids=lambda path: path.stem)
def test_a_family_of_methods_uses_no_other_so_that_its_own_code_is_all_its_runs_depend_on(path):
    inside = {name for name in _imported(path.read_text(encoding="utf-8")) if name.startswith("zspag.baselines")}
    assert {name.split(".")[2] for name in inside} <= {"method"}
    assert len(FAMILIES) > 2


@pytest.mark.parametrize(
    "source",
    [
        "from zspag.data import load",
        "import zspag.data",
        "import zspag.data as harmless",
        "from zspag import data",
        "from . import data",
        "from .data import load",
        "def late():\n    from zspag.data import load",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from zspag import data",
    ],
)
def test_a_forbidden_import_is_found_however_it_is_written(source):
    assert _forbidden("proxies", source) == {"data"}
    assert not _forbidden("proxies", "import torch\nfrom zspag import runtime\nfrom zspag.config import ProxyConfig")


def test_the_table_has_no_cycle():
    rest = {name: set(allowed) for name, allowed in MAY_IMPORT.items()}
    while rest:
        free = {name for name, allowed in rest.items() if not allowed & rest.keys()}
        assert free, f"these import one another: {sorted(rest)}"
        rest = {name: allowed for name, allowed in rest.items() if name not in free}


def test_the_method_cannot_reach_the_laboratory_by_any_chain_of_the_table():
    reached = set(METHOD)
    while more := {name for module in reached for name in MAY_IMPORT[module]} - reached:
        reached |= more
    assert reached == set(METHOD) | {"config", "outcome", "outcome_plot", "runtime", "allocator"}


FURTHER = {"inputs": {"numpy"}, "progress": {"tqdm"}}  # arrays are taken as they come; a bar is drawn


@pytest.mark.parametrize(("component", "path"), METHOD_SOURCES)
def test_the_method_stands_on_torch_alone_and_imports_nothing_by_a_computed_name(component, path):
    source = path.read_text(encoding="utf-8")
    assert _foreign(source) <= {"torch"} | FURTHER.get(component, set())
    assert "importlib" not in _imported(source)
    assert "import_module" not in source
    assert "__import__" not in source


def test_a_foreign_import_is_found():
    assert _foreign("import os\nfrom torch import nn\nfrom zspag import files\nimport numpy as np") == {
        "torch",
        "numpy",
    }


@pytest.mark.parametrize(("component", "path"), METHOD_SOURCES)
def test_no_public_function_of_the_method_could_be_handed_retain_or_test_data(component, path):
    assert not _revealing(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["retain", "retained", "retain_images", "test_set", "images_test"])
@pytest.mark.parametrize(
    "form", ["def f({0}): ...", "class A:\n    def f(self, *, {0}: Tensor): ...", "def f(*{0}: Tensor): ..."]
)
def test_a_parameter_that_could_carry_them_is_found(form, name):
    assert _revealing(form.format(name)) == {f"f({name})"}


def test_class_numbers_and_forget_data_are_no_retain_data():
    assert not _revealing("def f(forget_images: Tensor, *, retained: Sequence[int], latest: Tensor): ...")
    assert not _revealing("def _inner(retain_images: Tensor): ...")


@pytest.mark.parametrize("component", NO_TORCH)
def test_what_only_reads_files_does_not_load_torch(component):
    if not any(component == known for known, _ in _sources()):
        pytest.skip(f"zspag/{component} does not exist yet")
    name = "zspag" if component == "__init__" else f"zspag.{component}"
    program = f"import sys, {name}; sys.exit('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", program], cwd=PACKAGE.parent, check=False, capture_output=True)
    assert ended.returncode == 0, ended.stderr.decode() or f"importing {name} loads torch"


def test_loading_torch_would_be_noticed():
    program = "import sys, zspag.runtime; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=PACKAGE.parent, check=False).returncode == 1


def test_sub_commands_import_late():
    main = PACKAGE / "__main__.py"
    if not main.exists():
        pytest.skip("zspag/__main__ does not exist yet")
    assert _late(main.read_text(encoding="utf-8")) <= set(NO_TORCH) | {"__version__"}
    assert _late("from zspag import data\ndef f():\n    from zspag import models") == {"data"}


def test_no_module_is_a_heap():
    names = {part for _, path in _sources() for part in path.relative_to(PACKAGE).with_suffix("").parts}
    assert not {name for name in names if {"utils", "util", "helpers", "common", "misc"} & set(name.split("_"))}


def test_every_exported_name_is_there_and_an_unknown_one_is_named():
    for name in zspag.__all__:
        assert getattr(zspag, name) is not None
        assert name in dir(zspag)
    with pytest.raises(AttributeError, match="module 'zspag' has no attribute 'forget'; it has .*zero_shot_unlearn"):
        zspag.forget  # noqa: B018
