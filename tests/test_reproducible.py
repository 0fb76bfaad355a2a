"""``zspag provenance`` says whether the present tree makes a file again, and names whatever differs."""

import json
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from zspag.__main__ import main
from zspag.config import to_dict
from zspag.profiles import PROFILES
from zspag.report import provenance, reproducible
from zspag.report.files import read_json, write_json
from zspag.report.plots import save

DATA = "ab" * 32
SOURCE = 'def double(x):\n    """Twice."""\n    return 2 * x  # reason\n'


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.example", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True)


def page(*sources, output="1"):
    cells = [{"cell_type": "code", "source": [source], "outputs": [output]} for source in sources]
    return {"cells": [*cells, {"cell_type": "markdown", "source": ["text"]}]}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A checkout with a little code, a notebook, a cached data set, and no graphics card."""
    root = tmp_path / "root"
    (root / "zspag" / "report").mkdir(parents=True)
    for name in ("tables", "report/plots"):
        (root / "zspag" / f"{name}.py").write_text(SOURCE)
    write_json(root / "notebooks" / "05_experiments.ipynb", page("x = 1", "y = 2"))
    write_json(root / "notebooks" / "06_ablations.ipynb", page("x = 1"))
    git(root, "init", "-q")
    commit(root)
    write_json(tmp_path / "data" / "cache" / "digits.json", {"name": "digits", "sha256": DATA})
    monkeypatch.setenv("ZSPAG_ROOT", str(root))
    monkeypatch.setenv("ZSPAG_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(reproducible.shutil, "which", lambda name: None)
    return root


def record(profile=PROFILES["digits"], **changes):
    made = provenance.record(
        config=to_dict(profile), seed=0, data_sha256=DATA, device="cpu", threads=profile.threads, started=time.time()
    )
    made["dirty"] = False  # results are made from a checkout without changes; its tests make them afterwards
    return made | changes


def result(root, name="05_ladder", own=None, made=None):
    path = root / "results" / "digits" / f"{name}.json"
    content = {"schema": 1, "name": name, "profile": "digits", "draw": "bars", "numbers": {"a": [1.0, None]}}
    panel = {"groups": ["a"], "series": {"b": [1.0]}}
    write_json(path, content | {"data": {"panels": [panel]}, "made": made or {}, "provenance": own or record()})
    return path


def rewrite(path, **changes):
    """Change the provenance in a file."""
    content = read_json(path)
    content["provenance"] |= changes
    write_json(path, content)


def commit(root):
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "next")


def said(path):
    """Return the verdict on a file, without what all verdicts begin with."""
    found = reproducible.verdict(path)
    assert found.startswith("this tree reproduces it: ")
    return found.removeprefix("this tree reproduces it: ")


def test_same_code_configuration_data_and_versions_reproduce_it(root, capsys):
    path = result(root)
    assert said(path) == "yes"
    assert main(["provenance", str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "this tree reproduces it: yes"


# Code


def test_comments_docstrings_outputs_moves_and_code_that_only_shows_do_not_count(root):
    path = result(root)
    (root / "zspag" / "tables.py").write_text(SOURCE.replace("Twice", "Two times").replace("  # reason", ""))
    (root / "zspag" / "tables.py").rename(root / "zspag" / "report" / "numbers.py")
    (root / "zspag" / "report" / "plots.py").write_text(SOURCE.replace("2 * x", "3 * x"))
    (root / "zspag" / "new.py").write_text(SOURCE)
    write_json(root / "notebooks" / "05_experiments.ipynb", page("x = 1", "y = 2", output="another"))
    write_json(root / "notebooks" / "06_ablations.ipynb", page("x = 9"))
    commit(root)
    assert said(path) == "yes"


def test_changed_code_is_named_committed_or_not_and_nobody_can_tell_what_it_changes(root):
    path, first = result(root), record()["commit"]
    expected = f"cannot tell: code changed since {first[:7]} (zspag/tables.py)"
    (root / "zspag" / "tables.py").write_text(SOURCE.replace("2 * x", "3 * x"))
    assert said(path) == expected
    commit(root)
    assert said(path) == expected
    (root / "zspag" / "tables.py").unlink()
    assert said(path) == expected
    rewrite(path, data_sha256="cd" * 32)
    assert said(path) == "no: data (digits has another hash here)"


def test_methods_that_joined_a_sweep_later_are_compared_with_the_commit_that_made_them(root):
    made = {name: value for name, value in record().items() if name not in ("config", "platform")}
    assert said(result(root, "sweep_digits_digits_0", made={"zs_pag": made})) == "yes"
    (root / "zspag" / "tables.py").write_text(SOURCE.replace("2 * x", "3 * x"))
    commit(root)
    later = record()  # the file as a whole is of this commit, one of its methods is not
    path = result(root, "sweep_digits_digits_0", later, made={"zs_pag": made, "delete": made | later})
    assert said(path) == f"cannot tell: code changed since {made['commit'][:7]} (zspag/tables.py)"


def test_cells_of_the_same_notebook_are_code_too(root):
    path, sweep = result(root), result(root, "sweep_digits_digits_0")
    write_json(root / "notebooks" / "05_experiments.ipynb", page("x = 1", "y = 3"))
    assert "(notebooks/05_experiments.ipynb)" in said(path)
    assert said(sweep) == "yes"  # no notebook made it


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"commit": None, "dirty": None}, "it was not made from a checkout of git"),
        ({"dirty": True}, "it was made with uncommitted changes"),
        ({"commit": "0" * 40}, "its code, commit 0000000, is not at hand here"),
    ],
)
def test_code_that_is_not_known_cannot_be_compared(root, changes, reason):
    assert said(result(root, own=record() | changes)) == f"cannot tell: {reason}"


# Configuration


def older(change):
    made = record()
    change(made["config"])
    return made | {"config_sha256": provenance.digest(made["config"])}


def test_changed_default_is_named_with_both_values(root, monkeypatch):
    path, digits = result(root), PROFILES["digits"]
    changed = replace(digits, unlearn=replace(digits.unlearn, proxies=replace(digits.unlearn.proxies, margin=1.0)))
    monkeypatch.setitem(reproducible.PROFILES, "digits", changed)
    assert said(path) == "no: configuration (unlearn.proxies.margin: 2.0 recorded, 1.0 now)"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda config: config["unlearn"]["proxies"].pop("margin"), "yes"),  # younger than the file: had its default
        (lambda config: config.update(workers=7), "yes"),  # no number depends on it
        (lambda config: config["unlearn"]["proxies"].update(momentum=0.9), "no: configuration (ProxyConfig has no"),
        (lambda config: config.update(name="mine"), "cannot tell: there is no profile 'mine'"),
        (lambda config: config.update(width=99), "no: configuration (width: 99 recorded, 24 now)"),
    ],
)
@pytest.mark.parametrize("name", ["05_ladder", "sweep_digits_digits_4"])
def test_options_of_a_record_are_compared_with_those_of_today(root, name, change, expected):
    made = older(change)
    assert said(result(root, name, own=made)).startswith(expected)
    edited = made | {"config_sha256": record()["config_sha256"]}
    assert "does not have the hash that stands beside it" in said(result(root, name, own=edited))


def test_what_the_command_line_chooses_is_no_difference_to_a_sweep_but_is_one_to_a_notebook(root):
    digits = PROFILES["digits"]
    rates = replace(digits.ladders, low=(3.0,), middle=(3.0,), high=(3.0,))
    chosen = replace(digits, classes=(4,), seeds=(7,), test_half="first", retrained=False, ladders=rates)
    made = record(replace(chosen, train=replace(chosen.train, epochs=9)))
    assert said(result(root, "sweep_digits_digits_4_first-half", made)) == "yes"
    found = said(result(root, "05_ladder", made))
    assert "classes: [4] recorded" in found
    assert found.endswith(" more)")


# Data and environment


def test_data_that_are_not_here_cannot_be_compared(root):
    (root.parent / "data" / "cache" / "digits.json").unlink()
    assert said(result(root)) == "cannot tell: its data are not cached here (`zspag data get digits`)"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"versions": {"torch": "1.0"}}, "no: torch (1.0 recorded, "),
        ({"platform": {"system": platform.system(), "machine": "abacus"}}, "no: machine (abacus recorded, "),
        ({"threads": 7}, "no: threads (7 recorded, 1 now)"),
        ({"device": "cuda"}, "no: device (cuda recorded, the CPU here)"),
    ],
)
def test_another_environment_is_named(root, changes, expected):
    assert said(result(root, own=record() | changes)).startswith(expected)


def test_whether_torch_takes_a_graphics_card_is_not_known_without_torch(root, monkeypatch):
    monkeypatch.setattr(reproducible.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert said(result(root)).startswith("cannot tell: it was made on the CPU")
    assert said(result(root, own=record() | {"device": "cuda"})) == "yes"


# Figures and checkpoints


def test_a_figure_stands_for_the_result_of_its_name(root):
    path = result(root)
    figure = root / "figures" / "digits" / "05_ladder.png"
    save(read_json(path), figure)
    assert said(figure) == "yes"
    rewrite(path, seed=5)
    assert said(figure) == "no: it was not drawn from results/digits/05_ladder.json"
    path.unlink()
    assert said(figure) == "cannot tell: no result of its name is recorded in results/digits"


def trained(root, code):
    """Write a checkpoint without weights: only its metadata are read."""
    key = {"data": DATA, "arch": "digits", "without": None, "code": code}
    made = record() | {"config": key, "config_sha256": provenance.digest(key), "commit": None}
    header = json.dumps({"__metadata__": {"zspag": json.dumps(made)}}).encode()
    path = root / "original.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    return path


def test_trained_model_is_compared_by_the_hash_of_its_code_without_a_checkout(root, monkeypatch):
    path = result(root)
    shutil.rmtree(root / ".git")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(root.parent))
    assert said(path).startswith("cannot tell: its code, commit")
    monkeypatch.setattr(reproducible, "_training_hashes", lambda: {"today"})
    assert said(trained(root, "today")) == "yes"
    assert said(trained(root, "before")) == "cannot tell: the code of its training has changed since"


def test_saying_so_of_a_result_or_a_checkpoint_needs_no_torch(root):
    program = (
        "import sys; from zspag.__main__ import main\n"
        "assert [main(['provenance', path]) for path in sys.argv[1:]] == [0, 0] and 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", program, str(trained(root, "today")), str(result(root))]
    package = Path(provenance.__file__).parents[2]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=package, check=False)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[-1].startswith("this tree reproduces it: ")
