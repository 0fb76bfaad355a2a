"""Boundary unlearning: labels from across the boundary, and an output that comes and goes."""

import pytest
import torch
from external_model import external_model
from laboratory import FORGET, Fixed, small
from reference import assert_same_state, state_of
from test_baselines import go, loss_of
from torch import nn
from torch.nn import functional as F

from zspag.lab.methods import Problem, boundary
from zspag.lab.methods.boundary import Expanded, boundary_labels, one_step_attack
from zspag.lab.models import build
from zspag.proxies import ProxySet
from zspag.proxy_statistics import ProxyStatistics
from zspag.runtime import generator_for, logits_of
from zspag.subspaces import accumulate, second_moments
from zspag.views import Views


def linear(weight, bias, *, dtype=torch.float64):
    """A linear classifier of images with as many pixels as the weight has columns."""
    layer = nn.Linear(len(weight[0]), len(weight))
    layer.weight.data, layer.bias.data = torch.tensor(weight), torch.tensor(bias)
    return nn.Sequential(nn.Flatten(), layer).to(dtype)


# Shrink


def test_attack_is_a_signed_step_against_the_label_within_the_unit_box():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    images, labels = torch.rand(5, 1, 2, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    x = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), labels), x)
    moved = one_step_attack(model, images, labels, eps=0.3)
    assert torch.equal(moved, (images + 0.3 * gradient.sign()).clamp(0, 1))
    assert not torch.equal(moved, images + 0.3 * gradient.sign())  # the box binds somewhere
    assert torch.equal(moved[:1], one_step_attack(model, images[:1], labels[:1], eps=0.3))


def test_attack_moves_images_of_which_cross_entropy_has_no_gradient_left():
    model = linear([[0.0], [-50.0]], [200.0, 0.0], dtype=torch.float32)
    images = torch.full((1, 1, 1, 1), 0.5)
    x = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), torch.tensor([0])), x)
    assert gradient.item() == 0
    assert one_step_attack(model, images, torch.tensor([0]), eps=0.1).item() == pytest.approx(0.4)


def test_label_is_that_of_the_attacked_image_not_the_second_best_of_the_clean_one():
    model = linear([[0.0], [0.0], [1.0]], [0.0, -0.05, -0.56])  # class 2 passes class 1 at .51 and class 0 at .56
    images = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
    assert model(images)[0].argsort(descending=True).tolist() == [0, 1, 2]
    assert boundary_labels(model, images, torch.tensor([0]), forget=(0,)).tolist() == [2]
    assert model(images + boundary.ATTACK_RADIUS)[0].argmax() == 2


@pytest.mark.parametrize("forget", [(0,), (0, 2)])
def test_label_never_lies_in_a_forget_class_even_where_the_attack_fails(forget):
    model = linear([[0.0], [0.0], [1.0], [0.5]], [9.0, 1.0, 1.2, 0.0])
    images, labels = torch.rand(7, 1, 1, 1, dtype=torch.float64), torch.zeros(7, dtype=torch.long)
    attacked = one_step_attack(model, images, labels, eps=boundary.ATTACK_RADIUS)
    assert (model(attacked).argmax(1) == 0).all()  # published code would train the class again
    assert boundary_labels(model, images, labels, forget=forget).tolist() == [{(0,): 2, (0, 2): 1}[forget]] * 7


def test_shrink_fits_the_boundary_labels(monkeypatch):
    case = small()
    (loss, _), (again, _) = loss_of(monkeypatch, "boundary_shrink")
    labels = boundary_labels(case.model, case.images, case.labels, forget=(FORGET,))
    model, batch = Fixed(torch.randn(4, 10, generator=generator_for("logits"))), torch.tensor([9, 0, 3, 31])
    expected = -model.logits.log_softmax(1)[range(4), labels[batch]].mean()
    assert loss(model, batch).item() == pytest.approx(expected.item(), rel=1e-6)
    assert again(model, batch).item() == loss(model, batch).item()
    assert torch.equal(model.seen[0], case.images[batch])  # the clean images, not the attacked ones
    assert FORGET not in labels
    assert len(labels.unique()) > 2


# Expanding

NETS = {
    "linear head": lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 5)),
    "no bias": lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 5, bias=False)),
    "1x1 convolution": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ),
}


def prepared(model, images):
    """The least material: what the method asks it for is the name of the last layer."""
    order = torch.arange(len(images))
    proxies = ProxySet(images, torch.zeros_like(order), order, {}, 0.1, barely=images)
    moments = accumulate([second_moments(model, images)], classes=1, merge_at=None)
    return ProxyStatistics(Views(images, order, ()), proxies, moments, order % 2, (moments.pooled, moments.pooled), {})


@pytest.mark.parametrize("net", NETS)
def test_new_output_stands_beside_the_old_ones_which_do_not_notice(net):
    torch.manual_seed(0)
    model, images = NETS[net]().double(), torch.rand(6, 3, 2, 2, dtype=torch.float64)
    place = list(dict(model.named_parameters()))[-1].rpartition(".")[0]
    before = state_of(model)
    wide = Expanded(model, place=place, num_classes=5, generator=generator_for("output"))
    logits = wide.all_logits(images)
    assert logits.shape == (6, 6)
    assert torch.equal(logits[:, :5], model(images))
    assert torch.equal(wide(images), model(images))

    head, extra = model.get_submodule(place), wide.get_submodule(wide.place).extra
    entering = []
    head.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
    model(images)
    features = entering[0].flatten(2).mean(2) if entering[0].dim() == 4 else entering[0]
    offset = 0 if extra.bias is None else extra.bias
    torch.testing.assert_close(logits[:, 5], (features @ extra.weight.flatten() + offset).squeeze())
    bound = features.shape[1] ** -0.5
    assert 0 < extra.weight.abs().max() <= bound
    head._forward_pre_hooks.clear()
    assert_same_state(before, state_of(model))


@pytest.mark.parametrize("net", NETS)
def test_model_that_comes_back_has_the_architecture_of_the_original(net):
    torch.manual_seed(0)
    model, images, labels = NETS[net](), torch.rand(9, 3, 2, 2), torch.zeros(9, dtype=torch.long)
    given = Problem(model, images, labels, 5, generator_for("x"), prepared(model, images))
    ladder = boundary.expanding(given, small().config)
    for run in ladder.runs:
        assert str(run.model) == str(model)
        shapes = {name: part.shape for name, part in run.model.state_dict().items()}
        assert shapes == {name: part.shape for name, part in model.state_dict().items()}
        assert logits_of(run.model, images).shape == (9, 5)
        assert any(not torch.equal(run.model.state_dict()[name], part) for name, part in model.state_dict().items())


@pytest.mark.parametrize("arch", ["vit", "allcnn", "external_model"])
def test_heads_of_real_architectures_are_found(arch):
    shape = {"num_classes": 4, "in_channels": 3, "image_size": 8}
    model = external_model(**shape) if arch == "external_model" else build(arch, width=8, seed=0, **shape)
    images = torch.rand(3, 3, 8, 8)
    place = prepared(model, images).names[-1].rpartition(".")[0]
    wide = Expanded(model.eval(), place=place, num_classes=4, generator=generator_for("output"))
    assert wide.all_logits(images).shape == (3, 5)
    bare = wide.dropped()
    assert torch.equal(bare(images), model(images))
    assert str(bare) == str(model)


def test_a_model_that_is_its_own_head_can_be_widened():
    model, rows = nn.Linear(4, 3), torch.rand(2, 4)
    wide = Expanded(model, place="", num_classes=3, generator=generator_for("output"))
    assert wide.all_logits(rows).shape == (2, 4)
    assert torch.equal(wide.dropped()(rows), model(rows))


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (nn.Linear(4, 7), r"with 3 outputs as the last layer, got Linear.*out_features=7.* at '1'"),
        (nn.Conv1d(4, 3, 1), r"ungrouped convolution .* got Conv1d"),
        (nn.Conv2d(6, 3, 1, groups=3), r"ungrouped convolution .* got Conv2d.*groups=3"),
    ],
)
def test_a_last_layer_that_cannot_be_widened_is_named(head, message):
    with pytest.raises(ValueError, match=message):
        Expanded(nn.Sequential(nn.Flatten(), head), place="1", num_classes=3, generator=generator_for("output"))


def test_expanding_trains_the_forget_set_onto_the_new_output_and_all_rates_start_from_the_same(monkeypatch):
    case, state = small(), torch.get_rng_state()
    losses = []
    real = boundary.sgd_at_every_rate

    def spy(problem, config, make_loss, *, start):
        losses.append((start, make_loss(None)))
        return real(problem, config, make_loss, start=start)

    monkeypatch.setattr(boundary, "descend_all", spy)
    go("boundary_expanding")
    ((wide, loss),) = losses
    batch = torch.arange(7)
    expected = -wide.all_logits(case.images[batch]).log_softmax(1)[:, 10].mean()
    torch.testing.assert_close(loss(wide, batch), expected)
    torch.testing.assert_close(wide(case.images), case.model(case.images))  # the loop worked on copies
    assert torch.equal(state, torch.get_rng_state())  # nothing drew from the global stream


def test_history_counts_what_is_recognized_without_the_new_output(monkeypatch):
    """With it the set is forgotten long before; a rule that looked there would stop too early."""
    case, caught = small(), []
    real = boundary._drop

    def spy(run):
        logits = run.model.all_logits(case.images)
        caught.append((logits.argmax(1) == FORGET).double().mean().item())
        return real(run)

    monkeypatch.setattr(boundary, "_drop", spy)
    (run,) = go("boundary_expanding", ladder=(0.003,)).runs
    without = (logits_of(run.model, case.images).argmax(1) == FORGET).double().mean().item()
    assert run.history[-1].forget_accuracy == without
    assert caught[0] < without / 2  # of 60 images; how many are left is a matter of the processor's rounding
