"""Relearning: curves are those of a plain loop, and tell suppression from absence, the class's images from others'."""

import copy
import itertools

import pytest
import torch
from torch import nn

from tests.laboratory import FORGET, changed_names, small
from zspag.lab import relearning
from zspag.lab.evaluation import Masked, accuracy
from zspag.lab.models import build
from zspag.lab.relearning import checkpoints, relearning_curve
from zspag.runtime import logits_of

LR = 0.0002
STEPS = (0, 1, 2, 5, 9, 12, 14)


@pytest.fixture
def masked():
    """A masked original of the test's own; it is the original but for a shift of one logit."""
    return copy.deepcopy(Masked(small().model, forget=(FORGET,), num_classes=10))


@pytest.fixture
def small_batches(monkeypatch):
    """40 images are then shown in batches of 14, 13 and 13."""
    monkeypatch.setattr(relearning, "BATCH", 16)


def judged():
    made = small()
    return {
        "acc_forget": (made.images[40:], made.labels[40:]),
        "acc_retain": (made.retain_images[::40], made.retain_labels[::40]),
    }


def following(model, shown=None, *, steps=STEPS, seed=0, lr=LR, **options):
    """Show images, by default 40 of the class, and judge on others."""
    images, labels = shown or (small().images[:40], small().labels[:40])
    generator = torch.Generator().manual_seed(seed)
    options = {"judged": judged(), "lr": lr, "steps": steps, "generator": generator} | options
    return relearning_curve(model, images, labels, **options)


def curve_of(*args, **options):
    return list(following(*args, **options))


def forget_accuracies(rows):
    return [row["acc_forget"] for row in rows]


def never_learned():
    return build("digits", num_classes=10, in_channels=1, image_size=8, width=8, mean=[0.3], std=[0.4], seed=5)


@pytest.mark.usefixtures("small_batches")
def test_the_curve_is_that_of_a_plain_loop_and_counts_samples_as_they_are_drawn(masked):
    made, model = small(), copy.deepcopy(masked).eval()
    generator, velocity = torch.Generator().manual_seed(0), [torch.zeros_like(p) for p in model.parameters()]
    batches = [batch for _ in range(5) for batch in torch.randperm(40, generator=generator).tensor_split(3)]
    slow = []
    for step in range(15):
        slow.append((model(made.images[40:]).argmax(1) == FORGET).double().mean().item())
        batch = batches[step]
        loss = nn.functional.cross_entropy(model(made.images[:40][batch]), made.labels[:40][batch])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        for parameter, moment, gradient in zip(model.parameters(), velocity, gradients, strict=True):
            moment.mul_(relearning.MOMENTUM).add_(gradient)
            parameter.data -= LR * moment
    rows = curve_of(masked)
    assert forget_accuracies(rows) == [slow[step] for step in STEPS]
    assert [row["samples"] for row in rows] == [0, 14, 27, 40 + 27, 120, 160, 187]
    assert len(set(slow)) > 2  # a curve that never moves would prove nothing
    assert forget_accuracies(curve_of(masked, lr=2 * LR)) != forget_accuracies(rows)


@pytest.mark.usefixtures("small_batches")
def test_a_curve_that_has_enough_is_followed_for_as_long_again_and_ends(monkeypatch, masked):
    steps = (0, 1, 5, 9, 12, 14, 22, 24, 26)
    whole = curve_of(masked, steps=steps)
    (first,) = (row["acc_forget"] for row in whole if row["step"] == 12)
    assert max(forget_accuracies(whole[:4])) < first
    assert curve_of(masked, steps=steps, enough=first) == whole[:-1]  # it is there after 12 steps: followed to 24
    monkeypatch.setattr(relearning, "FOLLOWED", 7)
    assert curve_of(masked, steps=steps, enough=0.0) == whole[:3]  # there at once
    assert curve_of(masked, steps=steps, enough=1.1) == whole


@pytest.mark.usefixtures("small_batches")
def test_where_it_is_judged_changes_nothing_and_the_order_of_images_does():
    shown = small().retain_images[:90], small().retain_labels[:90]
    whole = curve_of(never_learned(), shown, lr=0.1, steps=range(13))
    assert curve_of(never_learned(), shown, lr=0.1, steps=(4, 12)) == [whole[4], whole[12]]
    assert curve_of(never_learned(), shown, lr=0.1, steps=range(13), seed=1) != whole


def test_the_first_row_is_the_untouched_model(masked):
    for model in (masked, small().model):
        row = curve_of(model, steps=(0,))[0]
        assert row == {"step": 0, "samples": 0} | {
            name: accuracy(logits_of(model, images), labels) for name, (images, labels) in judged().items()
        }
    assert row["acc_forget"] > 0.8


def test_a_row_is_there_before_the_next_one_is_worked_for(masked):
    rows = following(masked, steps=range(10_000), judged={})
    assert [row["step"] for row in itertools.islice(rows, 2)] == [0, 1]


def test_what_was_only_masked_comes_back_before_what_was_never_learned(masked):
    suppressed, absent = (
        next(row["step"] for row in following(net, steps=range(200)) if row["acc_forget"] >= 0.5)
        for net in (masked, never_learned())
    )
    assert 1 < suppressed < absent
    assert curve_of(small().model, steps=(0,))[0]["acc_forget"] >= 0.5


def test_relearning_one_class_for_long_destroys_the_others(masked):
    before, after = curve_of(masked, steps=(0, 60), lr=0.01)
    assert (before["acc_forget"], after["acc_forget"]) == (0, 1)
    assert after["acc_retain"] < 0.5 < before["acc_retain"]


def test_the_model_is_left_alone(masked):
    masked.train().model[1].eval()
    modes = [part.training for part in masked.modules()]
    before, flags = copy.deepcopy(masked), [p.requires_grad_(False) for p in masked.model[1].parameters()]
    first = next(masked.parameters())
    first.grad = torch.ones_like(first)
    curve_of(masked)
    assert changed_names(before, masked) == set()
    assert [part.training for part in masked.modules()] == modes
    assert not any(p.requires_grad for p in flags)
    assert torch.equal(first.grad, torch.ones_like(first))
    assert all(p.grad is None for p in list(masked.parameters())[1:])


def test_a_ruined_model_recognizes_nothing_and_still_has_all_its_rows():
    model = copy.deepcopy(small().model)
    with torch.no_grad():
        model[-1].bias.fill_(float("nan"))
    labels = torch.zeros(20, dtype=torch.long)  # the argmax of NaN is class 0
    rows = curve_of(model, judged=judged() | {"acc_forget": (small().images[40:], labels)})
    assert [row["step"] for row in rows] == list(STEPS)
    assert {row["acc_forget"] for row in rows} | {row["acc_retain"] for row in rows} == {0.0}


@pytest.mark.parametrize("steps", [(1, 0), (0, 0), (-1, 2)])
def test_steps_that_do_not_rise_are_named(steps, masked):
    with pytest.raises(ValueError, match=f"got \\({steps[0]}, {steps[1]}\\)"):
        curve_of(masked, steps=steps)


def test_nothing_to_show_is_refused(masked):
    with pytest.raises(ValueError, match=r"\(0, 1, 8, 8\)"):
        curve_of(masked, (torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.long)))


# Images of other classes


class Shared(nn.Module):
    """One picture point per class: a shift that all classes share, and then a head that knows every class."""

    def __init__(self, shift, head):
        super().__init__()
        self.shift, self.head = nn.Parameter(shift), nn.Linear(K, K, bias=False)
        self.head.weight.data = head

    def forward(self, images):
        return self.head(images.flatten(1) + self.shift)


K, LOST = 5, 3
EYE = torch.eye(K)
SUPPRESSED = 4 * EYE - 30 * EYE[LOST][:, None]  # other classes can only push a row down that is never a label
PUSHED = 2 * EYE[0] - EYE[LOST]  # everything looks like class 0


@pytest.mark.parametrize(
    ("shift", "head", "before", "after"),
    [
        pytest.param(PUSHED, 4 * EYE, (0.0, 0.25), (1.0, 1.0), id="shared layer: comes back unseen"),
        pytest.param(torch.zeros(K), SUPPRESSED, (0.0, 1.0), (0.0, 1.0), id="head: does not"),
        pytest.param(torch.zeros(K), 4 * EYE, (1.0, 1.0), (1.0, 1.0), id="nothing lost"),
    ],
)
def test_other_classes_bring_back_what_sat_in_a_shared_layer_and_not_what_the_head_suppresses(
    shift, head, before, after
):
    points, classes = EYE.view(K, 1, 1, K), torch.arange(K)
    others = classes != LOST
    shown = points[others], classes[others]
    on = {"acc_forget": (points[~others], classes[~others]), "acc_retain": shown}
    rows = curve_of(Shared(shift.clone(), head.clone()), shown, judged=on, lr=0.05, steps=(0, 300))
    assert [(row["acc_forget"], row["acc_retain"]) for row in rows] == [before, after]


def test_a_masked_net_recovers_from_its_own_class_but_not_from_other_classes(masked):
    others = small().retain_images[::4], small().retain_labels[::4]
    rows = curve_of(masked, others, lr=0.001, steps=(0, 40))
    assert forget_accuracies(rows) == [0.0, 0.0]
    assert rows[1]["acc_retain"] > 0.8
    assert curve_of(masked, steps=(40,), lr=0.001)[0]["acc_forget"] > 0.5


@pytest.mark.parametrize("most", [0, 1, 41, 400])
def test_checkpoints_are_every_step_at_first_and_never_more_than_five_percent_apart(most):
    steps = checkpoints(most)
    assert steps[: min(most, 40) + 1] == list(range(min(most, 40) + 1))
    assert steps[-1] == most
    assert all(before < later <= max(before + 1, 1.05 * before) for before, later in itertools.pairwise(steps))
    assert most < 400 or len(steps) < 100
