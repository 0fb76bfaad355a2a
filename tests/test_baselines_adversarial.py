"""L2UL and AMUN: what the adversarial examples are, and what is done with them."""

import copy
import math

import pytest
import torch
from laboratory import FORGET, Fixed, small
from reference import assert_same_state, state_of
from test_baselines import differ, go, loss_of
from torch import nn
from torch.nn import functional as F

from zspag.lab.methods import adversarial
from zspag.lab.methods.adversarial import (
    COPIES,
    FIRST_RADIUS,
    PENALTY,
    TARGETED_RADIUS,
    Anchor,
    nearest_adversarial,
    opposed,
    sensitivity,
    targeted_copies,
)
from zspag.runtime import generator_for, logits_of


def lengths(changes):
    return changes.flatten(1).norm(dim=1)


# L2UL


def copies_of(model, *, forget=(FORGET,), stream="copies"):
    return targeted_copies(
        model, small().images, num_classes=10, forget=forget, generator=generator_for(stream)
    )  # fmt: skip


def test_copies_lie_within_the_radius_and_closer_to_their_targets():
    case = small()
    images, targets = copies_of(case.model)
    assert images.shape == (COPIES, *case.images.shape)
    assert targets.shape == images.shape[:2]
    assert 0 <= images.min() <= images.max() <= 1
    for moved, aim in zip(images, targets, strict=True):
        assert lengths(moved - case.images).max() <= TARGETED_RADIUS + 1e-5
        assert lengths(moved - case.images).min() > 0.1 * TARGETED_RADIUS
        before, after = (F.cross_entropy(logits_of(case.model, x), aim, reduction="none") for x in (case.images, moved))
        assert (after < before).double().mean() > 0.95


@pytest.mark.parametrize("forget", [(FORGET,), (0, FORGET, 8)])
def test_targets_are_retained_classes_all_of_them_and_differ_between_copies(forget):
    _, targets = copies_of(small().model, forget=forget)
    assert set(targets.flatten().tolist()) == set(range(10)) - set(forget)
    assert not torch.equal(targets[0], targets[1])
    assert not torch.equal(targets, copies_of(small().model, forget=forget, stream="others")[1])


def test_attack_sees_frozen_norms_and_leaves_the_model_alone():
    model = copy.deepcopy(small().model).train()
    before = state_of(model)
    images, _ = copies_of(model)
    assert_same_state(before, state_of(model))
    assert torch.equal(images, copies_of(small().model)[0])


def test_both_losses_weigh_by_their_counts_and_a_forgotten_sample_stops_counting():
    logits = torch.randn(5, 4, generator=generator_for("logits"), dtype=torch.float64)
    logits[0, 2], logits[1, 2] = 3.0, -9.0  # cross-entropy below and above log 4
    model = Fixed(logits)
    labels, targets = torch.tensor([2, 2]), torch.tensor([0, 1, 3])
    images, moved = torch.zeros(2, 1), torch.ones(3, 1)
    value = opposed(model, images, labels, moved, targets)
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
    model.weight.data = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    images = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    # the norm of a single logit is its size: the gradient is sign(w x) x = (1, 0), (-1, 1), (-1, 1)
    assert sensitivity(model, images)["weight"].tolist() == [[1.0, 2 / 3]]
    (together,) = torch.autograd.grad(model(images).norm(dim=1).mean(), model.weight)
    assert together.abs()[0].tolist() == pytest.approx([1 / 3, 2 / 3])


def test_penalty_by_hand():
    model = nn.Linear(2, 2).double()
    model.weight.data = torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    model.bias.data.zero_()
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    # logits (3, 0) and (0, 4): unit vectors e1 and e2, so the weight's gradients are e1 x^T and e2 x^T, half each
    anchor = Anchor.of(model, images)
    assert anchor.importance["weight"].tolist() == [[1, 0], [0, 1]]
    assert anchor.importance["bias"].tolist() == [0, 0]  # both .5, so neither stands out
    assert anchor.penalty(model).item() == 0
    model.weight.data += torch.tensor([[10.0, 0.5], [2.0, 10.0]], dtype=torch.float64)  # the tens are free
    assert anchor.penalty(model).item() == pytest.approx(0.25 + 4)
    model.bias.data += 3
    assert anchor.penalty(model).item() == pytest.approx(0.25 + 4 + 18)


def test_importance_is_scaled_tensor_by_tensor_on_a_real_net():
    case = small()
    anchor = Anchor.of(case.model, case.images[:5])
    for name, parameter in case.model.named_parameters():
        part = anchor.importance[name]
        assert part.shape == parameter.shape
        assert (part.min(), part.max()) == (0, 1), name


def test_penalty_is_all_that_sets_the_two_apart(monkeypatch):
    case = small()
    (plain, _), (plain_again, _) = loss_of(monkeypatch, "l2ul_adv")
    (held, _), (held_again, _) = loss_of(monkeypatch, "l2ul_imp")
    model, batch = copy.deepcopy(case.model), torch.arange(9)
    assert plain(model, batch).item() == held(model, batch).item()  # nothing has moved yet
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator_for(len(parameter)))
    penalty = Anchor.of(case.model, case.images).penalty(model)
    difference = held_again(model, batch) - plain_again(model, batch)
    assert difference.item() == pytest.approx((PENALTY * penalty).item(), rel=1e-3)
    assert difference > 0.01


def test_penalty_keeps_weights_closer():
    def distance(run):
        before = dict(small().model.named_parameters())
        return sum((part - before[name]).square().sum().item() for name, part in run.model.named_parameters())

    plain, held = (go(name, ladder=(0.003,)).runs[0] for name in ("l2ul_adv", "l2ul_imp"))
    assert distance(held) < distance(plain)
    assert differ(held, plain)


def test_every_sample_of_a_batch_brings_one_of_its_own_copies(monkeypatch):
    case, handed = small(), []
    monkeypatch.setattr(adversarial, "opposed", lambda _, *parts: handed.append(parts))
    (loss, _), (again, _) = loss_of(monkeypatch, "l2ul_adv")
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


def wall(*distances):
    """A linear model and images at known distances from where class 0 ends and class 1 begins."""
    normal = torch.ones(6, dtype=torch.float64) / math.sqrt(6)
    layer = nn.Linear(6, 2).double()
    layer.weight.data, layer.bias.data = torch.stack([0 * normal, normal]), torch.zeros(2, dtype=torch.float64)
    images = torch.stack([0.5 - distance * normal for distance in distances]).view(-1, 1, 2, 3)
    layer.bias.data[1] = -0.5 * math.sqrt(6)
    return nn.Sequential(nn.Flatten(), layer), images


def test_radius_doubles_until_the_first_flip_and_no_further():
    model, images = wall(0.05, 0.25, 0.15, 0.39)
    found = nearest_adversarial(model, images, forget=(0,))
    assert FIRST_RADIUS == 0.1
    assert found.radii.tolist() == pytest.approx([0.1, 0.4, 0.2, 0.4])
    assert (model(images).argmax(1) == 0).all()
    assert (model(found.images).argmax(1) == 1).all()
    assert found.labels.tolist() == [1] * 4
    torch.testing.assert_close(lengths(found.images - images), found.radii.double(), rtol=1e-6, atol=0)
    normal = torch.ones(6, dtype=torch.float64).view(1, 2, 3) / math.sqrt(6)
    half = images[1:] + found.radii[1:, None, None, None] / 2 * normal  # the best that half the radius can do
    assert (model(half).argmax(1) == 0).all()


def test_images_do_not_depend_on_their_neighbours():
    model, images = wall(0.05, 0.25, 0.15)
    together, alone = (
        nearest_adversarial(model, images, forget=(0,)),
        nearest_adversarial(model, images[1:2], forget=(0,)),
    )
    torch.testing.assert_close(together.images[1:2], alone.images)
    assert together.radii[1] == alone.radii[0]


def test_image_that_withstands_every_radius_gets_a_retained_label_all_the_same():
    model, images = wall(0.2, 0.1)
    model[1].bias.data[1] = -9.0
    found = nearest_adversarial(model, images, forget=(0,))
    assert (model(found.images).argmax(1) == 0).all()
    assert found.radii.tolist() == [math.inf] * 2
    assert found.labels.tolist() == [1] * 2
    assert 0 <= found.images.min() <= found.images.max() <= 1


def test_change_into_another_forget_class_is_no_flip():
    model, images = wall(0.15)
    head = nn.Linear(6, 3).double()
    head.weight.data = torch.cat([model[1].weight.data, 2 * model[1].weight.data[1:]])
    head.bias.data = torch.cat(
        [model[1].bias.data, 2 * model[1].bias.data[1:] - 0.2]
    )  # class 2 wins .2 beyond the wall
    three = nn.Sequential(nn.Flatten(), head)
    one, two = (nearest_adversarial(three, images, forget=forget) for forget in ((0,), (0, 1)))
    assert (one.radii.item(), one.labels.item()) == (pytest.approx(0.2), 1)
    assert (two.radii.item(), two.labels.item()) == (pytest.approx(0.4), 2)


def test_a_confident_model_is_attacked_all_the_same():
    """In single precision its cross-entropy has no gradient left."""
    model, images = wall(0.25)
    model[1].weight.data *= 1000
    model[1].bias.data *= 1000
    model, images = model.float(), images.float()
    x = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), torch.tensor([0])), x)
    assert gradient.abs().max() == 0
    assert nearest_adversarial(model, images, forget=(0,)).radii.item() == pytest.approx(0.4)


def test_examples_of_a_trained_net_lie_within_their_radii_and_carry_the_originals_label():
    case = small()
    found = nearest_adversarial(case.model, case.images, forget=(FORGET,))
    assert found.radii.isfinite().all()
    assert (lengths(found.images - case.images) <= found.radii + 1e-5).all()
    assert torch.equal(logits_of(case.model, found.images).argmax(1), found.labels)
    assert FORGET not in found.labels
    assert len(found.radii.unique()) > 1


def test_amun_fits_the_examples_to_their_own_labels(monkeypatch):
    case = small()
    (loss, _), _ = loss_of(monkeypatch, "amun")
    found = nearest_adversarial(case.model, case.images, forget=(FORGET,))
    model, batch = Fixed(torch.randn(4, 10, generator=generator_for("logits"))), torch.tensor([9, 0, 3, 31])
    expected = -model.logits.log_softmax(1)[range(4), found.labels[batch]].mean()
    assert loss(model, batch).item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.equal(model.seen[0], found.images[batch])
    assert not torch.equal(model.seen[0], case.images[batch])
