"""What the cache holds is made once; what was changed afterwards is refused; the code that made it is in its key."""

from dataclasses import replace

import pytest
import torch
from laboratory import TINY

from zspag.lab import cache, checkpoints
from zspag.report import files, provenance


def made(started):
    return {"started": started, "config": {"lr": 0.1}}


def test_tensors_are_made_once_and_carry_their_record(tmp_path):
    path, calls = tmp_path / "kind" / "a.safetensors", []

    def make():
        calls.append(1)
        return {"weight": torch.arange(6.0).reshape(2, 3).T}, {"history": [1, 2]}

    (first, record), (second, again) = (cache.kept_tensors(path, make, made=made) for _ in range(2))
    assert len(calls) == 1
    assert torch.equal(first["weight"], second["weight"])
    assert first["weight"].stride() == second["weight"].stride() == (1, 3)
    assert record == again == provenance.read_record(path)
    assert (record["history"], record["config"]) == ([1, 2], {"lr": 0.1})


def test_damaged_tensors_are_no_miss(tmp_path):
    path = tmp_path / "a.safetensors"
    cache.kept_tensors(path, lambda: ({"weight": torch.ones(2)}, {}), made=made)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(checkpoints.CorruptCheckpoint, match="is damaged"):
        cache.kept_tensors(path, lambda: pytest.fail("made again"), made=made)


def test_rows_are_made_once_and_a_changed_row_is_refused(tmp_path):
    path = tmp_path / "rows.json"
    rows = [{"method": "delete", "drift": 0.1}]
    assert cache.kept_rows(path, lambda: iter(rows), made=made) == rows
    assert cache.kept_rows(path, lambda: pytest.fail("made again"), made=made) == rows
    assert files.read_json(path)["schema"] == 2
    path.write_text(path.read_text().replace("0.1", "0.2", 1))
    with pytest.raises(ValueError, match=r"rows\.json was changed after it was written"):
        cache.read_rows(path)


def test_what_fails_leaves_no_file(tmp_path):
    def fail():
        raise ArithmeticError("out of luck")

    for keep in (cache.kept_rows, cache.kept_tensors):
        with pytest.raises(ArithmeticError, match="out of luck"):
            keep(tmp_path / "a.json", fail, made=made)
    assert not list(tmp_path.iterdir())


def test_place_follows_from_kind_and_key_whatever_the_order_of_the_key():
    key = {"seed": 0, "classes": [0, 2]}
    path = cache.tensors_path(TINY, "original", key)
    assert path == cache.tensors_path(TINY, "original", {"classes": (0, 2), "seed": 0})
    assert path.parts[-4:-1] == ("tiny", "checkpoints", "original")
    others = [
        (TINY, "retrained", key),
        (TINY, "original", key | {"seed": 1}),
        (replace(TINY, name="b"), "original", key),
    ]
    assert path not in [cache.tensors_path(*other) for other in others]
