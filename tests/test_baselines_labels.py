"""Label strategies: each against its definition the slow way, and different from ZS-PAG in what it says."""

import copy
from dataclasses import replace

import pytest
import torch
from laboratory import FORGET, problem, small
from torch import nn

from zspag.influence import dot, loss_gradient, soft_cross_entropy
from zspag.lab.methods import METHODS, labels
from zspag.projected_sgd import Run
from zspag.proxies import ProxySet
from zspag.pseudo_labels import masked_log_probabilities
from zspag.runtime import generator_for, logits_of
from zspag.subspaces import Projector

TILTS = ("worst_class_labels", "balanced_labels", "lookahead_labels", "bilevel_labels", "noise_labels")
N, M, K, WIDTH = 7, 9, 4, 5
LR, STEPS = 0.7, 3


def go(name, *, lr=0.3):
    case = small()
    config = replace(case.config, update=replace(case.config.update, ladder=(lr,), epochs=2, settle=0.0))
    (run,) = METHODS[name].run(problem(), config).runs
    return torch.cat([part.flatten() for part in run.model.state_dict().values()])


@pytest.fixture
def tiny():
    """A net in double precision with one retained direction per layer protected; class 3 of four is to be forgotten."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, WIDTH), nn.Tanh(), nn.Linear(WIDTH, K)).double().eval()
    images, seen = (torch.rand(count, 1, 2, 3, dtype=torch.float64) for count in (N, M))
    proxies = ProxySet(seen, torch.arange(M) % 3, torch.arange(M), {0: 1.0, 1: 1.0, 2: 1.0}, 0.1, barely=seen)
    bases = {"1.weight": torch.linalg.qr(torch.randn(1, 6, 2, dtype=torch.float64)).Q,
             "3.weight": torch.linalg.qr(torch.randn(1, WIDTH, 1, dtype=torch.float64)).Q}  # fmt: skip
    project = Projector({name: ("remove", basis) for name, basis in bases.items()})
    masked, teacher = (masked_log_probabilities(logits_of(model, x), forget=(3,)) for x in (images, seen))
    return model, labels.Setting(images, (3,), masked, proxies, teacher.exp(), project, tuple(bases), beta=0.5)


def moved(model, by=0.4):
    other = copy.deepcopy(model)
    with torch.no_grad():
        for part in other.parameters():
            part += by * torch.randn(part.shape, dtype=part.dtype, generator=generator_for("moved"))
    return other


def slow_scores(model, setting, direction):
    """One gradient per sample and class."""
    one_hot = torch.eye(K, dtype=torch.float64)
    return torch.tensor(
        [[dot(direction, loss_gradient(model, setting.images[i : i + 1], one_hot[k : k + 1], names=setting.names))
          for k in range(K)] for i in range(N)], dtype=torch.float64,
    )  # fmt: skip


def slow_tilt(model, setting, direction):
    scores = slow_scores(model, setting, direction)
    centered = scores - scores[:, :3].mean(1, keepdim=True)
    return (setting.masked + setting.beta * centered / centered[:, :3].std(correction=0)).softmax(1)


def slow_class_gradient(model, setting, label):
    own = setting.proxies.labels == label
    whole = loss_gradient(model, setting.proxies.images[own], setting.teacher[own], names=setting.names)
    return {name: setting.project(name, part) for name, part in whole.items()}


# The whole method


@pytest.mark.parametrize("name", TILTS)
def test_without_a_tilt_every_strategy_is_zs_pag(name, monkeypatch):
    own = go("zs_pag_fixed")  # as these are: all layers, no views
    assert (go(name) - own).abs().max() > 1e-4
    monkeypatch.setattr(labels, "BETA", 0.0)
    torch.testing.assert_close(go(name), own, rtol=1e-4, atol=1e-5)


def test_distilled_without_its_term_is_zs_pag(monkeypatch):
    own = go("zs_pag_fixed")
    assert (go("distilled") - own).abs().max() > 1e-4
    monkeypatch.setattr(labels, "DISTILLED_WEIGHT", 0.0)
    torch.testing.assert_close(go("distilled"), own, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TILTS)
def test_labels_are_distributions_without_the_forget_class(name, monkeypatch):
    seen, real = [], labels.fit_labels

    def spy(model, *args, relabel, **options):
        seen.append(relabel(model))
        return real(model, *args, relabel=relabel, **options)

    monkeypatch.setattr(labels, "fit_labels", spy)
    go(name)
    for given in seen:
        torch.testing.assert_close(given.sum(1), torch.ones(len(given)))
        assert given.min() >= 0
        assert given[:, FORGET].max() == 0
    assert seen


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

    real = labels.class_gradient
    monkeypatch.setattr(
        labels, "class_gradient",
        lambda *args: {name: 10.0 ** args[2] * value for name, value in real(*args).items()},
    )  # fmt: skip
    torch.testing.assert_close(labels.balanced_classes(other, setting), found)
    plain = {name: sum(labels.class_gradient(other, setting, c)[name] for c in range(3)) for name in setting.names}
    assert (labels.tilted(other, setting, plain) - found).abs().max() > 1e-3  # unbalanced, the longest one wins


# Looking ahead


def test_look_ahead_takes_the_drift_where_the_simulated_run_ends_and_the_scores_where_the_model_is(tiny):
    model, setting = tiny
    end = moved(model)
    gradient = loss_gradient(end, setting.proxies.images, setting.teacher, names=setting.names)
    direction = {name: setting.project(name, part) for name, part in gradient.items()}
    found = labels.look_ahead(model, setting, lambda _current: Run(end, LR, (), diverged=False))
    torch.testing.assert_close(found, slow_tilt(model, setting, direction))
    assert (found - slow_tilt(end, setting, direction)).abs().max() > 1e-3


def test_look_ahead_falls_back_on_the_present_where_the_simulated_run_diverges(tiny):
    model, setting = tiny
    end = moved(model)
    now = labels.look_ahead(model, setting, lambda current: Run(current, LR, (), diverged=False))
    lost = labels.look_ahead(model, setting, lambda _current: Run(end, LR, (), diverged=True))
    kept = labels.look_ahead(model, setting, lambda _current: Run(end, LR, (), diverged=False))
    assert torch.equal(lost, now)
    assert not torch.allclose(kept, now)


def test_simulated_epoch_leaves_the_run_alone(monkeypatch):
    """Labels that ignore what was simulated give ZS-PAG, so nothing of the simulation leaks into the run."""
    monkeypatch.setattr(
        labels, "look_ahead", lambda current, setting, simulate: simulate(current) and setting.masked.exp()
    )
    assert torch.equal(go("lookahead_labels"), go("zs_pag_fixed"))


# By lot


def test_labels_by_lot_are_as_far_from_soft_ones_as_those_by_influence_and_differ_with_the_seed(tiny):
    model, setting = tiny
    other = moved(model)
    one, two, again = (
        labels._by_lot(labels.Attempt(setting, model, LR, seed, lambda current: None))(other) for seed in (1, 2, 1)
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


def test_bilevel_labels_lower_the_loss_they_are_chosen_for_and_the_opposite_tilt_raises_it(tiny):
    model, setting = tiny
    soft = setting.masked.exp()
    start = unrolled_by_hand(model, setting, soft, lr=LR, steps=STEPS)
    ends = {}
    for beta in (0.2, -0.2):
        found = labels.bilevel(model, replace(setting, beta=beta), lr=LR, steps=STEPS, rounds=4)
        ends[beta] = unrolled_by_hand(model, setting, found, lr=LR, steps=STEPS)
        assert found[:, 3].max() == 0
    assert ends[0.2] < start - 1e-6
    assert ends[-0.2] > start + 1e-6


def test_bilevel_stops_where_the_steps_diverge(tiny):
    model, setting = tiny
    found = labels.bilevel(model, setting, lr=float("inf"), steps=STEPS, rounds=4)
    torch.testing.assert_close(found, setting.masked.exp())


def test_bilevel_differentiates_twice_through_attention(tiny):
    _, setting = tiny

    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix, self.head = nn.MultiheadAttention(3, 1, batch_first=True), nn.Linear(3, K)

        def forward(self, images):
            tokens = images.flatten(1, 2)
            return self.head(self.mix(tokens, tokens, tokens, need_weights=False)[0].mean(1))

    model, names = Attending().double().eval(), ("mix.in_proj_weight", "head.weight")
    project = Projector({name: ("remove", torch.eye(3, dtype=torch.float64)[None, :, :1]) for name in names})
    setting = replace(setting, project=project, names=names)
    slope = slope_of(model, setting, setting.masked.exp(), steps=2)
    assert torch.isfinite(slope).all()
    assert slope[:, :3].abs().max() > 1e-6


# Distilled


def test_distilled_adds_the_mean_over_as_many_proxies_to_the_mean_over_the_batch(tiny, monkeypatch):
    model, setting = tiny
    batch, soft = torch.tensor([5, 0, 2]), setting.masked.exp()
    loss = labels._with_proxies(setting, soft, generator_for("proxies"), 2.5)
    beside = torch.randint(M, (3,), generator=generator_for("proxies"))
    alone = soft_cross_entropy(model(setting.images[batch]), soft[batch]).item()
    kept = soft_cross_entropy(model(setting.proxies.images[beside]), setting.teacher[beside]).item()
    assert loss(model, batch).item() == pytest.approx(alone + 2.5 * kept)
    assert kept > 0.1


def test_distilled_is_projected_and_every_rate_draws_the_same_proxies(monkeypatch):
    seen, real = [], labels._with_proxies
    monkeypatch.setattr(labels, "_with_proxies", lambda *args: seen.append(args[2].get_state()) or real(*args))
    caught = []
    monkeypatch.setattr(labels, "projected_sgd", lambda *_, **options: caught.append(options))
    monkeypatch.setattr(labels, "rate_search", lambda run, **_: [run(0.1), run(0.2)])
    METHODS["distilled"].run(problem(), small().config)
    assert torch.equal(*seen)
    assert all(options["project"] is not None for options in caught)
    assert [options["update"].lr for options in caught] == [0.1, 0.2]
