"""A request names training samples; what it gets is judged by what it names and by what shall stay."""

from dataclasses import asdict, replace
from functools import partial

import pytest
import torch
from laboratory import TINY, rooted

from zspag.lab import experiment, scenarios
from zspag.lab.data import Guard
from zspag.lab.evaluation import score
from zspag.lab.experiment import Case, RunsFailed, data_of, references_of, trained
from zspag.lab.scenarios import (
    Request,
    across_classes,
    at_once,
    compared,
    handed,
    in_a_row,
    judged,
    of_classes,
    order_of,
    part_of_class,
    retrained,
    table,
    unlearned,
)
from zspag.unlearning import zero_shot_unlearn

QUICK = replace(TINY, unlearn=replace(TINY.unlearn, update=replace(TINY.unlearn.update, lr=1.0)))


@pytest.fixture(scope="module", autouse=True)
def _root(tmp_path_factory):
    """One repository for the module: what is trained once serves all tests."""
    with rooted(tmp_path_factory.mktemp("root"), tmp_path_factory.mktemp("data")):
        yield


@pytest.fixture
def calls(monkeypatch):
    """Look over the shoulder of the method: model, labels, classes already forgotten, result."""
    seen = []

    def spy(model, images, labels, *, already_forgotten, **options):
        result = zero_shot_unlearn(model, images, labels, already_forgotten=already_forgotten, **options)
        seen.append((model, labels, already_forgotten, result))
        return result

    monkeypatch.setattr(scenarios.outcome, "zero_shot_unlearn", spy)
    return seen


def every_other(labels):
    """Every second training sample of some classes."""
    inside = torch.isin(data_of(QUICK).train.labels, torch.tensor(labels)).nonzero().flatten()
    return Request(QUICK, 0, tuple(inside[::2].tolist()))


# What a request is


def test_a_request_parts_the_training_samples():
    train = data_of(QUICK).train
    whole, part = of_classes(QUICK, 0, (7, 2)), every_other((2, 7))
    assert (whole.classes, whole.whole) == ((2, 7), True)
    assert (part.classes, part.whole) == ((2, 7), False)
    assert set(whole.rest.labels.tolist()) == set(range(10)) - {2, 7}
    for request in (whole, part):
        assert len(request.named) + len(request.rest) == len(train)
        assert torch.equal(request.named.images, train.images[list(request.samples)])


def test_the_method_is_handed_no_more_than_the_profile_says():
    request = of_classes(replace(QUICK, forget_samples=5), 0, (7, 2))
    expected, _ = Guard(data_of(QUICK), (7, 2)).forget_train(5)
    assert torch.equal(handed(request).float(), expected)
    assert len(handed(of_classes(QUICK, 0, (7, 2)))) == len(of_classes(QUICK, 0, (7, 2)).samples) > 10


def test_samples_and_orders_are_drawn_by_the_seed():
    inside = (data_of(QUICK).train.labels == 4).nonzero().flatten()
    first, again, other = (scenarios.drawn(Case(QUICK, seed, 4), 0.3, of=inside).samples for seed in (0, 0, 1))
    assert first == again != other
    assert len(first) == round(0.3 * len(inside))
    assert set(first) < set(inside.tolist())
    assert order_of(QUICK, 0) == order_of(QUICK, 0) != order_of(QUICK, 1)
    assert len(set(order_of(QUICK, 0))) == 3  # a trial leaves the largest request out
    assert len(set(order_of(replace(QUICK, trial=False), 0))) == 5


# How it is judged


@pytest.mark.slow
def test_one_whole_class_is_judged_as_in_the_grid():
    request, case = of_classes(QUICK, 0, (3,)), Case(QUICK, 0, 3)
    original, reference, own = compared(request, "one class")
    references = references_of(case)
    result = zero_shot_unlearn(
        trained(QUICK, 0),
        references.images.forget_train,
        references.labels.forget_train,
        num_classes=10,
        config=QUICK.unlearn,
    )
    for row, logits in ((own, references.images.map_logits(result.open_model)), (reference, references.retrained)):
        expected = asdict(score(logits, references))
        shared = row.keys() & expected.keys()
        assert shared >= {"acc_forget", "acc_retain", "acc_forget_train", "over_unlearning", "drift", "gap"}
        assert {name: row[name] for name in shared} == pytest.approx({name: expected[name] for name in shared})
    assert (own["lr"], own["refused"], own["acc_rest"]) == (1.0, "", None)
    assert reference["gap"] == 0 < 0.3 < original["gap"]


def test_of_a_class_in_part_the_rest_shall_stay():
    request = every_other((2, 7))
    original, model = trained(QUICK, 0), trained(QUICK, 0, 7)
    same, other = judged(request, original), judged(request, model)
    assert (same["drift"], same["over_unlearning"]) == (pytest.approx(0, abs=1e-9), 0)
    assert same["acc_rest"] > 0.8
    assert other["acc_rest"] < 0.6  # a net that never saw a 7 knows no more than the 2s
    assert other["by_class"][1] == 0 < other["by_class"][0]
    assert other["over_unlearning"] > 0.05  # though all other classes are known
    assert other["acc_others"] > other["acc_retain"] + 0.05


def test_a_model_retrained_without_a_part_has_not_seen_it():
    request = every_other((2, 7))
    model = retrained(request)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), retrained(request).parameters(), strict=True))
    assert not torch.equal(next(model.parameters()), next(trained(QUICK, 0).parameters()))
    assert judged(request, model)["acc_rest"] > 0.8
    gone = of_classes(QUICK, 0, (2, 7))
    assert judged(gone, retrained(gone))["acc_forget"] == 0


def test_the_net_of_one_whole_class_is_the_grids(monkeypatch):
    expected = trained(QUICK, 0, 3)
    monkeypatch.setattr(experiment.cases, "train", None)
    assert torch.equal(next(retrained(of_classes(QUICK, 0, (3,))).parameters()), next(expected.parameters()))
    with pytest.raises(TypeError, match="not callable"):
        retrained(of_classes(QUICK, 0, (3, 4)))


# What comes of it


@pytest.mark.slow
def test_several_classes_are_forgotten_together():
    rows = at_once(QUICK, 0, counts=(2,))
    assert [row["method"] for row in rows] == ["original", "retrained", "zs_pag"]
    original, _, own = rows
    assert own["classes"] == sorted(order_of(QUICK, 0)[:2])
    assert max(own["by_class"]) <= 0.1 < min(original["by_class"])
    assert (own["reached"], own["warned"]) == (True, [])


@pytest.mark.slow
def test_a_row_of_requests_goes_on_from_model_to_model(calls):
    rows = in_a_row(QUICK, 0, (8, 1, 5))
    assert [row["classes"] for row in rows] == [[8], [1, 8], [1, 5, 8]]
    assert [labels.unique().tolist() for _, labels, _, _ in calls] == [[8], [1], [5]]
    assert [already for *_, already, _ in calls] == [(), (8,), (8, 1)]
    assert calls[1][0] is calls[0][-1].open_model
    assert calls[2][0] is calls[1][-1].open_model
    untold = in_a_row(QUICK, 0, (8, 1, 5), disclosed=False)
    assert [already for *_, already, _ in calls[3:]] == [(), (), ()]
    assert [row["told"] for row in rows + untold] == [True] * 3 + [False] * 3
    assert untold[0] == rows[0] | {"told": False, "seconds": untold[0]["seconds"]}
    assert untold[1]["drift"] != rows[1]["drift"]


def test_a_row_ends_where_a_request_is_refused(monkeypatch):
    def refusing(*args, already_forgotten, **options):
        if already_forgotten:
            raise ValueError("no more")
        return zero_shot_unlearn(*args, already_forgotten=already_forgotten, **options)

    monkeypatch.setattr(scenarios.outcome, "zero_shot_unlearn", refusing)
    rows = in_a_row(QUICK, 0, (6, 0, 2))
    assert [row["refused"] for row in rows] == ["", "no more"]
    assert rows[1] == {"seed": 0, "told": True, "step": 2, "label": 0, "refused": "no more", "warned": []}


@pytest.mark.slow
def test_half_of_a_class_takes_the_other_half_with_it():
    original, target, own = part_of_class(Case(QUICK, 0, 8))
    assert original["samples"] == own["samples"] < 80
    assert min(target["acc_rest"], target["acc_forget"], target["acc_forget_train"]) > 0.6  # what was asked for
    assert max(own["acc_rest"], own["acc_forget"], own["acc_forget_train"]) < 0.2


def test_samples_across_all_classes_are_refused_and_a_few_of_most_warned_about():
    few, many = across_classes(QUICK, 0)[2], across_classes(QUICK, 0)[5]
    assert many["refused"].startswith("the classes to forget")
    assert "all 10 classes" in many["refused"]
    assert "acc_forget" not in many
    assert few["warned"][0].startswith(f"the forget set names {len(few['classes'])} of 10 classes")
    assert few["samples"] < 20
    assert few["acc_rest"] < 0.3
    assert few["over_unlearning"] > 0.5


@pytest.mark.slow
def test_rows_are_made_once(monkeypatch):
    def all_kinds():
        return [
            part_of_class(Case(QUICK, 0, 8)),
            across_classes(QUICK, 0),
            in_a_row(QUICK, 0, (8, 1, 5)),
            at_once(QUICK, 0, counts=(2,)),
        ]

    rows = all_kinds()
    monkeypatch.setattr(scenarios.outcome, "zero_shot_unlearn", None)
    assert all_kinds() == rows
    with pytest.raises(TypeError, match="not callable"):
        part_of_class(Case(QUICK, 0, 8), share=0.3)
    with pytest.raises(TypeError, match="not callable"):
        in_a_row(QUICK, 0, (8, 5, 1))


def test_the_table_holds_every_kind_and_says_what_failed(monkeypatch):
    kinds = {"part": lambda profile, seed: part_of_class(Case(profile, seed, 8)), "across": across_classes}
    monkeypatch.setattr(scenarios.kinds, "KINDS", kinds)
    rows = table(QUICK, (0,))
    assert [row["kind"] for row in rows] == ["part"] * 3 + ["across"] * 6
    assert [row["method"] for row in rows] == ["original", "retrained", "zs_pag"] * 3

    def broken(_profile, _seed):
        raise TypeError("a slip")

    monkeypatch.setitem(kinds, "broken", broken)
    with pytest.raises(RunsFailed, match="seed 0, broken: a slip"):
        table(QUICK, (0,))


def test_an_error_of_ours_is_no_refusal(monkeypatch):
    monkeypatch.setattr(scenarios.outcome, "zero_shot_unlearn", partial(zero_shot_unlearn, unknown=1))
    with pytest.raises(TypeError, match="unknown"):
        unlearned(every_other((2,)), trained(QUICK, 0))
