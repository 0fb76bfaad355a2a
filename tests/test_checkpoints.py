"""What was saved comes back bit for bit, or the damage is named; a killed writer leaves the old checkpoint whole."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from zspag.lab import checkpoints
from zspag.lab.checkpoints import CorruptCheckpoint, Store, load, save
from zspag.report.provenance import read_record, safetensors_metadata

RECORD = {"commit": None, "config": {"lr": 0.1}, "seed": 3}
KEY = {"seed": 0, "train": {"lr": 0.1, "epochs": 4}, "classes": [0, 2]}


def _tensors():
    return {
        "plain": torch.rand(5, 3, dtype=torch.float64),
        "filters": torch.rand(4, 3, 5, 2).contiguous(memory_format=torch.channels_last),
        "volume": torch.rand(2, 3, 4, 5, 6).contiguous(memory_format=torch.channels_last_3d),
        "one_channel": torch.rand(4, 1, 3, 3).contiguous(memory_format=torch.channels_last),
        "turned": torch.rand(7, 2).T,
        "slice": torch.rand(6, 4)[::2, 1:3],
        "expanded": torch.rand(3, 1).expand(3, 4),
        "count": torch.tensor(2**62 + 1),
        "mask": torch.tensor([True, False, True]),
        "half": torch.rand(3).to(torch.bfloat16),
        "empty": torch.zeros(0, 3),
        "odd": torch.tensor([float("nan"), -0.0, float("inf"), 1e-45]),
        "image": torch.arange(7, dtype=torch.uint8),
    }


def _bits(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8).tolist() if tensor.dim() else tensor.item()


def test_every_tensor_comes_back_bit_for_bit_with_its_strides(tmp_path):
    tensors = _tensors()
    save(tmp_path / "a.safetensors", tensors, RECORD)
    loaded, record = load(tmp_path / "a.safetensors")
    assert record == RECORD
    assert list(loaded) == list(tensors)
    for name, tensor in tensors.items():
        assert (loaded[name].dtype, loaded[name].shape) == (tensor.dtype, tensor.shape), name
        assert _bits(loaded[name]) == _bits(tensor), name
        if name not in ("slice", "expanded"):  # gaps and overlaps are not worth their bytes
            assert loaded[name].stride() == tensor.stride(), name
    assert loaded["filters"].is_contiguous(memory_format=torch.channels_last)
    assert not loaded["filters"].is_contiguous()
    assert loaded["volume"].is_contiguous(memory_format=torch.channels_last_3d)
    assert loaded["expanded"].is_contiguous()


def test_safetensors_alone_would_refuse_or_lose_what_we_keep(tmp_path):
    tied = torch.rand(3, 2)
    with pytest.raises(RuntimeError, match="share memory"):
        safetensors.torch.save_file({"a": tied, "b": tied}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="non contiguous"):
        safetensors.torch.save_file({"a": _tensors()["filters"]}, tmp_path / "a.safetensors")


def test_tied_tensors_stay_tied_and_equal_ones_stay_apart(tmp_path):
    tied = torch.rand(3, 2)
    twin = tied.clone()
    pair = torch.rand(6)
    save(tmp_path / "a.safetensors", {"b": tied, "a": tied, "twin": twin, "head": pair[:3], "tail": pair[3:]}, RECORD)
    loaded, _ = load(tmp_path / "a.safetensors")
    loaded["a"].zero_()
    assert loaded["b"].abs().sum() == 0
    assert torch.equal(loaded["twin"], twin)
    loaded["head"].zero_()
    assert torch.equal(loaded["tail"], pair[3:])


def test_a_tied_and_a_channels_last_model_survive_as_state_dicts(tmp_path):
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    model = model.to(memory_format=torch.channels_last)
    model[3].weight = model[2].weight
    save(tmp_path / "a.safetensors", model.state_dict(), RECORD)
    loaded, _ = load(tmp_path / "a.safetensors")
    assert loaded["2.weight"].data_ptr() == loaded["3.weight"].data_ptr()
    assert loaded["1.num_batches_tracked"].dtype == torch.int64
    image = torch.rand(4, 2, 6, 5)
    before = model.eval()(image)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    assert not torch.equal(model(image), before)
    model.load_state_dict(loaded)
    assert torch.equal(model(image), before)


def test_saving_neither_changes_nor_keeps_hold_of_the_tensors(tmp_path):
    weight = nn.Parameter(torch.rand(3, 2).T)
    before, stride = weight.detach().clone(), weight.stride()
    save(tmp_path / "a.safetensors", {"weight": weight}, RECORD)
    assert torch.equal(weight, before)
    assert weight.stride() == stride
    loaded, _ = load(tmp_path / "a.safetensors")
    assert not loaded["weight"].requires_grad
    loaded["weight"].zero_()
    assert torch.equal(load(tmp_path / "a.safetensors")[0]["weight"], before)


def test_the_same_contents_make_the_same_bytes_and_any_reader_of_the_format_can_read_them(tmp_path):
    tensors = _tensors()
    save(tmp_path / "a.safetensors", tensors, RECORD)
    save(tmp_path / "b.safetensors", dict(tensors), dict(reversed(RECORD.items())))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert torch.equal(safetensors.torch.load_file(tmp_path / "a.safetensors")["plain"], tensors["plain"])
    assert read_record(tmp_path / "a.safetensors") == RECORD


def test_a_flipped_bit_is_detected_wherever_it_is(tmp_path):
    path = tmp_path / "a.safetensors"
    save(path, {"weight": torch.rand(3, 2), "bias": torch.rand(3)}, RECORD)
    whole = path.read_bytes()
    load(path)
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(CorruptCheckpoint, match=r"a\.safetensors is damaged .*delete it and run again"):
            load(path)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_detected(tmp_path, share):
    path = tmp_path / "a.safetensors"
    save(path, {"weight": torch.rand(40, 20)}, RECORD)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CorruptCheckpoint, match=r"a\.safetensors is damaged .*delete it and run again"):
        load(path)


def test_a_foreign_safetensors_file_and_a_missing_one_are_named(tmp_path):
    safetensors.torch.save_file({"weight": torch.rand(3)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CorruptCheckpoint, match=r"foreign\.safetensors is damaged .KeyError while reading its header"):
        load(tmp_path / "foreign.safetensors")
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors"):
        load(tmp_path / "absent.safetensors")


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from zspag.lab.checkpoints import Store
def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(*{"write": (Path, "write_bytes"), "sync": (os, "fsync"), "rename": (Path, "replace")}[sys.argv[2]], die)
Store(sys.argv[1]).put("original", {"seed": int(sys.argv[3])}, {"weight": torch.ones(3, 2)}, {})
"""


@pytest.mark.parametrize("moment", ["write", "sync", "rename"])
def test_a_writer_killed_before_the_rename_leaves_the_old_checkpoint_and_no_half_of_a_new_one(tmp_path, moment):
    store = Store(tmp_path)
    store.put("original", {"seed": 0}, {"weight": torch.zeros(3, 2)}, RECORD)
    for seed in (0, 1) if moment == "rename" else (0,):
        command = [sys.executable, "-c", KILLED, str(tmp_path), moment, str(seed)]
        ended = subprocess.run(command, cwd=Path(checkpoints.__file__).parents[2], capture_output=True, check=False)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
    tensors, record = store.get("original", {"seed": 0})
    assert torch.equal(tensors["weight"], torch.zeros(3, 2))
    assert record == RECORD
    assert store.get("original", {"seed": 1}) is None
    assert any(path.name.startswith(".") for path in (tmp_path / "original").iterdir())  # the writer had begun
    assert "seed: 1 wanted, 0 stored" in store.explain("original", {"seed": 1})  # and its rest is no checkpoint


def test_the_store_finds_by_kind_and_key_whatever_the_order_of_the_key(tmp_path):
    store = Store(tmp_path / "runs")
    assert store.get("original", KEY) is None
    path = store.put("original", KEY, {"weight": torch.ones(2)}, RECORD)
    assert path == store.path("original", dict(reversed(KEY.items())))
    assert path.parent == tmp_path / "runs" / "original"
    tensors, record = store.get("original", KEY | {"classes": (0, 2)})
    assert torch.equal(tensors["weight"], torch.ones(2))
    assert record == RECORD == read_record(path)
    assert store.get("retrained", KEY) is None
    assert store.get("original", KEY | {"seed": 1}) is None


def test_a_damaged_checkpoint_in_the_store_is_no_miss(tmp_path):
    path = Store(tmp_path).put("original", KEY, {"weight": torch.ones(2)}, RECORD)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptCheckpoint, match="is damaged"):
        Store(tmp_path).get("original", KEY)


def test_explain_names_the_fields_of_the_nearest_key_with_both_values(tmp_path):
    store = Store(tmp_path)
    assert store.explain("original", KEY) == f"nothing of kind 'original' is stored in {tmp_path}"
    store.put("original", {"seed": 5, "train": {"lr": 0.3, "epochs": 9}, "classes": [1]}, {}, RECORD)
    store.put("original", KEY, {}, RECORD)
    near = {"seed": 0, "train": {"lr": 0.2, "epochs": 4}, "classes": [0, 2]}
    assert (
        store.explain("original", near) == "the nearest stored 'original' differs in train.lr: 0.2 wanted, 0.1 stored"
    )
    assert store.explain("original", KEY) == f"{store.path('original', KEY)} is stored"


def test_explain_names_absent_fields_and_lists_whole(tmp_path):
    store = Store(tmp_path)
    store.put("original", {"seed": 0, "classes": [0, 2], "old": 1}, {}, RECORD)
    text = store.explain("original", {"seed": 0, "classes": [0, 3], "new": "x"})
    assert "classes: [0,3] wanted, [0,2] stored" in text
    assert 'new: "x" wanted, absent stored' in text
    assert "old: absent wanted, 1 stored" in text


def test_explain_passes_over_damaged_and_foreign_files(tmp_path):
    store = Store(tmp_path)
    path = store.put("original", KEY, {}, RECORD)
    (path.parent / "cut.safetensors").write_bytes(path.read_bytes()[:5])
    (path.parent / "noise.safetensors").write_bytes(b"\xff" * 100)
    safetensors.torch.save_file({"weight": torch.rand(3)}, path.parent / "foreign.safetensors")
    assert "seed: 1 wanted, 0 stored" in store.explain("original", KEY | {"seed": 1})


def test_the_key_stands_in_the_header(tmp_path):
    path = Store(tmp_path).put("original", KEY, {"weight": torch.ones(2)}, RECORD)
    assert json.loads(safetensors_metadata(path)["key"]) == KEY
