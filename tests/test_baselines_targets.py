"""New targets against their definitions: ascent, relabeling, DELETE, rehearsal, and an output that comes and goes."""

import math
from dataclasses import replace

import pytest
import torch
from external_model import external_model
from laboratory import FORGET, Fixed, caught_losses, changed_names, problem, small
from reference import assert_same_state, state_of
from test_baselines import assert_same_weights, differ, go, losses
from torch import nn

from zspag.lab.methods import sensitivity
from zspag.lab.methods.targets import Expanded, distilled_from_masked
from zspag.lab.models import build
from zspag.pseudo_labels import masked_log_probabilities
from zspag.runtime import generator_for, logits_of
from zspag.subspaces import second_moments


def fixed(count):
    return Fixed(torch.randn(count, 10, generator=generator_for("logits")))


def soft_labels(images):
    return masked_log_probabilities(logits_of(small().model, images), forget=(FORGET,)).exp()


def test_gradient_ascent_lets_go_of_a_sample_past_log_k(monkeypatch):
    loss, _ = losses(monkeypatch, "gradient_ascent")
    logits = torch.zeros(2, 10)
    logits[0, FORGET], logits[1, FORGET] = 1.0, -1.0  # cross-entropy below and above log 10
    model = Fixed(logits)
    value = loss(model, torch.tensor([0, 1]))
    (gradient,) = torch.autograd.grad(value, model.logits)
    below, above = (-logits.log_softmax(1)[:, FORGET]).tolist()
    assert below < math.log(10) < above
    assert value.item() == pytest.approx(-(below + math.log(10)) / 2)
    assert gradient[0, FORGET] > 0.1  # descent lowers the forget logit
    assert gradient[1].abs().sum() == 0


@pytest.mark.parametrize("name", ["random_relabeling", "salun"])
def test_random_labels_are_retained_classes_drawn_afresh_and_alike_at_every_rate(monkeypatch, name):
    """The gradient of the cross-entropy in the logits is p - label: it tells the label that was drawn."""
    monkeypatch.setattr(sensitivity, "saliency_mask", lambda *_, **__: {"logits": torch.ones(60, 10, dtype=torch.bool)})
    drawn, model = [], fixed(60)
    for loss in losses(monkeypatch, name):
        for _ in range(4):
            (gradient,) = torch.autograd.grad(loss(model, torch.arange(60)), model.logits)
            drawn.append((model.logits.softmax(1) - 60 * gradient).detach().round())
    assert torch.equal(drawn[0].sum(1), torch.ones(60))
    assert set(torch.cat(drawn).argmax(1).tolist()) == set(range(10)) - {FORGET}
    assert not torch.equal(drawn[0], drawn[1])
    assert all(torch.equal(*pair) for pair in zip(drawn[:4], drawn[4:], strict=True))


def test_delete_fits_the_masked_original_unprojected(monkeypatch):
    case, batch = small(), torch.tensor([5, 0, 31])
    caught = caught_losses(monkeypatch, lambda: go("delete"))
    expected, model = soft_labels(case.images), fixed(3)
    value = caught[0][0](model, batch)
    assert value.item() == pytest.approx(-(expected[batch] * model.logits.log_softmax(1)).sum(1).mean().item())
    assert torch.equal(model.seen[0], case.images[batch])
    assert expected[:, FORGET].max() == 0
    assert all(options["project"] is None for _, options in caught)


def test_delete_on_the_same_weights_is_zs_pag_with_soft_labels_unprojected():
    case, options = small(), {"ladder": (0.03,), "strategy": "soft"}
    config = replace(case.config, update=replace(case.config.update, lr=0.03))
    (own,) = distilled_from_masked(problem(), config, names=case.statistics.names).runs
    assert_same_weights(own, go("unprojected", **options).runs[0])
    assert differ(own, go("zs_pag_fixed", **options).runs[0])  # the projection
    assert differ(own, go("delete", **options).runs[0])  # the trainable set


def test_rehearsal_adds_the_mean_over_as_many_proxies_to_the_mean_over_the_batch(monkeypatch):
    case, batch = small(), torch.arange(7)
    proxies, model = case.statistics.proxies.images, fixed(14)
    first, again = (loss(model, batch) for loss in losses(monkeypatch, "rehearsal"))
    seen, second = model.seen
    beside = (seen[7:, None] == proxies[None]).flatten(2).all(2)
    assert torch.equal(seen[:7], case.images[:7])
    assert beside.any(1).all()
    assert torch.equal(seen, second)  # every rate rehearses the same proxies
    labels = torch.cat([soft_labels(case.images)[:7], soft_labels(proxies)[beside.double().argmax(1)]])
    each = -(labels * model.logits.log_softmax(1)).sum(1)
    assert first.item() == again.item() == pytest.approx((each[:7].mean() + each[7:].mean()).item(), rel=1e-5)
    assert labels[:, FORGET].max() == 0


# Boundary expanding

NETS = {
    "linear head": lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 5)),
    "no bias": lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 5, bias=False)),
    "its own head": lambda: nn.Linear(12, 5),
    "1x1 convolution": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ),
}


@pytest.mark.parametrize("net", NETS)
def test_new_output_stands_beside_the_old_ones_which_do_not_notice(net):
    model, images = NETS[net]().double(), torch.rand(6, 3, 2, 2, dtype=torch.float64)
    images = images.flatten(1) if isinstance(model, nn.Linear) else images
    head = list(dict(model.named_parameters()))[-1].rpartition(".")[0]
    before = state_of(model)
    wide = Expanded(model, head=head, num_classes=5, generator=generator_for("output"))
    logits = wide.all_logits(images)
    assert logits.shape == (6, 6)
    assert torch.equal(logits[:, :5], model(images))
    assert torch.equal(wide(images), model(images))
    assert_same_state(before, state_of(model))
    assert_same_state(before | {"identity": {}}, state_of(wide.model) | {"identity": {}})

    entering = []
    with model.get_submodule(head).register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0])):
        model(images)
    features = entering[0].flatten(2).mean(2) if entering[0].dim() == 4 else entering[0]
    offset = 0 if wide.extra.bias is None else wide.extra.bias
    torch.testing.assert_close(logits[:, 5], (features @ wide.extra.weight.flatten() + offset).squeeze())
    assert 0 < wide.extra.weight.abs().max() <= features.shape[1] ** -0.5


@pytest.mark.parametrize("arch", ["vit", "allcnn", "external_model"])
def test_heads_of_real_architectures_are_found(arch):
    shape = {"num_classes": 4, "in_channels": 3, "image_size": 8}
    model = external_model(**shape) if arch == "external_model" else build(arch, width=8, seed=0, **shape)
    images = torch.rand(3, 3, 8, 8)
    head = list(second_moments(model, images).second)[-1].rpartition(".")[0]
    wide = Expanded(model.eval(), head=head, num_classes=4, generator=generator_for("output"))
    assert wide.all_logits(images).shape == (3, 5)
    assert str(wide.model) == str(model)


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
        Expanded(nn.Sequential(nn.Flatten(), head), head="1", num_classes=3, generator=generator_for("output"))


def test_expanding_trains_the_forget_set_onto_the_new_output(monkeypatch):
    case, batch, widened = small(), torch.arange(7), []
    real = Expanded.__init__
    monkeypatch.setattr(
        Expanded, "__init__", lambda self, *args, **rest: widened.append(self) or real(self, *args, **rest)
    )
    loss, _ = losses(monkeypatch, "boundary_expanding")
    (wide,) = widened  # one for all rates
    expected = -wide.all_logits(case.images[batch]).log_softmax(1)[:, 10].mean()
    torch.testing.assert_close(loss(wide, batch), expected)


def test_history_counts_what_is_recognized_without_the_new_output_which_is_dropped_at_the_end(monkeypatch):
    """With it the set is forgotten long before; a rule that looked there would stop too early."""
    case, state, answers = small(), torch.get_rng_state(), []
    real = Expanded.all_logits

    def keep(self, images):
        answers.append((self, real(self, images)))
        return answers[-1][1]

    monkeypatch.setattr(Expanded, "all_logits", keep)
    (run,) = go("boundary_expanding", ladder=(0.003,)).runs
    wide = answers[-1][0]
    shown, hidden = (
        (logits.argmax(1) == FORGET).double().mean().item()
        for logits in (real(wide, case.images), logits_of(run.model, case.images))
    )
    assert run.model is wide.model
    assert run.history[-1].forget_accuracy == hidden
    assert shown < hidden / 2  # of 60 images; how many are left is a matter of the processor's rounding
    assert str(run.model) == str(case.model)
    assert changed_names(case.model, run.model)
    assert torch.equal(state, torch.get_rng_state())  # nothing drew from the global stream
