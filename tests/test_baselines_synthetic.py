"""Noise images and sampled features: what they are made from, and what is fitted to them."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from laboratory import FORGET, changed_names, problem, small
from torch import nn
from torch.nn import functional as F

from zspag.config import UpdateConfig
from zspag.lab.methods import synthetic
from zspag.lab.methods.synthetic import (
    NOISE_PER_CLASS,
    class_statistics,
    features_of,
    head_logits,
    head_sampling,
    min_max_noise,
    optimized_noise,
    sampled_features,
)
from zspag.lab.models import build
from zspag.pseudo_labels import masked_log_probabilities
from zspag.runtime import generator_for, logits_of
from zspag.subspaces import second_moments

BRIEF = UpdateConfig(lr=0.01, epochs=1, settle=0)


def run(method, *, update=BRIEF, **changes):
    given = problem(**{"generator": generator_for("method")} | changes)
    (only,) = method(given, replace(small().config, update=update)).runs
    return only


# Noise images


def noise_losses(forget):
    """Return the loss of every class's noise before and after the search, two tensors (10, images per class)."""
    labels = torch.arange(10).repeat_interleave(7)
    start = torch.rand(70, 1, 8, 8, generator=generator_for("noise"))
    found = optimized_noise(small().model, start, labels, forget=forget)
    assert 0 <= found.min() <= found.max() <= 1
    assert not found.requires_grad
    return [F.cross_entropy(logits_of(small().model, x), labels, reduction="none").view(10, 7) for x in (start, found)]


def test_noise_of_the_forget_class_raises_its_loss_and_the_other_noise_lowers_it():
    before, after = noise_losses((FORGET,))
    rises = after.mean(1) > before.mean(1)
    assert rises.tolist() == [label == FORGET for label in range(10)]
    assert after[FORGET].min() > after[[label for label in range(10) if label != FORGET]].max()


def test_noise_of_a_class_that_is_kept_would_lower_its_loss():
    before, after = noise_losses(())
    assert (after.mean(1) < before.mean(1)).all()


def test_fine_tuning_sees_noise_alone_of_all_classes_alike_under_its_own_label(monkeypatch):
    made, fitted = [], []
    real_noise, real_loss = synthetic.optimized_noise, F.cross_entropy

    def noise(*args, **options):
        made.append((real_noise(*args, **options), args[2]))
        return made[-1][0]

    def loss(logits, labels, **options):
        fitted.append(labels)
        return real_loss(logits, labels, **options)

    monkeypatch.setattr(synthetic, "optimized_noise", noise)
    counts = []
    for _ in range(2):
        with monkeypatch.context() as patch:
            fitted.clear()
            patch.setattr(synthetic.F, "cross_entropy", loss)
            run(min_max_noise)
            counts.append(torch.cat(fitted[synthetic.NOISE_STEPS * 2 :]))  # 200 images are two chunks
    (images, labels), *_ = made
    assert labels.bincount().tolist() == [NOISE_PER_CLASS] * 10
    assert len(images) == 10 * NOISE_PER_CLASS
    assert len(counts[0]) == len(small().images)
    assert set(counts[0].tolist()) == set(range(10))
    assert torch.equal(*counts)


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


def test_statistics_of_classes_by_hand():
    features = torch.tensor([[1.0, 0.0], [3.0, 0.0], [5.0, 7.0]])
    means, residuals = class_statistics(features, torch.tensor([1, 1, 0]), num_classes=2)
    assert means.tolist() == [[5.0, 7.0], [2.0, 0.0]]
    assert residuals.tolist() == [[-1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]


def test_sampled_features_have_the_means_and_the_covariance_they_are_given():
    generator = generator_for("features")
    features = torch.randn(30, 4, generator=generator, dtype=torch.float64) @ torch.randn(
        4, 4, generator=generator, dtype=torch.float64
    )
    means, residuals = class_statistics(features, torch.arange(30) % 3, num_classes=3)
    drawn = sampled_features(means, residuals, torch.full((40000,), 2), generator=generator)
    expected = residuals.T @ residuals / 30
    torch.testing.assert_close(drawn.mean(0), means[2], atol=0.05, rtol=0)
    torch.testing.assert_close(drawn.T.cov(), expected, atol=0.03 * expected.abs().max().item(), rtol=0)
    assert not torch.allclose(drawn.mean(0), means[0], atol=0.05)
    assert not torch.allclose(expected, torch.eye(4, dtype=torch.float64) * expected.diag().mean(), atol=0.1)


def test_head_sampling_touches_the_head_alone():
    head = list(small().model.named_modules())[-1][0]
    moved = changed_names(small().model, run(head_sampling).model)
    assert moved == {f"{head}.weight", f"{head}.bias"}


def test_features_follow_forget_samples_and_proxies_and_labels_the_masked_head(monkeypatch):
    case, head = small(), small().statistics.names[-1]
    drawn, teachers = [], []
    real_features, real_loss = synthetic.sampled_features, synthetic.soft_cross_entropy

    def features(means, residuals, classes, **options):
        drawn.append((means, residuals, classes, real_features(means, residuals, classes, **options)))
        return drawn[-1][3]

    def loss(logits, labels):
        teachers.append(labels)
        return real_loss(logits, labels)

    monkeypatch.setattr(synthetic, "sampled_features", features)
    monkeypatch.setattr(synthetic, "soft_cross_entropy", loss)
    run(head_sampling)
    proxies = case.statistics.proxies
    means, residuals, classes, sample = drawn[0]
    assert len(residuals) == len(case.images) + len(proxies.images)
    torch.testing.assert_close(means[FORGET], features_of(case.model, case.images, head=head).mean(0))
    for label in set(range(10)) - {FORGET}:
        torch.testing.assert_close(means[label], features_of(case.model, proxies.of_class(label), head=head).mean(0))
    half = len(classes) // 2
    assert set(classes[:half].tolist()) == {FORGET}
    assert {label for one in drawn for label in one[2][half:].tolist()} == set(range(10)) - {FORGET}
    expected = masked_log_probabilities(head_logits(case.model, sample, head=head), forget=(FORGET,)).exp()
    torch.testing.assert_close(teachers[0], expected)
    assert teachers[0][:, FORGET].abs().max() == 0


def test_head_that_does_not_give_the_logits_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Softmax(1))
    given = problem(model=model, statistics=SimpleNamespace(names=("1.weight",)))
    with pytest.raises(ValueError, match=r"the last layer, 1.weight, has 12 outputs instead of 10 logits"):
        head_sampling(given, small().config)
