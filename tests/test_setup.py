"""The set-up files agree with one another and with what is installed, and the repository stays small and anonymous."""

import ast
import importlib.metadata
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import torch
import torchvision
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import zspag

ROOT = Path(zspag.__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RUNTIME = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRAS = {name: [Requirement(line) for line in lines] for name, lines in PROJECT["optional-dependencies"].items()}
DIRECT = [*RUNTIME, *(requirement for requirements in EXTRAS.values() for requirement in requirements)]
LINES = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
PINNED = {canonicalize_name(name): Version(version) for name, _, version in (line.partition("==") for line in LINES)}


def _git(*arguments):
    answer = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    if answer.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in answer.stdout.split("\0") if name and (ROOT / name).is_file()]


def _tracked():
    return _git("ls-files", "-z")


def test_constraints_hold_a_name_and_a_version_each_sorted_and_once():
    assert [line for line in LINES if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)] == []
    assert len(PINNED) == len(LINES)


@pytest.mark.parametrize("requirement", DIRECT, ids=str)
def test_every_direct_dependency_has_a_tested_version_inside_its_range(requirement):
    assert requirement.specifier.contains(PINNED[canonicalize_name(requirement.name)])
    assert not requirement.specifier.contains("0.0.1"), "a range without a lower end has not been thought about"


def test_what_is_tied_to_the_platform_is_not_pinned_and_neither_is_the_package():
    foreign = {name for name in PINNED if name.startswith(("nvidia-", "cuda-")) or name in ("triton", "pip", "zspag")}
    assert not foreign


def _missing(roots, pinned):
    """Return the indirect dependencies, as installed here, that ``pinned`` does not hold."""
    exempt, seen, queue = re.compile(r"nvidia-|cuda-|triton$|setuptools$|pip$"), set(), list(roots)
    while queue:
        name, extras = queue.pop()
        if (name, extras) in seen or exempt.match(name):
            continue
        seen.add((name, extras))
        for line in importlib.metadata.requires(name) or []:
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in (*extras, "")):
                queue.append((canonicalize_name(needed.name), tuple(sorted(needed.extras))))
    return {name for name, _ in seen if name not in pinned}


def test_indirect_dependencies_are_pinned_too():
    roots = [(canonicalize_name(requirement.name), ()) for requirement in DIRECT]
    # aiohttp and its own: papermill wants them on Python 3.12 alone, and the pins come from 3.11
    assert _missing(roots, PINNED) <= {
        "aiohttp",
        "aiohappyeyeballs",
        "aiosignal",
        "frozenlist",
        "multidict",
        "yarl",
        "propcache",
    }
    assert "nbclient" in _missing(roots, PINNED.keys() - {"nbclient"})


def test_the_environment_for_conda_says_the_same_as_pyproject():
    lines = (ROOT / "environment.yml").read_text(encoding="utf-8").splitlines()
    assert lines == [
        f"name: {PROJECT['name']}",
        "channels:",
        "  - conda-forge",
        "dependencies:",
        f"  - python {PROJECT['requires-python']}",
        "  - pip",
        "  - pip:",
        "      - -c constraints.txt",
        f"      - -e .[{','.join(EXTRAS)}]",
    ]


def test_make_installs_every_extra():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"-e '.[{','.join(EXTRAS)}]'" in makefile
    assert list(EXTRAS) == ["notebooks", "cluster", "dev"]


def test_a_plain_installation_asks_for_what_the_method_needs_and_no_package_is_asked_for_twice():
    plain = {requirement.name for requirement in RUNTIME}
    assert plain == {"torch", "torchvision", "numpy", "matplotlib", "safetensors", "tqdm", "pillow"}
    names = [canonicalize_name(requirement.name) for requirement in DIRECT]
    assert len(names) == len(set(names))


def test_addresses_of_the_project_are_those_of_the_repository():
    known = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert [url for url in PROJECT["urls"].values() if f'"{url}"' not in known] == []


@pytest.mark.parametrize(
    ("version", "admitted"),
    [("3.10.9", False), ("3.11.0", True), ("3.12.4", True), ("3.13.9", True), ("3.14.0", False)],
)
def test_python_3_11_to_3_13_are_admitted_by_pyproject_and_make(version, admitted):
    assert SpecifierSet(PROJECT["requires-python"]).contains(version) is admitted
    check = re.search(r"v = sys\.version_info; (.*?) or sys\.exit", (ROOT / "Makefile").read_text(encoding="utf-8"))
    v = tuple(int(part) for part in version.split("."))
    low, high = (ast.literal_eval(part) for part in check.group(1).split("<= v <"))
    assert (low <= v < high) is admitted


def test_the_ci_runs_make_test_on_every_admitted_python():
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert 'python: ["3.11", "3.12", "3.13"]' in workflow
    assert "run: make test-all" in workflow
    assert (ROOT / ".ci" / "run").read_text(encoding="utf-8").rstrip().endswith("make test-all")
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_torch_and_torchvision_are_a_pair_that_loads_together():
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 3.9], [9.0, 9.0, 12.0, 12.0]])
    kept = torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), iou_threshold=0.5)
    assert kept.tolist() == [0, 2]
    assert PINNED["torchvision"].minor == PINNED["torch"].minor + 15  # 0.26 goes with 2.11, and so on, minor by minor


def test_the_package_says_its_version_once():
    assert "version" in PROJECT["dynamic"]
    assert f"version: {zspag.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_make_help_lists_every_target_for_people():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE).group(1).split()
    shown = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert {"figures", "test", "lint", "lab", "notebooks"} <= set(phony)
    assert [target for target in phony if not re.search(rf"make {target} +\S", shown)] == []


FOLDERS = ["root", "tmp", "work", "home/(?!someone/)[A-Za-z0-9_-]+", "Users/[A-Za-z0-9_-]+"]  # someone is nobody
MACHINE_PATH = re.compile(rf"(?<![\w.}})~/*-])/(?:{'|'.join(FOLDERS)})/")
IMAGE = re.compile(r'"[A-Za-z0-9+/=\\n]{500,}"')  # base64 in a notebook, where any short word may come up by chance


def _machine_paths(text):
    return [match.group() for match in MACHINE_PATH.finditer(IMAGE.sub("", text))]


def test_no_tracked_text_names_a_place_on_somebodys_machine():
    found = {}
    for path in _tracked():
        content = path.read_bytes()
        if b"\0" not in content:
            found[str(path.relative_to(ROOT))] = _machine_paths(content.decode("utf-8"))
    assert {name: places for name, places in found.items() if places} == {}


def test_such_a_place_would_be_found_and_an_address_would_not():
    for folder in ("root", "tmp", "home/ann"):
        assert _machine_paths(f'open("/{folder}/data.bin")') == [f"/{folder}/"]
    assert _machine_paths("see https://a.example/tmp/x and runs/tmp/x and /dev/null") == []


def test_tracked_files_are_small():
    large = {path.name: path.stat().st_size for path in _tracked() if path.stat().st_size >= 2 * 2**20}
    assert large == {}


@pytest.mark.parametrize("name", ["data/cifar10/a.png", "runs/digits/a.json", ".venv/bin/python"])
def test_what_is_large_is_ignored(name):
    _tracked()  # skips outside a checkout
    assert subprocess.run(["git", "-C", str(ROOT), "check-ignore", "-q", name], check=False).returncode == 0


@pytest.mark.parametrize("name", ["data/README.md", "results/digits/a.json", "zspag/lab/data/a.py", "figures/a.png"])
def test_what_belongs_to_the_repository_is_not_ignored(name):
    _tracked()
    assert subprocess.run(["git", "-C", str(ROOT), "check-ignore", "-q", name], check=False).returncode == 1
