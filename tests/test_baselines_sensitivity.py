"""SalUn, JiT and MU-Mis against their definitions, on linear nets whose gradients are written down by hand."""

import pytest
import torch
from laboratory import caught_losses, small
from test_baselines import go, weights
from torch import nn
from torch.nn import functional as F

from zspag.config import UnlearnConfig, UpdateConfig
from zspag.lab.methods import Problem, sensitivity
from zspag.lab.methods.sensitivity import COPIES, IRRELEVANT, SIGMA, contribution, jit, mu_mis, saliency_mask
from zspag.lab.models import build
from zspag.runtime import generator_for, seed_of

PIXELS, CLASSES = 6, 3
LR = 0.05

# SalUn


@pytest.mark.parametrize("share", [0.1, 0.5, 0.83])
def test_mask_holds_the_largest_gradients_of_the_whole_model(share):
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    images, labels = torch.rand(7, 1, 2, 3, dtype=torch.float64), torch.tensor([0, 1, 0, 0, 1, 1, 0])
    sizes = {name: 0 for name, _ in model.named_parameters()}
    for image, label in zip(images, labels, strict=True):
        loss = F.cross_entropy(model(image[None]), label[None])
        for name, part in zip(sizes, torch.autograd.grad(loss, list(model.parameters())), strict=True):
            sizes[name] = sizes[name] + part
    mask = saliency_mask(model, images, labels, share=share)
    inside, outside = (
        torch.cat([sizes[name][part == side].abs() for name, part in mask.items()]) for side in (True, False)
    )
    assert {name: part.shape for name, part in mask.items()} == {name: part.shape for name, part in sizes.items()}
    assert len(inside) == round(share * 53)
    assert inside.min() >= outside.max()
    assert len({part.double().mean().item() for part in mask.values()}) > 1  # one threshold, not one per layer


def test_masked_weights_keep_every_bit_under_momentum_and_with_all_salient_it_is_random_relabeling(monkeypatch):
    case, options = small(), {"ladder": (0.003,), "update": {"momentum": 0.9}}
    mask = saliency_mask(case.model, case.images, case.labels, share=sensitivity.SALIENT_SHARE)
    (half,) = go("salun", **options).runs
    changed = {name: weights(half)[name] != part for name, part in case.model.named_parameters()}
    assert not any((changed[name] & ~part).any() for name, part in mask.items())
    salient = sum(int(part.sum()) for part in mask.values())
    assert sum(int((changed[name] & part).sum()) for name, part in mask.items()) > 0.9 * salient

    monkeypatch.setattr(sensitivity, "SALIENT_SHARE", 1.0)
    whole, other = (weights(go(name, **options).runs[0]) for name in ("salun", "random_relabeling"))
    # Not bit for bit: held weights lie channels outermost, whose convolutions add up in another order.
    torch.testing.assert_close(whole, other)
    assert any(not torch.allclose(weights(half)[name], part, rtol=0.1, atol=0.01) for name, part in other.items())


# JiT


def linear(*, bias=False):
    model = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, CLASSES, bias=bias)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator_for("linear", parameter.dim())))
    return model


def forget_set(count):
    return torch.rand(count, 1, 2, 3, generator=generator_for("images"), dtype=torch.float64)


def posed(images, labels):
    return Problem(linear(), images, labels, CLASSES, generator_for("method"), statistics=None)


def loss_of(monkeypatch, method, images, labels):
    """Return the loss that a method hands to the loop."""
    caught = caught_losses(monkeypatch, lambda: method(posed(images, labels), UnlearnConfig()))
    return caught[0][0]


def noise_of(drawing, count):
    return SIGMA * torch.randn(COPIES, count, 1, 2, 3, generator=drawing, dtype=torch.float64)


def jit_gradient(weight, image, noise):
    """Of the mean over copies of ||W x - sg W (x + e)|| / ||e|| in W: -W e x^T / (||W e|| ||e||)."""
    total = torch.zeros_like(weight)
    for e in noise.flatten(1):
        answer = weight @ e
        total -= torch.outer(answer, image.flatten()) / (answer.norm() * e.norm())
    return total / len(noise)


def test_jit_is_the_mean_distance_over_the_mean_length_without_a_gradient_through_the_copies(monkeypatch):
    images, model = forget_set(5), linear()
    loss, weight = loss_of(monkeypatch, jit, images, torch.zeros(5, dtype=torch.long)), model[1].weight.detach()
    drawing = generator_for(seed_of(generator_for("method")), "loss")
    for batch in (torch.tensor([0]), torch.tensor([3, 1])):  # every batch draws its copies afresh
        value, noise = loss(model, batch), noise_of(drawing, len(batch))
        by_hand = [(weight @ e.flatten()).norm() / e.norm() for copy in noise for e in copy]  # W x - W (x + e) = -W e
        assert value.item() == pytest.approx((sum(by_hand) / len(by_hand)).item())
        (found,) = torch.autograd.grad(value, list(model.parameters()))
        parts = [jit_gradient(weight, images[i], noise[:, place]) for place, i in enumerate(batch)]
        torch.testing.assert_close(found, sum(parts) / len(parts))
        through = sum(torch.outer(weight @ e, e) / ((weight @ e).norm() * e.norm()) for e in noise[:, 0].flatten(1))
        assert not torch.allclose(found, through / COPIES, atol=0.1)


def test_two_batches_of_jit_are_two_separate_steps():
    """The published code adds the gradient of the first batch to that of the second."""
    images, labels = forget_set(2), torch.tensor([0, 0])
    seed = seed_of(generator_for("method"))
    order = torch.randperm(2, generator=generator_for(seed, "update"))
    drawing = generator_for(seed, "loss")
    weight = linear()[1].weight.detach().clone()
    kept, summed = weight.clone(), torch.zeros_like(weight)
    for index in order:
        noise = noise_of(drawing, 1)[:, 0]
        weight = weight - LR * jit_gradient(weight, images[index], noise)
        summed = summed + jit_gradient(kept, images[index], noise)
        kept = kept - LR * summed
    config = UnlearnConfig(update=UpdateConfig(lr=LR, epochs=1, settle=0))
    found = jit(posed(images, labels), config).runs[0].model[1].weight.detach()
    torch.testing.assert_close(found, weight)
    assert not torch.allclose(found, kept)


# MU-Mis


def test_gradient_of_mu_mis_by_hand():
    """Of a linear net, grad_x f_k is the row W_k: its own row shrinks, the other class's row grows."""
    model, images = linear(bias=True), forget_set(5)
    labels = model(images).argmax(1)
    labels[4] = (labels[4] + 1) % CLASSES  # this one is not recognized, and must not count
    others = (labels + torch.tensor([1, 2, 1, 1, 2])) % CLASSES
    weight = model[1].weight.detach()
    value = contribution(model, images, labels, others, weight=0.5)
    found, bias = torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
    expected, total = torch.zeros_like(weight), 0.0
    for label, other in zip(labels[:4], others[:4], strict=True):
        expected[label] += 2 * weight[label] / 5
        expected[other] -= 0.5 * 2 * weight[other] / 5
        total += (weight[label].square().sum() - 0.5 * weight[other].square().sum()).item() / 5
    torch.testing.assert_close(found, expected)
    assert value.item() == pytest.approx(total)
    assert bias is None
    assert not images.requires_grad

    alone = contribution(model, images[4:], labels[4:], others[4:], weight=IRRELEVANT)
    (gradient,) = torch.autograd.grad(alone, [model[1].weight])
    assert alone.item() == gradient.abs().max() == 0


def test_mu_mis_draws_every_retained_class_and_no_other(monkeypatch):
    images, labels, seen = forget_set(200), torch.ones(200, dtype=torch.long), []

    def keep(model, batch, own, others, *, weight):
        seen.append((own, others, weight))
        return model(batch).sum()

    loss = loss_of(monkeypatch, mu_mis, images, labels)
    monkeypatch.setattr(sensitivity, "contribution", keep)
    for _ in range(2):
        loss(linear(), torch.arange(200))
    own, others, weight = seen[0]
    assert (set(own.tolist()), set(others.tolist())) == ({1}, {0, 2})
    assert weight == IRRELEVANT
    assert not torch.equal(others, seen[1][1])


def test_attention_bears_the_double_backward_of_mu_mis():
    model = build("vit", num_classes=CLASSES, in_channels=1, image_size=8, width=16, seed=0).eval()
    with torch.no_grad():  # somewhere along a training: at the start, the head is 0
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator_for("training"))
    images = torch.rand(3, 1, 8, 8, generator=generator_for("images"))
    labels = model(images).argmax(1)
    value = contribution(model, images, labels, (labels + 1) % CLASSES, weight=IRRELEVANT)
    gradients = torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
    moved = [gradient for gradient in gradients if gradient is not None]
    assert all(torch.isfinite(gradient).all() for gradient in moved)
    assert sum(bool(gradient.abs().sum() > 0) for gradient in moved) > 5
    assert value.item() != 0
