"""The audit: the references come out as what they are, nothing is computed twice, and a ruined network is called so."""

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
from laboratory import TINY, changed_names, rooted
from torch import nn

from zspag.lab import audit, relearning
from zspag.lab.audit import bench as benches
from zspag.lab.audit import measures, running
from zspag.lab.audit.head_row import row_edited, row_redrawn
from zspag.lab.audit.measures import FEATURES, MEASURES
from zspag.lab.data import channel_statistics
from zspag.lab.data.sources import read_digits
from zspag.lab.evaluation import Masked, Parts, accuracy
from zspag.lab.experiment import Case, RunsFailed, references_against, references_of
from zspag.lab.models import build
from zspag.lab.relearning import RATE, SHARE
from zspag.lab.training import train
from zspag.report import audit as report
from zspag.report import recorded_tables, results
from zspag.report.audit.gap import PROBES
from zspag.report.claims import evidence
from zspag.runtime import generator_for, logits_of

pytestmark = pytest.mark.usefixtures("own_data")
FORGET = 3
PROFILE = replace(TINY, classes=(FORGET,), seeds=(0, 1))
RATES, RATES_OF_OTHERS = {RATE: 4, 1e-2: 30}, {1e-2: 5}
WIDTH, TRAINING = 8, replace(TINY.train, epochs=10)


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
    places = ["attack", "split", "probe", "stage", "shown", "head", "lr", "step", "moved", "radius"]
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
    steps = back[(back["lr"] == 1e-2) & (back["head"] == "own")].pivot(index="share", columns="method", values="step")
    assert (steps["original"] == 0).all()
    assert (steps["masked"] <= steps["retrained"]).all()
    index = report.anamnesis(back, head="own", lr=1e-2, share=SHARE)
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
    look = {"restored": lambda bench, name: iter([{"acc_forget": 0.0}])}
    rows = list(running._rows(Case(PROFILE, 0, FORGET), look))
    assert [(row["measure"], row["method"]) for row in rows] == [("restored", "retrained"), ("ruined", "delete")]


def test_an_audit_without_retrained_models_is_refused():
    with pytest.raises(ValueError, match="an audit needs retrained models"):
        benches.Bench(Case(replace(PROFILE, retrained=False), 0, FORGET))


@pytest.mark.slow
def test_a_published_audit_is_read_back_as_it_was_found(finished, monkeypatch):
    root, rows = finished
    monkeypatch.setenv("ZSPAG_ROOT", str(root))
    monkeypatch.setattr(relearning, "RATES", RATES)
    monkeypatch.setattr(audit, "audit", lambda _profile, seeds, features_only: rows)
    lines = list(audit.publish(PROFILE, record=True))
    told = [line for line in lines if line.startswith("Membership, AUC of the attack on all four scores: ")]
    assert lines[0] == told[0]
    assert [line.partition(": ")[2].split(" 0.")[0] for line in told] == ["ZS-PAG", "removal (ours)"]
    ((title, (content, found)),) = report.recorded(root / "results").items()
    assert title == f"{PROFILE.dataset}, 3, 2 seeds"
    shown = recorded_tables.audits(root / "results")
    (header,) = [line for line in shown.splitlines() if line.startswith("| question | retrained |")]
    assert " removal (ours) |" in header
    assert all(f"* {line}" in shown for line in told)
    closed = [panel["title"] for panel in content.data["panels"] if panel.get("kind") == "scatter"]
    assert len(closed) == 5
    assert all(f"{name} (" in title for name, title in zip(PROBES.values(), closed, strict=True))
    expected = report.findings(rows)
    assert set(found) == set(expected)
    pd.testing.assert_frame_equal(found["arrivals"], expected["arrivals"], check_dtype=False)
    assert (root / "figures" / PROFILE.name / f"{content.name}.png").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("inside")
def test_an_audit_of_features_alone_has_the_rows_of_the_whole_one_and_no_others(finished, tmp_path):
    root, whole = finished
    part = audit.audit(PROFILE, seeds=(0,), features_only=True)
    expected = whole[whole["measure"].isin(FEATURES)]
    at_the_head = expected["depth"].isna() | (expected["depth"] == expected["depth"].max())
    expected = expected[at_the_head].reset_index(drop=True).assign(depth=part["depth"])  # counted from 0 in either
    assert len(expected) < len(whole)
    pd.testing.assert_frame_equal(part, expected[list(part)], check_dtype=False)
    lines = list(audit.publish(replace(PROFILE, seeds=(0,)), record=True, features_only=True))
    assert not any("Membership" in line or "relearning" in line for line in lines)
    assert any("linear probe" in line for line in lines)
    (path,) = (root / "results" / PROFILE.name).glob("features_*.json")
    found = report.unpacked(results.read(path).measurements["rows"])
    assert set(found) == set(FEATURES)
    assert set(report.gap_closed(found)["probe"]) == set(PROBES)
    whole_one = path.stem.replace("features", "audit")
    if (path.parent / f"{whole_one}.json").exists():
        assert set(evidence.read(path.parent).audits("remove")) == {
            whole_one
        }  # the whole one counts where there are both
    (tmp_path / path.name).write_bytes(path.read_bytes())
    assert path.stem in evidence.read(tmp_path).audits("remove")  # claim C7 reads it


# One row of the head


@pytest.fixture(scope="module")
def pair():
    """An original and a network retrained without the class, each trained in two seconds."""
    data, models = read_digits(), []
    mean, std = channel_statistics(data.train.images)
    for kept in (data.train, data.train.select(data.train.labels != FORGET)):
        net = build("digits", num_classes=10, in_channels=1, image_size=8, width=WIDTH, mean=mean, std=std, seed=0)
        models.append(train(net, kept.images, kept.labels, config=TRAINING, seed=0).model.eval())
    return models


@pytest.fixture
def bench(pair, monkeypatch):
    """A whole bench of these two, the masked original and the control."""
    original, retrained = pair
    case = Case(replace(PROFILE, trial=False), 0, FORGET)
    references = references_against(case, original=original, retrained=retrained)
    images = references.images.forget_test
    nets = {
        "original": original,
        "masked": Masked(original, forget=(FORGET,), num_classes=10),
        "row_only": row_edited(original, retrained, forget=FORGET, images=images),
        "retrained": retrained,
    }
    monkeypatch.setattr(benches, "references_of", lambda _case: references)
    monkeypatch.setattr(benches, "networks", lambda _case: nets)
    monkeypatch.setattr(benches, "JUDGED", {"acc_forget": 100, "acc_retain": 4})
    monkeypatch.setattr(relearning, "RATES", {RATE: 250})
    monkeypatch.setattr(relearning, "RATES_OF_OTHERS", {})
    return benches.Bench(case)


def test_the_control_differs_from_the_original_in_one_row_and_no_probe_sees_it(bench):
    nets = bench.networks
    assert changed_names(nets["original"], nets["row_only"]) == {"13.weight", "13.bias"}
    for name in ("weight", "bias"):
        before, after = (getattr(nets[net][13], name) for net in ("original", "row_only"))
        assert (before != after).reshape(10, -1).any(1).tolist() == [label == FORGET for label in range(10)]
    for stage, features in bench.features_of("original").items():
        assert torch.equal(bench.features_of("row_only")[stage], features)
    rows = {name: measures.probe_rows(bench, name) for name in ("original", "row_only", "retrained")}
    assert rows["row_only"] == rows["original"] != rows["retrained"]
    assert [row["probe"] for row in rows["original"]] == ["linear"] * 4 + ["class means", "mlp", "neighbours"]


@pytest.fixture
def steps(bench):
    """Steps until half of the class is back, by network and head."""
    made = [
        {"method": name, "forget": FORGET, "seed": 0} | row
        for name in bench.networks
        for row in measures.relearning_rows(bench, name)
    ]
    back = report.arrivals(pd.DataFrame(made))
    return back[back["share"] == SHARE].set_index(["method", "head"])["step"]


@pytest.mark.slow
def test_one_row_of_the_head_makes_relearning_slow_and_nothing_else_does(steps):
    """Claim: the anamnesis index measures one row of the head. The control has all features of the original."""
    own, original, fresh = (steps.xs(head, level="head") for head in ("own", "original's", "fresh"))
    assert own["row_only"] >= 5 * max(1, own["masked"])
    assert own["row_only"] / own["retrained"] >= 0.5  # removed, if the index were to be believed
    assert original["row_only"] == original["original"] == 0
    assert fresh["row_only"] == fresh["original"] == fresh["masked"] > 0
    assert fresh["row_only"] <= own["row_only"] / 5
    assert fresh["retrained"] > fresh["original"]  # what retraining lacks is seen without the row


def test_relearning_under_the_own_head_is_what_it_was_before_there_were_others(bench, monkeypatch):
    monkeypatch.setattr(relearning, "RATES", {RATE: 12, 1e-2: 5})
    monkeypatch.setattr(relearning, "RATES_OF_OTHERS", {1e-2: 3})
    images, labels = bench.references.images.forget_train, bench.references.labels.forget_train
    known = accuracy(
        logits_of(bench.networks["original"], bench.judged["acc_forget"][0]), bench.judged["acc_forget"][1]
    )
    before = []
    for what, shown, rates, enough in (
        ("the class", (images, labels), relearning.RATES, 0.9 * known),
        ("other classes", bench.retained, relearning.RATES_OF_OTHERS, math.inf),
    ):
        for lr, most in rates.items():
            options = {"judged": bench.judged, "lr": lr, "steps": range(most + 1), "enough": enough}
            generator = generator_for(0, "relearning")
            curve = relearning.relearning_curve(bench.networks["masked"], *shown, generator=generator, **options)
            before += [{"shown": what, "lr": lr} | row for row in curve]
    rows = measures.relearning_rows(bench, "masked")
    own = [{name: row[name] for name in row if name != "head"} for row in rows if row["head"] == "own"]
    assert own == before
    others = {row["head"] for row in rows if row["shown"] == "the class"} - {"own"}
    assert others == {"original's", "fresh"}
    assert {row["head"] for row in rows if row["shown"] == "other classes"} == {"own"}


def test_a_redrawn_row_is_small_and_random_and_all_else_stays(pair):
    original, images = pair[0], torch.rand(6, 1, 8, 8)
    masked = Masked(original, forget=(FORGET,), num_classes=10)
    drawn = [
        row_redrawn(model, forget=FORGET, images=images, generator=torch.Generator().manual_seed(seed))
        for model, seed in ((original, 0), (masked, 0), (original, 1))
    ]
    first, again, other = (net[13] for net in drawn)
    others = [label for label in range(10) if label != FORGET]
    assert torch.equal(first.weight, again.weight)  # the shift of the masked original is no row
    assert not torch.equal(first.weight, other.weight)
    assert changed_names(original, drawn[0]) == {"13.weight", "13.bias"}
    assert torch.equal(first.weight[others], original[13].weight[others])
    assert torch.equal(first.bias[others], original[13].bias[others])
    assert first.bias[FORGET] == first.bias[others].mean()
    ratio = first.weight[FORGET].square().mean().sqrt() / first.weight[others].square().mean().sqrt()
    assert ratio.item() == pytest.approx(0.01, rel=0.5)


@pytest.mark.parametrize("end", [nn.Hardtanh(), nn.Identity()])
def test_where_the_rows_of_the_head_are_not_the_classes_nothing_is_edited(pair, end):
    nets, images = [nn.Sequential(net, end) for net in pair], torch.rand(6, 1, 8, 8)
    edited = row_edited(*nets, forget=FORGET, images=images)
    redrawn = row_redrawn(nets[0], forget=FORGET, images=images, generator=torch.Generator())
    assert (edited is None, redrawn is None) == (2 * (isinstance(end, nn.Hardtanh),))


def test_a_head_that_cannot_be_written_leaves_two_heads_and_no_control(bench, monkeypatch):
    monkeypatch.setattr(measures, "row_redrawn", lambda *_, **__: None)
    assert {row["head"] for row in measures.relearning_rows(bench, "original")} == {"own", "original's"}


@pytest.mark.parametrize(("held", "said"), [(3, False), (4, True)])
def test_where_too_few_test_images_are_left_there_is_no_membership_and_no_failure(held, said):
    class Few:
        case = Case(PROFILE, 0, FORGET)

        def logits_of(self, _name):
            return Parts(*(torch.randn(count, 10, generator=generator_for(count)) for count in (12, held, 5)))

    assert bool(measures.membership_rows(Few(), "original")) == said
