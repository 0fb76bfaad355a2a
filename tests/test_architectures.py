"""Every architecture of the package holds what the method promises: rows, neutrality, frozen weights, influence.

All in float64 at small widths; batch norm gets statistics and affine values of its own, so that nothing holds by
accident of an untrained net.
"""

import copy

import pytest
import reference
import torch
from torch import nn
from torch.nn import functional as F

from zspag import zero_shot_unlearn
from zspag.activations import as_blocks, watching
from zspag.calibration.open_search import LARGEST, SMALLEST, rate_at
from zspag.config import LabelConfig, ProxyConfig, SubspaceConfig, UnlearnConfig, UpdateConfig
from zspag.influence import label_scores
from zspag.lab.models import ARCHITECTURES, build
from zspag.subspaces import by_energy, hard_projector, second_moments

CLASSES, CHANNELS, FORGET = 4, 2, 2
SETTINGS = {  # image size and width
    "alexnet": (16, 2),
    "allcnn": (8, 4),
    "conv7": (8, 4),
    "digits": (8, 4),
    "resnet18": (8, 3),
    "vgg11": (16, 3),
    "vgg16": (17, 3),
    "vit": (12, 16),
}
FROZEN = {"vit": {"1.class_token": "used by expand", "1.encoder.pos_embedding": "used by add"}}
RATES = [rate_at(place) for place in range(SMALLEST, LARGEST + 1)]
NETS = pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
SLOW = {"alexnet", "allcnn", "conv7", "digits", "resnet18", "vgg11", "vgg16"}  # their layers are in the others as well


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def images_of(arch, count):
    size, _ = SETTINGS[arch]
    return torch.rand(count, CHANNELS, size, size, dtype=torch.float64)


def make(arch):
    size, width = SETTINGS[arch]
    shape = {"num_classes": CLASSES, "in_channels": CHANNELS, "image_size": size, "width": width}
    return build(arch, **shape, mean=(0.4, 0.5), std=(0.25, 0.3), seed=1).double()


@torch.no_grad()
def used(arch):
    """A net in eval mode whose norms, biases and head are those of a net somebody trained: nothing is 0 or 1."""
    net = make(arch).eval()
    for name, parameter in net.named_parameters():
        if parameter.dim() == 1 or name.endswith(("class_token", "pos_embedding", "heads.head.weight")):
            parameter += 0.2 * randn(*parameter.shape)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean += 0.2 * randn(*layer.running_mean.shape)
            layer.running_var *= 0.05 + 0.1 * torch.rand_like(layer.running_var)
    return net


def weights_of(net, arch):
    """Names of all weights that must be projectable: every parameter of two or more dimensions but the stated ones."""
    return {name for name, p in net.named_parameters() if p.dim() > 1} - set(FROZEN.get(arch, ()))


# ---- Rows


@NETS
def test_weight_times_rows_is_what_every_layer_returns(arch):
    net, explained, inside = used(arch), set(), {}
    parameters = dict(net.named_parameters())

    def visit(name, rows, outputs):
        if outputs is None:
            inside[name] = rows
            return
        bias = parameters.get(name.removesuffix("weight") + "bias")
        expected = outputs.rows(outputs.raw) - (0 if bias is None else bias.view(len(rows), 1, -1))
        torch.testing.assert_close(rows @ as_blocks(parameters[name], len(rows)).transpose(1, 2), expected)
        assert not torch.allclose(rows.flip(1) @ as_blocks(parameters[name], len(rows)).transpose(1, 2), expected)
        explained.add(name)

    calls = record_attention(net)
    with watching(net, visit) as unprojectable, torch.no_grad():
        net(images_of(arch, 3))
    for place, (query, result) in calls.items():
        module = net.get_submodule(place)
        per_sample = [reference.attention(module, x, x, x) for x in query]
        heads, outputs = (torch.stack(parts) for parts in zip(*per_sample, strict=True))
        assert_same_tokens(inside[f"{place}.in_proj_weight"], query.expand(3, -1, -1, -1))
        assert_same_tokens(inside[f"{place}.out_proj.weight"], heads[None])
        torch.testing.assert_close(result, outputs)
        explained |= {f"{place}.in_proj_weight", f"{place}.out_proj.weight"}
    assert explained == weights_of(net, arch)
    assert set(unprojectable) == set(FROZEN.get(arch, ()))


def assert_same_tokens(rows, tokens):
    """Compare rows (blocks, T * n, w), the tokens of all samples in turn, with (blocks, n, T, w)."""
    torch.testing.assert_close(rows, tokens.transpose(1, 2).flatten(1, 2))


def record_attention(net):
    """Keep what enters and leaves every self-attention, by name; hooks stay on this net of the test."""
    calls = {}
    for place, module in net.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            module.register_forward_hook(
                lambda _module, args, output, place=place: calls.update({place: (args[0], output[0])})
            )
    return calls


# ---- Projected updates


@NETS
def test_a_projected_step_moves_logits_only_outside_the_span_of_the_batch(arch):
    net, inside, outside = used(arch), images_of(arch, 2), images_of(arch, 5)
    moments = second_moments(net, inside)
    assert set(moments.second) == weights_of(net, arch)
    project = hard_projector(by_energy(moments, energy=1.0))
    steps = {name: scaled(weight) for name, weight in net.named_parameters() if name in moments.second}
    projected = {name: project(name, step) for name, step in steps.items()}

    with torch.no_grad():
        before = net(inside), net(outside)
        kept, free = moved(net, projected), moved(net, steps)
        torch.testing.assert_close(kept(inside), before[0], rtol=0, atol=1e-8)
        assert (kept(outside) - before[1]).abs().max() > 1e-4
        assert (free(inside) - before[0]).abs().max() > 1e-2


def scaled(weight):
    """A random step, a fifth as long as the weight itself."""
    step = randn(*weight.shape)
    return 0.2 * step * (weight.norm() / step.norm())


@torch.no_grad()
def moved(net, steps):
    changed = copy.deepcopy(net)
    for name, weight in changed.named_parameters():
        if name in steps:
            weight += steps[name]
    return changed


# ---- Influence


@NETS
def test_label_scores_are_finite_differences_of_the_label_losses(arch):
    net, images, h = used(arch), images_of(arch, 3), 1e-6
    direction = {name: scaled(p.detach()) for name, p in net.named_parameters() if name in weights_of(net, arch)}
    ahead, behind = (moved(net, {n: sign * h * v for n, v in direction.items()}) for sign in (1, -1))
    with torch.no_grad():
        measured = (behind(images).log_softmax(1) - ahead(images).log_softmax(1)) / (2 * h)
    scores = label_scores(net, images, direction)
    assert scores.abs().max() > 1e-2
    torch.testing.assert_close(scores, measured, rtol=1e-5, atol=1e-7)


# ---- The whole method


CONFIG = UnlearnConfig(
    proxies=ProxyConfig(eps=0.5, steps=10, per_class=6),
    subspace=SubspaceConfig(energy=0.9),
    labels=LabelConfig(strategy="process"),
    update=UpdateConfig(layers="all", epochs=4, batch_size=6, min_steps=2, give_up=1.0),
)


def blobs(arch, count, labels):
    """Noise with a bright square in one of four corners: the class; returns images and labels, in turn."""
    images, labels = 0.5 * images_of(arch, count), torch.tensor(labels).repeat(count)[:count]
    half = images.shape[-1] // 2
    for image, label in zip(images, labels.tolist(), strict=True):
        top, left = half * (label // 2), half * (label % 2)
        image[:, top : top + half, left : left + half] += 0.5
    return images, labels


def trained(arch):
    """A net that tells the four corners apart, left in training mode but for its first norm or dropout."""
    net = make(arch)
    images, labels = blobs(arch, 32, range(CLASSES))
    stepper = torch.optim.Adam(net.parameters(), lr=5e-3)
    for _ in range(60):
        loss = F.cross_entropy(net(images), labels)
        stepper.zero_grad()
        loss.backward()
        stepper.step()
    with torch.no_grad():
        for _ in range(20):
            net(images)  # norm statistics of the final weights
    assert (copy.deepcopy(net).eval()(images).argmax(1) == labels).double().mean() > 0.9
    return net.train()


@pytest.mark.parametrize(
    "arch", [pytest.param(arch, marks=pytest.mark.slow if arch in SLOW else ()) for arch in sorted(ARCHITECTURES)]
)
def test_the_method_runs_on_every_architecture_and_moves_nothing_it_must_not(arch, monkeypatch):
    monkeypatch.setattr("zspag.calibration.verdict.RUINOUS", float("inf"))  # untrained nets
    net, seen = trained(arch), []
    changing = [m for m in net.modules() if isinstance(m, nn.Dropout | nn.BatchNorm2d | nn.MultiheadAttention)]
    changing[0].eval()
    for layer in changing:
        layer.register_forward_pre_hook(lambda module, _: seen.append(module.training))
    before = reference.state_of(net)
    images, labels = blobs(arch, 16, [FORGET])
    result = zero_shot_unlearn(net, images, labels, num_classes=CLASSES, config=CONFIG)

    reference.assert_same_state(before, reference.state_of(net))
    after, closed = reference.state_of(result.open_model), reference.state_of(result.model)
    assert after["modes"] == closed["modes"] == before["modes"]
    assert seen  # in the attack, in the capture of rows, in the update
    assert not any(seen)

    changed = {name for name in before["weights"] if not torch.equal(before["weights"][name], after["weights"][name])}
    assert changed <= weights_of(net, arch)  # no bias, norm, statistic, class token or position
    assert len(changed) > len(weights_of(net, arch)) / 2
    assert_only_the_rows_of_the_head_are_closed(after["weights"], closed["weights"])
    assert not (result.model(images_of(arch, 20)).argmax(1) == FORGET).any()

    report = result.report
    assert report.forget_classes == (FORGET,)
    moved = {layer.name for layer in report.layers if layer.moved}
    spent = {layer.name: layer.reason for layer in report.layers if layer.free == 0 and layer.leak is not None}
    assert changed == moved == set(report.free_dimension)
    assert moved | set(spent) == weights_of(net, arch)
    assert set(spent.values()) <= {"the proxies leave no direction free"}
    assert set(report.frozen) == {*FROZEN.get(arch, ()), *spent}
    assert all(reason in report.frozen[name] for name, reason in FROZEN.get(arch, {}).items())
    rates = [trial.lr for trial in report.tried]
    assert rates == sorted(set(rates)) == [rate for rate in RATES if rates[0] <= rate <= rates[-1]]
    assert report.lr in [trial.lr for trial in report.tried if trial.forgot]
    assert report.chosen == "all"
    assert report.reached
    assert report.silenced
    assert report.history[-1].forget_accuracy == 0
    assert set(report.seconds) == {"checks", "proxies", "subspaces", "calibration", "update", "closing"}


def assert_only_the_rows_of_the_head_are_closed(opened, closed):
    """Compare two state dicts: of weight and bias of one layer, the forget class's row differs, and nothing else."""
    differing = {name for name in opened if not torch.equal(opened[name], closed[name])}
    place = next(iter(differing)).rpartition(".")[0]
    assert differing == {f"{place}.weight", f"{place}.bias"}
    for name in differing:
        assert len(opened[name]) == CLASSES
        others = torch.arange(CLASSES) != FORGET
        assert torch.equal(opened[name][others], closed[name][others])
