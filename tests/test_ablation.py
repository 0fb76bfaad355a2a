"""A variant changes what it names and nothing else, runs as a user would, and fails as a row."""

from dataclasses import replace

import pytest
from laboratory import TINY, rooted

from zspag.lab import ablation, experiment
from zspag.lab.ablation import OWN, SCORES, Variant, changed, moving, rows, table
from zspag.lab.evaluation import score
from zspag.lab.experiment import Case, RunsFailed, references_against, references_of, statistics_of, trained
from zspag.unlearning import zero_shot_unlearn

CASE = Case(TINY, 0, 3)


@pytest.fixture(scope="module", autouse=True)
def _root(tmp_path_factory):
    """One repository for the module: what is trained once serves all tests."""
    with rooted(tmp_path_factory.mktemp("root"), tmp_path_factory.mktemp("data")):
        yield


@pytest.mark.parametrize("path", ["unlearn.proxies.epsilon", "size", "unlearn.proxy.eps", "width.more"])
def test_an_unknown_option_is_named(path):
    with pytest.raises(ValueError, match=f"no option '{path}'"):
        changed(TINY, [(path, 1)])


def test_an_impossible_value_is_refused_as_ever():
    with pytest.raises(ValueError, match="energy must lie in"):
        changed(TINY, [("unlearn.subspace.energy", 2.0)])


def test_the_parts_of_a_net_cover_it():
    names = ("a", "b", "c", "d", "e")
    assert moving(names, "first half") + moving(names, "later half") == moving(names, "all") == names
    assert moving(names, "head") == ("e",)
    with pytest.raises(ValueError, match="layers must be one of all, first half, later half, head, got 'middle'"):
        moving(names, "middle")


def test_the_profile_as_it_is_gives_what_a_user_gets():
    (row,) = rows(CASE, (OWN,))
    images, labels = experiment.forget_set(CASE, experiment.guard_of(CASE))
    result = zero_shot_unlearn(trained(TINY, 0), images, labels, num_classes=10, config=TINY.unlearn, seed=0)
    references = references_of(CASE)
    scores = score(references.images.map_logits(result.open_model), references)  # its rows are not closed
    assert {name: row[name] for name in SCORES} == {name: getattr(scores, name) for name in SCORES}
    assert (row["lr"], row["eps"]) == (result.report.lr, result.report.eps)
    assert (row["reached"], row["failed"]) == (result.report.reached, "")
    pooled, layers = statistics_of(CASE).moments.pooled.second, result.report.layers
    assert {one.name: one.dimension for one in layers} == {name: second.shape[1] for name, second in pooled.items()}
    assert row["free"] == pytest.approx(sum(one.free / one.dimension for one in layers if one.moved) / len(layers))


def test_its_scores_do_not_read_the_retrained_model():
    references = references_of(CASE)
    other = references_against(CASE, original=trained(TINY, 0), retrained=trained(TINY, 0))
    first, second = (score(references.original, one) for one in (references, other))
    assert all(getattr(first, name) == getattr(second, name) for name in SCORES)
    assert first.gap != second.gap  # which does read it


def test_a_radius_that_reaches_no_class_is_a_row_that_says_so():
    (row,) = rows(CASE, (Variant("radius", 1e-6, (("unlearn.proxies.eps", 1e-6),)),))
    assert row["failed"].startswith("no forget sample reached class")
    assert "drift" not in row
    assert (row["axis"], row["value"], row["forget"], row["seed"]) == ("radius", 1e-6, 3, 0)


def test_an_error_of_ours_is_no_row(monkeypatch):
    def broken(_case, _variant):
        raise TypeError("a slip")

    monkeypatch.setattr(ablation, "_run", broken)
    wide = Variant("energy", 0.5, (("unlearn.subspace.energy", 0.5),))
    with pytest.raises(TypeError, match="a slip"):
        rows(CASE, (wide,))
    with pytest.raises(RunsFailed, match="seed 0, class 3: a slip"):
        table([CASE], {"energy": (wide,)})


@pytest.mark.slow
def test_no_tilt_is_no_influence_and_a_tilt_is_some():
    labels = "unlearn.labels."

    def tilted(strategy, beta):
        return Variant("beta", beta, ((labels + "strategy", strategy), (labels + "beta", beta)))

    soft, *others = rows(CASE, (OWN, tilted("process", 0.0), tilted("influence", 0.0), tilted("process", 4.0)))
    assert [one["drift"] == pytest.approx(soft["drift"], rel=1e-3) for one in others] == [True, True, False]


def test_a_subspace_or_a_label_costs_no_further_attack(monkeypatch):
    rows(CASE, (OWN,))
    monkeypatch.setattr(experiment.statistics, "prepare", None)
    found = rows(CASE, [Variant("subspace", "merge", (("unlearn.subspace.combine", "merge"),))])
    assert found[0]["failed"] == ""
    with pytest.raises(TypeError, match="not callable"):
        rows(CASE, [Variant("proxies", 5, (("unlearn.proxies.per_class", 5),))])


def test_a_frozen_layer_has_no_free_direction_and_an_unprojected_one_has_all():
    open_ = (("unlearn.subspace.energy", 0.9), ("unlearn.update.layers", "all"))  # or the head alone may be chosen
    variants = (Variant("layers", "all", open_), Variant("layers", "head", open_, layers="head"))
    everything, head, whole = rows(CASE, (*variants, Variant("labels", "soft", projected=False)))
    assert 0 < head["free"] < everything["free"] < whole["free"] == 1


def test_a_table_has_a_row_per_case_and_variant_and_is_made_once(monkeypatch):
    cases = [CASE, replace(CASE, forget=5)]
    axis = {"rate": tuple(Variant("rate", lr, (("unlearn.update.lr", lr),)) for lr in (0.03, 1.0))}
    found = table(cases, axis)
    expected = [(forget, lr, lr) for forget in (3, 5) for lr in (0.03, 1.0)]
    assert [(row["forget"], row["value"], row["lr"]) for row in found] == expected
    monkeypatch.setattr(ablation, "_run", None)
    assert table(cases, axis) == found
