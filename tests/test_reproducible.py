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
SAME = "this tree reproduces it: yes"


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
    git(tmp_path, "init", "-q", str(root))
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "first")
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


def result(root, name="05_ladder", own=None, **data):
    path = root / "results" / "digits" / f"{name}.json"
    content = {"schema": 1, "name": name, "profile": "digits", "draw": "bars", "numbers": {"a": [1.0, None]}}
    panel = {"groups": ["a"], "series": {"b": [1.0]}}
    write_json(path, content | {"data": {"panels": [panel]} | data, "provenance": own or record()})
    return path


def rewrite(path, function):
    content = read_json(path)
    function(content)
    write_json(path, content)


def test_same_code_configuration_data_and_versions_reproduce_it(root, capsys):
    path = result(root)
    assert reproducible.verdict(path) == SAME
    assert main(["provenance", str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == SAME


# Code


def test_comments_docstrings_outputs_and_code_that_only_shows_do_not_count(root):
    path = result(root)
    (root / "zspag" / "tables.py").write_text(SOURCE.replace("Twice", "Two times").replace("  # reason", ""))
    (root / "zspag" / "report" / "plots.py").write_text(SOURCE.replace("2 * x", "3 * x"))
    (root / "zspag" / "new.py").write_text(SOURCE)
    write_json(root / "notebooks" / "05_experiments.ipynb", page("x = 1", "y = 2", output="another"))
    write_json(root / "notebooks" / "06_ablations.ipynb", page("x = 9"))
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "second")
    assert reproducible.verdict(path) == SAME


def test_changed_code_is_named_committed_or_not(root):
    path, first = result(root), record()["commit"]
    (root / "zspag" / "tables.py").write_text(SOURCE.replace("2 * x", "3 * x"))
    expected = f"this tree reproduces it: no: code since {first[:7]} (zspag/tables.py)"
    assert reproducible.verdict(path) == expected
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "second")
    assert reproducible.verdict(path) == expected
    (root / "zspag" / "tables.py").unlink()
    assert reproducible.verdict(path) == expected


def test_methods_that_joined_a_sweep_later_are_compared_with_the_commit_that_made_them(root):
    made = {name: value for name, value in record().items() if name not in ("config", "platform")}
    assert reproducible.verdict(result(root, "sweep_digits_digits_0", made={"zs_pag": made})) == SAME
    (root / "zspag" / "tables.py").write_text(SOURCE.replace("2 * x", "3 * x"))
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "second")
    later = record()  # the file as a whole is of this commit, one of its methods is not
    path = result(root, "sweep_digits_digits_0", later, made={"zs_pag": made, "delete": made | later})
    assert reproducible.verdict(path).endswith(f"no: code since {made['commit'][:7]} (zspag/tables.py)")


def test_cells_of_the_same_notebook_are_code_too(root):
    path, sweep = result(root), result(root, "sweep_digits_digits_0")
    write_json(root / "notebooks" / "05_experiments.ipynb", page("x = 1", "y = 3"))
    assert "(notebooks/05_experiments.ipynb)" in reproducible.verdict(path)
    assert reproducible.verdict(sweep) == SAME  # no notebook made it


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"commit": None, "dirty": None}, "it was not made from a checkout of git"),
        ({"dirty": True}, "it was made with uncommitted changes"),
        ({"commit": "0" * 40}, "commit 0000000, which made it, is not at hand here"),
    ],
)
def test_code_that_is_not_known_cannot_be_compared(root, changes, reason):
    path = result(root, own=record() | changes)
    assert reproducible.verdict(path) == f"this tree reproduces it: cannot tell: {reason}"


def test_without_a_checkout_it_cannot_tell_but_sees_what_differs(root, monkeypatch):
    path = result(root)
    (root / ".git").rename(root / "gone")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(root.parent))
    assert "cannot tell: commit" in reproducible.verdict(path)
    rewrite(path, lambda content: content["provenance"].update(data_sha256="cd" * 32))
    assert reproducible.verdict(path) == "this tree reproduces it: no: data (digits has another hash here)"


# Configuration


def test_changed_default_is_named_with_both_values(root, monkeypatch):
    path = result(root)
    digits = PROFILES["digits"]
    changed = replace(digits, unlearn=replace(digits.unlearn, proxies=replace(digits.unlearn.proxies, margin=1.0)))
    monkeypatch.setitem(reproducible.PROFILES, "digits", changed)
    expected = "no: configuration (unlearn.proxies.margin: 2.0 recorded, 1.0 now)"
    assert reproducible.verdict(path) == f"this tree reproduces it: {expected}"


def older(change):
    made = record()
    change(made["config"])
    return made | {"config_sha256": provenance.digest(made["config"])}


def test_option_younger_than_the_file_had_its_default(root):
    made = older(lambda config: config["unlearn"]["proxies"].pop("margin"))
    assert reproducible.verdict(result(root, own=made)) == SAME


def test_option_that_is_gone_is_named(root):
    made = older(lambda config: config["unlearn"]["proxies"].update(momentum=0.9))
    assert "no: configuration (ProxyConfig has no option momentum" in reproducible.verdict(result(root, own=made))


def test_record_that_was_edited_is_noticed(root):
    made = record()
    made["config"]["width"] = 99
    assert "does not have the hash that stands beside it" in reproducible.verdict(result(root, own=made))


def test_what_the_command_line_chooses_is_no_difference_to_a_sweep_but_is_one_to_a_notebook(root):
    digits = PROFILES["digits"]
    rates = replace(digits.ladders, low=(3.0,), middle=(3.0,), high=(3.0,))
    chosen = replace(digits, classes=(4,), seeds=(7,), test_half="first", retrained=False, ladders=rates)
    made = record(replace(chosen, train=replace(chosen.train, epochs=9)))
    assert reproducible.verdict(result(root, "sweep_digits_digits_4_first-half", made)) == SAME
    said = reproducible.verdict(result(root, "05_ladder", made))
    assert "classes: [4] recorded" in said
    assert said.endswith(" more)")


def test_number_of_processes_is_no_difference(root):
    assert reproducible.verdict(result(root, own=record(replace(PROFILES["digits"], workers=7)))) == SAME


def test_option_that_no_command_line_has_is_a_difference_to_a_sweep(root):
    made = record(replace(PROFILES["digits"], width=99))
    assert "width: 99 recorded, 24 now" in reproducible.verdict(result(root, "sweep_digits_digits_4", made))


def test_profile_that_is_unknown_cannot_be_compared(root):
    made = older(lambda config: config.update(name="mine"))
    assert "cannot tell: the record names no profile that there is, but 'mine'" in reproducible.verdict(
        result(root, own=made)
    )


# Data and environment


def test_data_that_are_not_here_cannot_be_compared(root):
    (root.parent / "data" / "cache" / "digits.json").unlink()
    assert reproducible.verdict(result(root)).endswith(
        "cannot tell: its data are not cached here (`zspag data get digits`)"
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"versions": {"torch": "1.0"}}, "torch (1.0 recorded, "),
        ({"platform": {"system": platform.system(), "machine": "abacus"}}, "machine (abacus recorded, "),
        ({"threads": 7}, "threads (7 recorded, 1 now)"),
        ({"device": "cuda"}, "device (cuda recorded, the CPU here)"),
    ],
)
def test_another_environment_is_named(root, changes, said):
    assert f"reproduces it: no: {said}" in reproducible.verdict(result(root, own=record() | changes))


def test_whether_torch_takes_a_graphics_card_is_not_known_without_torch(root, monkeypatch):
    monkeypatch.setattr(reproducible.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert "cannot tell: it was made on the CPU" in reproducible.verdict(result(root))
    assert reproducible.verdict(result(root, own=record() | {"device": "cuda"})) == SAME


# Figures


@pytest.fixture
def figure(root):
    content = read_json(result(root, rows=[{"a": 1}]))
    content["caption"] = "c"
    target = root / "figures" / "digits" / "05_ladder.png"
    target.parent.mkdir(parents=True)
    save(content | {"data": {"panels": content["data"]["panels"]}}, target)
    return target


def test_a_figure_stands_for_the_result_of_its_name(root, figure):
    assert reproducible.verdict(figure) == SAME
    rewrite(root / "results" / "digits" / "05_ladder.json", lambda content: content["provenance"].update(seed=5))
    assert "no: it was not drawn from results/digits/05_ladder.json" in reproducible.verdict(figure)


def test_a_figure_without_its_result_cannot_be_compared(root, figure):
    result(root).unlink()
    assert "cannot tell: no result of its name is recorded in results/digits" in reproducible.verdict(figure)


# Checkpoints


def trained(root, **changes):
    """The header of a checkpoint is all that is read of it."""
    modules = [*provenance.TRAINING_CODE, "zspag.lab.models.small"]
    key = {"data": DATA, "arch": "digits", "without": None, "code": provenance.code_hash(modules)} | changes
    made = record() | {"config": key, "config_sha256": provenance.digest(key), "commit": None}
    header = json.dumps({"__metadata__": {"zspag": json.dumps(made)}}).encode()
    path = root / "original.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    return path


def test_trained_model_is_compared_by_the_hash_of_its_code_without_a_checkout(root):
    shutil.rmtree(root / ".git")
    assert reproducible.verdict(trained(root)) == SAME
    assert "no: code (zspag.lab.models.building, " in reproducible.verdict(trained(root, code="0" * 64))


def test_saying_so_needs_no_torch(root):
    path = result(root)
    program = "import sys; from zspag.__main__ import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", program, "provenance", str(path)]
    answer = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(provenance.__file__).parents[2], check=False
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[-1].startswith("this tree reproduces it: ")
