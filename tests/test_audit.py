"""The audit: the references come out as what they are, nothing is computed twice, and a ruined network is called so."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from laboratory import TINY, rooted

from zspag.lab import audit, relearning
from zspag.lab.audit import bench as benches
from zspag.lab.audit import measures, running
from zspag.lab.audit.measures import MEASURES
from zspag.lab.evaluation import Masked, accuracy
from zspag.lab.experiment import Case, RunsFailed, references_of
from zspag.lab.relearning import RATE, SHARE
from zspag.report import audit as report
from zspag.runtime import logits_of

pytestmark = pytest.mark.usefixtures("own_data")
FORGET = 3
PROFILE = replace(TINY, classes=(FORGET,), seeds=(0, 1))
RATES, RATES_OF_OTHERS = {RATE: 4, 1e-2: 30}, {1e-2: 5}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_folder):
    """An audit of one class and seed with few steps and radii, and where it lies."""
    with pytest.MonkeyPatch.context() as patch, rooted(tmp_path_factory.mktemp("root"), data_folder) as root:
        patch.setattr(relearning, "RATES", RATES)
        patch.setattr(relearning, "RATES_OF_OTHERS", RATES_OF_OTHERS)
        patch.setattr(measures, "RADII", (8 / 255, 64 / 255))
        rows = audit.audit(PROFILE, seeds=(0,))
    return root, rows


@pytest.fixture(scope="module")
def networks(finished, data_folder):
    """The networks of that class and seed."""
    with rooted(finished[0], data_folder):
        return benches.networks(Case(PROFILE, 0, FORGET))


@pytest.fixture
def inside(finished, networks, monkeypatch):
    """Work where the audit lies, with the networks that are there already."""
    monkeypatch.setenv("ZSPAG_ROOT", str(finished[0]))
    monkeypatch.setattr(benches, "networks", lambda _case: networks)


def of(rows, measure, method):
    found = report.measured(rows, measure)
    return found[found["method"] == method]


@pytest.mark.slow
def test_every_network_has_rows_of_every_measure(finished):
    counts = finished[1].groupby(["measure", "method"]).size().unstack()
    assert set(counts.index) == set(MEASURES)
    assert set(counts.columns) == set(audit.SUBJECTS)
    assert (counts.nunique(axis=1) == 1).all()  # no network is looked at more often than another
    places = ["attack", "split", "probe", "stage", "shown", "lr", "step", "moved", "radius"]
    assert not finished[1].duplicated(["measure", "method", *places]).any()


@pytest.mark.slow
def test_the_retrained_network_is_at_no_distance_from_itself(finished):
    _, rows = finished
    assert of(rows, "likeness", "retrained")["cka"].to_numpy() == pytest.approx(1)
    (trace,) = of(rows, "streisand", "retrained").to_dict("records")
    assert (trace["entropy_auc"], trace["entropy_ks"], trace["label_distance"]) == (0.5, 0, 0)
    assert (of(rows, "residual", "retrained")["difference"] == 0).all()
    assert (of(rows, "likeness", "original")["cka"] < 1).any()  # the controls
    assert of(rows, "streisand", "original")["label_distance"].item() > 0.5
    assert (of(rows, "residual", "original")["difference"] > 0.5).any()


@pytest.mark.slow
@pytest.mark.usefixtures("inside")
def test_beside_retraining_stands_retraining_of_another_seed_where_there_is_one(finished):
    _, rows = finished
    floor = of(rows, "distance", "retrained")
    assert (floor["js"] > 0).all()
    assert floor.set_index("split")["gap"]["forget_test"] == 0  # neither knows the class
    alone = benches.Bench(Case(replace(PROFILE, seeds=(0,)), 0, FORGET))
    assert list(MEASURES["distance"](alone, "retrained")) == []
    assert len(list(MEASURES["distance"](alone, "original"))) == 3


@pytest.mark.slow
def test_a_masked_original_is_the_original_once_its_last_layer_is_put_back(finished):
    _, rows = finished
    before, masked = of(rows, "restored", "original").iloc[0], of(rows, "restored", "masked").iloc[0]
    assert before["acc_forget"] == before["acc_forget_before"] > 0.3
    assert masked["acc_forget_before"] == 0
    assert masked["acc_forget"] == before["acc_forget"]
    hidden, known = (of(rows, "probes", method)["known"].to_numpy() for method in ("masked", "original"))
    assert (hidden == known).all()


@pytest.mark.slow
def test_the_original_is_back_at_once_and_the_retrained_network_late(finished):
    back = report.arrivals(report.measured(finished[1], "relearning"))
    steps = back[back["lr"] == 1e-2].pivot(index="share", columns="method", values="step")
    assert (steps["original"] == 0).all()
    assert (steps["masked"] <= steps["retrained"]).all()
    index = report.anamnesis(back, lr=1e-2, share=SHARE)
    assert index["retrained"] == 1
    assert index["original"] == 0


@pytest.mark.slow
def test_a_second_audit_computes_nothing_and_another_number_of_steps_is_another_audit(finished, monkeypatch):
    root, rows = finished
    monkeypatch.setenv("ZSPAG_ROOT", str(root))
    monkeypatch.setattr(running, "Bench", None)
    pd.testing.assert_frame_equal(audit.audit(PROFILE, seeds=(0,)), rows)
    with pytest.raises(RunsFailed, match=r"the audit of class 3, seed 1 failed: 'NoneType'"):
        audit.audit(PROFILE, seeds=(1,))


@pytest.mark.slow
@pytest.mark.usefixtures("inside")
def test_networks_are_those_of_the_forget_only_rule_and_do_not_share_weights(networks):
    references = references_of(Case(PROFILE, 0, FORGET))
    forgotten = logits_of(networks["zs_pag"], references.images.forget_train)
    assert tuple(networks) == audit.SUBJECTS
    assert isinstance(networks["masked"], Masked)
    assert accuracy(forgotten, references.labels.forget_train) <= 0.01
    assert torch.equal(logits_of(networks["original"], references.images.retain_test), references.original.retain_test)


@pytest.mark.slow
@pytest.mark.usefixtures("inside")
def test_a_ruined_network_has_one_row_that_says_so(networks, monkeypatch):
    ruined = torch.nn.Sequential(networks["original"], torch.nn.Threshold(0, float("inf")))
    monkeypatch.setattr(benches, "networks", lambda _case: {"retrained": networks["retrained"], "delete": ruined})
    monkeypatch.setattr(running, "MEASURES", {"restored": lambda bench, name: iter([{"acc_forget": 0.0}])})
    rows = list(running._rows(Case(PROFILE, 0, FORGET)))
    assert [(row["measure"], row["method"]) for row in rows] == [("restored", "retrained"), ("ruined", "delete")]


def test_an_audit_without_retrained_models_is_refused():
    with pytest.raises(ValueError, match="an audit needs retrained models"):
        benches.Bench(Case(replace(PROFILE, retrained=False), 0, FORGET))


@pytest.mark.slow
def test_a_published_audit_is_read_back_as_it_was_found(finished, monkeypatch):
    root, rows = finished
    monkeypatch.setenv("ZSPAG_ROOT", str(root))
    monkeypatch.setattr(relearning, "RATES", RATES)
    monkeypatch.setattr(audit, "audit", lambda _profile, seeds: rows)
    lines = list(audit.publish(PROFILE, record=True))
    assert lines[0].startswith("Membership, AUC of the attack on all four scores: ZS-PAG")
    ((title, (content, found)),) = report.recorded(root / "results").items()
    assert title == f"{PROFILE.dataset}, 3, 2 seeds"
    assert content.measurements["markdown"].startswith("| question | retrained |")
    expected = report.findings(rows)
    assert set(found) == set(expected)
    pd.testing.assert_frame_equal(found["arrivals"], expected["arrivals"], check_dtype=False)
    assert (root / "figures" / PROFILE.name / f"{content.name}.png").is_file()
