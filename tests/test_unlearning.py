"""Projected steps stay in the complement, nothing else moves, and the caller's model comes back bit for bit."""

import copy
import itertools
import math
import re
from dataclasses import replace
from functools import cache

import pytest
import reference
import torch
from laboratory import changed_names
from torch import nn

from zspag import subspaces
from zspag.calibration import cross_fitting, verdict
from zspag.config import STRATEGIES, LabelConfig, ProxyConfig, SubspaceConfig, UnlearnConfig, UpdateConfig
from zspag.influence import soft_cross_entropy
from zspag.outcome import Epoch
from zspag.projected_sgd import Run, batch_size, fit_labels, projected_sgd, rate_search
from zspag.proxy_statistics import prepare
from zspag.pseudo_labels import pseudo_labeler
from zspag.runtime import generator_for, logits_of
from zspag.subspaces import by_energy, hard_projector, second_moments
from zspag.unlearning import zero_shot_unlearn

CLASSES, SHAPE = 4, (2, 6, 5)
CONFIG = UnlearnConfig(
    proxies=ProxyConfig(eps=0.5, steps=10, per_class=7),
    subspace=SubspaceConfig(energy=0.9),
    update=UpdateConfig(lr=0.3, layers="all", epochs=3, batch_size=4, min_steps=2, settle=0.0, give_up=1.0),
    views=20,
)

# Three epochs on nine images seldom reach the goal; a test that needs it reached asks the report.
pytestmark = pytest.mark.filterwarnings("ignore:not reached:UserWarning")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


class Net(nn.Module):
    """Convolution, norm, dropout, attention, a linear head, and one weight that cannot be projected."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, stride=2, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(6)
        self.position = nn.Parameter(0.1 * torch.randn(1, 9, 6))
        self.attention = nn.MultiheadAttention(6, 2, dropout=0.5, batch_first=True)
        self.drop = nn.Dropout(0.5)
        self.last = nn.LayerNorm(6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, images):
        tokens = torch.relu(self.norm(self.conv(images))).flatten(2).transpose(1, 2) + self.position
        tokens = tokens + self.drop(self.attention(tokens, tokens, tokens, need_weights=False)[0])
        return self.head(self.last(tokens).mean(1))


PROJECTABLE = ["conv.weight", "attention.in_proj_weight", "attention.out_proj.weight", "head.weight"]


def samples(count, labels, *, seed):
    """Noise with two bright rows where the class says; returns images and labels, the classes in turn."""
    labels = torch.tensor(labels).repeat(count)[:count]
    images = 0.6 * torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, label : label + 2] += 0.4
    return images, labels


@cache
def trained_weights():
    """Weights that tell the classes apart."""
    torch.manual_seed(1)
    model = Net().double()
    images, labels = samples(64, range(CLASSES), seed=7)
    stepper = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(120):
        stepper.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        stepper.step()
    assert (model.eval()(images).argmax(1) == labels).double().mean() > 0.95
    return model.state_dict()


def make_model(model=None):
    """A model somebody used before: mixed modes, mixed flags, some gradients."""
    model = Net() if model is None else model
    model.double().load_state_dict(trained_weights())
    model.train()
    model.norm.eval()
    model.head.bias.requires_grad_(False)
    model.conv.weight.grad = torch.full_like(model.conv.weight, 0.5)
    return model


def forget_set(*, count=9, labels=(2,)):
    return samples(count, labels, seed=3)


def unlearn(model=None, *, config=CONFIG, seed=0, **options):
    images, labels = forget_set(**options)
    return zero_shot_unlearn(model or make_model(), images, labels, num_classes=CLASSES, config=config, seed=seed)


@cache
def plain():
    """The usual run: model, forget set and options as above."""
    return unlearn()


def assert_same_weights(model, other):
    assert changed_names(model, other) == set()


def update_of(**options):
    return replace(CONFIG.update, **options)


# ---- The caller's model


def test_the_callers_model_comes_back_bit_for_bit_and_so_does_the_random_state():
    model, calls = make_model(), []
    model.head.register_forward_hook(lambda *_: calls.append(1))
    before, random = reference.state_of(model), torch.get_rng_state()
    result = unlearn(model)
    reference.assert_same_state(before, reference.state_of(model))
    assert torch.equal(random, torch.get_rng_state())
    assert calls  # hooks survive and see what happens
    assert result.model is not model
    assert not torch.equal(result.model.conv.weight, model.conv.weight)
    after = reference.state_of(result.model)
    for field in ("modes", "flags", "hooks"):
        assert after[field] == before[field]
    assert all(parameter.grad is None for parameter in result.model.parameters())


class Failing(Net):
    """Raises in forward pass number ``at`` of all its copies together."""

    count = 0

    def __init__(self, at):
        super().__init__()
        self.at = at

    def forward(self, images):
        Failing.count += 1
        if Failing.count == self.at:
            raise RuntimeError(f"pass {self.at}")
        return super().forward(images)


def test_the_callers_model_comes_back_after_an_exception_at_any_stage():
    fused, Failing.count = torch.backends.mha.get_fastpath_enabled(), 0
    unlearn(make_model(Failing(-1)))
    total = Failing.count
    stages = sorted({1, 5, *range(10, total, max(1, total // 8)), total})
    assert len(stages) > 8
    for at in stages:
        model = make_model(Failing(at))
        before, random = reference.state_of(model), torch.get_rng_state()
        Failing.count = 0
        try:
            told = unlearn(model).report.remainder.note  # what fails after the updates costs nobody the result
        except (RuntimeError, ValueError) as error:
            told = str(error)
        assert re.search(rf"pass {at}\b", told)
        reference.assert_same_state(before, reference.state_of(model))
        assert torch.equal(random, torch.get_rng_state())
        assert torch.backends.mha.get_fastpath_enabled() == fused


# ---- What moves, and what it depends on


def test_the_result_does_not_depend_on_the_callers_random_state_or_modes():
    torch.manual_seed(99)
    assert_same_weights(plain().model, unlearn(make_model().eval()).model)


def test_only_projected_weights_move():
    result = plain()
    assert changed_names(make_model(), result.open_model) == set(PROJECTABLE)
    assert set(result.report.frozen) == {"position"}
    assert "used by add" in result.report.frozen["position"]
    assert set(result.report.free_dimension) == set(PROJECTABLE)


# ---- The projected loop


def setting(**options):
    """Model, forget set, hard targets and a hard projector, ready for ``projected_sgd``."""
    model = make_model()
    images, labels = forget_set(**options)
    moments = second_moments(model, samples(5, (0, 1, 3), seed=9)[0])
    project = hard_projector(by_energy(moments, energy=0.8))
    targets = torch.eye(CLASSES, dtype=torch.float64)[(labels + 1) % CLASSES]

    def loss(current, batch):
        return soft_cross_entropy(current(images[batch]), targets[batch])

    return model, images, labels, loss, project


def run(update, *, count=9, project=True, names=None, before_epoch=None, around=lambda loss: loss):
    """Fit hard targets; ``around`` may wrap the loss."""
    model, images, labels, loss, projection = setting(count=count)
    done = projected_sgd(
        model,
        images,
        labels,
        loss=around(loss),
        names=names or PROJECTABLE,
        project=projection if project else None,
        update=update,
        generator=torch.Generator().manual_seed(0),
        before_epoch=before_epoch,
    )
    return model, projection, done


def residuals(model, changed, project):
    """Share of each weight's change that lies inside the protected span."""
    shares = {}
    for name, weight in model.named_parameters():
        if name in project.factors:
            change = (dict(changed.named_parameters())[name] - weight).detach()
            if change.any():
                shares[name] = ((change - project(name, change)).norm() / change.norm()).item()
    return shares


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_every_step_stays_in_the_complement_with_momentum_too(momentum):
    model, project, done = run(update_of(momentum=momentum, epochs=6, lr=0.05))
    found = residuals(model, done.model, project)
    assert set(found) == set(PROJECTABLE)
    assert max(found.values()) < 1e-12
    model, project, free = run(update_of(momentum=momentum), project=False)
    assert min(residuals(model, free.model, project).values()) > 0.1  # the control: the same loop without a projector


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, lambda p, lr: torch.optim.SGD(p, lr=lr, weight_decay=0.1)])
def test_adam_and_weight_decay_would_put_updates_back_into_the_span(optimizer):
    model, images, _, loss, project = setting()
    changed = copy.deepcopy(model).eval()
    moving = {name: parameter for name, parameter in changed.named_parameters() if name in PROJECTABLE}
    stepper = optimizer(list(moving.values()), lr=0.01)
    for _ in range(10):
        stepper.zero_grad()
        loss(changed, torch.arange(len(images))).backward()
        for name, parameter in moving.items():
            parameter.grad = project(name, parameter.grad)
        stepper.step()
    assert min(residuals(model, changed, project).values()) > 0.01


def test_projected_sgd_is_sgd_with_momentum_written_out():
    model, project, done = run(update_of(momentum=0.6, epochs=2, batch_size=100, min_steps=1, lr=0.05))
    _, images, labels, loss, _ = setting()
    changed = copy.deepcopy(model).eval()
    moving = {name: dict(changed.named_parameters())[name] for name in PROJECTABLE}
    velocity = dict.fromkeys(moving, 0)
    for _ in range(2):
        gradients = torch.autograd.grad(loss(changed, torch.arange(len(images))), list(moving.values()))
        with torch.no_grad():
            for (name, parameter), gradient in zip(moving.items(), gradients, strict=True):
                velocity[name] = 0.6 * velocity[name] + project(name, gradient)
                parameter -= 0.05 * velocity[name]
    for name, parameter in moving.items():
        torch.testing.assert_close(dict(done.model.named_parameters())[name], parameter)


def test_the_result_lies_in_plain_order_as_optimizers_and_file_formats_ask():
    model, images = nn.Sequential(nn.Conv2d(1, 3, 2), nn.Conv2d(3, 3, 2), nn.Flatten()), torch.rand(4, 1, 3, 3)
    seen = []

    def loss(current, batch):
        seen.append(current[1].weight.is_contiguous(memory_format=torch.channels_last))
        return current(images[batch]).square().mean()

    options = {"loss": loss, "names": ["1.weight"], "project": None, "update": UpdateConfig(lr=0.1, epochs=1)}
    done = projected_sgd(model, images, torch.zeros(4), generator=torch.Generator(), **options)
    assert all(seen)
    assert all(tensor.is_contiguous() for tensor in done.model.state_dict().values())


def test_dropout_is_off_and_nothing_but_the_named_weights_requires_grad_inside():
    seen = []

    def look(current):
        seen.append(
            (
                {part.training for part in current.modules()},
                {n for n, p in current.named_parameters() if p.requires_grad},
            )
        )

    run(update_of(epochs=2), before_epoch=look, names=["head.weight"])
    assert seen == [({False}, {"head.weight"})] * 2


def test_the_history_tells_loss_and_accuracy_and_the_run_stops_once_it_has_forgotten():
    _, _, done = run(update_of(lr=0.02, epochs=40, batch_size=3))
    accuracies = [epoch.forget_accuracy for epoch in done.history]
    assert 1 < len(accuracies) < 40
    assert accuracies[-1] == 0.0
    assert all(accuracy > 0.01 for accuracy in accuracies[:-1])
    assert done.reached(0.01)
    assert not done.diverged
    assert done.history[-1].loss < done.history[0].loss


def held_out_run(held_out, *, count=10, lr=0.02):
    """Return a run and the indices of all its batches."""
    batches = []

    def watched(loss):
        return lambda current, batch: batches.append(batch) or loss(current, batch)

    update = update_of(lr=lr, epochs=3, batch_size=3, forget_accuracy=0.0, held_out=held_out)
    *_, done = run(update, count=count, around=watched)
    return done, torch.cat(batches)


@pytest.mark.parametrize(("held_out", "fitted"), [(0.0, 10), (0.3, 7), (0.25, 7)])
def test_held_out_samples_are_judged_and_never_fitted(held_out, fitted):
    done, batches = held_out_run(held_out)
    images, labels = forget_set(count=10)
    seen = set(batches.tolist())
    assert len(seen) == fitted
    assert len(batches) == len(done.history) * fitted
    judged = sorted(set(range(10)) - seen) if held_out else list(range(10))
    right = (logits_of(done.model, images[judged]).argmax(1) == labels[judged]).double().mean().item()
    assert done.history[-1].forget_accuracy == right
    _, other = held_out_run(held_out, lr=1e-6)
    assert set(other.tolist()) == seen  # every rate holds the same samples out


def test_nothing_left_to_fit_is_an_error():
    with pytest.raises(ValueError, match=r"held_out=0.3 of 1 forget samples leaves none to fit"):
        held_out_run(0.3, count=1)


@pytest.mark.parametrize(("settle", "factor"), [(0.0, 1), (0.5, 1.5), (1.0, 2)])
def test_a_run_that_has_forgotten_settles_for_its_share_of_the_epochs_that_took(settle, factor):
    _, _, short = run(update_of(lr=0.02, epochs=40, batch_size=3))
    _, _, long = run(update_of(lr=0.02, epochs=len(short.history), batch_size=3, settle=settle))
    assert len(long.history) == math.ceil(factor * len(short.history))
    assert [e.loss for e in long.history[: len(short.history)]] == [e.loss for e in short.history]


@pytest.mark.parametrize(("give_up", "expected"), [(0.9, 3), (1.0, 6)])
def test_a_rate_that_forgets_nothing_by_half_time_is_given_up(give_up, expected):
    _, _, hopeless = run(update_of(lr=1e-6, epochs=6, give_up=give_up))
    assert len(hopeless.history) == expected
    assert not hopeless.reached(0.01)
    _, _, slow = run(update_of(lr=0.02, epochs=40, batch_size=3, give_up=give_up))
    assert slow.reached(0.01)


def test_a_learning_rate_is_needed():
    with pytest.raises(ValueError, match="learning rate: set update.lr"):
        run(update_of(lr=None))


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (9, 1), (25, 3), (1279, 128), (5000, 128)])
def test_small_forget_sets_are_cut_into_smaller_batches(count, expected):
    assert batch_size(count, UpdateConfig(batch_size=128, min_steps=10)) == expected


def test_labels_are_asked_for_before_every_epoch_at_the_current_weights():
    model, images, labels, _, project = setting()
    weights = []

    def relabel(current):
        weights.append(current.head.weight.detach().clone())
        return torch.eye(CLASSES, dtype=torch.float64)[(labels + len(weights)) % CLASSES]

    options = {"project": project, "names": PROJECTABLE, "update": update_of(lr=1e-4, epochs=3)}
    done = fit_labels(model, images, labels, relabel=relabel, generator=torch.Generator().manual_seed(0), **options)
    assert len(weights) == len(done.history) == 3
    assert torch.equal(weights[0], model.head.weight)
    assert not torch.equal(weights[1], weights[2])


# ---- Divergence


def test_a_loss_that_is_not_finite_ends_the_run_where_it_was_and_counts_as_not_forgotten():
    calls, weights = [], []

    def exploding(loss):
        def wrapped(current, batch):
            calls.append(1)
            if len(calls) in (1, 4):
                weights.append({name: part.detach().clone() for name, part in current.named_parameters()})
            return loss(current, batch) * (math.inf if len(calls) == 4 else 1)

        return wrapped

    *_, done = run(update_of(lr=1e-3, epochs=5), around=exploding)
    assert done.diverged
    assert len(calls) == 4
    assert len(done.history) == 2  # three batches of up to four samples make an epoch
    assert math.isfinite(done.history[-1].loss)
    assert not done.reached(1.0)
    for name, parameter in done.model.named_parameters():
        assert torch.equal(parameter, weights[1][name])  # as the fourth batch found it
        assert torch.equal(parameter, weights[0][name]) != (name in PROJECTABLE)  # the first three have


def test_a_last_step_that_blows_up_unseen_is_no_success():
    """NaN logits have their argmax at class 0: without a look at them, class 2 would count as forgotten."""
    *_, done = run(update_of(lr=1e300, epochs=1, batch_size=100, min_steps=1), project=False)
    assert math.isfinite(done.history[0].loss)
    assert done.history[0].forget_accuracy == 0.0
    assert done.diverged
    assert not done.reached(0.01)


# ---- The learning-rate rule


@pytest.mark.parametrize(
    ("accuracies", "diverging", "options", "kept", "count"),
    [
        ((0.5, 0.01, 0.0, 0.0), (), {}, 0.3, 2),  # the smallest rate that forgets, and no larger one is tried
        ((0.5, 0.01, 0.0, 0.4), (), {"whole_ladder": True}, 0.3, 4),
        ((0.9, 0.5, 0.02, 0.3), (), {}, 3.0, 4),  # none forgets: the last one
        ((0.9, 0.0, 0.0, 0.0), (0.3,), {}, 1.0, 3),  # a run that diverged is passed over
        ((0.9, 0.5, 0.0, 0.0), (1.0, 3.0), {}, 0.3, 4),  # none forgets: the last sound one
        ((0.0, 0.0, 0.0, 0.0), (0.1, 0.3, 1.0, 3.0), {}, 0.1, 4),
        ((0.5, 0.5, 0.5, 0.5), (), {"lr": 0.1}, 0.1, 1),  # a given rate is the only one
    ],
)
def test_the_rule_takes_the_smallest_rate_that_forgets(accuracies, diverging, options, kept, count):
    rates = (0.1, 0.3, 1.0, 3.0)
    of = dict(zip(rates, accuracies, strict=True))
    found = rate_search(
        lambda lr: Run(nn.Identity(), lr, (Epoch(1.0, of[lr], 0.1),), lr in diverging),
        update=UpdateConfig(ladder=rates, forget_accuracy=0.01, **options),
    )
    assert found.kept.lr == kept
    assert [one.lr for one in found.runs] == list(rates[:count])
    assert found.kept.reached(0.01) == (of[kept] <= 0.01 and kept not in diverging)


# ---- The whole method


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:retained classes may have lost")
@pytest.mark.parametrize("forget", [(2,), (1, 3)])
def test_the_method_forgets_its_classes_and_keeps_the_others(forget):
    """Six channels leave little room: what a real net keeps is measured by the tests of the calibration."""
    model = make_model()
    config = UnlearnConfig(
        proxies=ProxyConfig(steps=15, per_class=40), update=UpdateConfig(layers="all", epochs=20), views=100
    )
    result = unlearn(model, count=48, labels=forget, config=config)
    assert result.report.reached
    assert result.report.forget_classes == forget
    images, labels = samples(80, range(CLASSES), seed=11)  # not seen by anybody
    gone = torch.isin(labels, torch.tensor(forget))
    before, after = (one.eval()(images).argmax(1) == labels for one in (model, result.open_model))
    assert before[gone].double().mean() > 0.8
    assert after[gone].double().mean() <= 0.1
    assert after[~gone].double().mean() >= before[~gone].double().mean() - 0.1


@pytest.mark.filterwarnings("ignore:already_forgotten names")  # it never was
@pytest.mark.filterwarnings("ignore:retained classes may have lost")
def test_a_class_already_forgotten_is_no_label_and_is_not_protected(monkeypatch):
    seen = []

    def spy(*args, forget, proxies, **options):
        seen.append(
            (forget, proxies.labels.unique().tolist(), pseudo_labeler(*args, forget=forget, proxies=proxies, **options))
        )
        return seen[-1][2]

    monkeypatch.setattr(cross_fitting, "pseudo_labeler", spy)
    model, (images, labels) = make_model(), forget_set()
    for already in ((), (3,), (3, 2)):  # a class may be asked for twice
        report = zero_shot_unlearn(
            model, images, labels, num_classes=CLASSES, config=CONFIG, already_forgotten=already
        ).report
        assert (report.forget_classes, report.already_forgotten) == ((2,), already)
    assert [(forget, protected) for forget, protected, _ in seen] == [
        ((2,), [0, 1, 3]), ((2, 3), [0, 1]), ((2, 3), [0, 1]),
    ]  # fmt: skip
    masses = [relabel(model)[:, 3].max().item() for *_, relabel in seen]
    assert masses[0] > 0
    assert masses[1:] == [0, 0]


def test_the_statistics_hold_proxies_and_moments_of_every_retained_class():
    images, _ = forget_set()
    model = make_model()
    statistics = prepare(model, images, forget=(1, 2), num_classes=CLASSES, config=CONFIG, generator=generator_for(0))
    assert statistics.proxies.labels.unique().tolist() == [0, 3]
    assert len(statistics.moments) == 2
    assert set(statistics.names) == set(PROJECTABLE)
    assert statistics.names[-1] == "head.weight"
    for part, label in zip(statistics.moments, (0, 3), strict=True):
        expected = second_moments(model, statistics.proxies.of_class(label))
        torch.testing.assert_close(part.second["head.weight"], expected.second["head.weight"])  # a mean of two halves
    assert statistics.frozen.keys() == {"position"}
    assert statistics.seconds.keys() == {"proxies", "subspaces"}


@pytest.mark.parametrize("combine", ["pool", "merge"])
@pytest.mark.filterwarnings("ignore:retained classes may have lost")  # a net that learned next to nothing
def test_the_result_is_the_same_whether_single_classes_are_kept_or_only_their_means(monkeypatch, combine):
    config = replace(CONFIG, subspace=replace(CONFIG.subspace, combine=combine))
    kept = unlearn(config=config)
    monkeypatch.setattr(subspaces, "KEPT_BYTES", 0)
    assert_same_weights(kept.model, unlearn(config=config).model)
    assert (kept.report.free_dimension == plain().report.free_dimension) == (combine == "pool")


def test_the_report_tells_how_the_result_came_about():
    report = plain().report
    assert report.eps == 0.5
    assert report.lr == 0.3
    assert [(trial.layers, trial.lr) for trial in report.tried] == [("all", 0.3)]
    assert report.seconds.keys() == {"checks", "proxies", "subspaces", "calibration", "update", "closing"}
    assert all(seconds >= 0 for seconds in report.seconds.values())
    assert report.forget_accuracy == report.history[-1].forget_accuracy <= 0.01
    assert report.unseen_accuracy == report.tried[0].forget_accuracy > 0.1
    assert not report.reached  # the samples that were fitted are forgotten, those that were held out are not
    assert [warning for warning in report.warnings if warning.startswith("not reached")]


@pytest.mark.filterwarnings("ignore:retained classes may have lost")  # a net that learned next to nothing
def test_projectors_and_labels_of_every_kind_run_and_give_results_of_their_own(monkeypatch):
    monkeypatch.setattr(verdict, "RUINOUS", math.inf)  # an untrained net
    kinds = [replace(CONFIG, labels=LabelConfig(strategy=strategy, beta=2.0)) for strategy in STRATEGIES]
    kinds.append(replace(CONFIG, subspace=SubspaceConfig(kind="soft", damping=0.05)))
    results = [unlearn(config=config) for config in kinds]
    for one, other in itertools.combinations(results, 2):
        assert not torch.equal(one.model.head.weight, other.model.head.weight)
    assert results[-1].report.free_dimension != results[0].report.free_dimension


# ---- Inputs that cannot work


class Unprojectable(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(60, CLASSES, dtype=torch.float64))

    def forward(self, images):
        return images.flatten(1) @ self.weight


class Weightless(nn.Module):
    def forward(self, images):
        return 20 * images.flatten(1)[:, :CLASSES]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Unprojectable(), r"no convolution, linear or attention layer .*\(weight: used by (flatten|matmul)"),
        (Weightless(), r"no convolution, linear or attention layer .*\(it has no weights\)"),
    ],
)
def test_a_model_without_a_projectable_layer_is_named(model, message):
    with pytest.raises(ValueError, match=message):
        zero_shot_unlearn(model, *forget_set(), num_classes=CLASSES, config=CONFIG)
