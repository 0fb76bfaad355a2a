"""The record is complete and can be read back from every kind of file; its hashes see what matters and no more."""

import json
import os
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch

from zspag.lab.checkpoints import save
from zspag.report import provenance
from zspag.report.files import write_json
from zspag.report.provenance import code_hash, describe, digest, png_metadata, read_header, read_record, record

TORCH = torch.__version__.split("+")[0]  # the build, such as +cpu, is not in every wheel's metadata


def _record(**changes):
    known = {
        "config": {"lr": 0.1, "ladder": (1, 3)},
        "seed": 7,
        "data_sha256": "ab" * 32,
        "device": "cpu",
        "threads": 1,
    }
    return record(**(known | {"started": time.time() - 5} | changes))


def _git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.example", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    root = tmp_path / "check out"
    (root / "figures").mkdir(parents=True)
    (root / "code.py").write_text("a = 1\n")
    (root / "figures" / "01_a.png").write_text("old")
    _git(tmp_path, "init", "-q", str(root))
    _git(root, "add", ".")
    _git(root, "commit", "-q", "-m", "first")
    monkeypatch.setenv("ZSPAG_ROOT", str(root))
    return root


def test_a_record_says_what_made_it_from_what_when_and_on_what():
    found = _record()
    assert found["config"] == {"lr": 0.1, "ladder": [1, 3]}
    assert found["config_sha256"] == digest(found["config"])
    assert (found["seed"], found["data_sha256"], found["device"], found["threads"]) == (7, "ab" * 32, "cpu", 1)
    assert found["versions"]["torch"] == TORCH
    assert found["versions"]["python"] == sys.version.split()[0]
    assert found["started"].endswith("+00:00")
    assert 5 <= found["seconds"] < 60
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_record_names_nothing_of_the_machine_but_its_kind():
    found = _record()
    assert set(found["platform"]) == {"system", "machine"}
    assert str(Path.home()) not in json.dumps(found)
    assert os.uname().nodename not in json.dumps(found)


def test_a_clean_checkout_and_an_edited_one(checkout):
    clean = _record()
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    (checkout / "code.py").write_text("a = 2\n")
    edited = _record()
    assert edited["dirty"] is True
    assert edited["commit"] == clean["commit"]


def test_what_a_run_itself_rewrites_does_not_count_as_an_edit(checkout):
    (checkout / "figures" / "01_a.png").write_text("new")
    (checkout / "README.md").write_text("new")
    assert _record()["dirty"] is False
    (checkout / "new.py").write_text("")  # a new file of code does
    assert _record()["dirty"] is True


def test_a_git_hook_of_another_repository_does_not_change_the_answer(checkout, monkeypatch):
    before = _record()["commit"]
    monkeypatch.setenv("GIT_DIR", str(checkout / "elsewhere"))
    assert _record()["commit"] == before


def test_outside_a_checkout_the_commit_is_null(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSPAG_ROOT", str(tmp_path))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert (_record()["commit"], _record()["dirty"]) == (None, None)


def test_installed_inside_another_checkout_its_commit_is_not_ours(checkout, monkeypatch):
    monkeypatch.setenv("ZSPAG_ROOT", str(checkout / "figures"))
    assert _record()["commit"] is None


def test_without_git_the_commit_is_null(checkout, monkeypatch):
    monkeypatch.setenv("PATH", str(checkout))
    assert (_record()["commit"], _record()["dirty"]) == (None, None)


def test_digest_ignores_order_and_sees_every_value():
    assert digest({"a": 1, "b": (2, 3)}) == digest({"b": [2, 3], "a": 1})
    values = [{"a": 1}, {"a": 1.0}, {"a": "1"}, {"a": True}, {"a": None}, {"b": 1}, {"a": [1]}, {"a": {"a": 1}}]
    assert len({digest(value) for value in values}) == len(values)


def test_digest_refuses_what_json_cannot_say():
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest(float("nan"))
    with pytest.raises(TypeError, match="not JSON serializable"):
        digest({"path": Path("a")})


SOURCE = '''"""Doc."""
def double(x):
    """Twice."""
    return 2 * x  # reason
class Empty:
    """Nothing."""
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "hashed_module.py"

    def write(source):
        path.write_text(source)
        return code_hash(["hashed_module"])

    return write


def test_code_hash_ignores_comments_docstrings_and_layout(module):
    before = module(SOURCE)
    assert (
        module(SOURCE.replace("Twice.", "Two times.").replace("reason", "because").replace("2 * x", "(2*x)")) == before
    )
    assert module(SOURCE.replace('    """Twice."""\n', "")) == before


@pytest.mark.parametrize(("old", "new"), [("2 * x", "3 * x"), ("double", "twice"), ("def ", "async def ")])
def test_code_hash_sees_every_change_of_code(module, old, new):
    before = module(SOURCE)
    assert module(SOURCE.replace(old, new)) != before


def test_code_hash_keeps_strings_that_are_no_docstrings(module):
    assert module("def f():\n    return 'a'\n") != module("def f():\n    return 'b'\n")


def test_code_hash_does_not_depend_on_order_and_names_what_has_no_source():
    assert code_hash(["zspag.report.files", "zspag.config"]) == code_hash(
        ["zspag.config", "zspag.report.files", "zspag.config"]
    )
    assert code_hash(["zspag.report.files"]) != code_hash(["zspag.config"])
    for name in ("zspag.absent", "math"):
        with pytest.raises(ValueError, match=f"{name} is not a module with source code"):
            code_hash([name])


def test_code_hash_of_a_package_sees_a_change_in_every_file_and_a_new_one(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "hashed_package"
    (folder / "inner").mkdir(parents=True)
    places = ["__init__.py", "first.py", "inner/__init__.py", "inner/second.py"]
    for place in places:
        (folder / place).write_text(SOURCE)

    found = [code_hash(["hashed_package"])]
    (folder / "notes.txt").write_text("no code")
    assert code_hash(["hashed_package"]) == found[0]
    for place in places:
        (folder / place).write_text(SOURCE.replace("2 * x", "3 * x"))
        found.append(code_hash(["hashed_package"]))
    (folder / "third.py").write_text(SOURCE)
    found.append(code_hash(["hashed_package"]))
    (folder / "third.py").rename(folder / "fourth.py")
    found.append(code_hash(["hashed_package"]))
    assert len(set(found)) == len(found) == 7


def _write(path, found):
    if path.suffix == ".json":
        write_json(path, {"numbers": {}, "provenance": found})
    elif path.suffix == ".ipynb":
        write_json(path, {"cells": [], "metadata": {"zspag": {"provenance": found}}})
    elif path.suffix == ".safetensors":
        save(path, {"weight": torch.ones(3)}, found)
    else:
        figure = plt.figure(figsize=(1, 1))
        figure.savefig(path, metadata=png_metadata(found))
        plt.close(figure)


@pytest.mark.parametrize("name", ["a.json", "a.png", "a.ipynb", "a.safetensors"])
def test_the_record_comes_back_from_every_kind_of_file(tmp_path, name):
    found = _record(config={"title": "Größe ≤ 1"})
    _write(tmp_path / name, found)
    assert read_record(tmp_path / name) == found
    assert read_record(str(tmp_path / name))["config"]["title"] == "Größe ≤ 1"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", {"numbers": {}}),
        ("b.json", [1]),
        ("c.json", {"provenance": "none"}),
        ("a.ipynb", {"cells": [], "metadata": {}}),
    ],
)
def test_a_file_without_a_record_is_named(tmp_path, name, content):
    write_json(tmp_path / name, content)
    with pytest.raises(ValueError, match=f"{name} carries no provenance"):
        read_record(tmp_path / name)


def test_a_figure_without_a_record_is_named(tmp_path):
    figure = plt.figure(figsize=(1, 1))
    figure.savefig(tmp_path / "plain.png")
    plt.close(figure)
    with pytest.raises(ValueError, match=r"plain\.png carries no provenance"):
        read_record(tmp_path / "plain.png")


def test_an_unknown_kind_of_file_and_a_missing_one_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"a\.svg is none of the files that carry provenance: \.ipynb, \.json, \.png"):
        read_record(tmp_path / "a.svg")
    with pytest.raises(FileNotFoundError, match=r"a\.json"):
        read_record(tmp_path / "a.json")


@pytest.mark.parametrize("name", ["a.json", "a.png", "a.ipynb", "a.safetensors"])
def test_a_file_cut_short_is_named(tmp_path, name):
    path = tmp_path / name
    _write(path, _record())
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=rf"{name} is (damaged|not readable)"):
        read_record(path)


def test_a_file_that_is_no_png_is_named(tmp_path):
    (tmp_path / "a.png").write_text("<html>")
    with pytest.raises(ValueError, match=r"a\.png is not a PNG file"):
        read_record(tmp_path / "a.png")


def test_a_header_longer_than_its_file_is_not_read(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(ValueError, match="ends within its header"):
        read_header(tmp_path / "a.safetensors")


@pytest.mark.parametrize("packed", [False, True])
def test_an_international_text_chunk_is_read_too(tmp_path, packed):
    text = json.dumps({"config": "≤"}, ensure_ascii=False).encode()
    body = b"zspag\0" + bytes([packed, 0]) + b"\0\0" + (zlib.compress(text) if packed else text)
    chunk = struct.pack(">I", len(body)) + b"iTXt" + body + struct.pack(">I", zlib.crc32(b"iTXt" + body))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
    assert read_record(tmp_path / "a.png") == {"config": "≤"}


def test_describe_says_all_that_the_record_holds_and_leaves_out_the_rest():
    text = describe(_record() | {"commit": "c0ffee", "dirty": True})
    for word in ("c0ffee with uncommitted changes", "abab", f"torch {TORCH}", '"lr": 0.1', "+00:00"):
        assert word in text
    assert "uncommitted" not in describe(_record() | {"commit": "c0ffee", "dirty": False})
    assert describe({}).splitlines() == ["code          not from a checkout", "{}"]


def test_reading_a_checkpoint_needs_neither_torch_nor_safetensors(tmp_path):
    _write(tmp_path / "a.safetensors", _record())
    program = (
        "import sys; from zspag.report.provenance import read_record; print(read_record(sys.argv[1])['seed']);"
        "assert not {'torch', 'safetensors', 'PIL', 'numpy'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "a.safetensors")]
    root = Path(provenance.__file__).parents[2]
    assert subprocess.run(command, check=True, capture_output=True, text=True, cwd=root).stdout == "7\n"
