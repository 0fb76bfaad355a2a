"""Folding changes neither logits nor gradients, only the work; what does not belong together stays apart."""

import math
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from zspag.influence import logit_derivatives
from zspag.lab import models
from zspag.runtime import frozen
from zspag.speedups import conv_bn
from zspag.speedups.conv_bn import conv_bn_pairs, fuse_conv_bn


def wild_(model):
    """Give every batch norm statistics and a map that no rounding could hide."""
    for part in model.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in ((part.running_var, 0.2, 3), (part.running_mean, -1, 1)):
                tensor.data.uniform_(low, high)
            if part.affine:
                part.weight.data.uniform_(-2, 2)
                part.bias.data.uniform_(-1, 1)
    return model.double().eval()


class Residual(nn.Module):
    """A block whose first norm may be folded, and whose second convolution is used twice."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.first, self.second, self.head = nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False), nn.Linear(4, 5)

    def forward(self, x):
        kept = self.two(F.relu(self.first(self.one(x))))
        return self.head((self.second(kept) + kept).mean((2, 3)))


class Behind(Residual):
    """A use of a convolution's output that no function mode sees, as in compiled code."""

    def forward(self, x):
        made = self.one(x)
        with torch._C.DisableTorchFunction():
            hidden = 3 * made
        return self.head((self.first(made) + hidden).mean((2, 3)))


class Shared(Residual):
    """The same norm behind two convolutions, and the same convolution before two norms."""

    def forward(self, x):
        x = F.relu(self.first(self.one(x)))
        x = F.relu(self.first(self.two(x)))
        return self.head(self.second(self.two(x)).mean((2, 3)))


def built(arch):
    return models.build(arch, num_classes=5, in_channels=3, image_size=32, width=4, mean=(0.5,) * 3, std=(0.25,) * 3)


CASES = {
    "conv7": (lambda: built("conv7"), 6),
    "resnet18": (lambda: built("resnet18"), 20),
    "without a norm": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 30 * 30, 5)), 0),
    "used twice": (Residual, 1),
    "used where nobody sees it": (Behind, 0),
    "shared": (Shared, 1),
    "no bias, no map": (lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False), nn.Flatten(), nn.Linear(4 * 30 * 30, 5)), 1),
    "something in between": (lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 30 * 30, 5)), 0),
}  # fmt: skip


class Norms(TorchFunctionMode):
    """Counts the batch norms that are left."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func is F.batch_norm
        return func(*args, **(kwargs or {}))


def answers(model, x):
    """Return logits, and their gradients in the images and in every parameter."""
    x = x.clone().requires_grad_(True)
    logits = model(x)
    gradients = torch.autograd.grad(
        logits.sin().sum(), [x, *model.parameters()], allow_unused=True, materialize_grads=True
    )
    return [logits, *gradients]


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_are_those_of_the_plain_model_and_the_norms_are_gone(case):
    torch.manual_seed(0)
    make, folds = CASES[case]
    model, x = wild_(make()), torch.rand(3, 3, 32, 32, dtype=torch.float64)
    pairs = conv_bn_pairs(model, x)
    assert len(pairs) == folds
    plain, every, left = answers(model, x), Norms(), Norms()
    with every:
        model(x)
    with left, fuse_conv_bn(pairs):  # the inner mode is asked first, and passes on what it does not fold
        model(x)
    assert every.count - left.count == folds
    another = wild_(make())
    apart = another(x)
    with fuse_conv_bn(pairs):
        others = answers(model, x)
        assert torch.equal(another(x), apart)  # passes of another model go on as ever
    for one, other in zip(plain, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    if folds:
        assert any((one != other).any() for one, other in zip(plain, others, strict=True))  # the way was another one


def test_a_norm_that_follows_the_batch_is_not_folded():
    model = built("conv7").train()
    with fuse_conv_bn(conv_bn_pairs(model, torch.rand(2, 3, 32, 32))):  # pairs of eval mode, asked in train mode
        assert model.training
    batch_only = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten(), nn.Linear(3600, 5)
    )
    assert conv_bn_pairs(batch_only, torch.rand(2, 3, 32, 32)) == ()


def test_a_weight_that_moves_inside_is_followed_and_so_are_gradients_that_come_and_go():
    torch.manual_seed(0)
    model, x = wild_(built("conv7")), torch.rand(2, 3, 32, 32, dtype=torch.float64)
    pairs, weight = conv_bn_pairs(model, x), model[1].weight
    with fuse_conv_bn(pairs):
        with frozen(model):
            model(x)
        with torch.no_grad():
            weight *= 2
        moved = model(x)
    torch.testing.assert_close(moved, model(x), rtol=1e-9, atol=1e-9)
    assert torch.autograd.grad(moved.sin().sum(), weight)[0].any()  # not those of the frozen pass


@pytest.mark.parametrize("still", [True, False])
def test_weights_that_cannot_move_are_scaled_once_for_all_passes(still, monkeypatch):
    model, x, made = wild_(built("conv7")), torch.rand(2, 3, 32, 32, dtype=torch.float64), []
    pairs, scaled = conv_bn_pairs(model, x), conv_bn._scaled
    monkeypatch.setattr(conv_bn, "_scaled", lambda *of: made.append(of) or scaled(*of))
    with frozen(model) if still else nullcontext(), fuse_conv_bn(pairs):
        for _ in range(3):
            model(x)
    assert len(made) == len(pairs) * (1 if still else 3)


def test_nobody_looks_for_pairs_when_little_work_is_ahead():
    model = built("conv7")
    assert conv_bn_pairs(model, torch.rand(9, 3, 32, 32), passes=conv_bn.WORTH / 9)
    model.register_forward_hook(lambda *_: pytest.fail("looked"))
    assert conv_bn_pairs(model, torch.rand(9, 3, 32, 32), passes=(conv_bn.WORTH - 1) / 9) == ()


@pytest.mark.parametrize("case", CASES)
def test_derivatives_of_logits_are_those_of_the_plain_model(case, monkeypatch):
    """Once with the norms folded and once without, in the direction of every parameter and of the weights alone."""
    torch.manual_seed(0)
    make, folds = CASES[case]
    model, x = wild_(make()), torch.rand(3, 3, 32, 32, dtype=torch.float64)
    for least in (1, 2):
        direction = {n: torch.randn_like(part).detach() for n, part in model.named_parameters() if part.dim() >= least}
        found = []
        for worth in (math.inf, 0):
            monkeypatch.setattr(conv_bn, "WORTH", worth)
            found.append(logit_derivatives(model, x, direction))
        torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)
        assert found[0][1].abs().max() > 0.1
        assert (found[0][1] != found[1][1]).any() == bool(folds)  # the way was another one


def test_a_pair_that_does_not_belong_together_is_noticed():
    """Negative control of the check by logits: without it, a use that no mode sees would be folded."""
    torch.manual_seed(0)
    model, x = wild_(Behind()), torch.rand(1, 3, 32, 32, dtype=torch.float64)
    watch = conv_bn._Uses({id(tensor) for tensor in (*model.parameters(), *model.buffers())})
    with torch.no_grad(), watch:
        plain = model(x)
    assert len(watch.pairs()) == 1
    with torch.no_grad(), fuse_conv_bn(watch.pairs()):
        assert (model(x) - plain).abs().max() > 0.1 * plain.abs().max()
    assert conv_bn_pairs(model, x) == ()
