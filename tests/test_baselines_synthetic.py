"""Noise images, sampled features and GKT: what they are made from, what passes the gate, and what is fitted."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from laboratory import FORGET, Fixed, problem, small
from test_baselines import assert_same_weights, go, losses
from torch import nn
from torch.nn import functional as F

from zspag.lab.methods import synthetic
from zspag.lab.methods.synthetic import (
    ATTENTION,
    CLIP,
    GATE,
    LATENT,
    NOISE_PER_CLASS,
    ROUNDS,
    STUDENT_STEPS,
    attention_maps,
    class_statistics,
    disagreement,
    divergence,
    features_of,
    fresh_student,
    gate,
    head_logits,
    head_sampling,
    image_maker,
    optimized_noise,
    sampled_features,
    step_,
    transfer_loss,
)
from zspag.lab.models import build
from zspag.pseudo_labels import masked_log_probabilities
from zspag.runtime import generator_for, logits_of, seed_of
from zspag.subspaces import second_moments

# Noise images


@pytest.mark.parametrize("forget", [(FORGET,), ()])
def test_noise_of_a_forget_class_raises_its_loss_and_the_other_noise_lowers_it(forget):
    labels = torch.arange(10).repeat_interleave(7)
    start = torch.rand(70, 1, 8, 8, generator=generator_for("noise"))
    found = optimized_noise(small().model, start, labels, forget=forget)
    before, after = (
        F.cross_entropy(logits_of(small().model, x), labels, reduction="none").view(10, 7) for x in (start, found)
    )
    assert 0 <= found.min() <= found.max() <= 1
    assert not found.requires_grad
    assert (after.mean(1) > before.mean(1)).tolist() == [label in forget for label in range(10)]
    if forget:
        assert after[FORGET].min() > after[[label for label in range(10) if label != FORGET]].max()


def test_fine_tuning_sees_noise_alone_of_all_classes_alike_under_its_own_label(monkeypatch):
    made, model = [], Fixed(torch.randn(60, 10, generator=generator_for("logits")))
    monkeypatch.setattr(
        synthetic, "optimized_noise", lambda _, start, labels, **__: made.append((start, labels)) or start
    )
    values = [loss(model, torch.arange(60)).item() for loss in losses(monkeypatch, "min_max_noise")]
    ((images, labels),), (seen, again) = made, model.seen
    drawn = (seen[:, None] == images[None]).flatten(2).all(2)
    assert labels.bincount().tolist() == [NOISE_PER_CLASS] * 10
    assert drawn.any(1).all()
    own = labels[drawn.double().argmax(1)]
    assert set(own.tolist()) == set(range(10))
    assert values == pytest.approx([F.cross_entropy(model.logits, own).item()] * 2)
    assert torch.equal(seen, again)  # the same at every rate


# Features in front of the head


@pytest.mark.parametrize("arch", ["digits", "allcnn", "vit"])
def test_head_gives_the_features_of_an_image_the_logits_of_the_model(arch):
    model = build(arch, num_classes=7, in_channels=1, image_size=8, width=16, seed=0).eval()
    with torch.no_grad():  # somewhere along a training: at the start, a transformer's head is 0
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator_for("training"))
    images = torch.rand(5, 1, 8, 8, generator=generator_for("images"))
    head = list(second_moments(model, images).second)[-1]
    features = features_of(model, images, head=head)
    assert features.dim() == 2
    torch.testing.assert_close(head_logits(model, features, head=head), logits_of(model, images), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(head_logits(model, features.flip(0), head=head), logits_of(model, images))


def test_sampled_features_have_the_means_and_the_covariance_they_are_given():
    generator = generator_for("features")
    features, mixing = (torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (30, 4))
    features = features @ mixing
    means, residuals = class_statistics(features, torch.arange(30) % 3, num_classes=3)
    torch.testing.assert_close(means[2], features[2::3].mean(0))
    torch.testing.assert_close(residuals[2::3], features[2::3] - means[2])
    drawn = sampled_features(means, residuals, torch.full((40000,), 2), generator=generator)
    expected = residuals.T @ residuals / 30
    torch.testing.assert_close(drawn.mean(0), means[2], atol=0.05, rtol=0)
    torch.testing.assert_close(drawn.T.cov(), expected, atol=0.03 * expected.abs().max().item(), rtol=0)
    assert not torch.allclose(drawn.mean(0), means[0], atol=0.05)
    assert not torch.allclose(expected, torch.eye(4, dtype=torch.float64) * expected.diag().mean(), atol=0.1)


def test_features_follow_forget_samples_and_proxies_and_labels_the_masked_head(monkeypatch):
    case, head, drawn = small(), small().statistics.names[-1], []

    def keep(means, residuals, classes, **options):
        drawn.append((means, residuals, classes, sampled_features(means, residuals, classes, **options)))
        return drawn[-1][3]

    loss, _ = losses(monkeypatch, "head_sampling")
    monkeypatch.setattr(synthetic, "sampled_features", keep)
    values = [loss(case.model, torch.arange(30)).item() for _ in range(2)]
    proxies = case.statistics.proxies
    means, residuals, classes, sample = drawn[0]
    assert len(residuals) == len(case.images) + len(proxies.images)
    torch.testing.assert_close(means[FORGET], features_of(case.model, case.images, head=head).mean(0))
    for label in set(range(10)) - {FORGET}:
        torch.testing.assert_close(means[label], features_of(case.model, proxies.of_class(label), head=head).mean(0))
    assert set(classes[:30].tolist()) == {FORGET}
    assert {label for one in drawn for label in one[2][30:].tolist()} == set(range(10)) - {FORGET}
    logits = head_logits(case.model, sample, head=head)
    labels = masked_log_probabilities(logits, forget=(FORGET,)).exp()
    assert values[0] == pytest.approx(-(labels * logits.log_softmax(1)).sum(1).mean().item())
    assert values[0] != values[1]


def test_head_that_does_not_give_the_logits_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Softmax(1))
    given = problem(model=model, statistics=SimpleNamespace(names=("1.weight",)))
    with pytest.raises(ValueError, match=r"the last layer, 1.weight, has 12 outputs instead of 10 logits"):
        head_sampling(given, small().config)


# Gated knowledge transfer


def transfer(images=None, **update):
    images = small().images if images is None else images
    (run,) = go("gkt", ladder=(update.pop("lr", 0.003),), update={"epochs": 1} | update, forget_images=images).runs
    return run


def logits_with_mass(*masses):
    """Return logits whose softmax is ``masses`` on the first classes, the rest on the last one."""
    return torch.tensor([*masses, 1 - sum(masses)], dtype=torch.float64).log()


class Answering(nn.Module):
    """A net whose answer to an image is written into its first pixels; it records what it sees."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale, self.seen = nn.Parameter(torch.tensor(scale, dtype=torch.float64)), []

    def forward(self, images):
        self.seen.append(images.detach())
        return self.scale * images.flatten(1)


def test_gate_drops_what_has_too_much_mass_on_the_forget_classes_taken_together():
    masses = [(0.0099, 0.5), (0.0101, 0.5), (0.006, 0.006), (0.5, 0.0001)]
    logits = torch.stack([logits_with_mass(*pair) for pair in masses])
    assert gate(logits, forget=(0,)).tolist() == [True, False, True, False]
    assert gate(logits, forget=(1,)).tolist() == [False, False, True, True]
    assert gate(logits, forget=(0, 1)).tolist() == [False, False, False, False]
    assert GATE == 0.01


def test_student_and_maker_see_only_what_passes_the_gate():
    kept, dropped = logits_with_mass(0.001, 0.2), logits_with_mass(0.3, 0.2)
    images = torch.stack([dropped, kept, kept + 1]).view(3, 1, 1, 3)
    teacher, student, other = Answering(), Answering(), Answering(3.0)
    assert transfer_loss(teacher, student, images, forget=(0,)).item() == pytest.approx(0, abs=1e-12)  # they agree
    assert len(teacher.seen[0]) == 3
    assert torch.equal(student.seen[0], images[1:])
    taught = images[1:].flatten(1)
    apart = disagreement(teacher, other, images, forget=(0,)).item()
    by_hand = taught.softmax(1) * (taught.log_softmax(1) - (3 * taught).log_softmax(1))  # KL from teacher to student
    assert apart == pytest.approx(-by_hand.sum().item() / 2)
    assert torch.equal(other.seen[0], images[1:])
    assert transfer_loss(teacher, student, images[:1], forget=(0,)) is None
    assert disagreement(teacher, student, images[:1], forget=(0,)) is None
    assert len(student.seen) == 1


def test_attention_map_is_the_mean_square_over_channels_at_unit_length():
    conv, images = nn.Conv2d(2, 3, 1, bias=False), torch.rand(4, 2, 5, 6)
    with attention_maps(nn.Sequential(conv, nn.ReLU())) as maps:
        conv(images)
    raw = conv(images).square().mean(1).flatten(1)
    torch.testing.assert_close(maps[0], raw / raw.norm(dim=1, keepdim=True))
    assert len(maps) == 1
    with pytest.raises(RuntimeError, match="channels"), attention_maps(conv):
        assert conv._forward_hooks
        conv(torch.rand(1, 5, 4, 4))
    assert not conv._forward_hooks


def test_loss_is_divergence_plus_weighted_attention():
    teacher = small().model
    student = fresh_student(teacher, generator=generator_for("student"))
    images = torch.rand(40, 1, 8, 8, generator=generator_for("images"))
    images = images[gate(teacher(images).detach(), forget=(FORGET,))]
    with attention_maps(teacher) as aims, attention_maps(student) as maps:
        taught, learned = teacher(images), student(images)
    apart = sum((a - b).square().mean() for a, b in zip(aims, maps, strict=True))
    found = transfer_loss(teacher, student, images, forget=(FORGET,))
    torch.testing.assert_close(found, divergence(taught, learned) + ATTENTION * apart)
    assert len(maps) == 3
    assert ATTENTION * apart > 0.01


def test_ten_steps_of_the_student_follow_each_of_the_maker(monkeypatch):
    turns = []

    def noted(name, real, *args, **options):
        turns.append(name)
        return real(*args, **options)

    for real in (disagreement, transfer_loss):
        monkeypatch.setattr(synthetic, real.__name__, partial(noted, real.__name__, real))
    assert len(transfer(epochs=2).history) == 2  # nothing is recognized from the start, and yet it goes on
    assert turns == (["disagreement"] + ["transfer_loss"] * STUDENT_STEPS) * ROUNDS * 2
    assert STUDENT_STEPS == 10


def test_nothing_moves_when_no_image_passes(monkeypatch):
    monkeypatch.setattr(synthetic, "gate", lambda logits, **_: torch.zeros(len(logits), dtype=torch.bool))
    only, seed = transfer(), seed_of(generator_for(0, "method"))
    student = fresh_student(small().model, generator=generator_for(seed, "student"))
    assert_same_weights(SimpleNamespace(model=student), only)
    assert only.history[0].loss == 0
    assert not only.diverged


def test_steps_are_clipped_and_an_infinite_loss_takes_none():
    weight = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    assert step_(optimizer, 1000 * weight[0] + 0.0) == [0.0]
    assert weight[0].item() == pytest.approx(-CLIP, rel=1e-4)
    assert step_(optimizer, weight.sum() * math.inf) == [-math.inf]
    assert torch.isfinite(weight).all()


def test_student_is_fresh_and_keeps_nothing_but_norm_statistics():
    model = small().model
    student = fresh_student(model, generator=generator_for("student"))
    for (name, old), new in zip(model.named_parameters(), student.parameters(), strict=True):
        assert not torch.equal(old, new)
        if old.numel() > 500:
            assert torch.corrcoef(torch.stack([old.flatten(), new.flatten()]))[0, 1].abs() < 0.15, name
            assert new.std().item() == pytest.approx(old.std().item(), rel=0.1)
    assert all(torch.equal(*pair) for pair in zip(model.buffers(), student.buffers(), strict=True))


def test_no_forget_image_is_trained_on():
    assert_same_weights(transfer(), transfer(images=1 - small().images))


@pytest.mark.slow
def test_gate_is_what_keeps_a_class_from_the_student(monkeypatch):
    """Class 0, which the maker does show; of many others the student learns nothing even without a gate."""
    case, ends = small(), {}
    own = case.retain_labels == 0
    monkeypatch.setattr(synthetic, "ROUNDS", 5)  # learns enough within three epochs
    forget = {"forget_images": case.retain_images[own], "forget_labels": case.retain_labels[own]}
    for threshold in (GATE, 1.1):
        monkeypatch.setattr(synthetic, "GATE", threshold)
        (run,) = go("gkt", ladder=(0.003,), update={"epochs": 3}, **forget).runs
        ends[threshold] = run.history[-1].forget_accuracy
    assert ends[GATE] < 0.05
    assert ends[1.1] > 0.8


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 7, 9), (2, 32, 32)])
def test_maker_gives_images_of_any_shape_in_range_and_leaves_the_global_stream(shape):
    before = torch.random.get_rng_state()
    maker = image_maker(shape, seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    images = maker(torch.randn(6, LATENT, generator=generator_for("latent")))
    assert images.shape == (6, *shape)
    assert 0 < images.min() < 0.3 < 0.7 < images.max() < 1
