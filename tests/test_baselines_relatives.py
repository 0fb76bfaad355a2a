"""ARU against its definition: where its stand-ins lie, what they are labelled with, and what is fitted to them."""

from dataclasses import replace

import pytest
import torch
from laboratory import FORGET, problem, small
from reference import assert_same_state, state_of
from torch import nn
from torch.nn import functional as F

from zspag.config import UpdateConfig
from zspag.lab.methods import relatives
from zspag.lab.methods.relatives import STAND_INS, aru, smoothed_attack, triplet
from zspag.pseudo_labels import masked_log_probabilities
from zspag.runtime import generator_for, logits_of


def best_others():
    return masked_log_probabilities(logits_of(small().model, small().images), forget=(FORGET,)).argmax(1)


def attacked(**changes):
    case = small()
    return smoothed_attack(
        case.model, case.images, best_others(), config=replace(STAND_INS, **changes), generator=generator_for("attack")
    )


def run(**update):
    config = replace(small().config, update=UpdateConfig(lr=0.003, epochs=1, settle=0, **update))
    return aru(problem(generator=generator_for("method"), statistics=None), config)


def test_stand_ins_lie_in_the_ball_and_are_closer_to_their_label():
    case, labels, found = small(), best_others(), attacked()
    change = (found - case.images).abs()
    assert change.max().item() <= STAND_INS.radius + 1e-6
    assert change.max().item() > 0.9 * STAND_INS.radius
    assert 0 <= found.min() <= found.max() <= 1
    before, after = (F.cross_entropy(logits_of(case.model, x), labels, reduction="none") for x in (case.images, found))
    assert (after < before).all()
    assert not found.requires_grad
    assert attacked(radius=0.2).sub(case.images).abs().max() > STAND_INS.radius  # a larger ball would be used


def test_attack_leaves_the_model_as_it_was():
    model = small().model
    before = state_of(model)
    attacked()
    assert_same_state(before, state_of(model))


class Watched(nn.Module):
    """A linear model that records what it sees."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 6, generator=generator_for("watched")))
        self.seen = []

    def forward(self, images):
        self.seen.append(images.detach())
        return images.flatten(1) @ self.weight.T


def test_every_step_averages_over_slightly_noisy_copies():
    model, images = Watched(), torch.rand(40, 1, 2, 3, generator=generator_for("images"))
    config = replace(STAND_INS, steps=3, copies=7)
    smoothed_attack(model, images, torch.zeros(40, dtype=torch.long), config=config, generator=generator_for("noise"))
    assert [len(batch) for batch in model.seen] == [7 * 40] * 3
    copies = model.seen[0].unflatten(0, (7, 40))
    assert (copies - images).std().item() == pytest.approx(config.sigma, rel=0.1)
    assert not torch.equal(copies[0], copies[1])


def test_direction_is_the_sign_of_the_gradient_summed_over_copies():
    model, images = Watched(), 0.5 * torch.ones(4, 1, 2, 3)
    config = replace(STAND_INS, steps=1, copies=3, sigma=0.5)
    targets = torch.tensor([0, 1, 2, 4])
    found = smoothed_attack(model, images, targets, config=config, generator=generator_for("noise"))
    signs = []
    for part in model.seen[0].unflatten(0, (3, 4)):  # softmax of each copy less its target, back through the weight
        gradient = (part.flatten(1) @ model.weight.T).softmax(1) - F.one_hot(targets, 5)
        signs.append((gradient @ model.weight).detach())
    expected = images - config.step * sum(signs).sign().view_as(images)
    torch.testing.assert_close(found, expected)
    alone = images - config.step * signs[0].sign().view_as(images)
    assert not torch.allclose(found, alone)


def test_stand_ins_are_labelled_with_the_best_other_class(monkeypatch):
    handed, real = [], smoothed_attack

    def spy(model, images, targets, **options):
        handed.append(targets)
        return real(model, images, targets, **options)

    monkeypatch.setattr(relatives, "smoothed_attack", spy)
    run()
    logits = logits_of(small().model, small().images)
    expected = [max((k for k in range(10) if k != FORGET), key=row.__getitem__) for row in logits.tolist()]
    assert handed[0].tolist() == expected
    assert FORGET in logits.argmax(1)  # unmasked, most of them would keep their class


def test_triplet_by_hand():
    anchors = torch.tensor([[0.0, 0.0], [1.0, 1.0]], requires_grad=True)
    positives, negatives = torch.tensor([[3.0, 4.0], [1.0, 1.0]]), torch.tensor([[0.0, 2.0], [1.0, 6.0]])
    value = triplet(anchors, positives, negatives, margin=1.0)
    assert value.item() == pytest.approx((5 - 2 + 1 + 0) / 2)  # the second is nearer by more than the margin
    (gradient,) = torch.autograd.grad(value, anchors)
    torch.testing.assert_close(gradient, torch.tensor([[-0.3, -0.4 + 0.5], [0.0, 0.0]]))


def test_triplet_starts_without_a_push_of_its_own():
    anchors = torch.tensor([[1.0, 2.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(
        triplet(anchors, torch.tensor([[1.0, 4.0]]), anchors.detach(), margin=1.0), anchors
    )
    torch.testing.assert_close(gradient, torch.tensor([[0.0, -1.0]]))  # towards the positive, and nothing else


def test_every_sample_of_the_forget_set_is_fitted_in_every_epoch(monkeypatch):
    seen, real = [], triplet

    def spy(anchors, positives, negatives, **options):
        seen.append(negatives)
        return real(anchors, positives, negatives, **options)

    monkeypatch.setattr(relatives, "triplet", spy)
    run()
    original = logits_of(small().model, small().images)
    fitted = torch.cat(seen)
    assert len(seen) == 20
    assert len(fitted) == len(original)
    assert (fitted[:, None] == original[None]).all(2).any(0).all()
