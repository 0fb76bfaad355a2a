"""A probe finds what is there and nothing where there is nothing; undoing the last layer's change undoes only that."""

import copy

import pytest
import torch
from torch import nn

from tests import reference
from tests.laboratory import FORGET, small
from zspag.lab.audit.features import penultimate
from zspag.lab.audit.probes import Recall, linear_probe, logit_restored, mlp_probe, neighbour_probe, prototype_probe
from zspag.lab.data.sources import read_digits
from zspag.lab.evaluation import Masked, accuracy
from zspag.lab.models import build
from zspag.runtime import logits_of

CLASSES = (2, 5, 6, 9)
PENALTY = 0.01


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def cloud(counts, *, apart, d=6):
    """Gaussian classes around unit vectors, with scales that differ by dimension."""
    labels = torch.cat([torch.full((count,), label) for label, count in zip(CLASSES, counts, strict=True)])
    means = apart * torch.eye(d, dtype=torch.float64)[: len(CLASSES)]
    positions = torch.tensor([CLASSES.index(label) for label in labels.tolist()])
    return (means[positions] + randn(len(labels), d)) * torch.tensor([1.0, 2, 5, 0.1, 3, 1]) + 4, labels


def linear(*rows, forget=(5,), penalty=PENALTY):
    return linear_probe(*rows, forget=forget, penalty=penalty)


def prototype(*rows, forget=(5,)):
    return prototype_probe(*rows, forget=forget)


def neighbour(*rows, forget=(5,), neighbours=7):
    return neighbour_probe(*rows, forget=forget, neighbours=neighbours)


def mlp(*rows, forget=(5,), seed=0, **options):
    options = {"units": 16, "epochs": 40, "lr": 0.02, "draws": 2} | options
    return mlp_probe(*rows, forget=forget, generator=torch.Generator().manual_seed(seed), **options)


PROBES = pytest.mark.parametrize("probe", [linear, prototype, neighbour, mlp])


# ---- Probes


@PROBES
def test_a_separable_class_is_found_and_one_with_shuffled_labels_is_not(probe):
    train, train_labels = cloud((60, 80, 70, 50), apart=9)
    test, test_labels = cloud((40, 30, 50, 20), apart=9)
    found = probe(train, train_labels, test, test_labels)
    assert found.forget > 0.95
    assert found.retain > 0.9
    lost = probe(train, train_labels[torch.randperm(260)], test, test_labels[torch.randperm(140)])
    assert (lost.forget + 3 * lost.retain) / 4 == pytest.approx(0.25, abs=0.12)  # whatever it answers


@PROBES
def test_a_class_that_coincides_with_another_is_lost_while_the_others_are_found(probe):
    train, train_labels = cloud((60, 60, 160, 60), apart=9)
    test, test_labels = cloud((30, 40, 50, 20), apart=9)
    for features, labels in ((train, train_labels), (test, test_labels)):
        features[labels == 5] = features[labels == 6][: int((labels == 5).sum())] + 0.01 * randn(1, 6)
    result = probe(train, train_labels, test, test_labels)
    assert result.forget < 0.65
    assert result.retain > 0.75


def test_linear_probe_is_ridge_regression_on_standardized_features():
    train, train_labels = cloud((15, 20, 11, 17), apart=1.5)
    test, test_labels = cloud((40, 30, 50, 20), apart=1.5)
    mean, deviation = train.mean(0), train.std(0, correction=0)
    x, targets = (train - mean) / deviation, (train_labels[:, None] == torch.tensor(CLASSES)).double()
    second = x.T @ x / len(x) + PENALTY * torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(second, x.T @ targets / len(x))
    scores = (test - mean) / deviation @ weights + targets.mean(0)
    hit = torch.tensor(CLASSES)[scores.argmax(1)] == test_labels
    shares = {label: hit[test_labels == label].double().mean().item() for label in CLASSES}
    result = linear(train, train_labels, test, test_labels, forget=(9, 5))
    assert result.forget == pytest.approx((shares[9] + shares[5]) / 2)
    assert result.retain == pytest.approx((shares[2] + shares[6]) / 2)
    assert 0.2 < result.forget < 0.95
    assert result != linear(train, train_labels, test, test_labels, forget=(9, 5), penalty=100.0)


def test_prototype_probe_is_the_nearest_mean_found_one_by_one():
    (train, train_labels), (test, test_labels) = cloud((15, 20, 11, 17), apart=1.5), cloud((40, 30, 50, 20), apart=1.5)
    means = {label: train[train_labels == label].mean(0) for label in CLASSES}
    answers = torch.tensor([min(CLASSES, key=lambda label: (row - means[label]).norm()) for row in test])
    shares = {label: (answers[test_labels == label] == label).double().mean().item() for label in CLASSES}
    result = prototype_probe(train, train_labels, test, test_labels, forget=(6,))
    assert result == Recall(shares[6], pytest.approx((shares[2] + shares[5] + shares[9]) / 3))


def shell(count, *, d=3):
    """Two classes in the middle, side by side, and class 5 all around them: no plane cuts it off."""
    inside = 0.5 * randn(2 * count, d)
    labels = torch.where(inside[:, 0] > 0, 2, 9)
    around = randn(count, d)
    around = 4 * around / around.norm(dim=1, keepdim=True)
    return torch.cat([inside, around]), torch.cat([labels, torch.full((count,), 5)])


def test_nonlinear_probes_find_a_class_that_no_plane_cuts_off():
    rows = (*shell(150), *shell(100))
    assert linear(*rows).forget < 0.6
    for probe in (mlp, neighbour):
        found = probe(*rows)
        assert found.forget > 0.95
        assert found.retain > 0.8


def test_neighbour_probe_is_a_vote_counted_one_by_one():
    (train, train_labels), (test, test_labels) = cloud((15, 20, 11, 17), apart=1.5), cloud((40, 30, 50, 20), apart=1.5)
    mean, deviation = train.mean(0), train.std(0, correction=0)
    answers = []
    for row in (test - mean) / deviation:
        near = ((train - mean) / deviation - row).norm(dim=1).argsort()[:7]
        votes = train_labels[near].tolist()
        answers.append(max(CLASSES, key=votes.count))  # of as many votes the smaller label
    shares = {label: (torch.tensor(answers)[test_labels == label] == label).double().mean().item() for label in CLASSES}
    result = neighbour(train, train_labels, test, test_labels, forget=(6,))
    assert result == Recall(shares[6], pytest.approx((shares[2] + shares[5] + shares[9]) / 3))
    assert result != neighbour(train, train_labels, test, test_labels, forget=(6,), neighbours=1)
    everybody = neighbour(train, train_labels, test, test_labels, forget=(6,), neighbours=1000)
    assert (everybody.forget, everybody.retain) == (0.0, pytest.approx(1 / 3))  # always the most frequent class


def test_mlp_probe_averages_over_draws_and_hangs_on_the_generator_alone():
    rows = (*cloud((15, 20, 11, 17), apart=1.5), *cloud((40, 30, 50, 20), apart=1.5))
    generator = torch.Generator().manual_seed(3)
    options = {"forget": (5,), "units": 4, "epochs": 3, "lr": 0.02, "generator": generator}
    one, another = (mlp_probe(*rows, draws=1, **options) for _ in range(2))
    both = mlp(*rows, seed=3, units=4, epochs=3)
    assert one != another
    assert both == mlp(*rows, seed=3, units=4, epochs=3)
    assert both.forget == pytest.approx((one.forget + another.forget) / 2)
    assert both.retain == pytest.approx((one.retain + another.retain) / 2)


@pytest.mark.parametrize("level", [0.0, 0.3])
def test_a_unit_that_never_moved_in_training_says_nothing_however_it_moves_later(level):
    train, train_labels = cloud((60, 80, 70, 50), apart=9)
    test, test_labels = cloud((40, 30, 50, 20), apart=9)
    with_dead = torch.cat([train, torch.full((260, 1), level, dtype=torch.float64)], 1)
    moved = torch.cat([test, 50 * randn(140, 1)], 1)
    assert linear(with_dead, train_labels, moved, test_labels) == linear(train, train_labels, test, test_labels)
    with_dead[0, 6] += 1
    assert linear(with_dead, train_labels, moved, test_labels) != linear(train, train_labels, test, test_labels)
    found = linear(torch.full_like(train, level), train_labels, test, test_labels)
    assert (found.forget, found.retain) == (1.0, 0.0)  # of a whole layer: always the most frequent class


@PROBES
@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda x, y: (x, y, x, y[1:], (5,)), "18 test features come with 17 labels"),
        (lambda x, y: (x, y, x, y, (3,)), r"forget classes \[3\] and others, got \[2, 5, 6, 9\]"),
        (lambda x, y: (x, y, x, y, ()), r"forget classes \[\]"),
        (lambda x, y: (x, y, x[y == 5], y[y == 5], (5,)), r"and others, got \[5\]"),
        (lambda x, y: (x[y != 5], y[y != 5], x, y, (5,)), r"classes \[5\], of which there is no train image"),
        (lambda x, y: (x / 0, y, x, y, (5,)), "train features are not finite"),
    ],
)
def test_what_cannot_be_probed_is_said(probe, broken, message):
    *rows, forget = broken(*cloud((5, 4, 3, 6), apart=1))
    with pytest.raises(ValueError, match=message):
        probe(*rows, forget=forget)


@pytest.mark.parametrize("penalty", [0.0, float("nan")])
def test_a_penalty_that_penalizes_nothing_is_refused(penalty):
    train, labels = cloud((5, 4, 3, 6), apart=1)
    with pytest.raises(ValueError, match=f"got {penalty}"):
        linear(train, labels, train, labels, penalty=penalty)


@pytest.mark.parametrize("option", ["units", "epochs", "draws"])
def test_a_network_without_size_or_training_is_refused(option):
    rows = (*cloud((5, 4, 3, 6), apart=1), *cloud((5, 4, 3, 6), apart=1))
    with pytest.raises(ValueError, match=r"at least 1, got .*\b0\b"):
        mlp(*rows, **{option: 0})


def test_a_vote_without_voters_is_refused():
    rows = (*cloud((5, 4, 3, 6), apart=1), *cloud((5, 4, 3, 6), apart=1))
    with pytest.raises(ValueError, match="neighbours must be at least 1, got 0"):
        neighbour(*rows, neighbours=0)


# ---- The logit-restored test


def head_edited(model):
    """Return a copy that never answers ``FORGET``, and answers the others otherwise; its features are the old ones."""
    edited = copy.deepcopy(model)
    *_, head = (part for part in edited.modules() if isinstance(part, nn.Linear | nn.Conv2d))
    with torch.no_grad():
        head.weight[FORGET] = 0
        head.bias[FORGET] = -1e3
        head.weight[0] += 1
    return edited


def test_a_class_hidden_by_the_last_layer_is_found_by_probes_and_comes_back_exactly():
    lab, test = small(), read_digits().test
    images, edited = test.float(), head_edited(lab.model)
    of_class = test.labels == FORGET
    before, after = logits_of(lab.model, images), logits_of(edited, images)
    assert accuracy(before[of_class], test.labels[of_class]) > 0.5
    assert accuracy(after[of_class], test.labels[of_class]) == 0

    restored = logit_restored(lab.model, edited, images)
    assert torch.equal(logits_of(restored, images), before)

    seen, labels = torch.cat([lab.images, lab.retain_images[:400]]), torch.cat([lab.labels, lab.retain_labels[:400]])
    features = [(penultimate(net, seen), labels, penultimate(net, images)) for net in (lab.model, edited)]
    recalls = [linear(*rows, test.labels, forget=(FORGET,)) for rows in features]
    assert recalls[0] == recalls[1]
    assert recalls[0].forget > 0.5


def test_a_class_destroyed_before_the_last_layer_does_not_come_back():
    lab = small()
    ruined = head_edited(lab.model)
    *_, before_last, _ = (part for part in ruined.modules() if isinstance(part, nn.Linear | nn.Conv2d))
    with torch.no_grad():
        before_last.weight.normal_()
    restored = logit_restored(lab.model, ruined, lab.images)
    known = accuracy(logits_of(lab.model, lab.images), lab.labels)
    assert accuracy(logits_of(restored, lab.images), lab.labels) < known / 2


@pytest.mark.parametrize("arch", ["allcnn", "resnet18", "vit"])
def test_the_last_layer_of_every_kind_of_net_is_put_back(arch):
    original = build(arch, num_classes=7, in_channels=1, image_size=8, width=8, seed=0).eval()
    if arch == "vit":
        nn.init.normal_(original.heads.head.weight)  # torchvision begins at 0
    images, edited = torch.rand(9, 1, 8, 8), head_edited(original)
    restored = logit_restored(original, edited, images)
    assert not torch.allclose(logits_of(edited, images), logits_of(original, images))
    assert torch.equal(logits_of(restored, images), logits_of(original, images))


def test_restoring_a_masked_original_takes_its_shift_away():
    lab = small()
    masked = Masked(head_edited(lab.model), forget=(FORGET,), num_classes=10)
    for hidden in (masked, Masked(lab.model, forget=(FORGET,), num_classes=10)):
        restored = logit_restored(lab.model, hidden, lab.images)
        assert torch.equal(logits_of(restored, lab.images), logits_of(lab.model, lab.images))
        assert accuracy(logits_of(hidden, lab.images), lab.labels) == 0


def test_restoring_changes_neither_of_its_arguments_and_takes_nothing_but_the_last_layer():
    lab = small()
    original, unlearned = copy.deepcopy(lab.model), head_edited(lab.model).train()
    with torch.no_grad():
        for parameter in unlearned.parameters():
            parameter.grad = torch.ones_like(parameter)
    before = reference.state_of(original), reference.state_of(unlearned)
    restored = logit_restored(original, unlearned, lab.images)
    with torch.no_grad():
        for parameter in restored.parameters():
            parameter.zero_()  # shared memory would show
    reference.assert_same_state(before[0], reference.state_of(original))
    reference.assert_same_state(before[1], reference.state_of(unlearned))


def test_models_that_end_in_different_layers_are_refused():
    nets = [build("digits", num_classes=k, in_channels=1, image_size=8, width=8, seed=0) for k in (10, 11)]
    with pytest.raises(ValueError, match=r"unlearned model has .*\(11, 16\).*the original .*\(10, 16\)"):
        logit_restored(*nets, small().images)
