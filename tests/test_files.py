"""A file is whole or absent, whatever happens to its writer."""

import json
import math
import os
import stat

import numpy as np
import pytest
import torch

from zspag.report.files import (
    checkout_above,
    data_root,
    own_root,
    plain,
    read_json,
    replacing,
    repository_root,
    shown,
    write_json,
)


def test_the_old_file_stays_until_the_new_one_is_whole_and_a_failing_writer_leaves_no_rest(tmp_path):
    path = tmp_path / "deep" / "figure.png"
    for before, after in ((None, "first"), ("first", "second")):
        with replacing(path) as temporary:
            temporary.write_text(after)
            assert temporary.parent == path.parent  # a rename across file systems would not be atomic
            assert temporary.suffix == ".png"  # matplotlib and Pillow choose the format by it
            assert (path.read_text() if path.exists() else None) == before
        assert path.read_text() == after
    with pytest.raises(RuntimeError, match="no space left"), replacing(path) as temporary:
        temporary.write_text("ha")
        raise RuntimeError("no space left")
    assert path.read_text() == "second"
    assert os.listdir(path.parent) == ["figure.png"]


def test_files_are_for_everybody_that_the_umask_admits(tmp_path):
    before = os.umask(0o027)
    try:
        write_json(tmp_path / "result.json", {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "result.json").stat().st_mode) == 0o640


def test_json_of_every_shape_comes_back_equal(tmp_path):
    flat = ({}, [], 3, "Größe", None, [[]], [{}], {"a": []})
    for value in (*flat, {"numbers": [0.125, 1e-9], "none": None}, {"a": {"b": [1, [2, "x"], {"c": []}]}}):
        write_json(tmp_path / "a.json", value)
        assert read_json(tmp_path / "a.json") == value


def test_json_is_for_people_a_list_of_numbers_stands_on_one_line(tmp_path):
    write_json(tmp_path / "a.json", {"column": [1, None, "ö"], "both": [[1], {"deep": (2,)}]})
    lines = ["{", ' "column": [1, null, "ö"],', ' "both": [', "  [1],", "  {", '   "deep": [2]', "  }", " ]", "}"]
    assert (tmp_path / "a.json").read_text(encoding="utf-8").splitlines() == lines


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_json_refuses_nan_and_infinity_and_keeps_the_old_file(tmp_path, value):
    path = tmp_path / "a.json"
    write_json(path, [1.0])
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, [value])
    assert json.loads(path.read_text()) == [1.0]


@pytest.mark.parametrize("content", [b'{"half": ', b"\xff\xfe\x00"])
def test_a_damaged_json_file_is_named(tmp_path, content):
    path = tmp_path / "damaged.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged\.json is not readable as JSON .*delete it and run again"):
        read_json(path)


def test_numbers_of_every_library_become_plain_and_short():
    value = {
        "third": np.float32(1) / 3,
        "count": np.int64(7),
        "flag": np.bool_(True),
        "matrix": torch.tensor([[1, 2, 3]]),
        "loss": torch.tensor(2 / 3, requires_grad=True),
        3: (1234567.8, None, "word", False),
    }
    expected = {"third": 0.333333, "count": 7, "flag": True, "matrix": [[1, 2, 3]], "loss": 0.666667}
    found = plain(value, "data")
    assert found == expected | {"3": [1234570.0, None, "word", False]}
    assert json.loads(json.dumps(found)) == found
    assert (type(found["flag"]), type(found["count"])) == (bool, int)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ({"a": [0.5, float("nan")]}, ValueError, r"data\.a\[1\] is nan"),
        (np.array([1.0, np.inf]), ValueError, r"data\[1\] is inf"),
        ({"a": {"b": object()}}, TypeError, r"data\.a\.b is a object"),
        ({"a": {1, 2}}, TypeError, r"data\.a is a set"),
    ],
)
def test_what_json_cannot_hold_is_refused_with_its_path(value, error, message):
    with pytest.raises(error, match=message):
        plain(value, "data")


def test_the_root_is_the_checkout_unless_the_environment_names_another_or_there_is_none(monkeypatch, tmp_path):
    assert (repository_root() / "zspag" / "report" / "files.py").is_file()
    monkeypatch.setattr("zspag.report.files.checkout_above", lambda package: None)
    monkeypatch.chdir(tmp_path)
    assert (repository_root(), own_root()) == (tmp_path, None)
    monkeypatch.setenv("ZSPAG_ROOT", str(tmp_path / "named"))
    assert repository_root() == own_root() == tmp_path / "named"


def test_a_checkout_is_known_by_the_name_in_the_pyproject_above_the_package(tmp_path):
    for name in ("ours", "theirs", "site-packages"):
        (tmp_path / name).mkdir()
    (tmp_path / "ours" / "pyproject.toml").write_text('[project]\nname = "zspag"\n')
    (tmp_path / "theirs" / "pyproject.toml").write_text('[project]\nname = "other"\ndependencies = ["zspag"]\n')
    found = [checkout_above(tmp_path / name / "zspag") for name in ("ours", "theirs", "site-packages")]
    assert found == [tmp_path / "ours", None, None]


def test_a_path_is_shown_from_the_current_folder_or_as_it_is(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert shown(tmp_path / "runs" / "a.json") == shown("runs/a.json") == "runs/a.json"
    assert shown(tmp_path.parent / "a.json") == str(tmp_path.parent / "a.json")


def test_no_test_caches_data_sets_in_the_folder_of_the_user(monkeypatch):
    here = data_root()
    monkeypatch.delenv("ZSPAG_DATA")
    assert data_root() not in (here, *here.parents)
