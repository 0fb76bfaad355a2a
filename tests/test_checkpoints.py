"""What was saved comes back bit for bit, or the damage is named; a killed writer leaves the old checkpoint whole."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from zspag.lab import checkpoints
from zspag.lab.checkpoints import CorruptCheckpoint, load, save
from zspag.report.provenance import read_record

RECORD = {"commit": None, "config": {"lr": 0.1}, "seed": 3}


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
    tied, pair = torch.rand(3, 2), torch.rand(6)
    twin = tied.clone()
    save(tmp_path / "a.safetensors", {"b": tied, "a": tied, "twin": twin, "head": pair[:3], "tail": pair[3:]}, RECORD)
    loaded, _ = load(tmp_path / "a.safetensors")
    loaded["a"].zero_()
    assert loaded["b"].abs().sum() == 0
    assert torch.equal(loaded["twin"], twin)
    loaded["head"].zero_()
    assert torch.equal(loaded["tail"], pair[3:])


def test_a_tied_and_channels_last_model_survives_and_is_left_alone(tmp_path):
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    model = model.to(memory_format=torch.channels_last)
    model[3].weight = model[2].weight
    image = torch.rand(4, 2, 6, 5)
    before = model.eval()(image)
    save(tmp_path / "a.safetensors", model.state_dict(), RECORD)
    assert torch.equal(model(image), before)
    loaded, _ = load(tmp_path / "a.safetensors")
    assert loaded["2.weight"].data_ptr() == loaded["3.weight"].data_ptr()
    assert loaded["1.num_batches_tracked"].dtype == torch.int64
    assert not any(tensor.requires_grad for tensor in loaded.values())
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    assert not torch.equal(model(image), before)
    model.load_state_dict(loaded)
    assert torch.equal(model(image), before)


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
    with pytest.raises(CorruptCheckpoint, match=r"a\.safetensors is damaged"):
        load(path)


def test_a_foreign_safetensors_file_and_a_missing_one_are_named(tmp_path):
    safetensors.torch.save_file({"weight": torch.rand(3)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CorruptCheckpoint, match=r"foreign\.safetensors is damaged .KeyError"):
        load(tmp_path / "foreign.safetensors")
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors"):
        load(tmp_path / "absent.safetensors")


def test_what_says_that_a_file_is_damaged_reaches_another_process(tmp_path):
    """An exception that cannot be unpickled would end a whole pool of workers."""
    (tmp_path / "a.safetensors").write_bytes(b"")
    with pytest.raises(CorruptCheckpoint) as caught:
        load(tmp_path / "a.safetensors")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from zspag.lab.checkpoints import save

def killed(place):
    setattr(*place, lambda *arguments: os.kill(os.getpid(), signal.SIGKILL))
    save(sys.argv[1], {"weight": torch.ones(3, 2)}, {})

for place in ((Path, "write_bytes"), (os, "fsync"), (Path, "replace")):
    if (child := os.fork()) == 0:
        killed(place)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL, place
"""


def test_a_writer_killed_before_the_rename_leaves_the_old_checkpoint_and_no_half_of_a_new_one(tmp_path):
    path = tmp_path / "a.safetensors"
    save(path, {"weight": torch.zeros(3, 2)}, RECORD)
    command = [sys.executable, "-c", KILLED, str(path)]
    ended = subprocess.run(command, cwd=Path(checkpoints.__file__).parents[2], capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr
    tensors, record = load(path)
    assert torch.equal(tensors["weight"], torch.zeros(3, 2))
    assert record == RECORD
    assert len([one for one in tmp_path.iterdir() if one.name.startswith(".")]) == 3  # the writers had begun
