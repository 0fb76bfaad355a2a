"""Features are what a slow reading with hooks finds, image by image; CKA is the n x n formula, and so are its laws."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests import reference
from tests.laboratory import FORGET, small
from zspag import runtime
from zspag.lab.audit.features import linear_cka, penultimate, stage_features
from zspag.lab.evaluation import Masked
from zspag.lab.models import build
from zspag.runtime import logits_of

N, K = 5, 7


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def make(arch):
    if arch == "grouped":  # three groups, and a 1-d convolution after it
        first = nn.Conv2d(3, 6, (3, 2), stride=(2, 1), padding=1, groups=3), nn.ReLU(), nn.Flatten(2)
        return nn.Sequential(*first, nn.Conv1d(6, 4, 5, groups=2), nn.Tanh(), nn.Flatten(), nn.LazyLinear(K)).double()
    if arch == "attending":
        return reference.Attending(classes=K).double()
    return build(arch, num_classes=K, in_channels=3, image_size=16, width=4, seed=0).double()


def images_of(count):
    return torch.rand(count, 3, 16, 16, dtype=torch.float64)


NETS = pytest.mark.parametrize("arch", ["conv7", "resnet18", "allcnn", "vit", "attending", "grouped"])


def averaged(maps, cells):
    """Average (n, C, *positions) over cells; returns (n, C * cells)."""
    pool = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d}[maps.dim() - 2]
    return pool(maps, [min(cells, size) for size in maps.shape[2:]]).flatten(1)


def slow_features(net, images, *, grid):
    """Read every layer's input by hooks on a copy, image by image, and average its patches or tokens."""
    net, found = copy.deepcopy(net).eval(), {}

    def reading(place):
        def read(module, args, output):
            x = args[0]
            if isinstance(module, nn.MultiheadAttention):
                heads = reference.attention(module, x[0], x[0], x[0])[0]
                keep(f"{place}.in_proj_weight", x[0].mean(0, keepdim=True))
                keep(f"{place}.out_proj.weight", heads.mean(0, keepdim=True))
            elif isinstance(module, nn.Linear):
                keep(f"{place}.weight", x.reshape(1, -1, x.shape[-1]).mean(1))
            else:
                pads = [(amount, amount) for amount in module.padding]
                patches = reference.convolution_rows(
                    x, module.kernel_size, stride=module.stride, padding=pads, dilation=module.dilation, groups=1
                )[0]
                maps = patches.unflatten(1, (x.shape[1], -1)).mean(2).T.unflatten(1, output.shape[2:])
                keep(f"{place}.weight", averaged(maps[None], grid))

        return read

    def keep(name, features):
        found.setdefault(name, []).append(features)

    torch.backends.mha.set_fastpath_enabled(False)
    for place, module in net.named_modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear | nn.MultiheadAttention):
            module.register_forward_hook(reading(place))
    try:
        with torch.no_grad():
            for image in images:
                net(image[None])
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    return {name: torch.cat(parts) for name, parts in found.items()}


@NETS
@pytest.mark.parametrize("grid", [1, 3])
def test_features_are_what_enters_each_layer_averaged_image_by_image(arch, grid):
    net, images = make(arch), images_of(N)
    net(images)  # lazy layers; norm statistics that are not 0 and 1
    fast, slow = stage_features(net, images, grid=grid), slow_features(net, images, grid=grid)
    assert fast.keys() == slow.keys()
    for name, features in fast.items():
        torch.testing.assert_close(features, slow[name], msg=name)
    assert not torch.allclose(list(fast.values())[1], list(slow.values())[1].roll(1, 0))  # images are told apart


@NETS
def test_the_last_features_give_the_logits(arch):
    net, images = make(arch), images_of(N)
    net(images)
    *_, weight = (parameter for parameter in net.parameters() if parameter.dim() > 1)
    *_, bias = net.parameters()
    logits = penultimate(net, images) @ weight.flatten(1).T + bias
    torch.testing.assert_close(logits, logits_of(net, images))
    if arch != "allcnn":  # its last layer is a convolution: a grid keeps where something was
        *_, last = stage_features(net, images, grid=2).values()
        assert torch.equal(penultimate(net, images), last)


def test_float32_features_come_in_float64_and_in_pieces_of_any_size(monkeypatch):
    lab = small()
    whole = stage_features(lab.model, lab.images[:10], grid=2)
    monkeypatch.setattr(runtime, "CHUNK", 4)
    for name, features in stage_features(lab.model, lab.images[:10], grid=2).items():
        assert features.dtype == torch.float64
        assert len(features) == 10
        torch.testing.assert_close(features, whole[name], atol=1e-5, rtol=1e-5)


def test_the_model_is_given_back_untouched_even_after_an_error():
    net = make("vit").train()
    net.encoder.eval()
    net.conv_proj.weight.requires_grad_(False)
    net.heads.head.weight.grad = torch.ones_like(net.heads.head.weight)
    net.heads.register_forward_hook(lambda *_: None)
    before = reference.state_of(net)
    stage_features(net, images_of(2), grid=1)
    reference.assert_same_state(before, reference.state_of(net))
    with pytest.raises(AssertionError, match="image height"):
        stage_features(net, images_of(2)[..., :15, :], grid=1)
    reference.assert_same_state(before, reference.state_of(net))


class Twice(nn.Module):
    """One weight used twice, and a linear layer on sequences whose first axis is the token."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(16, 16).double(), nn.Linear(16, 16).double()

    def forward(self, images):
        tokens = self.head(images[:, 0]).tanh().transpose(0, 1)  # (16, n, 16)
        return self.head(self.inner(tokens).tanh().mean(0))


def test_tokens_may_come_first_and_a_weight_used_again_counts_at_its_last_use():
    net, images = Twice(), images_of(N)
    features = stage_features(net, images, grid=1)
    assert list(features) == ["inner.weight", "head.weight"]
    torch.testing.assert_close(features["inner.weight"], net.head(images[:, 0]).tanh().mean(1))
    torch.testing.assert_close(net.head(features["head.weight"]), net(images))


def test_masked_original_has_the_features_of_the_original():
    lab = small()
    masked = Masked(lab.model, forget=(FORGET,), num_classes=10)
    own, original = (stage_features(model, lab.images, grid=2) for model in (masked, lab.model))
    assert own.keys() == original.keys()
    assert all(torch.equal(own[name], original[name]) for name in own)
    assert not torch.equal(logits_of(masked, lab.images), logits_of(lab.model, lab.images))


@pytest.mark.parametrize(("count", "grid"), [(0, 1), (2, 0)])
def test_nothing_to_average_is_said(count, grid):
    with pytest.raises(ValueError, match=f"got {count} and grid={grid}"):
        stage_features(make("conv7"), images_of(count), grid=grid)


class Gathering(nn.Linear):
    def forward(self, images):
        return super().forward(images[0, 0, :3])  # three rows, whatever the number of images


def test_rows_that_do_not_divide_among_the_images_are_said():
    with pytest.raises(ValueError, match=r"the 3 rows of weight do not divide among 2 images"):
        stage_features(Gathering(16, K).double(), images_of(2), grid=1)


# ---- CKA


def slow_cka(x, y):
    """HSIC of the centred n x n kernels, as it is written."""
    h = torch.eye(len(x), dtype=x.dtype) - 1 / len(x)
    k, other = h @ x @ x.T @ h, h @ y @ y.T @ h
    return ((k * other).sum() / (k.norm() * other.norm())).item()


@pytest.mark.parametrize(("n", "d", "other"), [(23, 7, 4), (11, 40, 17), (13, 5, 60)])
def test_cka_is_the_formula_with_n_by_n_kernels(n, d, other):
    x = randn(n, d) + 3
    y = x[:, :2] @ randn(2, other) + randn(n, other)
    assert linear_cka(x, y) == pytest.approx(slow_cka(x, y), abs=1e-12)
    assert linear_cka(y, x) == pytest.approx(linear_cka(x, y), abs=1e-12)
    assert linear_cka(x, y) != pytest.approx(linear_cka(x, y.roll(1, 0)), abs=1e-3)  # images belong together


def test_cka_does_not_see_rotation_scale_and_shift_but_sees_other_invertible_maps():
    x = randn(31, 6) @ torch.diag(torch.tensor([5.0, 3, 1, 1, 0.5, 0.1], dtype=torch.float64))
    rotation = torch.linalg.qr(randn(6, 6)).Q
    assert linear_cka(x, 0.02 * x @ rotation + randn(6)) == pytest.approx(1, abs=1e-12)
    stretch = torch.diag(torch.tensor([0.1, 0.1, 1, 1, 10, 100], dtype=torch.float64))  # invertible
    assert linear_cka(x, x @ stretch @ rotation) < 0.5


@pytest.mark.parametrize(("n", "d", "other"), [(900, 7, 12), (200, 100, 50)])
def test_independent_features_score_what_the_docstring_says(n, d, other):
    expected = (d * other / ((n + d) * (n + other))) ** 0.5
    assert linear_cka(randn(n, d), randn(n, other)) == pytest.approx(expected, rel=0.25)
    assert n < 900 or expected < 0.011


@pytest.mark.parametrize("value", [0.0, 0.3, torch.nan, torch.inf])
def test_cka_of_features_without_any_difference_is_no_number(value):
    x, dead = randn(12, 3), torch.full((12, 4), value, dtype=torch.float64)
    assert torch.tensor([linear_cka(x, dead), linear_cka(dead, x), linear_cka(dead, dead)]).isnan().all()
    assert linear_cka(x, dead.nan_to_num(0, 0) + x[:, :1] / 100) > 0.1


def test_cka_needs_the_same_images():
    with pytest.raises(ValueError, match="the same images, got 12 and 11 rows"):
        linear_cka(randn(12, 3), randn(11, 3))
