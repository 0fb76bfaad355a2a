"""Gated knowledge transfer against its definition: the gate, the two players, and that no image of the data is used."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from laboratory import FORGET, problem, small
from torch import nn

from zspag.config import UpdateConfig
from zspag.lab.methods import gated
from zspag.lab.methods.gated import (
    ATTENTION,
    GATE,
    IMAGES,
    LATENT,
    ROUNDS,
    STUDENT_STEPS,
    attention_maps,
    divergence,
    fresh_student,
    gate,
    gkt,
    image_maker,
    transfer_loss,
)
from zspag.runtime import generator_for, seed_of


def run(images=None, **update):
    config = replace(small().config, update=UpdateConfig(**({"lr": 0.003, "epochs": 1} | update)))
    images = small().images if images is None else images
    return gkt(problem(forget_images=images, generator=generator_for("method"), statistics=None), config).runs


def logits_with_mass(*masses):
    """Return logits whose softmax is ``masses`` on the first classes, the rest on the last one."""
    return torch.tensor([*masses, 1 - sum(masses)], dtype=torch.float64).log()


class Answering(nn.Module):
    """A net whose answer to an image is written into its first pixels; it records what it sees."""

    def __init__(self, classes):
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.classes, self.seen = classes, []

    def forward(self, images):
        self.seen.append(images.detach())
        return self.scale * images.flatten(1)[:, : self.classes]


# The gate


def test_gate_drops_what_has_too_much_mass_on_the_forget_classes_taken_together():
    logits = torch.stack([
        logits_with_mass(0.0099, 0.5), logits_with_mass(0.0101, 0.5), logits_with_mass(0.006, 0.006),
        logits_with_mass(0.5, 0.0001),
    ])  # fmt: skip
    assert gate(logits, forget=(0,)).tolist() == [True, False, True, False]
    assert gate(logits, forget=(1,)).tolist() == [False, False, True, True]
    assert gate(logits, forget=(0, 1)).tolist() == [False, False, False, False]
    assert GATE == 0.01


def test_student_sees_only_what_passes_the_gate():
    kept, dropped = logits_with_mass(0.001, 0.2), logits_with_mass(0.3, 0.2)
    images = torch.stack([dropped, kept, kept + 1]).view(3, 1, 1, 3)
    teacher, student = Answering(3), Answering(3)
    loss = transfer_loss(teacher, student, images, forget=(0,))
    assert len(teacher.seen[0]) == 3
    assert torch.equal(student.seen[0], images[1:])
    assert loss.item() == pytest.approx(0, abs=1e-12)  # they agree, and there is no attention
    assert transfer_loss(teacher, student, images[:1], forget=(0,)) is None
    assert len(student.seen) == 1


def test_maker_is_judged_on_what_passes_the_gate_alone():
    images = torch.stack([logits_with_mass(0.3, 0.2), logits_with_mass(0.001, 0.2)]).view(2, 1, 1, 3)
    teacher, student = Answering(3), Answering(3)
    with torch.no_grad():
        student.scale.mul_(3)
    found = gated._disagreement(teacher, student, images, forget=(0,))
    taught = images[1:].flatten(1)
    assert found.item() == pytest.approx(-divergence(taught, 3 * taught).item())
    assert gated._disagreement(teacher, student, images[:1], forget=(0,)) is None


# The losses


def test_divergence_is_from_teacher_to_student():
    p, q = torch.tensor([0.7, 0.3], dtype=torch.float64), torch.tensor([0.2, 0.8], dtype=torch.float64)
    expected = 0.7 * math.log(0.7 / 0.2) + 0.3 * math.log(0.3 / 0.8)
    assert divergence(p.log()[None], q.log()[None]).item() == pytest.approx(expected)
    assert divergence(q.log()[None], p.log()[None]).item() != pytest.approx(expected)


def test_attention_map_is_the_mean_square_over_channels_at_unit_length():
    conv = nn.Conv2d(2, 3, 1, bias=False)
    images = torch.rand(4, 2, 5, 6)
    with attention_maps(nn.Sequential(conv, nn.ReLU())) as maps:
        nn.Sequential(conv)(images)
    raw = conv(images).square().mean(1).flatten(1)
    torch.testing.assert_close(maps[0], raw / raw.norm(dim=1, keepdim=True))
    assert len(maps) == 1
    assert not conv._forward_hooks


def test_hooks_are_gone_after_an_error():
    conv = nn.Conv2d(2, 3, 1)
    with pytest.raises(RuntimeError, match="channels"), attention_maps(conv):
        assert conv._forward_hooks
        conv(torch.rand(1, 5, 4, 4))
    assert not conv._forward_hooks


def test_loss_is_divergence_plus_weighted_attention():
    case = small()
    teacher, student = case.model, fresh_student(case.model, generator=generator_for("student"))
    images = torch.rand(40, 1, 8, 8, generator=generator_for("images"))
    images = images[gate(teacher(images).detach(), forget=(FORGET,))]
    with attention_maps(teacher) as aims:
        taught = teacher(images)
    with attention_maps(student) as maps:
        learned = student(images)
    apart = sum((a - b).square().mean() for a, b in zip(aims, maps, strict=True))
    found = transfer_loss(teacher, student, images, forget=(FORGET,))
    torch.testing.assert_close(found, divergence(taught, learned) + ATTENTION * apart)
    assert len(maps) == 3
    assert ATTENTION * apart > 0.01


# The players


def test_ten_steps_of_the_student_follow_each_of_the_maker(monkeypatch):
    turns = []
    real = {name: getattr(gated, name) for name in ("_disagreement", "transfer_loss")}
    for name in real:
        monkeypatch.setattr(
            gated, name, lambda *args, name=name, **options: turns.append(name) or real[name](*args, **options)
        )
    run(epochs=2)
    assert turns == (["_disagreement"] + ["transfer_loss"] * STUDENT_STEPS) * ROUNDS * 2
    assert STUDENT_STEPS == 10


def test_maker_learns_to_disagree_and_the_student_to_agree():
    case = small()
    teacher = copy.deepcopy(case.model).requires_grad_(False)
    student = fresh_student(case.model, generator=generator_for("student"))
    maker = image_maker((1, 8, 8), seed=0)
    latent = torch.randn(IMAGES, LATENT, generator=generator_for("latent"))
    adams = [torch.optim.Adam(part.parameters(), lr=3e-3) for part in (maker, student)]
    gaps = []
    for _ in range(10):
        gaps += gated._step_(adams[0], gated._disagreement(teacher, student, maker(latent), forget=(FORGET,)))
    assert -gaps[-1] > -gaps[0]
    images = maker(latent).detach()
    losses = []
    for _ in range(10):
        losses += gated._step_(adams[1], transfer_loss(teacher, student, images, forget=(FORGET,)))
    assert losses[-1] < 0.9 * losses[0]


def test_nothing_moves_when_no_image_passes(monkeypatch):
    monkeypatch.setattr(gated, "gate", lambda logits, **_: torch.zeros(len(logits), dtype=torch.bool))
    (only,) = run()
    seed = seed_of(generator_for("method"))
    student = fresh_student(small().model, generator=generator_for(seed, "student"))
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, only.model.state_dict()[name])
    assert only.history[0].loss == 0
    assert not only.diverged


def test_steps_are_clipped():
    weight = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    assert gated._step_(optimizer, 1000 * weight[0] + 0.0) == [0.0]
    assert weight[0].item() == pytest.approx(-gated.CLIP, rel=1e-4)
    assert gated._step_(optimizer, weight.sum() * math.inf) == [-math.inf]
    assert torch.isfinite(weight).all()


def test_student_is_fresh_and_keeps_nothing_but_norm_statistics():
    model = small().model
    student = fresh_student(model, generator=generator_for("student"))
    for (name, old), new in zip(model.named_parameters(), student.parameters(), strict=True):
        assert not torch.equal(old, new)
        if old.numel() > 500:
            similarity = torch.corrcoef(torch.stack([old.flatten(), new.flatten()]))[0, 1].abs()
            assert similarity < 0.15, name
            assert new.std().item() == pytest.approx(old.std().item(), rel=0.1)
    for old, new in zip(model.buffers(), student.buffers(), strict=True):
        assert torch.equal(old, new)


def test_no_forget_image_is_trained_on():
    images = small().images
    (own,), (other,) = run(), run(images=1 - images)
    for name, tensor in own.model.state_dict().items():
        assert torch.equal(tensor, other.model.state_dict()[name])


def test_gate_is_what_keeps_a_class_from_the_student(monkeypatch):
    """Class 0, which the maker does show; of many others the student learns nothing even without a gate."""
    case, ends = small(), {}
    own = case.retain_labels == 0
    monkeypatch.setattr(gated, "ROUNDS", 5)  # learns enough within three epochs
    for threshold in (GATE, 1.1):
        monkeypatch.setattr(gated, "GATE", threshold)
        config = replace(case.config, update=UpdateConfig(lr=0.003, epochs=3))
        given = problem(forget_images=case.retain_images[own], forget_labels=case.retain_labels[own], statistics=None)
        (only,) = gkt(given, config).runs
        ends[threshold] = only.history[-1].forget_accuracy
    assert ends[GATE] < 0.05
    assert ends[1.1] > 0.8


def test_student_learns_more_at_a_rate_that_is_not_tiny():
    tiny, useful = run(lr=1e-7)[0], run(lr=0.003)[0]
    assert len(run(epochs=2)[0].history) == 2  # nothing is recognized from the start, and yet it goes on
    assert useful.history[-1].loss < 0.8 * tiny.history[-1].loss


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 7, 9), (2, 32, 32)])
def test_maker_gives_images_of_any_shape_in_range_and_leaves_the_global_stream(shape):
    before = torch.random.get_rng_state()
    maker = image_maker(shape, seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    images = maker(torch.randn(6, LATENT, generator=generator_for("latent")))
    assert images.shape == (6, *shape)
    assert 0 < images.min() < 0.3 < 0.7 < images.max() < 1
