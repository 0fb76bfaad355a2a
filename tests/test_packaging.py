"""What somebody gets who installs the wheel and nothing else: the method, the command line, types, and a tidy disk.

The "empty environment" is a virtual environment whose site-packages holds links to what a plain ``pip install zspag``
would bring, found through the metadata of the installed packages, and nothing else.

Proven: the source archive builds; the wheel's requirements are met by exactly those packages; and everything below
works where pandas, seaborn, scikit-learn, papermill and the rest of the extras cannot be imported. Not proven: that an
index serves these packages, and that their oldest admitted versions do, since nothing is fetched.
"""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from zspag.__main__ import EXTRAS, main
from zspag.lab import cluster

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NOT_SOURCE = (".*", "__pycache__", "build", "dist", "*.egg-info", "runs")
LABORATORY = ("IPython", "distributed", "nbformat", "pandas", "papermill", "scipy", "seaborn", "sklearn", "timm")


def plain_environment():
    """Return the variables of a shell in which nothing points at this checkout, its packages or pip's settings."""
    foreign = ("ZSPAG_", "PYTHON", "PIP_", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}


def run(*command, folder, code=0, **environment):
    """Run a command in a folder; fail with what it printed unless it ends with ``code``."""
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, env=plain_environment() | environment, capture_output=True,
        text=True, timeout=1800, check=False,
    )  # fmt: skip
    assert done.returncode == code, f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done


def needed(requirements):
    """Return the installed packages that requirements lead to."""
    found, queue = {}, [Requirement(line) for line in requirements]
    for requirement in queue:  # it grows while it is read
        name = canonicalize_name(requirement.name)
        key = (name, *sorted(requirement.extras))
        if key in found:
            continue
        found[key] = importlib.metadata.distribution(name)
        queue += [
            further
            for further in map(Requirement, found[key].requires or [])
            if further.marker is None or any(further.marker.evaluate({"extra": e}) for e in ("", *requirement.extras))
        ]
    return {name: package for (name, *_), package in found.items()}


def link(packages, place):
    """Link the files of packages into an otherwise empty site-packages."""
    for package in packages:
        for top in {path.parts[0] for path in package.files or []} - {"..", "__pycache__"}:
            if not top.endswith(".pth") and not (place / top).exists():  # some share a folder
                (place / top).symlink_to(Path(package.locate_file(top)).resolve())


class Installed(NamedTuple):
    """The archives, and an environment in which the wheel is installed."""

    source: Path
    wheel: Path
    bin: Path
    packages: Path

    def written(self):
        """Return the names of all files beside installed packages that are not compiled code."""
        own = [path for path in self.packages.glob("zspag*/**/*") if path.suffix != ".pyc"]
        return {path.relative_to(self.packages) for path in [*self.packages.iterdir(), *own] if path.name[0] != "_"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    pytest.importorskip("setuptools", "77")
    place = tmp_path_factory.mktemp("packaging")
    copy, archives = place / "copy", place / "archives"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*NOT_SOURCE), ignore_dangling_symlinks=True)
    build = f"import setuptools.build_meta as build; build.build_sdist({str(archives)!r})"
    run(sys.executable, "-c", build, folder=copy)
    (source,) = archives.glob("*.tar.gz")
    # From the archive and not from the checkout: what the archive lacks is then missing here, too.
    pip = (sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", archives, source, folder=place)
    (wheel,) = archives.glob("*.whl")
    venv.create(place / "environment", with_pip=False)
    (packages,) = (place / "environment").glob("lib/python*/site-packages")
    link(needed(PROJECT["dependencies"]).values(), packages)
    inside = (*pip, "--python", place / "environment" / "bin" / "python")
    # Without --no-deps pip might replace what is linked; whether the requirements are met is asked beforehand.
    run(*inside, "install", "--no-index", "--dry-run", f"zspag @ {wheel.as_uri()}", folder=place)
    lacking = run(
        *inside, "install", "--no-index", "--dry-run", f"zspag[cluster] @ {wheel.as_uri()}", folder=place, code=1
    )
    assert "No matching distribution found for distributed" in lacking.stderr  # pip did look
    run(*inside, "install", "--no-index", "--no-deps", wheel, folder=place)
    return Installed(source, wheel, place / "environment" / "bin", packages)


# The archives


@pytest.mark.slow
def test_the_source_archive_holds_notebooks_constraints_and_citation_and_nothing_that_was_computed(installed):
    with tarfile.open(installed.source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"CITATION.cff", "constraints.txt", "environment.yml", "Makefile", "LICENSE", "tests/conftest.py"} <= names
    assert {f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb")} <= names
    assert not [name for name in names if name.startswith(("results/", "figures/", "runs/", "data/cache"))]


@pytest.mark.slow
def test_the_wheel_holds_the_package_alone_and_says_that_it_is_typed(installed):
    with zipfile.ZipFile(installed.wheel) as archive:
        names = set(archive.namelist())
    here = {path.relative_to(ROOT).as_posix() for path in (ROOT / "zspag").rglob("*.py")}
    assert {name for name in names if not name.startswith("zspag-")} == here | {
        "zspag/py.typed",
        "zspag/lab/demo/net.safetensors",
        "zspag/lab/demo/digits.npz",
    }


# From an empty folder

API = """
import importlib.util, sys
import torch
import zspag
from torch import nn

assert zspag.__file__.startswith(sys.prefix), zspag.__file__
found = [name for name in {laboratory} if importlib.util.find_spec(name)]
assert not found, found
torch.manual_seed(0)
images, labels = torch.rand(12, 1, 8, 8), torch.full((12,), 1)
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
with torch.no_grad():
    model[1].bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
unlearned = zspag.zero_shot_unlearn(model, images, labels, num_classes=3)
print(unlearned.report)
unlearned.report.plot().savefig("report.png")
other = zspag.unlearn_by("gradient_ascent", model, images, labels, num_classes=3)
print(zspag.evaluate(other.model, (torch.rand(30, 1, 8, 8), torch.arange(30) % 3), 1, original=model))
"""


@pytest.mark.slow
def test_the_method_another_method_metrics_and_the_plot_work_without_the_laboratory(installed, tmp_path):
    run(installed.bin / "python", "-c", API.format(laboratory=LABORATORY), folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.png"]


@pytest.fixture
def photos(tmp_path):
    """A model in a file, its weights, and photos of class 1."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\n"
    )
    weight = torch.rand(3, 64, generator=torch.Generator().manual_seed(0)) / 4 - 1 / 8  # any class can be answered
    torch.save({"1.weight": weight, "1.bias": torch.tensor([0.0, 1.0, 0.0])}, tmp_path / "net.pt")
    (tmp_path / "photos" / "1").mkdir(parents=True)
    for number, pixels in enumerate(torch.rand(12, 8, 8, generator=torch.Generator().manual_seed(1)).mul(255).byte()):
        Image.fromarray(pixels.numpy()).save(tmp_path / "photos" / "1" / f"{number}.png")
    return tmp_path


@pytest.mark.slow
def test_a_model_of_ones_own_is_made_to_forget_on_the_command_line(installed, photos):
    before = installed.written()
    options = "--model net.py:make --weights net.pt --forget photos --out forgot.pt"
    done = run(installed.bin / "zspag", "unlearn", *options.split(), folder=photos)
    assert "forgot.pt" in done.stdout
    assert {"forgot.pt", "forgot.json", "forgot.png"} <= {path.name for path in photos.iterdir()}
    assert installed.written() == before


@pytest.mark.slow
def test_help_and_version_answer_and_help_names_the_two_variables(installed, tmp_path):
    assert run(installed.bin / "zspag", "--version", folder=tmp_path).stdout.startswith("zspag ")
    told = run(installed.bin / "zspag", "--help", folder=tmp_path).stdout
    assert {"ZSPAG_ROOT", "ZSPAG_DATA"} <= set(told.split())


MANY = """
import contextlib, io, os, sys
from zspag.lab import cluster
from zspag.report import provenance
from zspag.__main__ import main
from zspag.report.files import repository_root

answers = {{}}
for line in {lines}:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(line.split())
    answers[line] = code, out.getvalue(), err.getvalue()
of_folder = provenance.git("rev-parse", "HEAD")
os.environ["ZSPAG_ROOT"] = os.getcwd()
print(repr((answers, str(repository_root()), of_folder, provenance.git("rev-parse", "HEAD"))))
"""
WORK = ("methods", "env", "data list")
LACK = {
    "run --profile smoke": "zspag run needs pandas: pip install 'zspag[notebooks]'\n",
    "sweep --profile smoke": "zspag sweep needs pandas: pip install 'zspag[notebooks]'\n",
    "audit --profile smoke": "zspag audit needs pandas: pip install 'zspag[notebooks]'\n",
    "claims": "zspag claims needs pandas: pip install 'zspag[notebooks]'\n",
    "reproduce": "zspag reproduce needs nbformat: pip install 'zspag[notebooks]'\n",
    "reproduce --recorded": "zspag reproduce needs seaborn: pip install 'zspag[notebooks]'\n",
    "data get digits": "zspag data needs scikit-learn: pip install 'zspag[notebooks]'\n",
}


@pytest.mark.slow
def test_the_other_commands_work_or_name_the_extra_they_need_and_the_root_is_the_current_folder(installed, tmp_path):
    (tmp_path / "notebooks").mkdir()
    shutil.copy(next((ROOT / "notebooks").glob("00_*.ipynb")), tmp_path / "notebooks")
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.example", "-c", "commit.gpgsign=false")
    run("git", "init", "-q", folder=tmp_path)  # a project of the user's own
    run("git", *identity, "commit", "-q", "--allow-empty", "-m", "theirs", folder=tmp_path)
    theirs = run("git", "rev-parse", "HEAD", folder=tmp_path).stdout.strip()
    before, script = installed.written(), MANY.format(lines=[*WORK, *LACK])
    done = run(installed.bin / "python", "-c", script, folder=tmp_path)
    answers, root, of_folder, of_named = ast.literal_eval(done.stdout)
    assert {line: answers[line][0::2] for line in WORK} == dict.fromkeys(WORK, (0, ""))
    assert {line: answers[line] for line in LACK} == {line: (2, "", message) for line, message in LACK.items()}
    assert f"data sets are looked for in {tmp_path / 'data'}\n" in answers["data list"][1]
    assert "inside scikit-learn" not in answers["data list"][1]
    assert "not from a checkout" in answers["env"][1]
    assert Path(root) == tmp_path
    assert (of_folder, of_named) == (None, theirs)  # of a folder that is named as the root, git is believed
    assert {path.name for path in tmp_path.iterdir()} == {".git", "notebooks"}
    assert installed.written() == before


TYPED = """
from torch import Tensor, nn

from zspag import Report, zero_shot_unlearn


def forget(model: nn.Module, images: Tensor) -> Report:
    return zero_shot_unlearn(model, images, 3).report


wrong: int = zero_shot_unlearn(nn.Linear(2, 2), None, 3).report
"""
# Torch's own annotations take mypy half a minute, and are not what is asked for.
SKIP = "".join(
    f"[mypy-{name}.*]\nfollow_imports = skip\n" for name in ("torch", "numpy", "matplotlib", "PIL", "safetensors")
)


@pytest.mark.slow
def test_mypy_reads_the_types_of_the_installed_package(installed, tmp_path):
    (tmp_path / "typed.py").write_text(TYPED)
    (tmp_path / "mypy.ini").write_text(f"[mypy]\n{SKIP}")
    chosen = ("--python-executable", installed.bin / "python", "--cache-dir", tmp_path / "cache", "--strict")
    told = run(sys.executable, "-m", "mypy", *chosen, "typed.py", folder=tmp_path, code=1).stdout.splitlines()
    assert len(told) == 2, told  # without py.typed the import would be refused, and this assignment not seen
    assert re.match(r'typed\.py:11: error: Incompatible types in assignment \(expression has type "Report"', told[0])


# What a command says that lacks a package


def test_every_package_beyond_a_plain_installation_is_said_to_be_in_the_extra_that_brings_it():
    listed = {
        extra: {canonicalize_name(Requirement(line).name) for line in lines}
        for extra, lines in PROJECT["optional-dependencies"].items()
    }
    assert [(name, extra) for name, extra in EXTRAS.values() if name not in listed[extra]] == []
    assert {name for name, _ in EXTRAS.values()} == (listed["notebooks"] | listed["cluster"]) - {"jupyterlab"}


def test_a_sweep_over_processes_names_the_extra_for_it_before_it_works(monkeypatch, capsys):
    def sweep(*_, **__):
        with cluster.spread_over(None, workers=2, threads_each=1):
            yield "work"

    monkeypatch.setattr("zspag.lab.sweep.sweep", sweep)
    assert main(["sweep", "--profile", "smoke"]) == 0
    assert capsys.readouterr().out == "work\n"
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main(["sweep", "--profile", "smoke"]) == 2
    assert capsys.readouterr() == ("", "zspag sweep needs distributed: pip install 'zspag[cluster]'\n")


def test_a_missing_module_that_no_extra_brings_is_an_error_of_its_own(monkeypatch):
    def broken():
        raise ModuleNotFoundError("No module named 'zspag.gone'", name="zspag.gone")

    monkeypatch.setattr("zspag.lab.data.inventory.listing", broken)
    with pytest.raises(ModuleNotFoundError, match="zspag.gone"):
        main(["data", "list"])
