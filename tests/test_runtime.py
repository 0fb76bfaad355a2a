"""Whatever the context managers change they restore, and the pool gives the same answers as a loop."""

import os

import pytest
import torch
from torch import nn

from zspag.process.surroundings import plain_layout
from zspag.runtime import (
    channels_last,
    chunks,
    copied,
    derive_seed,
    device_of,
    frozen,
    generator_for,
    logits_of,
    pick_device,
    plain_attention,
    pool_map,
    progress,
    threads,
)


def _net():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout()).train()
    model[1].eval()
    model[0].bias.requires_grad_(False)
    return model


def _modes(model):
    return [part.training for part in model]


def _required(model):
    return [parameter.requires_grad for parameter in model.parameters()]


def test_frozen_sends_gradients_to_the_input_only_and_restores_after_an_error():
    model, image = _net(), torch.rand(3, 1, 5, 4, requires_grad=True)
    before = _required(model)
    with pytest.raises(RuntimeError, match="inside"), frozen(model):
        assert {part.training for part in model.modules()} == {False}
        assert _required(model) == [False] * 4
        model(image).sum().backward()
        raise RuntimeError("inside")
    assert _required(model) == before == [True, False, True, True]
    assert _modes(model) == [True, False, True]
    assert _modes(model.eval().train()) == [True, True, True]  # the control: by hand the frozen norm is lost
    assert image.grad is not None
    assert all(parameter.grad is None for parameter in model.parameters())
    model(image).sum().backward()  # the control: outside they collect gradients
    assert model[0].weight.grad is not None


def _attention():
    layer = nn.MultiheadAttention(6, 2, batch_first=True).eval()
    tokens = torch.rand(3, 5, 6)
    return lambda x: layer(x, x, x, need_weights=False)[0], tokens, torch.rand(3, 5, 6)


def test_plain_attention_admits_forward_mode_and_gives_the_fused_answer():
    attend, tokens, tangent = _attention()
    with pytest.raises(NotImplementedError):
        torch.func.jvp(attend, (tokens,), (tangent,))
    with torch.no_grad():
        fused = attend(tokens)
    with plain_attention():
        plain, derivative = torch.func.jvp(attend, (tokens,), (tangent,))
    torch.testing.assert_close(plain, fused)
    step = 1e-2
    measured = (attend(tokens + step * tangent) - attend(tokens - step * tangent)) / (2 * step)
    torch.testing.assert_close(derivative, measured, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("before", [True, False])
def test_plain_attention_restores_both_switches_after_an_error(before):
    found = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(before)
    try:
        flash = torch.backends.cuda.flash_sdp_enabled()
        with pytest.raises(RuntimeError, match="inside"), plain_attention():
            assert not torch.backends.mha.get_fastpath_enabled()
            assert not torch.backends.cuda.flash_sdp_enabled()
            raise RuntimeError("inside")
        assert torch.backends.mha.get_fastpath_enabled() is before
        assert torch.backends.cuda.flash_sdp_enabled() is flash is True
    finally:
        torch.backends.mha.set_fastpath_enabled(found)


def test_threads_are_restored_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="inside"), threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise RuntimeError("inside")
    assert torch.get_num_threads() == before


def test_a_derived_seed_is_a_function_of_its_parts_alone():
    parts = [(0,), (1,), ("0",), (0, "proxies"), ("proxies", 0), (0, "labels"), (0, 0), ("0/0",)]
    seeds = [derive_seed(*part) for part in parts]
    assert len(set(seeds)) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, "proxies") == 5054623418944867765  # other processes, other days


def test_generators_repeat_and_differ_and_leave_the_global_one_alone():
    state = torch.random.get_rng_state()
    first, again, other = (torch.rand(5, generator=generator_for(0, name)) for name in ("a", "a", "b"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_devices():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert device_of(nn.Linear(2, 3, device="meta")) == torch.device("meta")
    assert device_of(nn.ReLU()) == torch.device("cpu")


@pytest.mark.parametrize("watched", [False, True])
def test_progress_passes_everything_on_and_is_silent_unwatched(capsys, monkeypatch, watched):
    monkeypatch.setenv("ZSPAG_PROGRESS", str(int(watched)))
    assert list(progress([3, 1, 2], title="grid")) == [3, 1, 2]
    assert ("grid" in capsys.readouterr().err) == watched


def _work(job):
    """Return where and how the job ran, and numbers whose bits depend on the thread count; job 2 fails."""
    if job == 2:
        raise ValueError(f"job {job} cannot work")
    data = torch.rand(200, 300, generator=generator_for(job))
    return os.getpid(), torch.get_num_threads(), data @ data.T


def _pooled(workers):
    return dict(pool_map(_work, range(5), workers=workers, threads_each=1, title="test"))


def test_two_workers_and_one_give_the_same_bits_and_an_error_stops_nobody():
    apart, here = _pooled(2), _pooled(1)
    assert set(apart) == set(here) == set(range(5))
    for answers in (apart, here):
        assert isinstance(answers[2], ValueError)
        assert str(answers[2]) == "job 2 cannot work"
    for job in (0, 1, 3, 4):
        assert apart[job][0] != os.getpid() == here[job][0]  # the pool is a pool, the loop is none
        assert apart[job][1] == here[job][1] == 1
        assert torch.equal(apart[job][2], here[job][2])


def test_the_pool_restores_the_threads_of_this_process():
    before = torch.get_num_threads()
    found = [answer[1] for _, answer in pool_map(_work, [0, 1], workers=1, threads_each=before + 1, title="test")]
    assert found == [before + 1, before + 1]
    assert torch.get_num_threads() == before


class OddError(Exception):
    """Cannot be unpickled: it is made from two parts, and an exception is made anew from its message alone."""

    def __init__(self, what, why):
        super().__init__(f"{what}, {why}")


def _refuse(job):
    if job == 1:
        raise OddError("no", "because")
    return job


def test_an_exception_that_cannot_be_unpickled_stops_nobody():
    answers = dict(pool_map(_refuse, range(4), workers=2, threads_each=1, title="test"))
    assert str(answers.pop(1)) == "OddError: no, because"
    assert answers == {0: 0, 2: 2, 3: 3}


def _die(job):
    if job == 1:
        os._exit(3)
    return job


@pytest.mark.slow
def test_a_worker_that_dies_ends_the_map_with_an_error_not_a_wait():
    answers = dict(pool_map(_die, [0, 1], workers=2, threads_each=1, title="test"))
    assert isinstance(answers[1], Exception)
    assert "terminated abruptly" in str(answers[1])


# One pass after another


def test_logits_do_not_depend_on_the_size_of_a_chunk_and_carry_no_graph(monkeypatch):
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Dropout(0.9)), torch.rand(11, 3, 2, 2)
    monkeypatch.setattr("zspag.runtime.CHUNK", 4)
    found = logits_of(model, images)
    torch.testing.assert_close(found, model[1](images.flatten(1)).detach())  # those of eval mode
    assert _modes(model) == [True, True, True]
    assert not found.requires_grad


def test_chunks_keep_tensors_side_by_side_and_lose_nothing(monkeypatch):
    monkeypatch.setattr("zspag.runtime.CHUNK", 4)
    images, labels = torch.arange(33.0).view(11, 3), torch.arange(11)
    parts = list(chunks(images, labels))
    assert [len(x) for x, _ in parts] == [4, 4, 3]
    assert all(torch.equal(x[:, 0], 3.0 * y) for x, y in parts)
    assert torch.equal(torch.cat([y for _, y in parts]), labels)
    with pytest.raises(ValueError, match="zip"):
        list(chunks(images, labels[:5]))


def test_a_copy_lies_channels_innermost_and_shares_nothing():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Conv3d(1, 2, 3))
    changed = copied(model)
    assert changed[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert model[0].weight.is_contiguous()
    with torch.no_grad():
        changed[0].weight.zero_()
    assert model[0].weight.all()


def test_images_of_one_channel_stay_channels_innermost_in_a_copy_alone():
    model, image = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)), torch.rand(2, 1, 8, 8)
    assert copied(model)(image).is_contiguous(memory_format=torch.channels_last)
    assert model(image.contiguous(memory_format=torch.channels_last)).is_contiguous()


def test_gray_images_lead_a_convolution_to_go_on_with_channels_innermost():
    images, layer = torch.rand(3, 1, 6, 5), torch.nn.Conv2d(1, 4, 3)
    laid = channels_last(images)
    assert torch.equal(laid, images)
    assert laid.data_ptr() == images.data_ptr()  # no copy: only the strides say it
    assert layer(laid).is_contiguous(memory_format=torch.channels_last)
    assert layer(laid[torch.tensor([2, 0])]).is_contiguous(memory_format=torch.channels_last)
    usual = images.contiguous(memory_format=torch.channels_last)  # torch's own way leaves gray images as they are
    assert not layer(usual).is_contiguous(memory_format=torch.channels_last)
    with plain_layout():
        assert layer(channels_last(images)).is_contiguous()
