"""Relearning: the curve is that of a plain loop, stops where it should, and tells suppression from absence."""

import copy

import pytest
import torch
from torch import nn

from tests.laboratory import FORGET, changed_names, small
from zspag.lab import relearning
from zspag.lab.evaluation import Masked
from zspag.lab.models import build
from zspag.lab.relearning import relearning_curve, steps_until

LR = 0.0002


def curve_of(model, *, level=1.1, most_steps=14, lr=LR):
    made = small()
    return relearning_curve(
        model, made.images[:40], made.labels[:40], judged_images=made.images[40:], judged_labels=made.labels[40:],
        level=level, lr=lr, most_steps=most_steps, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip


def masked():
    return Masked(small().model, forget=(FORGET,), num_classes=10)


def test_the_curve_is_that_of_a_plain_loop(monkeypatch):
    monkeypatch.setattr(relearning, "BATCH", 16)  # 40 images: batches of 14, 13 and 13, and a second epoch
    made, model = small(), copy.deepcopy(masked()).eval()
    generator, velocity = torch.Generator().manual_seed(0), [torch.zeros_like(p) for p in model.parameters()]
    slow, batches = [], []
    for _ in range(5):
        batches += torch.randperm(40, generator=generator).tensor_split(3)
    for batch in [None, *batches[:14]]:
        if batch is not None:
            loss = nn.functional.cross_entropy(model(made.images[:40][batch]), made.labels[:40][batch])
            for parameter, moment, gradient in zip(
                model.parameters(), velocity, torch.autograd.grad(loss, list(model.parameters())), strict=True
            ):
                moment.mul_(relearning.MOMENTUM).add_(gradient)
                parameter.data -= LR * moment
        slow.append((model(made.images[40:]).argmax(1) == FORGET).double().mean().item())
    assert curve_of(masked()) == slow
    assert len(set(slow)) > 2  # a curve that never moves would prove nothing
    assert curve_of(masked(), lr=2 * LR) != slow


def test_it_stops_at_the_level_and_gives_up_at_the_cap():
    whole = curve_of(masked(), most_steps=40, lr=0.0005)
    level = whole[-1] / 2
    stopped = curve_of(masked(), most_steps=40, lr=0.0005, level=level)
    assert stopped == whole[: len(stopped)]
    assert max(stopped[:-1]) < level <= stopped[-1]
    assert steps_until(stopped, level, most_steps=40) == len(stopped) - 1 < 40
    assert steps_until(whole, 1.1, most_steps=40) == 40
    assert len(whole) == 41


def test_what_was_only_masked_comes_back_before_what_was_never_learned():
    stranger = build("digits", num_classes=10, in_channels=1, image_size=8, width=8, mean=[0.3], std=[0.4], seed=5)
    suppressed, absent = (curve_of(net, level=0.5, most_steps=200) for net in (masked(), stranger))
    assert curve_of(small().model, level=0.5) == [pytest.approx(curve_of(small().model, most_steps=0)[0])]
    assert 1 < len(suppressed) < len(absent)


def test_the_model_is_left_alone():
    model = copy.deepcopy(masked()).train()  # a copy: other tests share what is masked
    before, flags = copy.deepcopy(model), [p.requires_grad_(False) for p in model.model[1].parameters()]
    curve_of(model)
    assert changed_names(before, model) == set()
    assert not any(p.requires_grad for p in flags)
    assert all(part.training for part in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_a_ruined_model_recognizes_nothing_and_is_not_trained_on():
    model = copy.deepcopy(small().model)
    with torch.no_grad():
        model[-1].bias.fill_(float("nan"))
    made = small()
    curve = relearning_curve(
        model, made.images, torch.zeros_like(made.labels), judged_images=made.images,
        judged_labels=torch.zeros_like(made.labels),  # the argmax of NaN is class 0
        level=0.5, lr=LR, most_steps=7, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert curve == [0.0]
