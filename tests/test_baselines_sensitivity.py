"""JiT and MU-Mis against their definitions, on linear nets whose gradients are written down by hand."""

import pytest
import torch
from laboratory import caught_losses
from torch import nn

from zspag.config import UnlearnConfig, UpdateConfig
from zspag.lab.methods import Problem, sensitivity
from zspag.lab.methods.sensitivity import COPIES, IRRELEVANT, SIGMA, contribution, jit, lipschitz_quotient, mu_mis
from zspag.lab.models import build
from zspag.runtime import generator_for, seed_of

PIXELS, CLASSES = 6, 3
LR = 0.05


def linear(*, bias=False):
    model = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, CLASSES, bias=bias)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator_for("linear", parameter.dim())))
    return model


def forget_set(count):
    return torch.rand(count, 1, 2, 3, generator=generator_for("images"), dtype=torch.float64)


def run(method, model, images, labels):
    config = UnlearnConfig(update=UpdateConfig(lr=LR, epochs=1, settle=0))
    (only,) = method(posed(model, images, labels), config).runs
    return only


def posed(model, images, labels):
    return Problem(model, images, labels, CLASSES, generator_for("method"), statistics=None)


def losses_of(monkeypatch, method, images, labels):
    """Return the loss that a method hands to the loop."""
    (loss, _), _ = caught_losses(monkeypatch, lambda: method(posed(linear(), images, labels), UnlearnConfig()))
    return loss


def jit_gradient(weight, image, noise):
    """Of the mean over copies of ||W x - sg W (x + e)|| / ||e|| in W: -W e x^T / (||W e|| ||e||)."""
    total = torch.zeros_like(weight)
    for e in noise.flatten(1):
        answer = weight @ e
        total -= torch.outer(answer, image.flatten()) / (answer.norm() * e.norm())
    return total / len(noise)


# JiT


def test_quotient_is_the_mean_distance_over_the_mean_length_copy_by_copy():
    logits = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    around = torch.tensor([[[0.0, 0.0], [0.0, 1.0]], [[3.0, 4.0], [6.0, 8.0]]])
    noise = torch.zeros(2, 2, 1, 1, 2)
    noise[0, 0, 0, 0, 0], noise[0, 1, 0, 0, 1], noise[1, 0, 0, 0, 0] = 2.0, 4.0, 1.0
    noise[1, 1, 0, 0] = torch.tensor([3.0, 4.0])
    assert lipschitz_quotient(logits, around, noise).item() == pytest.approx((5 / 2 + 1 / 4 + 0 + 10 / 5) / 4)


def test_gradient_of_jit_goes_through_the_sample_and_not_through_its_copies(monkeypatch):
    images, labels = forget_set(1), torch.zeros(1, dtype=torch.long)
    seen, real = [], lipschitz_quotient
    monkeypatch.setattr(
        sensitivity, "lipschitz_quotient", lambda *args: seen.append([part.detach() for part in args]) or real(*args)
    )
    loss, model = losses_of(monkeypatch, jit, images, labels), linear()
    (found,) = torch.autograd.grad(loss(model, torch.tensor([0])), list(model.parameters()))
    (_, around, noise), weight = seen[0], model[1].weight.detach()
    torch.testing.assert_close(around, (images + noise).flatten(2) @ weight.T)
    torch.testing.assert_close(found, jit_gradient(weight, images[0], noise[:, 0]))
    through = torch.zeros_like(weight)  # what a gradient through the copies would be
    for e in noise.flatten(1):
        answer = weight @ e
        through += torch.outer(answer, e) / (answer.norm() * e.norm()) / COPIES
    assert not torch.allclose(found, through, atol=0.1)


def test_jit_draws_its_copies_afresh_with_the_published_deviation(monkeypatch):
    images, labels = forget_set(50), torch.zeros(50, dtype=torch.long)
    seen = []
    monkeypatch.setattr(
        sensitivity, "lipschitz_quotient", lambda logits, _around, noise: seen.append(noise) or logits.sum()
    )
    loss, model = losses_of(monkeypatch, jit, images, labels), linear()
    for _ in range(2):
        loss(model, torch.arange(50))
    assert seen[0].shape == (COPIES, 50, 1, 2, 3)
    assert seen[0].std().item() == pytest.approx(SIGMA, rel=0.05)
    assert not torch.equal(seen[0], seen[1])


def test_two_batches_of_jit_are_two_separate_steps():
    """The published code adds the gradient of the first batch to that of the second."""
    images, labels = forget_set(2), torch.tensor([0, 0])
    seed = seed_of(generator_for("method"))
    order = torch.randperm(2, generator=generator_for(seed, "update"))
    drawing = generator_for(seed, "loss")
    weight = linear()[1].weight.detach().clone()
    kept, summed = weight.clone(), torch.zeros_like(weight)
    for index in order:
        noise = SIGMA * torch.randn(COPIES, 1, 1, 2, 3, generator=drawing, dtype=torch.float64)[:, 0]
        weight = weight - LR * jit_gradient(weight, images[index], noise)
        summed = summed + jit_gradient(kept, images[index], noise)
        kept = kept - LR * summed
    found = run(jit, linear(), images, labels).model[1].weight.detach()
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
    expected, total, counted = torch.zeros_like(weight), 0.0, torch.zeros_like(weight)
    for index, (label, other) in enumerate(zip(labels, others, strict=True)):
        counted[label] += 2 * weight[label] / 5
        counted[other] -= 0.5 * 2 * weight[other] / 5
        if index < 4:
            expected[label] += 2 * weight[label] / 5
            expected[other] -= 0.5 * 2 * weight[other] / 5
            total += (weight[label].square().sum() - 0.5 * weight[other].square().sum()).item() / 5
    torch.testing.assert_close(found, expected)
    assert value.item() == pytest.approx(total)
    assert not torch.allclose(found, counted)
    assert bias is None


def test_mu_mis_stops_once_nothing_is_recognized():
    model, images = linear(), forget_set(4)
    wrong = (model(images).argmax(1) + 1) % CLASSES
    value = contribution(model, images, wrong, (wrong + 1) % CLASSES, weight=IRRELEVANT)
    (gradient,) = torch.autograd.grad(value, list(model.parameters()))
    assert value.item() == 0
    assert gradient.abs().max() == 0
    assert not images.requires_grad


def test_mu_mis_draws_every_retained_class_and_no_other(monkeypatch):
    images, labels = forget_set(200), torch.ones(200, dtype=torch.long)
    seen = []
    monkeypatch.setattr(
        sensitivity, "contribution",
        lambda model, batch, own, others, *, weight: seen.append((own, others, weight)) or model(batch).sum(),  # noqa: ARG005
    )  # fmt: skip
    loss = losses_of(monkeypatch, mu_mis, images, labels)
    for _ in range(2):
        loss(linear(), torch.arange(200))
    own, others, weight = seen[0]
    assert set(own.tolist()) == {1}
    assert set(others.tolist()) == {0, 2}
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
