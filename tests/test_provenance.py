"""The record is complete and can be read back from every kind of file; its hashes see what matters and no more."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from zspag.lab.checkpoints import save
from zspag.report import provenance
from zspag.report.files import write_json
from zspag.report.provenance import closure_hash, code_hash, describe, digest, import_closure, read_record, record

TORCH = torch.__version__.split("+")[0]  # the build, such as +cpu, is not in every wheel's metadata
KNOWN = {"config": {"lr": 0.1, "ladder": (1, 3)}, "seed": 7, "data_sha256": "ab" * 32, "device": "cpu", "threads": 1}


def make_record(**changes):
    return record(**(KNOWN | {"started": time.time() - 5} | changes))


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.example", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    root = tmp_path / "check out"
    (root / "figures").mkdir(parents=True)
    (root / "code.py").write_text("a = 1\n")
    (root / "figures" / "01_a.png").write_text("old")
    for words in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "first")):
        git(root, *words)
    monkeypatch.setenv("ZSPAG_ROOT", str(root))
    return root


def test_a_record_says_what_made_it_from_what_when_and_on_what_kind_of_machine():
    found = make_record()
    assert found["config"] == {"lr": 0.1, "ladder": [1, 3]}
    assert found["config_sha256"] == digest(found["config"])
    assert (found["seed"], found["data_sha256"], found["device"], found["threads"]) == (7, "ab" * 32, "cpu", 1)
    assert found["versions"]["torch"] == TORCH
    assert found["versions"]["python"] == sys.version.split()[0]
    assert found["started"].endswith("+00:00")
    assert 5 <= found["seconds"] < 60
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert set(found["platform"]) == {"system", "machine"}
    assert str(Path.home()) not in json.dumps(found)
    assert os.uname().nodename not in json.dumps(found)


def test_edits_of_code_make_a_checkout_dirty_and_what_a_run_rewrites_does_not(checkout, monkeypatch):
    clean = make_record()
    assert (len(clean["commit"]), clean["dirty"]) == (40, False)
    (checkout / "figures" / "01_a.png").write_text("new")
    (checkout / "README.md").write_text("new")
    assert make_record()["dirty"] is False
    (checkout / "new.py").write_text("")
    assert make_record()["dirty"] is True
    (checkout / "new.py").unlink()
    (checkout / "code.py").write_text("a = 2\n")
    monkeypatch.setenv("GIT_DIR", str(checkout / "elsewhere"))  # as in a hook of another repository
    edited = make_record()
    assert (edited["commit"], edited["dirty"]) == (clean["commit"], True)


@pytest.mark.parametrize("place", ["no checkout", "inside another checkout", "no git"])
def test_the_commit_is_null_where_there_is_none_of_ours(checkout, tmp_path, monkeypatch, place):
    assert make_record()["commit"]
    if place == "no git":
        monkeypatch.setenv("PATH", str(checkout))
    else:
        monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
        monkeypatch.setenv("ZSPAG_ROOT", str(tmp_path if place == "no checkout" else checkout / "figures"))
    assert (make_record()["commit"], make_record()["dirty"]) == (None, None)


def test_digest_sees_every_value():  # that it ignores order is its doctest
    values = [{"a": 1}, {"a": 1.0}, {"a": "1"}, {"a": True}, {"a": None}, {"b": 1}, {"a": [1]}, {"a": {"a": 1}}]
    assert len({digest(value) for value in values}) == len(values)


@pytest.mark.parametrize(("value", "error"), [(float("nan"), ValueError), ({"path": Path("a")}, TypeError)])
def test_digest_refuses_what_json_cannot_say(value, error):
    with pytest.raises(error, match="not JSON"):
        digest(value)


SOURCE = '''"""Doc."""
def double(x):
    """Twice."""
    return 2 * x  # reason
class Empty:
    """Nothing."""
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A function that writes the source of a module and returns its hash."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(source):
        (tmp_path / "hashed_module.py").write_text(source)
        return code_hash(["hashed_module"])

    return write


def test_code_hash_ignores_comments_docstrings_and_layout(module):
    before = module(SOURCE)
    other = SOURCE.replace("Twice.", "Two times.").replace("reason", "because").replace("2 * x", "(2*x)")
    assert module(other) == before
    assert module(SOURCE.replace('    """Twice."""\n', "")) == before


@pytest.mark.parametrize(
    ("old", "new"), [("2 * x", "3 * x"), ("double", "twice"), ("def ", "async def "), ("2 * x", "'x'")]
)
def test_code_hash_sees_every_change_of_code(module, old, new):
    before = module(SOURCE)
    assert module(SOURCE.replace(old, new)) != before
    assert module("def f():\n    return 'a'\n") != module("def f():\n    return 'b'\n")  # a string, but no docstring


def test_code_hash_does_not_depend_on_order_and_names_what_has_no_source():
    both = ["zspag.report.files", "zspag.config"]
    assert code_hash(both) == code_hash([*reversed(both), *both]) != code_hash(both[:1])
    for name in ("zspag.absent", "math"):
        with pytest.raises(ValueError, match=f"{name} is not a module with source code"):
            code_hash([name])


def test_closure_holds_what_is_imported_however_it_is_written_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "closed_package"
    (folder / "inner").mkdir(parents=True)
    sources = {
        "__init__": "from closed_package import unused",
        "start": "import math\nfrom closed_package import late\nfrom closed_package.inner import deep",
        "late": "def f():\n    import closed_package.later",
        "later": "from closed_package.late import f",  # a circle
        "inner/__init__": "",
        "inner/deep": "x = 1",
        "unused": "x = 1",
    }
    for name, source in sources.items():
        (folder / f"{name}.py").write_text(source)
    start = ["closed_package.start"]
    names = ["inner", "inner.deep", "late", "later", "start"]
    assert import_closure(start) == [f"closed_package.{name}" for name in names]
    fewer = [f"closed_package.{name}" for name in names if name not in ("late", "later")]
    assert import_closure(start, without=["closed_package.late"]) == fewer
    moved = {}
    for name in ("unused", "inner/deep", "later"):
        before = closure_hash(start)
        (folder / f"{name}.py").write_text(sources[name] + "\ny = 2")
        moved[name] = closure_hash(start) != before
    assert moved == {"unused": False, "inner/deep": True, "later": True}


KINDS = ("a.json", "a.png", "a.ipynb", "a.safetensors")


def write(path, found):
    if path.suffix == ".json":
        write_json(path, {"numbers": {}, "provenance": found})
    elif path.suffix == ".ipynb":
        write_json(path, {"cells": [], "metadata": {"zspag": {"provenance": found}}})
    elif path.suffix == ".safetensors":
        save(path, {"weight": torch.ones(3)}, found)
    else:
        chunks = PngInfo()
        chunks.add_text("zspag", provenance.png_metadata(found)["zspag"])
        Image.effect_noise((64, 64), 50).save(path, pnginfo=chunks)


@pytest.mark.parametrize("name", KINDS)
def test_the_record_comes_back_from_every_kind_of_file(tmp_path, name):
    found = make_record(config={"title": "Größe ≤ 1"})
    write(tmp_path / name, found)
    assert read_record(tmp_path / name) == read_record(str(tmp_path / name)) == found


@pytest.mark.parametrize("packed", [False, True])
def test_an_international_text_chunk_is_read_too(tmp_path, packed):
    chunks = PngInfo()
    chunks.add_itxt("zspag", json.dumps({"config": "≤"}, ensure_ascii=False), zip=packed)
    Image.new("P", (4, 4)).save(tmp_path / "a.png", pnginfo=chunks)
    assert read_record(tmp_path / "a.png") == {"config": "≤"}


def test_a_file_without_a_record_is_named(tmp_path):
    others = {"b.json": [1], "c.json": {"provenance": "none"}, "a.ipynb": {"cells": [], "metadata": {}}, "a.svg": None}
    for name, content in {"a.json": {"numbers": {}}, **others}.items():
        write_json(tmp_path / name, content)
    Image.new("P", (4, 4)).save(tmp_path / "a.png")
    for path in tmp_path.iterdir():
        with pytest.raises(ValueError, match=f"{path.name} carries no provenance"):
            read_record(path)


@pytest.mark.parametrize("name", KINDS)
def test_a_file_that_is_missing_cut_short_or_of_another_kind_is_named(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(FileNotFoundError):
        read_record(path)
    write(path, make_record())
    for content in (path.read_bytes()[:60], path.read_bytes()[:-30], b"<html>", b"\xff" * 8 + b"{}"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} is (damaged|not (readable|a whole))"):
            read_record(path)


def test_describe_says_all_that_the_record_holds_and_leaves_out_the_rest():
    text = describe(make_record() | {"commit": "c0ffee", "dirty": True})
    for word in ("c0ffee with uncommitted changes", "abab", f"torch {TORCH}", '"lr": 0.1', "+00:00"):
        assert word in text
    assert "uncommitted" not in describe(make_record() | {"commit": "c0ffee", "dirty": False})
    assert describe({}).splitlines() == ["code          not from a checkout", "{}"]
