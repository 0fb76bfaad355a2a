"""Training curves are those of relearning, and what comes back without being shown is what sat in shared layers."""

import copy
import itertools

import pandas as pd
import pytest
import torch
from torch import nn

from tests.laboratory import FORGET, changed_names, small
from zspag.lab import relearning
from zspag.lab.audit import recovery
from zspag.lab.audit.recovery import anamnesis, arrivals, checkpoints, training_curve, training_curves
from zspag.lab.evaluation import Masked, accuracy
from zspag.lab.models import build
from zspag.lab.relearning import relearning_curve, steps_until
from zspag.runtime import generator_for, logits_of

LR = 0.0002
STEPS = (0, 1, 2, 5, 9, 12, 14)


def masked():
    return Masked(small().model, forget=(FORGET,), num_classes=10)


def judged():
    made = small()
    return {
        "acc_forget": (made.images[40:], made.labels[40:]),
        "acc_retain": (made.retain_images[::40], made.retain_labels[::40]),
    }


def curve_of(model, *, steps=STEPS, seed=0, lr=LR, **options):
    made = small()
    return training_curve(
        model, made.images[:40], made.labels[:40], judged=judged(), lr=lr, steps=steps,
        generator=torch.Generator().manual_seed(seed), **options,
    )  # fmt: skip


@pytest.fixture
def small_batches(monkeypatch):
    """40 images are then shown in batches of 14, 13 and 13."""
    monkeypatch.setattr(relearning, "BATCH", 16)


@pytest.mark.usefixtures("small_batches")
def test_forget_accuracies_are_those_of_relearning_at_the_same_steps():
    made = small()
    whole = relearning_curve(
        masked(), made.images[:40], made.labels[:40], judged_images=made.images[40:], judged_labels=made.labels[40:],
        level=1.1, lr=LR, most_steps=14, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    own = [row["acc_forget"] for row in curve_of(masked())]
    assert own == [whole[step] for step in STEPS]
    assert len(set(own)) > 2  # a curve that never moves would prove nothing
    assert [row["acc_forget"] for row in curve_of(masked(), lr=2 * LR)] != own


@pytest.mark.usefixtures("small_batches")
def test_samples_are_counted_as_they_are_drawn():
    assert [(row["step"], row["samples"]) for row in curve_of(masked())] == [
        (0, 0), (1, 14), (2, 27), (5, 40 + 27), (9, 120), (12, 160), (14, 187)
    ]  # fmt: skip


@pytest.mark.usefixtures("small_batches")
def test_a_curve_that_has_enough_is_followed_for_as_long_again_and_ends(monkeypatch):
    steps = (0, 1, 5, 9, 12, 14, 22, 24, 26)
    whole = curve_of(masked(), steps=steps)
    (first,) = (row["acc_forget"] for row in whole if row["step"] == 12)
    assert max(row["acc_forget"] for row in whole[:4]) < first
    assert curve_of(masked(), steps=steps, enough=first) == whole[:-1]  # it is there after 12 steps: followed to 24
    monkeypatch.setattr(recovery, "FOLLOWED", 7)
    assert curve_of(masked(), steps=steps, enough=0.0) == whole[:3]  # there at once
    assert curve_of(masked(), steps=steps, enough=1.1) == whole


def stranger():
    return build("digits", num_classes=10, in_channels=1, image_size=8, width=8, mean=[0.3], std=[0.4], seed=5)


def learned(*, seed, steps):
    made = small()
    return training_curve(
        stranger(), made.retain_images[:90], made.retain_labels[:90], judged=judged(), lr=0.1, steps=steps,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip


@pytest.mark.usefixtures("small_batches")
def test_where_it_is_judged_changes_nothing_and_the_order_of_images_does():
    whole = learned(seed=0, steps=range(13))
    assert learned(seed=0, steps=(4, 12)) == [whole[4], whole[12]]
    assert learned(seed=1, steps=range(13)) != whole


def test_the_first_row_is_the_untouched_model():
    for model in (masked(), small().model):
        row = curve_of(model, steps=(0,))[0]
        assert row == {"step": 0, "samples": 0} | {
            name: accuracy(logits_of(model, images), labels) for name, (images, labels) in judged().items()
        }
    assert row["acc_forget"] > 0.8


def test_relearning_one_class_for_long_destroys_the_others():
    rows = curve_of(masked(), steps=(0, 60), lr=0.01)
    assert rows[0]["acc_forget"] == 0
    assert rows[1]["acc_forget"] == 1
    assert rows[1]["acc_retain"] < 0.5 < rows[0]["acc_retain"]


def test_the_model_is_left_alone():
    model = copy.deepcopy(masked()).train()
    model.model[1].eval()
    modes = [part.training for part in model.modules()]
    before, flags = copy.deepcopy(model), [p.requires_grad_(False) for p in model.model[1].parameters()]
    first = next(model.parameters())
    first.grad = torch.ones_like(first)
    curve_of(model)
    assert changed_names(before, model) == set()
    assert [part.training for part in model.modules()] == modes
    assert not any(p.requires_grad for p in flags)
    assert torch.equal(first.grad, torch.ones_like(first))
    assert all(p.grad is None for p in list(model.parameters())[1:])


def test_a_ruined_model_recognizes_nothing_and_still_has_all_its_rows():
    model = copy.deepcopy(small().model)
    with torch.no_grad():
        model[-1].bias.fill_(float("nan"))
    rows = curve_of(model)
    assert [row["step"] for row in rows] == list(STEPS)
    assert {row["acc_forget"] for row in rows} | {row["acc_retain"] for row in rows} == {0.0}


@pytest.mark.parametrize("steps", [(1, 0), (0, 0), (-1, 2)])
def test_steps_that_do_not_rise_are_named(steps):
    with pytest.raises(ValueError, match=f"rise from 0 or more, got \\({steps[0]}, {steps[1]}\\)"):
        curve_of(masked(), steps=steps)


def test_nothing_to_show_is_refused():
    none = torch.zeros(0, 1, 8, 8)
    with pytest.raises(ValueError, match=r"nothing to train on: images have shape \(0, 1, 8, 8\)"):
        training_curve(
            masked(), none, torch.zeros(0, dtype=torch.long), judged={}, lr=LR, steps=(0,),
            generator=torch.Generator(),
        )  # fmt: skip


class Shared(nn.Module):
    """One picture point per class: a shift that all classes share, and then a head that knows every class."""

    def __init__(self, shift, head):
        super().__init__()
        self.shift, self.head = nn.Parameter(shift), nn.Linear(K, K, bias=False)
        self.head.weight.data = head

    def forward(self, images):
        return self.head(images.flatten(1) + self.shift)


K, LOST = 5, 3
POINTS = torch.eye(K).view(K, 1, 1, K)
CLASSES = torch.arange(K)


def without_the_class(model):
    others = CLASSES != LOST
    rows = training_curve(
        model, POINTS[others], CLASSES[others],
        judged={"acc_forget": (POINTS[~others], CLASSES[~others]), "acc_retain": (POINTS[others], CLASSES[others])},
        lr=0.05, steps=(0, 300), generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    return [(row["acc_forget"], row["acc_retain"]) for row in rows]


def test_what_sat_in_a_shared_layer_comes_back_without_having_been_seen():
    pushed = Shared(2 * torch.eye(K)[0] - torch.eye(K)[LOST], 4 * torch.eye(K))  # everything looks like class 0
    assert without_the_class(pushed) == [(0.0, 0.25), (1.0, 1.0)]


def test_what_only_the_head_suppresses_does_not():
    head = 4 * torch.eye(K)
    head[LOST] -= 30  # other classes can only push a row down that is never a label
    assert without_the_class(Shared(torch.zeros(K), head)) == [(0.0, 1.0), (0.0, 1.0)]
    assert without_the_class(Shared(torch.zeros(K), 4 * torch.eye(K))) == [(1.0, 1.0), (1.0, 1.0)]


def test_a_masked_net_does_not_recover_from_other_classes_but_from_its_own():
    made, model = small(), masked()
    rows = training_curve(
        model, made.retain_images[::4], made.retain_labels[::4], judged=judged(), lr=0.001, steps=(0, 40),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert [row["acc_forget"] for row in rows] == [0.0, 0.0]
    assert rows[1]["acc_retain"] > 0.8
    assert curve_of(model, steps=(40,), lr=0.001)[0]["acc_forget"] > 0.5


def test_curves_stand_side_by_side_and_the_seed_alone_decides_the_order():
    made, seeds = small(), (0, 4)
    frame = training_curves(
        masked(), made.images[:40], made.labels[:40], judged=judged(), rates={LR: 3, 2 * LR: 5}, seeds=seeds,
    )  # fmt: skip
    assert list(frame.columns) == ["lr", "seed", "step", "samples", "acc_forget", "acc_retain"]
    assert frame["step"].tolist() == 2 * [0, 1, 2, 3] + 2 * [0, 1, 2, 3, 4, 5]
    alone = training_curve(
        masked(), made.images[:40], made.labels[:40], judged=judged(), lr=2 * LR, steps=range(6),
        generator=generator_for(4, "relearning"),
    )  # fmt: skip
    assert (
        frame[(frame["lr"] == 2 * LR) & (frame["seed"] == 4)].drop(columns=["lr", "seed"]).to_dict("records") == alone
    )


def curves(accuracies, *, seed=0, lr=0.1):
    rows = [
        {"lr": lr, "seed": seed, "step": 2 * i, "samples": 6 * i, "acc_forget": value, "acc_retain": 1 - value}
        for i, value in enumerate(accuracies)
    ]
    return pd.DataFrame(rows)


def test_an_arrival_is_the_first_row_at_or_above_the_level():
    accuracies = [0.0, 0.3, 0.4, 0.3, 0.6]
    half, whole = arrivals(curves(accuracies), original=0.8, shares=(0.5, 1.0)).to_dict("records")
    assert half == {
        "lr": 0.1, "seed": 0, "step": 4, "samples": 12, "acc_forget": 0.4, "acc_retain": 0.6, "share": 0.5,
        "reached": True,
    }  # fmt: skip
    assert (whole["step"], whole["reached"], whole["acc_forget"]) == (8, False, 0.6)
    assert half["step"] == 2 * steps_until(accuracies, 0.4, most_steps=4)


def test_the_index_is_the_ratio_of_the_mean_steps_and_says_what_was_not_reached():
    own = pd.concat([curves([0, 1, 1, 1]), curves([0, 0, 1, 1], seed=1)])
    other = pd.concat([curves([0, 0, 0, 1]), curves([0, 0, 0, 0.4], seed=1)])
    (row,) = anamnesis(*(arrivals(part, original=1.0, shares=(0.5,)) for part in (own, other))).to_dict("records")
    assert row == {
        "lr": 0.1, "share": 0.5, "steps": 3.0, "steps_retrained": 6.0, "reached": 1.0, "reached_retrained": 0.5,
        "index": 0.5,
    }  # fmt: skip


def test_a_model_compared_with_itself_has_index_one_and_no_index_where_nothing_was_lost():
    assert anamnesis(*[arrivals(curves([0, 0, 1]), original=1.0)] * 2)["index"].tolist() == [1.0, 1.0]
    assert anamnesis(*[arrivals(curves([1.0, 1.0]), original=1.0)] * 2)["index"].isna().all()


@pytest.mark.parametrize("other", [curves([0, 1], seed=1), curves([0, 1], lr=0.2)])
def test_an_index_over_other_rates_or_seeds_is_refused(other):
    with pytest.raises(ValueError, match="same rates, seeds and shares"):
        anamnesis(*(arrivals(part, original=1.0) for part in (curves([0, 1]), other)))


def test_what_was_masked_has_a_lower_index_than_what_was_never_learned():
    made = small()
    found = [
        arrivals(
            training_curves(
                net, made.images[:40], made.labels[:40], judged=judged(), rates={0.001: 40}, seeds=(0, 1),
            ),
            original=1.0, shares=(0.5,),
        )
        for net in (masked(), stranger())
    ]  # fmt: skip
    assert 0 < anamnesis(*found)["index"].item() < 1


@pytest.mark.parametrize("most", [0, 1, 41, 400])
def test_checkpoints_are_every_step_at_first_and_never_more_than_five_percent_apart(most):
    steps = checkpoints(most)
    assert steps[: min(most, 40) + 1] == list(range(min(most, 40) + 1))
    assert steps[-1] == most
    assert all(before < later <= max(before + 1, 1.05 * before) for before, later in itertools.pairwise(steps))
    assert most < 400 or len(steps) < 100
