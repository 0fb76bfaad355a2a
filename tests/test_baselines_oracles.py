"""Oracles that train with retain data: what each step looks at, and what the null space of the retain data promises."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from laboratory import FORGET, LADDER, Fixed, caught_losses, problem, small
from torch import nn
from torch.nn import functional as F

from zspag.config import SubspaceConfig, UnlearnConfig, UpdateConfig
from zspag.lab.methods import METHODS, Problem, oracles
from zspag.profiles import LADDERS
from zspag.projected_sgd import batch_size
from zspag.runtime import generator_for, logits_of
from zspag.subspaces import combine, second_moments

STEPS = 20  # the small case: 60 forget samples, batches of 3


def go(name, *, seed=0, ladder=LADDER, epochs=3):
    config = replace(small().config, update=replace(small().config.update, ladder=ladder, epochs=epochs))
    return METHODS[name].run(problem(oracle=True, generator=generator_for(seed, "method")), config)


def loss_of(monkeypatch, name, *, epochs=3):
    """Return the losses that an oracle hands to the loop at two rates, without running them."""
    return [loss for loss, _ in caught_losses(monkeypatch, lambda: go(name, epochs=epochs))]


def fixed():
    return Fixed(torch.randn(200, 10, generator=generator_for("logits")))


def places(images, within):
    """Return where in ``within`` each image stands."""
    same = (images[:, None] == within[None]).flatten(2).all(2)
    assert same.any(1).all()
    return same.double().argmax(1)


def accuracy(model, images, labels):
    return (logits_of(model, images).argmax(1) == labels).double().mean().item()


@pytest.mark.parametrize("name", ["fine_tune", "unsc", "scrub"])
def test_another_generator_gives_another_result(name):
    first, second = (go(name, seed=seed, ladder=(0.03,)).runs[0].model.state_dict() for seed in (1, 2))
    assert any(not torch.equal(tensor, second[key]) for key, tensor in first.items())


# Fine-tuning


def test_fine_tuning_is_cross_entropy_on_retain_samples_and_nothing_else(monkeypatch):
    case = small()
    loss, again = loss_of(monkeypatch, "fine_tune")
    model = fixed()
    value = loss(model, torch.arange(3))
    again(model, torch.tensor([5]))
    first, second = model.seen
    assert torch.equal(first, second)  # whatever the forget batch, and the same at every rate
    assert len(first) == math.ceil(len(case.retain_images) / STEPS)
    labels = case.retain_labels[places(first, case.retain_images)]
    assert value.item() == pytest.approx(F.cross_entropy(model.logits[: len(first)], labels).item())
    assert not (labels == FORGET).any()


def test_an_epoch_of_fine_tuning_is_one_pass_over_the_retain_set_unless_the_cap_is_lower(monkeypatch):
    case = small()
    assert len(case.images) / batch_size(len(case.images), case.config.update) == STEPS
    for cap, expected in ((10**9, len(case.retain_images)), (100, 100)):
        monkeypatch.setattr(oracles, "RETAIN_PER_EPOCH", cap)
        loss, _ = loss_of(monkeypatch, "fine_tune")
        model = fixed()
        for _ in range(STEPS):
            loss(model, torch.arange(3))
        read = places(torch.cat(model.seen), case.retain_images)
        assert len(read.unique()) == expected
        assert abs(len(read) - expected) <= STEPS


def test_fine_tuning_learns_the_retain_set_and_does_not_forget_on_digits():
    """What it does instead of forgetting: the retained loss falls, and the forgotten class stays at every rate."""
    case = small()
    start = accuracy(case.model, case.images, case.labels)
    before = F.cross_entropy(logits_of(case.model, case.retain_images), case.retain_labels).item()
    runs = go("fine_tune", ladder=LADDERS.low, epochs=8).runs
    after = [F.cross_entropy(logits_of(run.model, case.retain_images), case.retain_labels).item() for run in runs]
    kept = [accuracy(run.model, case.images, case.labels) for run in runs]
    lost = [F.cross_entropy(logits_of(run.model, case.images), case.labels).item() for run in runs]
    assert not any(run.diverged for run in runs)
    assert after == sorted(after, reverse=True)
    assert after[-1] < 0.8 * before
    assert start > 0.9
    assert min(kept) > start - 0.1
    assert lost[-1] > lost[0]  # the highest rate of the ladder has begun
    assert all(len(run.history) == 4 for run in runs)  # given up at half the cap


# UNSC


class Two(nn.Module):
    """Two linear layers without bias around a ReLU, in float64."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(11, 9, bias=False), nn.Linear(9, 4, bias=False)
        self.double()

    def forward(self, images):
        return self.head(self.body(images.flatten(1)).relu())


def low_rank():
    """Return a model, forget samples in general position and retain samples that span two directions per class."""
    draw = generator_for("low rank")
    randn = lambda *size: torch.randn(*size, generator=draw, dtype=torch.float64)  # noqa: E731
    model = Two()
    retain = torch.cat([torch.eye(11, dtype=torch.float64)[[2 * k, 2 * k + 1]] for k in range(3)])[:, None, None]
    forget = randn(8, 1, 1, 11)
    return model, forget, torch.full((8,), 3), retain, torch.tensor([0, 0, 1, 1, 2, 2])


def run_unsc(model, forget, labels, retain, retain_labels):
    config = UnlearnConfig(update=UpdateConfig(lr=0.1, epochs=3, give_up=1.0, settle=0))
    given = Problem(model, forget, labels, 4, generator_for(0), statistics=None, retain=(retain, retain_labels))
    return METHODS["unsc"].run(given, config).runs[0].model


@pytest.fixture
def all_energy(monkeypatch):
    """Cut nothing off, so that every retain sample lies in the span at every layer."""
    monkeypatch.setattr(oracles, "UNSC_ENERGY", 1.0)
    monkeypatch.setattr(oracles, "UNSC_MERGE_ENERGY", 1.0)


@pytest.mark.usefixtures("all_energy")
def test_unsc_leaves_outputs_on_the_retain_span_unchanged():
    """The theorem, in float64: no sample of the span moves in its layer, no retain sample at the end; others do."""
    model, forget, labels, retain, retain_labels = low_rank()
    changed = run_unsc(model, forget, labels, retain, retain_labels)
    mixed = torch.randn(5, 6, generator=generator_for("mixed"), dtype=torch.float64) @ retain.flatten(1)
    exactly = {"atol": 1e-12, "rtol": 0}
    with torch.no_grad():
        torch.testing.assert_close(changed.body(mixed), model.body(mixed), **exactly)
        torch.testing.assert_close(changed(retain), model(retain), **exactly)
        assert (changed.body(forget.flatten(1)) - model.body(forget.flatten(1))).abs().max() > 0.01
        assert (changed(forget) - model(forget)).abs().max() > 0.01
        assert not torch.equal(changed.head.weight, model.head.weight)


@pytest.mark.usefixtures("all_energy")
def test_without_the_projection_the_retain_span_would_move(monkeypatch):
    model, forget, labels, retain, retain_labels = low_rank()
    real = oracles.fit_labels
    monkeypatch.setattr(oracles, "fit_labels", lambda *args, **options: real(*args, **options | {"project": None}))
    changed = run_unsc(model, forget, labels, retain, retain_labels)
    with torch.no_grad():
        assert (changed(retain) - model(retain)).abs().max() > 0.01


def test_update_of_unsc_stays_out_of_its_subspace_at_the_published_energy():
    case, run = small(), go("unsc", ladder=(0.3,)).runs[0]
    subspace = oracles.merged_retain_subspace(case.model, case.retain_images, case.retain_labels)
    free = [name for name, count in subspace.free_dimension().items() if count]
    for name in free:
        change = (run.model.state_dict()[name] - case.model.state_dict()[name]).flatten(1).double()
        assert (change @ subspace.bases[name][0]).norm() < 1e-4 * change.norm()
    assert free


def test_labels_of_unsc_are_the_second_best(monkeypatch):
    case, caught = small(), []
    monkeypatch.setattr(
        oracles, "fit_labels", lambda model, *_, relabel, **_options: caught.append(relabel(model)) or None
    )
    monkeypatch.setattr(oracles, "rate_search", lambda run, **_: run(0.1))
    go("unsc")
    order = logits_of(case.model, case.images).argsort(1, descending=True)
    expected = torch.where(order[:, 0] == FORGET, order[:, 1], order[:, 0])
    assert torch.equal(caught[0], F.one_hot(expected, 10).to(caught[0]))
    assert (order[:, 0] == FORGET).any()
    assert (order[:, 0] != FORGET).any()  # one that was not recognized keeps its best label


def test_subspace_of_unsc_is_the_merged_one_of_the_true_retain_classes():
    case = small()
    found = oracles.merged_retain_subspace(case.model, case.retain_images, case.retain_labels)
    parts = [second_moments(case.model, case.retain_images[case.retain_labels == k]) for k in range(10) if k != FORGET]
    config = SubspaceConfig(combine="merge", energy=oracles.UNSC_ENERGY, merge_energy=oracles.UNSC_MERGE_ENERGY)
    expected = combine(parts, config=config)
    assert found.ranks == expected.ranks
    for name, basis in found.bases.items():
        torch.testing.assert_close(basis, expected.bases[name])
    assert found.ranks != combine(parts, config=replace(config, energy=0.995)).ranks
    assert 0.97 <= oracles.UNSC_ENERGY <= 0.99


# SCRUB


def test_divergence_is_kl_from_the_teacher_row_by_row():
    teacher = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]], dtype=torch.float64)
    logits = torch.tensor([[0.0, 0.0, 0.0], [math.log(2), 0.0, 0.0]], dtype=torch.float64)
    by_hand = [0.5 * math.log(1.5) + 0.5 * math.log(0.75), math.log(2)]  # p = 1/3 each; p = (1/2, 1/4, 1/4)
    torch.testing.assert_close(oracles.divergence(teacher, logits), torch.tensor(by_hand, dtype=torch.float64))


def test_max_steps_of_scrub_climb_the_divergence_on_the_forget_set(monkeypatch):
    case = small()
    loss, again = loss_of(monkeypatch, "scrub")
    model = fixed()
    value = loss(model, torch.arange(3))
    again(model, torch.arange(3))
    assert torch.equal(*model.seen)  # the same at every rate
    rows = places(model.seen[0], case.images)
    p, log_q = logits_of(case.model, case.images)[rows].softmax(1), model.logits[: len(rows)].log_softmax(1)
    each = (p * (p.log() - log_q)).sum(1)
    assert value.item() == pytest.approx(-each.clamp_max(math.log(10)).mean().item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(value, model.logits)
    past = each > math.log(10)
    assert past.any()
    assert not past.all()
    assert gradient[: len(rows)][past].abs().sum() == 0  # what has fled far enough no longer counts
    assert (gradient[: len(rows)][~past].abs().sum(1) > 0).all()


def test_min_steps_of_scrub_keep_the_teacher_and_the_labels_on_the_retain_set(monkeypatch):
    case = small()
    loss, _ = loss_of(monkeypatch, "scrub")
    model = fixed()
    value = [loss(model, torch.arange(3)) for _ in range(STEPS)][-1]
    rows = places(model.seen[-1], case.retain_images)
    p, log_q = logits_of(case.model, case.retain_images)[rows].softmax(1), model.logits[: len(rows)].log_softmax(1)
    kept = (p * (p.log() - log_q)).sum(1).mean()
    entropy = F.nll_loss(log_q, case.retain_labels[rows])
    assert value.item() == pytest.approx((0.001 * kept + 0.99 * entropy).item(), rel=1e-5)
    assert kept > 1


def test_scrub_goes_through_the_forget_set_first_and_later_only_repairs(monkeypatch):
    case = small()
    loss, _ = loss_of(monkeypatch, "scrub", epochs=3)
    model, kinds = fixed(), []
    for _ in range(3 * STEPS):
        kinds.append("max" if loss(model, torch.arange(3)) < 0 else "min")
    epoch = ["max"] * (STEPS // 2) + ["min"] * (STEPS // 2)
    assert kinds == epoch + epoch + ["min"] * STEPS
    read = places(torch.cat(model.seen[: STEPS // 2]), case.images)
    assert sorted(read.tolist()) == list(range(len(case.images)))
    kept = places(torch.cat(model.seen[STEPS // 2 : STEPS]), case.retain_images)
    assert len(kept.unique()) == len(kept) >= len(case.retain_images) - STEPS


def test_scrub_takes_turns_by_epochs_where_an_epoch_is_one_step(monkeypatch):
    config = replace(small().config, update=UpdateConfig(min_steps=1, epochs=6))
    run = partial(METHODS["scrub"].run, problem(oracle=True), config)
    (loss, _), _ = caught_losses(monkeypatch, run)
    model = Fixed(torch.randn(2000, 10, generator=generator_for("logits")))
    assert ["max" if loss(model, torch.arange(60)) < 0 else "min" for _ in range(6)] == [
        "max", "min", "max", "min", "min", "min",
    ]  # fmt: skip


def test_scrub_forgets_and_keeps_on_its_own_ladder():
    case = small()
    run = go("scrub", ladder=(0.03,), epochs=8).runs[0]
    assert run.reached(0.01)
    assert accuracy(run.model, case.retain_images, case.retain_labels) > 0.95
