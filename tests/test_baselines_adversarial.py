"""Boundary shrink, L2UL, AMUN and ARU: what the adversarial examples are, and what is done with them."""

import math

import pytest
import torch
from laboratory import FORGET, Fixed, small
from reference import assert_same_state, state_of
from test_baselines import losses, used_model
from torch import nn
from torch.nn import functional as F

from zspag.lab.methods import adversarial
from zspag.lab.methods.adversarial import (
    COPIES,
    FIRST_RADIUS,
    PENALTY,
    STAND_IN_RADIUS,
    TARGETED_RADIUS,
    boundary_labels,
    departure,
    nearest_adversarial,
    one_step_attack,
    opposed,
    sensitivity,
    smoothed_attack,
    targeted_copies,
    triplet,
)
from zspag.pseudo_labels import masked_log_probabilities
from zspag.runtime import generator_for, logits_of


def lengths(changes):
    return changes.flatten(1).norm(dim=1)


def linear(weight, bias, *, dtype=torch.float64):
    """A linear classifier of images with as many pixels as the weight has columns."""
    layer = nn.Linear(len(weight[0]), len(weight))
    layer.weight.data, layer.bias.data = torch.tensor(weight), torch.tensor(bias)
    return nn.Sequential(nn.Flatten(), layer).to(dtype)


def copies_of(model, *, forget=(FORGET,), stream="copies"):
    generator = generator_for(stream)
    return targeted_copies(model, small().images, num_classes=10, forget=forget, generator=generator)


def best_others():
    return masked_log_probabilities(logits_of(small().model, small().images), forget=(FORGET,)).argmax(1)


def stand_ins(model):
    return smoothed_attack(model, small().images, best_others(), generator=generator_for("attack"))


ATTACKS = {
    "boundary_shrink": lambda model: one_step_attack(model, small().images, small().labels, eps=0.1),
    "l2ul": lambda model: copies_of(model)[0],
    "amun": lambda model: nearest_adversarial(model, small().images, forget=(FORGET,))[0],
    "aru": stand_ins,
}


@pytest.mark.parametrize("attacked", ATTACKS.values(), ids=ATTACKS)
def test_an_attack_sees_frozen_norms_leaves_the_model_alone_and_stays_in_range(attacked):
    model = used_model()
    before = state_of(model)
    images = attacked(model)
    assert_same_state(before, state_of(model))
    assert torch.equal(images, attacked(small().model))
    assert 0 <= images.min() < images.max() <= 1
    assert not images.requires_grad


# Boundary shrink


def test_one_step_attack_is_a_signed_step_against_the_label_within_the_unit_box():
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    images, labels = torch.rand(5, 1, 2, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    x = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), labels), x)
    moved = one_step_attack(model, images, labels, eps=0.3)
    assert torch.equal(moved, (images + 0.3 * gradient.sign()).clamp(0, 1))
    assert not torch.equal(moved, images + 0.3 * gradient.sign())  # the box binds somewhere
    assert torch.equal(moved[:1], one_step_attack(model, images[:1], labels[:1], eps=0.3))


def test_label_is_that_of_the_attacked_image_not_the_second_best_of_the_clean_one():
    model = linear([[0.0], [0.0], [1.0]], [0.0, -0.05, -0.56])  # class 2 passes class 1 at .51 and class 0 at .56
    images = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
    assert model(images)[0].argsort(descending=True).tolist() == [0, 1, 2]
    assert boundary_labels(model, images, torch.tensor([0]), forget=(0,)).tolist() == [2]
    assert model(images + adversarial.ATTACK_RADIUS)[0].argmax() == 2


@pytest.mark.parametrize(("forget", "expected"), [((0,), 2), ((0, 2), 1)])
def test_label_never_lies_in_a_forget_class_even_where_the_attack_fails(forget, expected):
    model = linear([[0.0], [0.0], [1.0], [0.5]], [9.0, 1.0, 1.2, 0.0])
    images, labels = torch.rand(7, 1, 1, 1, dtype=torch.float64), torch.zeros(7, dtype=torch.long)
    attacked = one_step_attack(model, images, labels, eps=adversarial.ATTACK_RADIUS)
    assert (model(attacked).argmax(1) == 0).all()  # published code would train the class again
    assert boundary_labels(model, images, labels, forget=forget).tolist() == [expected] * 7


@pytest.mark.parametrize("name", ["boundary_shrink", "amun"])
def test_images_are_fitted_to_the_labels_from_across_the_boundary(name, monkeypatch):
    """Boundary shrink fits the clean images, AMUN the adversarial ones."""
    case, batch = small(), torch.tensor([9, 0, 3, 31])
    images, labels = nearest_adversarial(case.model, case.images, forget=(FORGET,))
    if name == "boundary_shrink":
        images, labels = case.images, boundary_labels(case.model, case.images, case.labels, forget=(FORGET,))
    model = Fixed(torch.randn(4, 10, generator=generator_for("logits")))
    values = [loss(model, batch).item() for loss in losses(monkeypatch, name)]
    expected = -model.logits.log_softmax(1)[range(4), labels[batch]].mean().item()
    assert values == pytest.approx([expected] * 2, rel=1e-6)
    assert torch.equal(model.seen[0], images[batch])
    assert torch.equal(images, case.images) == (name == "boundary_shrink")
    assert FORGET not in labels
    assert len(labels.unique()) > 2


# L2UL


@pytest.mark.parametrize("forget", [(FORGET,), (0, FORGET, 8)])
def test_copies_lie_within_the_radius_and_closer_to_their_targets_which_are_all_retained_classes(forget):
    case = small()
    images, targets = copies_of(case.model, forget=forget)
    assert images.shape == (COPIES, *case.images.shape)
    assert targets.shape == images.shape[:2]
    for moved, aim in zip(images, targets, strict=True):
        assert lengths(moved - case.images).max() <= TARGETED_RADIUS + 1e-5
        assert lengths(moved - case.images).min() > 0.1 * TARGETED_RADIUS
        before, after = (F.cross_entropy(logits_of(case.model, x), aim, reduction="none") for x in (case.images, moved))
        assert (after < before).double().mean() > 0.95
    assert set(targets.flatten().tolist()) == set(range(10)) - set(forget)
    assert not torch.equal(targets[0], targets[1])
    assert not torch.equal(targets, copies_of(small().model, forget=forget, stream="others")[1])


def test_both_losses_weigh_by_their_counts_and_a_forgotten_sample_stops_counting():
    logits = torch.randn(5, 4, generator=generator_for("logits"), dtype=torch.float64)
    logits[0, 2], logits[1, 2] = 3.0, -9.0  # cross-entropy below and above log 4
    model = Fixed(logits)
    images, moved = torch.zeros(2, 1), torch.ones(3, 1)
    value = opposed(model, images, torch.tensor([2, 2]), moved, torch.tensor([0, 1, 3]))
    each = -logits.log_softmax(1)
    climbed = (each[0, 2] + math.log(4)) / 2
    kept = (each[2, 0] + each[3, 1] + each[4, 3]) / 3
    assert each[0, 2] < math.log(4) < each[1, 2]
    assert value.item() == pytest.approx((-2 / 5 * climbed + 3 / 5 * kept).item())
    assert torch.equal(model.seen[0], torch.cat([images, moved]))
    (gradient,) = torch.autograd.grad(value, model.logits)
    assert gradient[0, 2] > 0  # descent lowers the forget logit
    assert gradient[1].abs().sum() == 0
    assert gradient[2, 0] < 0


def test_sensitivity_by_hand_does_not_let_samples_cancel():
    model = nn.Linear(2, 1, bias=False).double()
    model.weight.data = torch.tensor([[1.0, 3.0]], dtype=torch.float64)
    images = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    # the norm of a single logit is its size: the gradient is sign(w x) x = (1, 0), (-1, 1), (-1, 1), (1, 0),
    # of mean size (1, .5), scaled to (1, 0); the mean itself is (0, .5), so that samples that cancel would give (0, 1)
    assert sensitivity(model, images)["weight"].tolist() == [[1.0, 0.0]]
    (together,) = torch.autograd.grad(model(images).norm(dim=1).mean(), model.weight)
    assert together.abs()[0].tolist() == pytest.approx([0, 0.5])


def test_penalty_by_hand():
    model = nn.Linear(2, 2).double()
    model.weight.data = torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    model.bias.data.zero_()
    original = {name: part.detach().clone() for name, part in model.named_parameters()}
    # logits (3, 0) and (0, 4): unit vectors e1 and e2, so the weight's gradients are e1 x^T and e2 x^T, half each
    importance = sensitivity(model, torch.eye(2, dtype=torch.float64))
    assert importance["weight"].tolist() == [[1, 0], [0, 1]]
    assert importance["bias"].tolist() == [0, 0]  # both .5, so neither stands out
    assert departure(model, original, importance).item() == 0
    model.weight.data += torch.tensor([[10.0, 0.5], [2.0, 10.0]], dtype=torch.float64)  # the tens are free
    assert departure(model, original, importance).item() == pytest.approx(0.25 + 4)
    model.bias.data += 3
    assert departure(model, original, importance).item() == pytest.approx(0.25 + 4 + 18)


def test_penalty_is_all_that_sets_the_two_apart(monkeypatch):
    case, batch, model = small(), torch.arange(9), used_model().eval()
    plain, held = (losses(monkeypatch, name) for name in ("l2ul_adv", "l2ul_imp"))
    assert plain[0](model, batch).item() == held[0](model, batch).item()  # nothing has moved yet
    original = {name: part.detach().clone() for name, part in model.named_parameters()}
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator_for(len(parameter)))
    importance = sensitivity(case.model, case.images)
    penalty = PENALTY * departure(model, original, importance).item()
    assert (held[1](model, batch) - plain[1](model, batch)).item() == pytest.approx(penalty, rel=1e-3)
    assert penalty > 0.01
    assert all((part.min(), part.max()) == (0, 1) for part in importance.values())  # scaled tensor by tensor


def test_every_sample_of_a_batch_brings_one_of_its_own_copies(monkeypatch):
    case, handed = small(), []
    loss, again = losses(monkeypatch, "l2ul_adv")
    monkeypatch.setattr(adversarial, "opposed", lambda _, *parts: handed.append(parts))
    batch = torch.tensor([4, 0, 17, 31, 8, 2, 55])
    for one in (loss, loss, again):
        one(None, batch)
    (images, labels, moved, targets), second, other_rate = handed
    assert torch.equal(images, case.images[batch])
    assert labels.tolist() == [FORGET] * 7
    assert lengths(moved - images).max() <= TARGETED_RADIUS + 1e-5
    assert FORGET not in targets
    assert not torch.equal(moved, second[2])  # drawn again for every batch
    assert torch.equal(moved, other_rate[2])  # but alike for every rate
    assert lengths(moved - case.images[batch.flip(0)]).max() > TARGETED_RADIUS


# AMUN

NORMAL = torch.ones(6, dtype=torch.float64) / math.sqrt(6)


def wall(*distances):
    """A linear model and images at known distances from where class 0 ends and class 1 begins."""
    layer = nn.Linear(6, 2).double()
    layer.weight.data = torch.stack([0 * NORMAL, NORMAL])
    layer.bias.data = torch.tensor([0, -0.5 * math.sqrt(6)], dtype=torch.float64)
    images = torch.stack([0.5 - distance * NORMAL for distance in distances]).view(-1, 1, 2, 3)
    return nn.Sequential(nn.Flatten(), layer), images


def test_radius_doubles_until_the_first_flip_and_no_further_each_image_by_itself():
    model, images = wall(0.05, 0.25, 0.15, 0.39)
    found, labels = nearest_adversarial(model, images, forget=(0,))
    radii = lengths(found - images)
    assert FIRST_RADIUS == 0.1
    assert radii.tolist() == pytest.approx([0.1, 0.4, 0.2, 0.4])
    assert (model(images).argmax(1) == 0).all()
    assert (model(found).argmax(1) == 1).all()
    assert labels.tolist() == [1] * 4
    half = images[1:] + radii[1:, None, None, None] / 2 * NORMAL.view(1, 2, 3)  # the best that half the radius can do
    assert (model(half).argmax(1) == 0).all()
    torch.testing.assert_close(nearest_adversarial(model, images[1:2], forget=(0,))[0], found[1:2])


def test_image_that_withstands_every_radius_gets_a_retained_label_all_the_same():
    model, images = wall(0.2, 0.1)
    model[1].bias.data[1] = -9.0
    found, labels = nearest_adversarial(model, images, forget=(0,))
    assert (model(found).argmax(1) == 0).all()
    assert labels.tolist() == [1] * 2


def test_change_into_another_forget_class_is_no_flip():
    two, images = wall(0.15)
    three = nn.Sequential(nn.Flatten(), nn.Linear(6, 3).double())
    three[1].weight.data = torch.stack([0 * NORMAL, NORMAL, 2 * NORMAL])
    three[1].bias.data = torch.cat([two[1].bias.data, 2 * two[1].bias.data[1:] - 0.2])  # wins .2 beyond the wall
    for forget, radius, label in (((0,), 0.2, 1), ((0, 1), 0.4, 2)):
        found, labels = nearest_adversarial(three, images, forget=forget)
        assert (lengths(found - images).item(), labels.item()) == (pytest.approx(radius), label)


@pytest.mark.parametrize("attack", ["boundary_shrink", "amun"])
def test_a_confident_model_is_attacked_all_the_same(attack):
    """In single precision its cross-entropy has no gradient left."""
    model, images = wall(0.25)
    model[1].weight.data *= 1000
    model[1].bias.data *= 1000
    model, images, label = model.float(), images.float(), torch.tensor([0])
    x = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), label), x)
    assert gradient.abs().max() == 0
    if attack == "amun":
        assert lengths(nearest_adversarial(model, images, forget=(0,))[0] - images).item() == pytest.approx(0.4)
    else:
        torch.testing.assert_close(one_step_attack(model, images, label, eps=0.1), images + 0.1)


# ARU


def test_stand_ins_lie_in_the_ball_and_are_closer_to_their_label(monkeypatch):
    case, labels = small(), best_others()
    found = stand_ins(case.model)
    change = (found - case.images).abs().max().item()
    assert 0.9 * STAND_IN_RADIUS < change <= STAND_IN_RADIUS + 1e-6
    before, after = (F.cross_entropy(logits_of(case.model, x), labels, reduction="none") for x in (case.images, found))
    assert (after < before).all()
    monkeypatch.setattr(adversarial, "STAND_IN_RADIUS", 0.2)
    assert (stand_ins(case.model) - case.images).abs().max() > STAND_IN_RADIUS  # a larger ball would be used


def test_a_step_follows_the_sign_of_the_gradient_averaged_over_noisy_copies(monkeypatch):
    for name, value in {"ITERATIONS": 1, "COPIES": 3, "SIGMA": 0.5}.items():
        monkeypatch.setattr(adversarial, f"STAND_IN_{name}", value)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 5, bias=False))
    images, targets = torch.full((40, 1, 2, 3), 0.5), torch.arange(40) % 5
    weight, seen = model[1].weight.detach(), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    found = smoothed_attack(model, images, targets, generator=generator_for("noise"))
    copies = seen[0].unflatten(0, (3, 40))
    assert (copies - images).std().item() == pytest.approx(0.5, rel=0.1)
    assert not torch.equal(copies[0], copies[1])
    signs = []
    for part in copies:  # softmax of each copy less its target, back through the weight
        signs.append(((part.flatten(1) @ weight.T).softmax(1) - F.one_hot(targets, 5)) @ weight)
    expected, alone = (
        images - adversarial.STAND_IN_STEP * part.sign().view_as(images) for part in (sum(signs), signs[0])
    )
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, alone)


def test_triplet_by_hand_starts_without_a_push_of_its_own():
    anchors = torch.tensor([[0.0, 0.0], [1.0, 1.0]], requires_grad=True)
    positives, negatives = torch.tensor([[3.0, 4.0], [1.0, 1.0]]), torch.tensor([[0.0, 2.0], [1.0, 6.0]])
    value = triplet(anchors, positives, negatives, margin=1.0)
    assert value.item() == pytest.approx((5 - 2 + 1 + 0) / 2)  # the second is nearer by more than the margin
    (gradient,) = torch.autograd.grad(value, anchors)
    torch.testing.assert_close(gradient, torch.tensor([[-0.3, -0.4 + 0.5], [0.0, 0.0]]))
    (first,) = torch.autograd.grad(triplet(anchors, positives, anchors.detach(), margin=1.0), anchors)
    torch.testing.assert_close(first, torch.tensor([[-0.3, -0.4], [0.0, 0.0]]))  # towards the positive, nothing else


def test_aru_pulls_every_batch_to_its_stand_ins_under_the_best_other_class(monkeypatch):
    case, handed = small(), []
    loss, again = losses(monkeypatch, "aru")

    def nothing(*parts, **_):
        handed.append([part.detach() for part in parts])
        return 0 * parts[0].sum()

    monkeypatch.setattr(adversarial, "triplet", nothing)
    batch = torch.tensor([4, 0, 31])
    value = loss(case.model, batch)
    anchors, positives, negatives = handed[0]
    original = logits_of(case.model, case.images)
    torch.testing.assert_close(negatives, original[batch])
    torch.testing.assert_close(anchors, original[batch])
    ranked = [max((k for k in range(10) if k != FORGET), key=row.__getitem__) for row in original.tolist()]
    assert value.item() == pytest.approx(F.cross_entropy(positives, torch.tensor(ranked)[batch]).item())
    assert (positives - anchors).abs().max() > 0.1
    assert again(case.model, batch).item() == value.item()
    assert FORGET in original.argmax(1)  # unmasked, most of them would keep their class
