"""What an audit found: comparisons by hand, files that give back what was put in, and words that follow the numbers."""

import json
from itertools import product
from pathlib import Path

import pandas as pd
import pytest

from zspag.lab import audit as lab
from zspag.lab import experiment, relearning
from zspag.report import audit, files, plots
from zspag.report.audit.verdicts import MEMBERSHIP, NONLINEAR, PROBE, QUESTIONS


def numbers(method, values, column="known"):
    """One row per class and seed from ``{class: (number per seed)}``."""
    return [
        {"method": method, "forget": forget, "seed": seed, column: value}
        for forget, several in values.items()
        for seed, value in enumerate(several)
    ]


def compared(rows, method):
    return audit.compared(pd.DataFrame(rows), "known", method=method)


# Comparison


def test_a_comparison_is_what_one_computes_by_hand():
    rows = numbers("zs_pag", {1: (0.5, 0.7), 4: (0.9, 0.2)}) + numbers("retrained", {1: (0.4, 0.5), 4: (0.6, 0.4)})
    one = compared(rows, "zs_pag")
    assert one.mean == pytest.approx((0.6 + 0.55) / 2)
    assert one.retrained == pytest.approx((0.45 + 0.5) / 2)
    assert one.difference == pytest.approx(((0.1 + 0.2) / 2 + (0.3 - 0.2) / 2) / 2)
    assert one.distance == pytest.approx(((0.1 + 0.2) / 2 + (0.3 + 0.2) / 2) / 2)
    assert one.floor == pytest.approx((0.1 + 0.2) / 2)
    assert one.excess == pytest.approx(((0.15 - 0.1) + (0.25 - 0.2)) / 2)
    assert one.excess_half == pytest.approx(0, abs=1e-9)  # the excess is the same in both classes
    assert one.within is False


def test_signs_that_cancel_over_classes_do_not_make_a_method_close():
    far = numbers("zs_pag", {1: (0.9, 0.9), 4: (0.1, 0.1), 6: (0.9, 0.9), 7: (0.1, 0.1)})
    target = numbers("retrained", {label: (0.5, 0.51) for label in (1, 4, 6, 7)})
    one = compared(far + target, "zs_pag")
    assert abs(one.difference) < 0.01 < 0.3 < one.distance
    assert one.within is False


def test_a_third_retrained_network_is_within_the_spread_and_an_original_is_not():
    target = numbers("retrained", {label: (0.3, 0.5, 0.4) for label in range(5)})
    like = numbers("zs_pag", {label: (0.5, 0.3 + label / 50, 0.4) for label in range(5)})
    knows = numbers("original", {label: (0.9, 0.95, 0.9) for label in range(5)})
    assert compared(target + like + knows, "zs_pag").within is True
    assert compared(target + like + knows, "original").within is False


def test_a_shift_to_one_side_is_seen_where_the_distance_alone_would_not_tell():
    """Distances as among retrained networks in half the classes, but never below them."""
    target = numbers("retrained", {label: (0.5, 0.52 + 0.04 * (label % 2)) for label in range(6)})
    above = numbers("zs_pag", {label: (0.55, 0.57 + 0.04 * (label % 2)) for label in range(6)})
    one = compared(target + above, "zs_pag")
    assert one.excess - one.excess_half <= 0
    assert one.difference == pytest.approx(0.05)
    assert one.within is False
    mirrored = [row | {"known": 1.04 - row["known"]} if row["forget"] % 2 else row for row in target + above]
    assert compared(mirrored, "zs_pag").within is True


def test_one_seed_leaves_the_spread_unknown():
    one = compared(numbers("zs_pag", {1: (0.5,)}) + numbers("retrained", {1: (0.5,)}), "zs_pag")
    assert (one.floor, one.excess, one.within) == (None, None, None)
    assert one.half == 0


def test_where_a_method_was_ruined_nothing_is_compared_and_a_missing_yardstick_is_refused():
    own, target = numbers("zs_pag", {1: (0.5, 0.5)}), numbers("retrained", {1: (0.4, 0.4), 2: (0.0, 0.0)})
    assert compared(own + target, "zs_pag").difference == pytest.approx(0.1)
    with pytest.raises(ValueError, match="known of zs_pag cannot be compared"):
        compared(own + target[2:], "zs_pag")


# Findings


def made(*, seeds=(0, 1), classes=(1, 4, 6), ruined=()):
    """Rows of an audit by hand: ZS-PAG gives the class away to a probe, and to nobody else."""
    rows = []
    for method, forget, seed in product(audit.TITLES, classes, seeds):
        place = {"method": method, "forget": forget, "seed": seed}
        if method in ruined:
            rows.append({"measure": "ruined"} | place)
        else:
            rows += [row | place for row in measures(method, 0.01 * seed)]
    return pd.DataFrame(rows)


def measures(method, wobble):
    knows, late = method in ("original", "masked", "row_only"), 20 if method in ("row_only", "retrained") else 4
    known = 0.3 if method == "retrained" else 0.7
    for attack in ("loss", "confidence", "entropy", "modified_entropy", "regression"):
        yield {"measure": "membership", "attack": attack, "auc": (0.8 if knows else 0.5) + wobble}
    for split in ("forget_train", "forget_test", "retain_test"):
        numbers = {"agreement": 0.9, "js": 0.1, "zrf": 0.5, "accuracy": 0.88 if method == "delete" else 0.9}
        yield {"measure": "distance", "split": split} | numbers
    for depth in range(2):
        stage = {"stage": f"layer{depth}", "depth": depth}
        yield {"measure": "probes", "probe": "linear", "known": known - 0.1 * (depth == 0) + wobble} | stage
        yield {"measure": "likeness", "cka": 0.5} | stage
    for probe in ("class means", "mlp", "neighbours"):
        yield {"measure": "probes", "probe": probe, "known": known} | stage
    before = {"acc_forget_before": float(method == "original"), "acc_retain": 0.9}
    yield {"measure": "restored", "acc_forget": 0.9 if knows else 0.2} | before
    for head, lr, step in product(("own", "original's", "fresh"), (3e-4, 1e-2), (0, 4, 20)):
        wanted = {"own": 0 if method == "original" else late, "original's": 0 if knows else 4, "fresh": 4}[head]
        curve = {"shown": "the class", "head": head, "lr": lr, "step": step, "samples": 64 * step}
        yield {"measure": "relearning", "acc_retain": 0.9, "acc_forget": float(step >= wanted)} | curve
    for lr, step in product((3e-4, 1e-2), (0, 4, 20)):
        curve = {"shown": "other classes", "head": "own", "lr": lr, "step": step, "samples": 64 * step}
        yield {"measure": "relearning", "acc_retain": 0.9, "acc_forget": float(method == "original")} | curve
    distances = {"entropy_ks": 0.2, "label_distance": 0.1, "forget_mass": 0.0}
    yield {"measure": "streisand", "entropy": 0.4 + wobble} | distances
    for moved, radius in product(("at random", "by attack"), (4 / 255, 8 / 255)):
        yield {"measure": "residual", "moved": moved, "radius": radius, "known": 0.1}


def test_titles_rates_and_shares_are_those_of_the_laboratory():
    assert audit.TITLES.items() <= experiment.TITLES.items()
    assert tuple(audit.TITLES) == lab.SUBJECTS
    assert (audit.RATE, audit.SHARE) == (relearning.RATE, relearning.SHARE)


@pytest.fixture(scope="module")
def found():
    return audit.findings(made())


def test_findings_come_back_from_a_file_as_they_went_in():
    found = audit.findings(made(ruined=("delete",)))
    again = audit.unpacked(json.loads(json.dumps(audit.packed(found))))
    assert set(again) == set(found) >= {"curves", "arrivals", "ruined", "membership"}
    for name, frame in found.items():
        pd.testing.assert_frame_equal(again[name], frame, check_dtype=False)


def test_mean_curves_average_seeds_per_class_first():
    rows = made()
    uneven = rows[~((rows["forget"] == 1) & (rows["seed"] == 1))]
    uneven = audit.measured(uneven, "relearning").assign(acc_forget=lambda all_rows: all_rows["forget"] / 10)
    curves = audit.mean_curves(uneven)
    assert curves["acc_forget"].to_numpy() == pytest.approx((0.1 + 0.4 + 0.6) / 3)
    assert curves["acc_forget_low"].to_numpy() == pytest.approx(0.1)
    assert curves["acc_forget_high"].to_numpy() == pytest.approx(0.6)
    assert len(curves) == len(audit.TITLES) * (3 + 1) * 2 * 3


def test_a_mean_curve_ends_where_the_first_of_its_curves_does():
    rows = audit.measured(made(), "relearning")
    short = rows[~((rows["method"] == "masked") & (rows["forget"] == 4) & (rows["seed"] == 1) & (rows["step"] > 4))]
    steps = audit.mean_curves(short).groupby(["method", "shown", "head", "lr"])["step"].max()
    assert (steps["masked"] == 4).all()
    assert (steps["zs_pag"] == 20).all()


# Panels


CURVES = (audit.relearning_panels, audit.probe_panels, audit.residual_panels)


@pytest.fixture(scope="module", params=[(1,), (1, 4, 6), (1, 2, 4, 6, 7)], ids=len)
def ruined(request):
    """What was found of some classes where one network was ruined."""
    return audit.findings(made(classes=request.param, ruined=("delete",)))


@pytest.mark.parametrize("panels", CURVES, ids=lambda function: function.__name__)
def test_every_panel_shows_every_network_but_a_ruined_one_and_can_be_drawn(panels, ruined):
    drawn = panels(ruined, title="digits")
    for panel in drawn:
        assert set(panel["series"]) == {audit.TITLES[name] for name in audit.TITLES if name != "delete"}
    result = {"draw": "curves", "data": {"panels": drawn}, "profile": "digits", "provenance": {}}
    assert len(plots.draw(result).axes) >= len(drawn)


def test_curves_of_relearning_are_drawn_under_the_own_head(found):
    (panel, _) = audit.relearning_panels(found, title="x", rates=[1e-2])
    assert panel["series"]["original, one row edited"]["y"] == [
        0,
        0,
        100,
    ]  # with the original's head it is there at once
    assert panel["series"]["ZS-PAG"]["y"] == [0, 100, 100]


def test_rates_of_relearning_are_chosen_by_number(found):
    every, one = (audit.relearning_panels(found, title="x", rates=rates) for rates in (None, [1e-2]))
    assert (len(every), one) == (4, [panel for panel in every if panel["title"] == "x: rate 0.01"])


# Relearning


def back(method, *arrived):
    """Arrivals of a network by hand: class, seed, step, whether it was reached."""
    place = {"method": method, "head": "own", "lr": 0.1, "share": 0.5, "acc_retain": 0.5}
    return [
        place | {"forget": forget, "seed": seed, "step": step, "reached": reached, "samples": 64 * step}
        for forget, seed, step, reached in arrived
    ]


def index(rows):
    return audit.anamnesis(pd.DataFrame(rows), head="own", lr=0.1, share=0.5)


def test_the_index_averages_seeds_per_class_and_classes_last():
    rows = back("zs_pag", (1, 0, 2, True), (1, 1, 4, True), (2, 0, 10, True), (2, 1, 10, True))
    target = back("retrained", (1, 0, 4, True), (1, 1, 8, True), (2, 0, 20, True), (2, 1, 60, True))
    assert index(rows + target) == {"zs_pag": pytest.approx((3 / 6 + 10 / 40) / 2), "retrained": 1}
    at_once = back("retrained", (1, 0, 0, True), (1, 1, 0, True), *[(2, seed, 20, True) for seed in (0, 1)])
    assert index(rows + at_once)["zs_pag"] == 0.5  # class 1 has no index


def test_the_index_leaves_out_a_class_in_which_a_network_was_ruined_and_refuses_a_missing_seed():
    target = back("retrained", (1, 0, 4, True), (1, 1, 4, True), (2, 0, 4, True), (2, 1, 4, True))
    whole = back("zs_pag", (1, 0, 2, True), (1, 1, 2, True))
    assert index(target + whole)["zs_pag"] == 0.5
    for rows in (target + whole[:1], whole + target[1:]):
        with pytest.raises(ValueError, match="the same classes and seeds"):
            index(rows)


def test_arrivals_that_did_not_happen_carry_a_plus_sign():
    rows = back("zs_pag", (1, 0, 4, True), (2, 0, 8, False)) + back("retrained", (1, 0, 16, True), (2, 0, 16, True))
    table = audit.arrival_table(pd.DataFrame(rows), audit.TITLES)
    assert table["head"].tolist() == ["own", "own"]
    assert table.loc["ZS-PAG", "50 % back at 0.1"] == "6+ steps (384 images), AIN 0.375, retained 50 %"
    assert table.loc["retrained", "50 % back at 0.1"] == "16 steps (1024 images), AIN 1.000, retained 50 %"


def test_a_class_is_back_at_a_share_of_what_the_original_recognizes():
    rows = pd.DataFrame(
        [
            {"method": method, "forget": 1, "seed": 0, "shown": shown, "lr": 0.1, "step": step, "acc_forget": known}
            | {"head": head}
            for method, curve in {"original": (0.8, 0.9), "zs_pag": (0.39, 0.4)}.items()
            for shown, head in (("the class", "fresh"), ("the class", "own"), ("other classes", "own"))
            for step, known in enumerate(curve if head == "own" else (0.2, 0.41))
        ]
    )
    both = audit.arrivals(rows)
    fresh = both[both["head"] == "fresh"].set_index(["method", "share"])
    assert fresh.loc[("original", 0.5), ["step", "reached"]].tolist() == [
        1,
        True,
    ]  # half of what it knows under its own
    found = both[both["head"] == "own"].set_index(["method", "share"])
    assert found.loc[("original", 0.5), ["step", "reached"]].tolist() == [0, True]
    assert found.loc[("zs_pag", 0.5), ["step", "reached"]].tolist() == [1, True]
    assert found.loc[("zs_pag", 0.9), ["step", "reached"]].tolist() == [1, False]  # counting stopped


# Words


def test_the_table_says_what_is_within_the_spread_and_by_how_much_it_differs():
    table = audit.verdict_table(audit.findings(made(ruined=("delete",))), methods=("masked", "zs_pag", "delete"))
    assert list(table.index) == [question.text for question in QUESTIONS]
    assert table.loc[MEMBERSHIP.text, "ZS-PAG"] == "0.505 (+0.000), within"
    assert table.loc[MEMBERSHIP.text, "masked original"] == "0.805 (+0.300), beyond"
    assert table.loc[PROBE.text, "ZS-PAG"] == "70.5 % (+40.0), beyond"
    assert table.loc[PROBE.text, "two retrained differ by"] == "1.0 %"
    assert "DELETE" not in table


def test_sentences_follow_the_numbers(found):
    membership, probe, nonlinear, restored, relearned, *others = audit.verdicts(found, method="zs_pag")
    assert membership == (
        "Membership, AUC of the attack on all four scores: ZS-PAG 0.505, retrained 0.505 (+0.000); they differ by"
        " 0.000, two retrained networks by 0.010: within the retrained networks' own spread."
    )
    assert "(+40.0); they differ by 40.0 %, two retrained networks by 1.0 %: beyond the retrained" in probe
    assert nonlinear.startswith("Forget class, nonlinear probe (MLP) there: ZS-PAG 70.0 %, retrained 30.0 %")
    assert "masked original 90.0 %, ZS-PAG 20.0 %, retrained 20.0 %" in restored
    assert relearned == (
        "Steps of relearning under the own head until half of the class is back, rate 0.0003: masked original 4 (AIN"
        " 0.200); original, one row edited 20 (AIN 1.000); ZS-PAG 4 (AIN 0.200); retrained 20 (AIN 1.000). They measure"
        " one row of the head; the control is the original, one row edited."
    )
    assert "with the original's head put back" in others[0]
    assert "masked original 0 (AIN 0.000); original, one row edited 0 (AIN 0.000); ZS-PAG 4 (AIN 1.000)" in others[0]
    assert "fresh row" in others[1]
    assert "original, one row edited 4 (AIN 1.000); ZS-PAG 4 (AIN 1.000); retrained 4 (AIN 1.000)." in others[1]
    (only,) = audit.verdicts(audit.findings(made(ruined=("zs_pag",))), method="zs_pag")
    assert only.startswith("ZS-PAG was ruined in every class and seed")


def test_removal_is_told_beside_zs_pag_where_it_was_audited_ruined_or_not(found):
    own, ours = (audit.verdicts(found, method=method) for method in ("zs_pag", "remove"))
    assert own != ours
    assert audit.told(found) == own + ours
    assert any("removal (ours) 20.0 %, retrained 20.0 %" in line for line in ours)
    ruined = audit.findings(made(ruined=("remove",)))
    assert audit.told(ruined) == [*own, "removal (ours) was ruined in every class and seed: there is nothing to audit."]
    assert audit.told(audit.unpacked(older())) == audit.verdicts(audit.unpacked(older()), method="zs_pag")


def test_networks_that_were_audited_are_those_that_were_ruined_too(found):
    assert sorted(audit.audited(found)) == sorted(audit.TITLES)
    assert sorted(audit.audited(audit.findings(made(ruined=("remove", "delete"))))) == sorted(audit.TITLES)
    assert "remove" not in audit.audited(audit.unpacked(older()))


def test_the_table_of_verdicts_has_a_column_of_removal_where_it_was_audited(found):
    methods = [name for name in audit.TITLES if name != "retrained"]
    assert audit.verdict_table(found, methods=methods).loc[PROBE.text, "removal (ours)"] == "70.5 % (+40.0), beyond"


def test_where_the_original_passes_the_measure_is_said_to_be_blind():
    rows = made()
    membership = rows["measure"] == "membership"
    rows.loc[membership, "auc"] = 0.5 + 0.01 * rows.loc[membership, "seed"]
    first, probe, *_ = audit.verdicts(audit.findings(rows), method="zs_pag")
    assert first.endswith("So is the original, which knows the class: this measure cannot judge here.")
    assert "cannot judge" not in probe


def test_with_one_seed_nothing_is_said_about_a_spread():
    found = audit.findings(made(seeds=(0,)))
    assert "not known, for there is one seed" in audit.verdicts(found, method="zs_pag")[0]
    assert audit.verdict_table(found, methods=("zs_pag",)).iloc[0]["ZS-PAG"] == "0.500 (+0.000)"


def test_a_number_without_end_is_not_taken_for_one_that_is_missing(tmp_path):
    packed = audit.packed({"curves": pd.DataFrame({"drift": [0.5, float("inf"), float("nan")]})})
    assert packed["curves"]["drift"] == [0.5, float("inf"), None]
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(tmp_path / "audit.json", packed)


# Older files


def older():
    """What a file holds that was written before there were other heads, other probes and a control of one row."""
    rows = made()
    rows = rows[~rows["method"].isin(("row_only", "remove", "boundary_shrink"))]
    rows = rows[~rows["probe"].isin(("mlp", "neighbours")) & ~rows["head"].isin(("original's", "fresh"))]
    kept = audit.packed(audit.findings(rows))
    assert kept["curves"].pop("head")
    assert kept["arrivals"].pop("head")
    return kept


def test_an_older_file_is_read_as_relearning_under_the_own_head_and_nothing_breaks():
    found = audit.unpacked(json.loads(json.dumps(older())))
    for frame in (found["curves"], found["arrivals"]):
        assert set(frame["head"]) == {"own"}
    assert audit.relearning_panels(found, title="x")[0]["series"]["retrained"]["y"] == [0, 0, 100]
    assert set(audit.arrival_table(found["arrivals"], audit.TITLES)["head"]) == {"own"}
    table = audit.verdict_table(found, methods=[name for name in audit.TITLES if name != "retrained"])
    assert PROBE.text in table.index
    assert NONLINEAR.text not in table.index
    assert "removal (ours)" not in table
    *_, restored, relearned = audit.verdicts(found, method="zs_pag")
    assert restored.startswith("With the original's last layer put back")
    assert relearned.endswith("They measure one row of the head; no control was made here.")
    assert len(audit.gap_panels(found, title="x")) == 3
    assert set(audit.gap_closed(found)["probe"]) == {"linear", "class means", "original's head"}


def test_every_recorded_audit_is_read():
    recorded = audit.recorded(Path(__file__).parents[1] / "results")
    assert len(recorded) >= 2
    for _, found in recorded.values():
        assert "own" in set(found["arrivals"]["head"])
        assert len(audit.verdicts(found, method="zs_pag")) >= 4
        assert audit.gap_closed(found)["share"].notna().any()


# The gap to retraining


def judged(method, recalls, *, kept=(0.9, 0.9)):
    """Rows of two classes, a recall per seed each, and what is left of the retained classes per class.

    Yields:
        Rows of three measures.
    """
    for (forget, known), accuracy in zip(recalls.items(), kept, strict=True):
        for seed, value in enumerate(known):
            place = {"method": method, "forget": forget, "seed": seed}
            yield {"measure": "probes", "probe": "linear", "depth": 1, "known": value} | place
            yield {"measure": "probes", "probe": "linear", "depth": 0, "known": 0.123} | place
            yield {"measure": "restored", "acc_forget": 1 - value} | place
            for split in ("retain_test", "forget_test"):
                right = accuracy + 0.01 * seed if split == "retain_test" else 0.5
                yield {"measure": "distance", "split": split, "accuracy": right} | place


def closed_gaps(*rows):
    frame = pd.DataFrame([row for method in rows for row in method])
    return {measure: audit.measured(frame, measure) for measure in ("probes", "restored", "distance")}


RULERS = (
    list(judged("original", {1: (0.9, 0.7), 4: (0.60, 0.60)}, kept=(0.85, 0.86))),
    list(judged("masked", {1: (0.9, 0.7), 4: (0.60, 0.60)}, kept=(0.95, 0.92))),
    list(judged("retrained", {1: (0.4, 0.3), 4: (0.56, 0.44)}, kept=(0.95, 0.95))),
)


def test_the_closed_share_is_what_one_computes_by_hand():
    own = judged("zs_pag", {1: (0.5, 0.4), 4: (0.5, 0.5)}, kept=(0.93, 0.92))
    closed = audit.gap_closed(closed_gaps(*RULERS, own)).set_index(["probe", "method", "forget"])
    row = closed.loc[("linear", "zs_pag", 1)]
    assert row[["known", "original", "retrained"]].tolist() == pytest.approx([0.45, 0.8, 0.35])
    assert row["spread"] == pytest.approx(0.1)
    assert row["share"] == pytest.approx((0.8 - 0.45) / (0.8 - 0.35))
    assert row["lost"] == pytest.approx(2.0)
    assert closed.loc[("linear", "zs_pag", 4), "lost"] == pytest.approx(0.0, abs=1e-9)
    assert closed.loc[("original's head", "zs_pag", 1), "share"] != closed.loc[("linear", "zs_pag", 1), "share"]


def test_the_ends_of_the_ruler_close_nothing_and_all_and_a_net_that_only_hides_closes_nothing():
    closed = audit.gap_closed(closed_gaps(*RULERS)).query("probe == 'linear' and forget == 1").set_index("method")
    assert closed["share"].to_dict() == {"original": 0, "masked": 0, "retrained": 1}
    assert closed["lost"].to_dict() == pytest.approx({"original": 10, "masked": 0, "retrained": 0}, abs=1e-9)


def test_a_gap_within_the_spread_of_retrained_networks_has_no_share_and_is_not_drawn():
    own = list(judged("zs_pag", {1: (0.5, 0.4), 4: (0.5, 0.5)}, kept=(0.93, 0.92)))
    found = closed_gaps(*RULERS, own)
    fourth = audit.gap_closed(found).query("probe == 'linear' and forget == 4")
    assert (fourth["original"] - fourth["retrained"]).to_numpy() == pytest.approx(0.1)
    assert fourth["spread"].to_numpy() == pytest.approx(0.12)  # two retrained networks differ by more
    assert fourth["share"].isna().all()
    (panel, _) = audit.gap_panels(found, title="digits")
    assert panel["title"] == "digits: linear probe (1 of 2 classes)"
    assert panel["series"]["ZS-PAG"] == {"x": [pytest.approx(2)], "y": [pytest.approx(100 * 0.35 / 0.45)]}
    assert panel["series"]["masked original"] == {"x": [0], "y": [0]}
    nowhere = closed_gaps(*RULERS[:2], judged("retrained", {1: (0.4, 0.9), 4: (0.7, 0.7)}))
    (empty, _) = audit.gap_panels(nowhere, title="digits")
    assert (empty["series"], empty["title"]) == ({}, "digits: linear probe (0 of 2 classes)")
    curves = audit.relearning_panels(audit.findings(made()), title="digits")
    for panels in ([panel], [empty], [*curves, panel]):  # alone, and beside panels of another kind
        result = {"draw": "curves", "data": {"panels": panels}, "profile": "digits", "provenance": {}}
        assert len(plots.draw(result).axes[len(panels) - 1].collections) == len(panels[-1]["series"])


def test_with_one_seed_the_spread_is_not_known_and_only_a_gap_the_wrong_way_has_no_share():
    rows = [list(row for row in method if row["seed"] == 0) for method in RULERS]
    worse = list(judged("retrained", {1: (0.95,), 4: (0.55,)}))
    closed = audit.gap_closed(closed_gaps(*rows[:2], worse)).query("probe == 'linear' and method == 'masked'")
    assert closed["spread"].isna().all()
    assert closed.set_index("forget")["share"].isna().to_dict() == {1: True, 4: False}


def test_a_seed_in_which_a_network_was_ruined_is_left_out_of_its_share():
    ruined = [row for row in judged("zs_pag", {1: (0.5, 0.4), 4: (0.5, 0.5)}) if row["seed"] == 0]
    closed = audit.gap_closed(closed_gaps(*RULERS, ruined)).set_index(["probe", "method", "forget"])
    assert closed.loc[("linear", "zs_pag", 1), "share"] == pytest.approx((0.9 - 0.5) / (0.9 - 0.4))
