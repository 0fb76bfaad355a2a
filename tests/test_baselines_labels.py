"""Label strategies: each against its definition the slow way, and different from ZS-PAG in what it says."""

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
from laboratory import FORGET, caught_losses, problem, small
from reference import Attending
from test_baselines import go as run_method
from torch import nn

from zspag.influence import inner_product, loss_gradient, soft_cross_entropy
from zspag.lab.methods import METHODS, labels
from zspag.outcome import Epoch
from zspag.projected_sgd import Run
from zspag.proxies import ProxySet
from zspag.pseudo_labels import masked_log_probabilities
from zspag.runtime import generator_for, logits_of
from zspag.subspaces import Projector

TILTS = ("worst_class_labels", "balanced_labels", "lookahead_labels", "bilevel_labels", "noise_labels")
N, M, K, WIDTH = 7, 9, 4, 5
LR, STEPS = 0.7, 3


def go(name):
    """All weights after two epochs at one rate."""
    (run,) = run_method(name, ladder=(0.3,), update={"epochs": 2, "settle": 0.0}).runs
    return torch.cat([part.flatten() for part in run.model.state_dict().values()])


@cache
def plain():
    return go("zs_pag_fixed")  # as the strategies are: all layers, no views


@pytest.fixture
def tiny():
    """A net in double precision with one retained direction per layer protected; class 3 of four is to be forgotten."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, WIDTH), nn.Tanh(), nn.Linear(WIDTH, K)).double().eval()
    images, seen = (torch.rand(count, 1, 2, 3, dtype=torch.float64) for count in (N, M))
    proxies = ProxySet(seen, torch.arange(M) % 3, torch.arange(M), {0: 1.0, 1: 1.0, 2: 1.0}, 0.1, barely=seen)
    bases = {
        "1.weight": torch.linalg.qr(torch.randn(1, 6, 2, dtype=torch.float64)).Q,
        "3.weight": torch.linalg.qr(torch.randn(1, WIDTH, 1, dtype=torch.float64)).Q,
    }
    project = Projector({name: ("remove", basis) for name, basis in bases.items()})
    masked, teacher = (masked_log_probabilities(logits_of(model, x), forget=(3,)) for x in (images, seen))
    return model, labels.Setting(images, (3,), masked, proxies, teacher.exp(), project, tuple(bases), beta=0.5)


def moved(model, by=0.4):
    other = copy.deepcopy(model)
    with torch.no_grad():
        for part in other.parameters():
            part += by * torch.randn(part.shape, dtype=part.dtype, generator=generator_for("moved"))
    return other


def labels_of(monkeypatch, name, setting, current, *, generator=None, simulated=None):
    """Return the labels that a method makes of ``current``, without running it; ``simulated`` is its look ahead."""
    made = []

    def keep(_problem, config, labeler, *, lr, start=None, **_options):
        if start is not None:
            assert (config.update.epochs, config.update.settle) == (labels.LOOKAHEAD_EPOCHS, 0)
            return simulated
        made.append(labeler(current))
        return Run(current, lr, (Epoch(0.0, 1.0, 0.0),), diverged=False)

    with monkeypatch.context() as patch:
        patch.setattr(labels.Setting, "of", lambda *_: setting)
        patch.setattr(labels, "fit", keep)
        METHODS[name].run(problem(generator=generator or generator_for(0)), small().config)
    assert torch.equal(*made)  # at both rates
    return made[0]


def slow_scores(model, setting, direction):
    """One gradient per sample and class."""
    scores = torch.empty(N, K, dtype=torch.float64)
    for i in range(N):
        for k in range(K):
            one_hot = torch.eye(K, dtype=torch.float64)[k : k + 1]
            gradient = loss_gradient(model, setting.images[i : i + 1], one_hot, names=setting.names)
            scores[i, k] = inner_product(direction, gradient)
    return scores


def slow_tilt(model, setting, direction):
    scores = slow_scores(model, setting, direction)
    centered = scores - scores[:, :3].mean(1, keepdim=True)
    return (setting.masked + setting.beta * centered / centered[:, :3].std(correction=0)).softmax(1)


def slow_gradient(model, setting, own):
    whole = loss_gradient(model, setting.proxies.images[own], setting.teacher[own], names=setting.names)
    return {name: setting.project(name, part) for name, part in whole.items()}


def slow_class_gradient(model, setting, label):
    return slow_gradient(model, setting, setting.proxies.labels == label)


# The whole method


@pytest.mark.parametrize("name", [*TILTS, "distilled"])
def test_every_strategy_is_zs_pag_without_its_tilt_or_term_and_its_labels_are_distributions(name, monkeypatch):
    seen, real = [], labels.fit

    def spy(given, config, labeler, **options):
        seen.append(labeler(given.model))
        return real(given, config, labeler, **options)

    with monkeypatch.context() as patch:
        patch.setattr(labels, "fit", spy)
        assert (go(name) - plain()).abs().max() > 1e-4
    assert bool(seen) == (name in TILTS)
    for given in seen:
        torch.testing.assert_close(given.sum(1), torch.ones(len(given)))
        assert given.min() >= 0
        assert given[:, FORGET].max() == 0
    monkeypatch.setattr(labels, "BETA" if name in TILTS else "DISTILLED_WEIGHT", 0.0)
    torch.testing.assert_close(go(name), plain(), rtol=1e-4, atol=1e-5)


# Drift by class


def test_drift_of_a_class_is_the_mean_kl_on_its_proxies(tiny):
    model, setting = tiny
    other = moved(model)
    found = labels.drift_by_class(other, setting)
    for label in range(3):
        own = setting.proxies.labels == label
        log_q, p = other(setting.proxies.images[own]).log_softmax(1), setting.teacher[own]
        by_hand = sum(p[:, k] * (p[:, k].log() - log_q[:, k]) for k in range(3)).mean()
        assert found[label] == pytest.approx(by_hand.item())
    assert found.keys() == {0, 1, 2}
    assert len({round(value, 6) for value in found.values()}) == 3


def test_worst_class_is_tilted_along_the_gradient_of_the_class_that_drifted_furthest(tiny):
    model, setting = tiny
    other = moved(model)
    drifts = labels.drift_by_class(other, setting)
    found = labels.worst_class(other, setting)
    by_hand = {c: slow_tilt(other, setting, slow_class_gradient(other, setting, c)) for c in range(3)}
    worst = max(drifts, key=drifts.get)
    torch.testing.assert_close(found, by_hand[worst])
    assert all((found - by_hand[c]).abs().max() > 1e-3 for c in range(3) if c != worst)


def test_balanced_classes_weigh_the_same_however_long_their_gradients_are(tiny, monkeypatch):
    model, setting = tiny
    other, total = moved(model), {}
    for label in range(3):
        part = slow_class_gradient(other, setting, label)
        length = sum(float(value.square().sum()) for value in part.values()) ** 0.5
        total = {name: total.get(name, 0) + value / length for name, value in part.items()}
    found = labels.balanced_classes(other, setting)
    torch.testing.assert_close(found, slow_tilt(other, setting, total))

    real = labels.drift_gradient
    monkeypatch.setattr(
        labels,
        "drift_gradient",
        lambda *args: {name: 10.0 ** args[2] * value for name, value in real(*args).items()},
    )
    torch.testing.assert_close(labels.balanced_classes(other, setting), found)
    summed = {name: sum(labels.drift_gradient(other, setting, c)[name] for c in range(3)) for name in setting.names}
    assert (labels.tilted(other, setting, summed) - found).abs().max() > 1e-3  # unbalanced, the longest one wins


# Looking ahead


def test_look_ahead_takes_the_drift_where_the_simulated_run_ends_and_the_scores_where_the_model_is(tiny, monkeypatch):
    model, setting = tiny
    end = moved(model)
    found, lost = (
        labels_of(monkeypatch, "lookahead_labels", setting, model, simulated=Run(end, LR, (), diverged=diverged))
        for diverged in (False, True)
    )
    ahead, now = (slow_gradient(at, setting, slice(None)) for at in (end, model))
    torch.testing.assert_close(found, slow_tilt(model, setting, ahead))
    assert (found - slow_tilt(end, setting, ahead)).abs().max() > 1e-3
    torch.testing.assert_close(lost, slow_tilt(model, setting, now))  # the present, where the simulated run diverges
    assert not torch.allclose(found, lost)


def test_simulated_epoch_leaves_the_run_alone(monkeypatch):
    """Labels that ignore what was simulated give ZS-PAG, so nothing of the simulation leaks into the run."""
    monkeypatch.setattr(labels, "tilted", lambda _current, setting, _direction: setting.masked.exp())
    assert torch.equal(go("lookahead_labels"), plain())


# At random


def test_random_tilts_are_as_far_from_soft_labels_as_those_by_influence_and_differ_with_the_seed(tiny, monkeypatch):
    model, setting = tiny
    other = moved(model)
    one, two, again = (
        labels_of(monkeypatch, "noise_labels", setting, other, generator=generator_for(seed)) for seed in (1, 2, 1)
    )
    assert torch.equal(one, again)
    assert not torch.allclose(one, two)
    for given in (one, two, labels.worst_class(other, setting)):
        scores = (given[:, :3].log() - setting.masked[:, :3]) / setting.beta  # up to a constant of each sample
        centered = scores - scores.mean(1, keepdim=True)
        assert centered.std(correction=0).item() == pytest.approx(1)


# Bilevel


def unrolled_by_hand(model, setting, given, *, lr, steps):
    """Projected steps of plain descent on a copy, one batch after the other."""
    other = copy.deepcopy(model)
    weights = dict(other.named_parameters())
    for first in range(steps):
        loss = soft_cross_entropy(other(setting.images[first::steps]), given[first::steps])
        parts = torch.autograd.grad(loss, [weights[name] for name in setting.names])
        with torch.no_grad():
            for name, part in zip(setting.names, parts, strict=True):
                weights[name] -= lr * setting.project(name, part)
    return soft_cross_entropy(other(setting.proxies.images), setting.teacher).item()


def slope_of(model, setting, given, *, steps):
    leaf = given.clone().requires_grad_(True)
    return torch.autograd.grad(labels.unrolled_loss(model, setting, leaf, lr=LR, steps=steps), leaf)[0]


def test_unrolled_loss_is_that_of_the_steps_taken_one_by_one(tiny):
    model, setting = tiny
    soft = setting.masked.exp()
    found = labels.unrolled_loss(model, setting, soft, lr=LR, steps=STEPS).item()
    assert found == pytest.approx(unrolled_by_hand(model, setting, soft, lr=LR, steps=STEPS), rel=1e-12)
    assert found != pytest.approx(unrolled_by_hand(model, setting, soft, lr=LR, steps=1), rel=1e-6)


def test_slope_through_the_steps_is_that_of_finite_differences(tiny):
    model, setting = tiny
    soft, tiny_step = setting.masked.exp(), 1e-6
    slope = slope_of(model, setting, soft, steps=STEPS)
    for i in range(N):
        for k in range(3):
            ends = []
            for sign in (1, -1):
                given = soft.clone()
                given[i, k] += sign * tiny_step
                ends.append(unrolled_by_hand(model, setting, given, lr=LR, steps=STEPS))
            assert slope[i, k].item() == pytest.approx((ends[0] - ends[1]) / (2 * tiny_step), rel=1e-4, abs=1e-8)


def test_slope_through_one_step_is_the_score_along_the_drift_after_it_and_through_three_it_is_not(tiny):
    model, setting = tiny
    soft = setting.masked.exp()
    gradient = loss_gradient(model, setting.images, soft, names=setting.names)
    after = copy.deepcopy(model)
    with torch.no_grad():
        for name, part in after.named_parameters():
            if name in gradient:
                part -= LR * setting.project(name, gradient[name])
    drift = loss_gradient(after, setting.proxies.images, setting.teacher, names=setting.names)
    scores = slow_scores(model, setting, {name: setting.project(name, part) for name, part in drift.items()})
    torch.testing.assert_close(-slope_of(model, setting, soft, steps=1), LR / N * scores)
    assert not torch.allclose(-slope_of(model, setting, soft, steps=3), LR / N * scores, rtol=0.05)


def test_bilevel_labels_lower_the_loss_they_are_chosen_for_and_stop_where_the_steps_diverge(tiny):
    model, setting = tiny
    soft, ends = setting.masked.exp(), {}
    for beta in (0.2, 0, -0.2):
        found = labels.bilevel(model, replace(setting, beta=beta), lr=LR, steps=STEPS, rounds=4)
        ends[beta] = unrolled_by_hand(model, setting, found, lr=LR, steps=STEPS)
        assert found[:, 3].max() == 0
    assert ends[0.2] < ends[0] - 1e-6
    assert ends[-0.2] > ends[0] + 1e-6
    found = labels.bilevel(model, setting, lr=float("inf"), steps=STEPS, rounds=4)
    torch.testing.assert_close(found, soft)


def test_bilevel_differentiates_twice_through_attention(tiny):
    _, setting = tiny
    model = Attending(channels=1, classes=K).double().eval()
    names = ("attention.in_proj_weight", "head.weight")
    project = Projector({name: ("remove", torch.eye(4, dtype=torch.float64)[None, :, :1]) for name in names})
    setting = replace(setting, project=project, names=names)
    slope = slope_of(model, setting, setting.masked.exp(), steps=2)
    assert torch.isfinite(slope).all()
    assert slope[:, :3].abs().max() > 1e-6


# Distilled


def test_distilled_adds_the_mean_over_as_many_proxies_to_the_mean_over_the_batch(tiny, monkeypatch):
    model, setting = tiny
    batch, soft = torch.tensor([5, 0, 2]), setting.masked.exp()
    monkeypatch.setattr(labels.Setting, "of", lambda *_: setting)
    monkeypatch.setattr(labels, "DISTILLED_WEIGHT", 2.5)
    caught = caught_losses(monkeypatch, lambda: run_method("distilled", ladder=(0.1, 0.2)))
    beside = torch.randint(M, (3,), generator=generator_for(problem().seed, "loss"))  # the same at every rate
    alone = soft_cross_entropy(model(setting.images[batch]), soft[batch]).item()
    kept = soft_cross_entropy(model(setting.proxies.images[beside]), setting.teacher[beside]).item()
    assert [loss(model, batch).item() for loss, _ in caught] == pytest.approx([alone + 2.5 * kept] * 2)
    assert kept > 0.1
    assert all(options["project"] is setting.project for _, options in caught)
