"""Fisher forgetting and selective dampening against small cases by hand and squared gradients one by one."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from laboratory import LADDER, small
from reference import Attending, gradient, undense
from torch import nn

from zspag.config import UnlearnConfig, UpdateConfig
from zspag.lab.methods import METHODS, Problem, importances
from zspag.lab.models import build
from zspag.runtime import generator_for, logits_of

CONFIG = UnlearnConfig(update=UpdateConfig(ladder=LADDER, whole_ladder=True))


def go(name, model, forget, labels, retain, retain_labels, *, ladder=LADDER, seed=0, num_classes=2):
    retain = (retain, retain_labels)
    given = Problem(model, forget, labels, num_classes, generator_for(seed), statistics=None, retain=retain)
    return METHODS[name].run(given, replace(CONFIG, update=replace(CONFIG.update, ladder=ladder))).runs


def on_small(name, *, ladder=LADDER, seed=0):
    case = small()
    return go(
        name, case.model, case.images, case.labels, case.retain_images, case.retain_labels, ladder=ladder, seed=seed,
        num_classes=10,
    )  # fmt: skip


class Scales(nn.Module):
    """Logits w_1 x_1 and w_2 x_2: two weights, each of which answers for one class."""

    def __init__(self, *weights):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(weights, dtype=torch.float64))

    def forward(self, images):
        return self.weights * images.flatten(1)


def samples(*rows):
    return torch.tensor(rows, dtype=torch.float64)[:, None, None]


# Squared gradients


def by_loops(model, images, labels, shares):
    """The mean of share * gradient^2 over single samples, one backward pass each."""
    names = [name for name, _ in model.named_parameters()]
    total = 0
    for image, label, share in zip(images, labels, shares, strict=True):
        total = total + share * gradient(model, -model(image[None]).log_softmax(1)[0, label], names) ** 2
    return undense(total / len(images), dict(model.named_parameters()))


def nets():
    attending = Attending().double()
    convolving = build(
        "digits", num_classes=5, in_channels=3, image_size=8, width=4, mean=(0.5,) * 3, std=(0.3,) * 3, seed=0
    ).double()
    return {"attention": attending, "norms": convolving}


@pytest.mark.parametrize("name", ["attention", "norms"])
def test_importances_are_means_of_squared_gradients_of_single_samples(name):
    torch.manual_seed(1)
    model = nets()[name].eval()
    images, labels = torch.rand(7, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 4, 0, 1])
    found = importances.importances(model, images, labels)
    expected = by_loops(model, images, labels, [1] * 7)
    assert found.keys() == expected.keys() == dict(model.named_parameters()).keys()
    names = list(found)
    batch = undense(gradient(model, nn.functional.cross_entropy(model(images), labels), names) ** 2, expected)
    for key, part in found.items():
        torch.testing.assert_close(part, expected[key])
        assert not torch.allclose(part, batch[key], atol=0)  # the published defect: squares of a batch's mean


@pytest.mark.parametrize("name", ["attention", "norms"])
def test_fisher_information_is_the_expectation_over_the_models_own_labels(name, monkeypatch):
    torch.manual_seed(1)
    model = nets()[name].eval()
    images = torch.rand(6, 3, 8, 8, dtype=torch.float64)
    p = logits_of(model, images).softmax(1)
    expected = {}
    for label in range(5):
        part = by_loops(model, images, [label] * 6, p[:, label])
        expected = {key: expected.get(key, 0) + value for key, value in part.items()}
    for key, part in importances.fisher_information(model, images).items():
        torch.testing.assert_close(part, expected[key])
    monkeypatch.setattr(importances, "FISHER_LABELS", 2)
    fewer = importances.fisher_information(model, images)
    assert all((fewer[key] <= part + 1e-12).all() for key, part in expected.items())
    assert any(not torch.allclose(fewer[key], part) for key, part in expected.items())


def test_memory_bound_changes_no_result(monkeypatch):
    model = Attending().double().eval()
    images, labels = torch.rand(5, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 4])
    whole = importances.importances(model, images, labels)
    monkeypatch.setattr(importances, "_HELD", 1)
    for key, part in importances.importances(model, images, labels).items():
        torch.testing.assert_close(part, whole[key])


def test_large_sets_are_sampled_without_replacement():
    images, labels = torch.arange(9.0), torch.arange(9)
    kept, of = importances._sample(images, labels, 4, generator_for(0))
    assert len(kept.unique()) == 4
    assert torch.equal(kept.long(), of)
    assert torch.equal(importances._sample(images[:4], labels[:4], 4, generator_for(0))[0], images[:4])


# Fisher forgetting


def test_fisher_of_a_logistic_weight_by_hand_and_the_noise_it_gets():
    """At logits w x with w = 0 both classes have p = 1/2: F = E[x^2] / 4, and the noise has variance rate^2 / F."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3000, 2, bias=False)).double()
    nn.init.zeros_(model[1].weight)
    scale = torch.ones(3000, dtype=torch.float64)
    scale[1000:2000], scale[2000:] = 2.0, 0.0  # four times the information; and none
    retain = torch.stack([scale, -scale])[:, None, None]
    fisher = importances.fisher_information(model, retain)["1.weight"]
    torch.testing.assert_close(fisher, (scale**2 / 4).expand(2, -1))
    low, high = go("fisher_forgetting", model, retain[:1], torch.tensor([0]), retain, torch.tensor([0, 1]))
    noise = high.model[1].weight.detach()
    for part, inverse in ((slice(0, 1000), 4.0), (slice(1000, 2000), 1.0), (slice(2000, None), 1e3)):
        deviation = noise[:, part].square().mean().sqrt().item()
        assert deviation == pytest.approx(high.lr * math.sqrt(inverse), rel=0.05)  # capped where F is 0
    torch.testing.assert_close(low.model[1].weight / low.lr, high.model[1].weight / high.lr)


def test_the_noise_goes_to_nothing_with_the_rate():
    case = small()
    tiny, large = on_small("fisher_forgetting", ladder=(1e-9, 0.03))
    for name, tensor in case.model.state_dict().items():
        torch.testing.assert_close(tiny.model.state_dict()[name], tensor, atol=1e-6, rtol=1e-6)
    before, after, ruined = (logits_of(model, case.images) for model in (case.model, tiny.model, large.model))
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
    assert (ruined - before).abs().max() > 1


def test_noise_is_drawn_from_the_generator():
    first, second, again = (on_small("fisher_forgetting", ladder=(0.01,), seed=s)[0].model for s in (1, 2, 1))
    for (name, one), other, same in zip(first.named_parameters(), second.parameters(), again.parameters(), strict=True):
        assert not torch.equal(one, other), name
        assert torch.equal(one, same), name


# SSD


def test_selective_dampening_by_hand_on_two_weights():
    """At w = (log 3, log 3) a unit input gives its class p = 3/4, and its own weight the squared gradient 1/16.

    The forget sample and one of four retain samples use the first weight, the others the second. Forget importance is
    (1/16, 0), retain importance (1/64, 3/64), so that full-data importance of the first weight is
    1/5 * 1/16 + 4/5 * 1/64 = 1/40. Its forget importance is 4 times the retain and 2.5 times the full-data one.
    """
    start = math.log(3)
    forget, retain = samples([1.0, 0.0]), samples([1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0])
    model, labels, retain_labels = Scales(start, start), torch.tensor([0]), torch.tensor([0, 1, 1, 1])
    found = importances.importances(model, forget, labels)["weights"]
    assert found.tolist() == pytest.approx([1 / 16, 0])
    below, above = go("selective_dampening", model, forget, labels, retain, retain_labels, ladder=(1 / 5, 1 / 3))
    assert below.model.weights.tolist() == [start, start]  # 4 does not exceed 1 / rate = 5
    assert above.model.weights.tolist() == pytest.approx([0.4 * start, start])  # it exceeds 3: times 1/40 over 1/16


def dampened(weights, alpha):
    """Compute SSD's formula word for word, from squared gradients one by one."""
    model = Scales(*weights)
    forget, retain = samples([4.0, 1.0]), samples([2.0, 3.0], [0.0, 3.0], [2.0, 3.0])
    labels, retain_labels = torch.tensor([0]), torch.tensor([0, 1, 0])
    f = by_loops(model, forget, labels, [1])["weights"]
    d = by_loops(model, torch.cat([forget, retain]), torch.cat([labels, retain_labels]), [1] * 4)["weights"]
    expected = [w * min(1.0, d[i].item() / f[i].item()) if f[i] > alpha * d[i] else w for i, w in enumerate(weights)]
    rate = (1 / alpha - 1 / 4) / (1 - 1 / 4)  # the forget set has a share of 1/4
    (run,) = go("selective_dampening", model, forget, labels, retain, retain_labels, ladder=(rate,))
    return run.model.weights.tolist(), expected, (f / d).tolist()


@pytest.mark.parametrize("alpha", [0.01, 0.5, 2.0, 3.9])
def test_selective_dampening_is_the_papers_formula_at_the_alpha_of_the_rate(alpha):
    weights = (0.1, -0.2)
    found, expected, ratios = dampened(weights, alpha)
    assert found == pytest.approx(expected)
    assert ratios[0] > 2 > 1 > ratios[1] > 0.01
    assert (found[0] != weights[0]) == (alpha < ratios[0])
    assert found[1] == weights[1]  # less important to the forget set: chosen at a small alpha, but never amplified


def test_a_rate_selects_by_retain_importance_where_the_papers_alpha_would_select_nothing():
    case = small()
    share = len(case.images) / (len(case.images) + len(case.retain_images))
    forget = importances.importances(case.model, case.images, case.labels)
    retain = importances.importances(case.model, case.retain_images, case.retain_labels)
    (run,) = on_small("selective_dampening", ladder=(0.01,))
    shrunk = 0
    for (name, start), one in zip(case.model.named_parameters(), run.model.parameters(), strict=True):
        full = share * forget[name] + (1 - share) * retain[name]
        assert not (forget[name] > full / share * (1 + 1e-5)).any()  # the ratio never exceeds 1 / share, here 22
        chosen = forget[name] > 100 * retain[name]
        expected = torch.where(chosen, start * full / forget[name], start)
        torch.testing.assert_close(one, expected, rtol=1e-5, atol=0)
        shrunk += int((one != start).sum())
    assert 0 < shrunk < 0.2 * sum(parameter.numel() for parameter in case.model.parameters())


def test_weights_nothing_depends_on_stay():
    model = Scales(0.1, -0.2)
    forget, retain = samples([0.0, 0.0]), samples([2.0, 3.0])
    (run,) = go("selective_dampening", model, forget, torch.tensor([0]), retain, torch.tensor([0]), ladder=(1e3,))
    assert run.model.weights.tolist() == [0.1, -0.2]


@pytest.mark.parametrize("name", ["fisher_forgetting", "selective_dampening"])
def test_a_rate_is_one_epoch_that_says_what_the_forget_set_looks_like_afterwards(name):
    case = small()
    for run in on_small(name):
        (epoch,) = run.history
        logits = logits_of(run.model, case.images)
        assert epoch.loss == pytest.approx(nn.functional.cross_entropy(logits, case.labels).item())
        assert epoch.forget_accuracy == (logits.argmax(1) == case.labels).double().mean().item()
        assert epoch.seconds > 0
        assert not run.diverged


def test_an_edit_that_is_not_finite_has_diverged():
    case = small()
    (run,) = on_small("fisher_forgetting", ladder=(1e38,))
    assert run.diverged
    assert not run.reached(1.0)
    assert all(torch.isfinite(parameter).all() for parameter in copy.deepcopy(case.model).parameters())
