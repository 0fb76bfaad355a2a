"""Projecting the inputs of a layer gives the projected gradient of its weight, and changes nothing else."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from zspag.speedups.projected_inputs import ProjectedInputs
from zspag.subspaces import by_rank, hard_projector, second_moments, soft_projector

CLASSES = 5


class Odd(nn.Module):
    """Strided, padded, dilated and grouped convolutions, a linear layer on tokens, one that is used twice."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Conv2d(2, 40, 3, stride=2, padding=1)
        self.dilated = nn.Conv2d(40, 44, 2, padding="same", dilation=2)
        self.grouped = nn.Conv2d(44, 44, 1, groups=4)
        self.tokens = nn.Linear(44, 60)
        self.twice = nn.Linear(60, 60)
        self.also = nn.Linear(60, 60, bias=False)
        self.head = nn.Linear(60, CLASSES)

    def forward(self, x):
        x = torch.tanh(self.dilated(torch.tanh(self.wide(x))))
        x = self.tokens(self.grouped(x).flatten(2).transpose(1, 2))
        x = torch.tanh(self.twice(torch.tanh(self.twice(x)))).mean(1)
        return self.head(self.also(x) + x @ self.also.weight)  # the weight enters a product of another kind, too


@pytest.fixture(scope="module")
def setting():
    torch.manual_seed(0)
    net = Odd().double().eval()
    moments = second_moments(net, torch.rand(7, 2, 5, 4, dtype=torch.float64))
    ranks = {
        name: tuple(min(3, moments.dimension(name) - 1) for _ in second) for name, second in moments.second.items()
    }
    return net, moments, hard_projector(by_rank(moments, ranks=ranks))


def gradients(net, project, count, *, plain):
    """Return the loss and projected gradients, of the plain pass or of projected inputs, and what came projected."""
    parameters = dict(net.named_parameters())
    moving = {name: parameters[name] for name in project.factors}
    images = torch.rand(count, 2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(count) % CLASSES
    done = set()
    if plain:
        loss = F.cross_entropy(net(images), labels)
    else:
        with ProjectedInputs(moving, project) as inside:
            loss = F.cross_entropy(net(images), labels)
        done = inside.done
    found = torch.autograd.grad(loss, list(moving.values()))
    named = zip(moving, found, strict=True)
    return loss.item(), {name: one if name in done else project(name, one) for name, one in named}, done


@pytest.mark.parametrize(
    ("count", "cheap"), [(1, {"wide", "dilated", "tokens", "twice", "head"}), (4, {"tokens", "twice"})]
)
def test_gradients_are_the_projected_ones_of_the_plain_pass(setting, count, cheap):
    net, _, project = setting
    expected_loss, expected, _ = gradients(net, project, count, plain=True)
    loss, found, done = gradients(net, project, count, plain=False)
    assert {name.removesuffix(".weight") for name in done} == cheap
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)
        assert gradient.abs().max() > 1e-8


def test_without_a_projection_the_gradients_are_others(setting):
    net, _, project = setting
    _, expected, _ = gradients(net, project, 1, plain=True)
    loss = F.cross_entropy(
        net(torch.rand(1, 2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))),
        torch.zeros(1, dtype=torch.long),
    )
    (whole,) = torch.autograd.grad(loss, [net.tokens.weight])
    assert not torch.allclose(whole, expected["tokens.weight"])


def test_many_rows_a_soft_projector_and_a_weight_with_another_use_are_left_to_the_caller(setting):
    net, moments, project = setting
    assert gradients(net, project, 40, plain=False)[2] == set()
    assert gradients(net, soft_projector(moments, damping=0.1), 1, plain=False)[2] == set()
    assert "also.weight" not in gradients(net, project, 1, plain=False)[2]
    assert project.idempotent
    assert not soft_projector(moments, damping=0.1).idempotent
