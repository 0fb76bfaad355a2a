"""Oracles: what each step looks at, what the null space of the retain data promises, and importances one by one."""

import math
from functools import partial

import pytest
import torch
from laboratory import FORGET, Fixed, small
from reference import Attending, gradient, undense
from test_baselines import go, losses, weights
from torch import nn
from torch.nn import functional as F

from zspag.config import SubspaceConfig, UnlearnConfig, UpdateConfig
from zspag.lab.methods import METHODS, Problem, oracles
from zspag.lab.models import build
from zspag.profiles import LADDERS
from zspag.projected_sgd import batch_size
from zspag.runtime import generator_for, logits_of
from zspag.subspaces import combine, second_moments

STEPS = 20  # the small case: 60 forget samples, batches of 3
EDITS = ("fisher_forgetting", "selective_dampening")


def fixed():
    return Fixed(torch.randn(2000, 10, generator=generator_for("logits")))


def places(images, within):
    """Return where in ``within`` each image stands."""
    same = (images[:, None] == within[None]).flatten(2).all(2)
    assert same.any(1).all()
    return same.double().argmax(1)


def accuracy(model, images, labels):
    return (logits_of(model, images).argmax(1) == labels).double().mean().item()


def run_on(name, model, forget, labels, retain, retain_labels, **update):
    """Run an oracle on data of one's own."""
    given = Problem(model, forget, labels, 4, generator_for(0), statistics=None, retain=(retain, retain_labels))
    options = {"whole_ladder": True, "epochs": 3, "give_up": 1.0, "settle": 0} | update
    return METHODS[name].run(given, UnlearnConfig(update=UpdateConfig(**options))).runs


# Fine-tuning


def test_fine_tuning_is_cross_entropy_on_retain_samples_and_nothing_else(monkeypatch):
    case, model = small(), fixed()
    loss, again = losses(monkeypatch, "fine_tune")
    value = loss(model, torch.arange(3))
    again(model, torch.tensor([5]))
    first, second = model.seen
    assert torch.equal(first, second)  # whatever the forget batch, and the same at every rate
    assert len(first) == math.ceil(len(case.retain_images) / STEPS)
    labels = case.retain_labels[places(first, case.retain_images)]
    assert value.item() == pytest.approx(F.cross_entropy(model.logits[: len(first)], labels).item())
    assert not (labels == FORGET).any()


@pytest.mark.parametrize("cap", [10**9, 100])
def test_an_epoch_of_fine_tuning_is_one_pass_over_the_retain_set_unless_the_cap_is_lower(monkeypatch, cap):
    case, model = small(), fixed()
    assert len(case.images) / batch_size(len(case.images), case.config.update) == STEPS
    monkeypatch.setattr(oracles, "RETAIN_PER_EPOCH", cap)
    loss, _ = losses(monkeypatch, "fine_tune")
    for _ in range(STEPS):
        loss(model, torch.arange(3))
    read, expected = places(torch.cat(model.seen), case.retain_images), min(cap, len(case.retain_images))
    assert len(read.unique()) == expected
    assert abs(len(read) - expected) <= STEPS


def test_fine_tuning_learns_the_retain_set_and_does_not_forget_on_digits():
    """What it does instead of forgetting: the retained loss falls, and the forgotten class stays at every rate."""
    case = small()
    runs = go("fine_tune", ladder=LADDERS.low[::2], update={"epochs": 8}).runs
    models = [case.model, *(run.model for run in runs)]
    kept = [F.cross_entropy(logits_of(model, case.retain_images), case.retain_labels).item() for model in models]
    lost = [F.cross_entropy(logits_of(model, case.images), case.labels).item() for model in models]
    assert not any(run.diverged for run in runs)
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] < 0.8 * kept[0]
    assert min(accuracy(model, case.images, case.labels) for model in models[1:]) > 0.8
    assert lost[-1] > lost[1]  # the highest rate of the ladder has begun
    assert all(len(run.history) == 4 for run in runs)  # given up at half the cap


# UNSC


@pytest.mark.parametrize("projected", [True, False])
def test_unsc_leaves_outputs_on_the_retain_span_unchanged_and_without_its_projection_it_would_not(
    monkeypatch, projected
):
    """The theorem, in float64: no sample of the span moves in its layer, no retain sample at the end; others do."""
    monkeypatch.setattr(oracles, "UNSC_ENERGY", 1.0)  # nothing is cut off: every retain sample lies in the span
    monkeypatch.setattr(oracles, "UNSC_MERGE_ENERGY", 1.0)
    if not projected:
        real = oracles.fit
        monkeypatch.setattr(oracles, "fit", lambda *args, **options: real(*args, **options | {"project": None}))
    layers = nn.Flatten(), nn.Linear(11, 9, bias=False), nn.ReLU(), nn.Linear(9, 4, bias=False)
    model, drawing = nn.Sequential(*layers).double(), generator_for("low rank")
    retain = torch.cat([torch.eye(11, dtype=torch.float64)[[2 * k, 2 * k + 1]] for k in range(3)])[:, None, None]
    forget = torch.randn(8, 1, 1, 11, generator=drawing, dtype=torch.float64)
    mixed = torch.randn(5, 6, generator=drawing, dtype=torch.float64) @ retain.flatten(1)
    labels = torch.full((8,), 3), retain, torch.tensor([0, 0, 1, 1, 2, 2])
    changed = run_on("unsc", model, forget, *labels, lr=0.1)[0].model
    with torch.no_grad():
        inside = [(changed[1](mixed) - model[1](mixed)).abs().max(), (changed(retain) - model(retain)).abs().max()]
        outside = (changed[1](forget.flatten(1)) - model[1](forget.flatten(1))).abs().max()
        assert all(part < 1e-12 if projected else part > 0.01 for part in inside)
        assert outside > 0.01
        assert (changed(forget) - model(forget)).abs().max() > 0.01
        assert not torch.equal(changed[3].weight, model[3].weight)


def test_unsc_fits_the_second_best_labels_outside_of_the_merged_subspace_of_the_true_retain_classes(monkeypatch):
    case, caught = small(), []
    real = oracles.fit

    def keep(given, config, labeler, **options):
        caught.append(labeler(given.model))
        return real(given, config, labeler, **options)

    monkeypatch.setattr(oracles, "fit", keep)
    run = go("unsc", ladder=(0.3,)).runs[0]
    order = logits_of(case.model, case.images).argsort(1, descending=True)
    best = torch.where(order[:, 0] == FORGET, order[:, 1], order[:, 0])
    assert torch.equal(caught[0], F.one_hot(best, 10).to(caught[0]))
    assert 0 < (order[:, 0] == FORGET).sum() < len(order)  # one that was not recognized keeps its best label

    parts = [second_moments(case.model, case.retain_images[case.retain_labels == k]) for k in range(10) if k != FORGET]
    config = partial(SubspaceConfig, combine="merge", merge_energy=oracles.UNSC_MERGE_ENERGY)
    subspace = combine(parts, config=config(energy=oracles.UNSC_ENERGY))
    free = [name for name, count in subspace.free_dimension().items() if count]
    for name in free:
        change = (weights(run)[name] - case.model.state_dict()[name]).flatten(1).double()
        assert (change @ subspace.bases[name][0]).norm() < 1e-4 * change.norm()
    assert free
    found = oracles.merged_retain_subspace(case.model, case.retain_images, case.retain_labels)
    assert found.ranks == subspace.ranks != combine(parts, config=config(energy=0.995)).ranks
    assert 0.97 <= oracles.UNSC_ENERGY <= 0.99


# SCRUB


def slow_divergence(model, images, log_q):
    """KL from the original's softmax to q, row by row."""
    p = logits_of(model, images).softmax(1)
    return (p * (p.log() - log_q)).sum(1)


def test_max_steps_of_scrub_climb_the_divergence_on_the_forget_set(monkeypatch):
    case, model = small(), fixed()
    loss, again = losses(monkeypatch, "scrub")
    value = loss(model, torch.arange(3))
    again(model, torch.arange(3))
    assert torch.equal(*model.seen)  # the same at every rate
    count = len(places(model.seen[0], case.images))
    each = slow_divergence(case.model, model.seen[0], model.logits[:count].log_softmax(1))
    past = each > math.log(10)
    assert value.item() == pytest.approx(-each.clamp_max(math.log(10)).mean().item(), rel=1e-5)
    (slope,) = torch.autograd.grad(value, model.logits)
    assert slope[:count][past].abs().sum() == 0  # what has fled far enough no longer counts
    assert (slope[:count][~past].abs().sum(1) > 0).all()
    assert 0 < past.sum() < count


def test_min_steps_of_scrub_keep_the_teacher_and_the_labels_on_the_retain_set(monkeypatch):
    case, model = small(), fixed()
    loss, _ = losses(monkeypatch, "scrub")
    value = [loss(model, torch.arange(3)) for _ in range(STEPS)][-1]
    rows = places(model.seen[-1], case.retain_images)
    log_q = model.logits[: len(rows)].log_softmax(1)
    kept = slow_divergence(case.model, model.seen[-1], log_q).mean()
    assert value.item() == pytest.approx((0.001 * kept + 0.99 * F.nll_loss(log_q, case.retain_labels[rows])).item())
    assert kept > 1


def test_scrub_goes_through_the_forget_set_first_and_later_only_repairs(monkeypatch):
    case, model = small(), fixed()
    loss, _ = losses(monkeypatch, "scrub", update={"epochs": 3})
    kinds = ["max" if loss(model, torch.arange(3)) < 0 else "min" for _ in range(3 * STEPS)]
    epoch = ["max"] * (STEPS // 2) + ["min"] * (STEPS // 2)
    assert kinds == epoch + epoch + ["min"] * STEPS
    read = places(torch.cat(model.seen[: STEPS // 2]), case.images)
    assert sorted(read.tolist()) == list(range(len(case.images)))
    kept = places(torch.cat(model.seen[STEPS // 2 : STEPS]), case.retain_images)
    assert len(kept.unique()) == len(kept) >= len(case.retain_images) - STEPS
    # Where an epoch is one step, epochs take turns.
    loss, _ = losses(monkeypatch, "scrub", update={"min_steps": 1, "epochs": 6})
    kinds = ["max" if loss(model, torch.arange(60)) < 0 else "min" for _ in range(6)]
    assert kinds == ["max", "min", "max", "min", "min", "min"]


def test_scrub_forgets_and_keeps_on_its_own_ladder():
    run = go("scrub", ladder=(0.03,), update={"epochs": 8}).runs[0]
    assert run.reached(0.01)
    assert accuracy(run.model, small().retain_images, small().retain_labels) > 0.95


# Squared gradients


def by_loops(model, images, labels, shares):
    """The mean of share * gradient^2 over single samples, one backward pass each."""
    names = [name for name, _ in model.named_parameters()]
    total = 0
    for image, label, share in zip(images, labels, shares, strict=True):
        total = total + share * gradient(model, -model(image[None]).log_softmax(1)[0, label], names) ** 2
    return undense(total / len(images), dict(model.named_parameters()))


@pytest.fixture(params=["attention", "norms"])
def net(request):
    options = {"num_classes": 5, "in_channels": 3, "image_size": 8, "width": 4, "mean": (0.5,) * 3, "std": (0.3,) * 3}
    model = Attending() if request.param == "attention" else build("digits", seed=0, **options)
    return model.double().eval()


def test_importances_are_means_of_squared_gradients_of_single_samples(net, monkeypatch):
    images, labels = torch.rand(7, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 4, 0, 1])
    found, expected = oracles.importances(net, images, labels), by_loops(net, images, labels, [1] * 7)
    assert found.keys() == expected.keys() == dict(net.named_parameters()).keys()
    batch = undense(gradient(net, F.cross_entropy(net(images), labels), list(found)) ** 2, expected)
    monkeypatch.setattr(oracles, "_HELD", 1)
    frugal = oracles.importances(net, images, labels)
    for key, part in found.items():
        torch.testing.assert_close(part, expected[key])
        torch.testing.assert_close(part, frugal[key])  # the bound on memory changes no result
        assert not torch.allclose(part, batch[key], atol=0)  # the published defect: squares of a batch's mean


def test_fisher_information_is_the_expectation_over_the_models_own_labels(net, monkeypatch):
    images = torch.rand(6, 3, 8, 8, dtype=torch.float64)
    p = logits_of(net, images).softmax(1)
    parts = [by_loops(net, images, [label] * 6, p[:, label]) for label in range(5)]
    found = oracles.fisher_information(net, images)
    monkeypatch.setattr(oracles, "FISHER_LABELS", 2)
    fewer = oracles.fisher_information(net, images)
    for key, part in found.items():
        torch.testing.assert_close(part, sum(one[key] for one in parts))
        assert (fewer[key] <= part + 1e-12).all()
    assert any(not torch.allclose(fewer[key], part) for key, part in found.items())


def test_large_sets_are_sampled_without_replacement():
    images, labels = torch.arange(9.0), torch.arange(9)
    kept, of = oracles._sample(images, labels, 4, generator_for(0))
    assert len(kept.unique()) == 4
    assert torch.equal(kept.long(), of)


# Fisher forgetting


def test_fisher_of_a_logistic_weight_by_hand_and_the_noise_it_gets():
    """At logits w x with w = 0 both classes have p = 1/2: F = E[x^2] / 4, and the noise has variance rate^2 / F."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3000, 2, bias=False)).double()
    nn.init.zeros_(model[1].weight)
    scale = torch.ones(3000, dtype=torch.float64)
    scale[1000:2000], scale[2000:] = 2.0, 0.0  # four times the information; and none
    retain = torch.stack([scale, -scale])[:, None, None]
    fisher = oracles.fisher_information(model, retain)["1.weight"]
    torch.testing.assert_close(fisher, (scale**2 / 4).expand(2, -1))
    data = retain[:1], torch.tensor([0]), retain, torch.tensor([0, 1])
    low, high = run_on("fisher_forgetting", model, *data, ladder=(0.03, 1.0))
    noise = high.model[1].weight.detach()
    for part, inverse in ((slice(0, 1000), 4.0), (slice(1000, 2000), 1.0), (slice(2000, None), 1e3)):
        deviation = noise[:, part].square().mean().sqrt().item()
        assert deviation == pytest.approx(high.lr * math.sqrt(inverse), rel=0.05)  # capped where F is 0
    torch.testing.assert_close(low.model[1].weight / low.lr, high.model[1].weight / high.lr)


# SSD


class Scales(nn.Module):
    """Logits w_1 x_1 and w_2 x_2: two weights, each of which answers for one class."""

    def __init__(self, *values):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(values, dtype=torch.float64))

    def forward(self, images):
        return self.weights * images.flatten(1)


def dampened(values, forget, retain, retain_labels, *, ladder):
    """Return the two weights after SSD at every rate; the first row is the forget set, of class 0."""
    forget, retain = (torch.tensor(rows, dtype=torch.float64)[:, None, None] for rows in (forget, retain))
    data = Scales(*values), forget, torch.tensor([0]), retain, torch.tensor(retain_labels)
    return [run.model.weights.tolist() for run in run_on("selective_dampening", *data, ladder=ladder)]


@pytest.mark.parametrize("alpha", [0.01, 0.5, 2.0, 3.9])
def test_selective_dampening_is_the_papers_formula_at_the_alpha_of_the_rate(alpha):
    values, forget, retain, labels = (0.1, -0.2), [[4.0, 1.0]], [[2.0, 3.0], [0.0, 3.0], [2.0, 3.0]], [0, 1, 0]
    model, rows = Scales(*values), torch.tensor([*forget, *retain], dtype=torch.float64)[:, None, None]
    f = by_loops(model, rows[:1], [0], [1])["weights"]
    d = by_loops(model, rows, [0, *labels], [1] * 4)["weights"]
    expected = [w * min(1.0, (d[i] / f[i]).item()) if f[i] > alpha * d[i] else w for i, w in enumerate(values)]
    rate = (1 / alpha - 1 / 4) / (1 - 1 / 4)  # the forget set has a share of 1/4
    (found,) = dampened(values, forget, retain, labels, ladder=(rate,))
    ratios = (f / d).tolist()
    assert found == pytest.approx(expected)
    assert ratios[0] > 2 > 1 > ratios[1] > 0.01
    assert (found[0] != values[0]) == (alpha < ratios[0])
    assert found[1] == values[1]  # less important to the forget set: chosen at a small alpha, but never amplified


def test_weights_nothing_depends_on_stay():
    (found,) = dampened((0.1, -0.2), [[0.0, 0.0]], [[2.0, 3.0]], [0], ladder=(1e3,))
    assert found == [0.1, -0.2]


def test_a_rate_selects_by_retain_importance_where_the_papers_alpha_would_select_nothing():
    case = small()
    share = len(case.images) / (len(case.images) + len(case.retain_images))
    forget = oracles.importances(case.model, case.images, case.labels)
    retain = oracles.importances(case.model, case.retain_images, case.retain_labels)
    (run,) = go("selective_dampening", ladder=(0.01,)).runs
    shrunk = 0
    for (name, start), one in zip(case.model.named_parameters(), run.model.parameters(), strict=True):
        full = share * forget[name] + (1 - share) * retain[name]
        assert not (forget[name] > full / share * (1 + 1e-5)).any()  # the ratio never exceeds 1 / share, here 22
        expected = torch.where(forget[name] > 100 * retain[name], start * full / forget[name], start)
        torch.testing.assert_close(one, expected, rtol=1e-5, atol=0)
        shrunk += int((one != start).sum())
    assert 0 < shrunk < 0.2 * sum(parameter.numel() for parameter in case.model.parameters())


# Both edits


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_goes_to_nothing_with_the_rate_and_is_one_epoch_that_says_what_the_forget_set_looks_like(name):
    case = small()
    tiny, large = go(name, ladder=(1e-9, 0.03)).runs
    for key, tensor in case.model.state_dict().items():
        torch.testing.assert_close(weights(tiny)[key], tensor, atol=1e-6, rtol=1e-6)
    before, after = (logits_of(model, case.images) for model in (case.model, large.model))
    (epoch,) = large.history
    assert (after - before).abs().max() > 1
    assert epoch.loss == pytest.approx(F.cross_entropy(after, case.labels).item())
    assert epoch.forget_accuracy == (after.argmax(1) == case.labels).double().mean().item()
    assert epoch.seconds > 0
    assert not large.diverged


def test_an_edit_that_is_not_finite_has_diverged():
    (run,) = go("fisher_forgetting", ladder=(1e38,)).runs
    assert run.diverged
    assert not run.reached(1.0)
