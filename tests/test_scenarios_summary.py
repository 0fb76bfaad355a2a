"""What came of requests, as figures and as words: refusals have no bar, warnings are repeated, means are over seeds."""

import math

import pandas as pd
import pytest

from zspag.report import plots, scenarios

NOTHING = {"acc_retain": math.nan, "refused": "", "warned": []}
PARTS = ("acc_forget_train", "acc_rest", "acc_forget")


def made():
    """Two seeds: two classes at once go well, the third in a row is refused, half a class takes the rest along."""
    rows = []
    for seed in (0, 1):
        for method, known, lost in (("original", 0.9, 0.02), ("retrained", 0.0, 0.0), ("zs_pag", 0.02 * seed, 0.01)):
            judged = {"seed": seed, "method": method, "acc_retain": 0.9 - lost, "refused": "", "warned": []}
            forgot = {"classes": [1, 4], "acc_forget": known, "over_unlearning": lost, "gap": known}
            rows.append({"kind": "at once", "request": "2 classes"} | forgot | judged)
            half = dict.fromkeys(PARTS, {"original": 0.9, "retrained": 0.8, "zs_pag": 0.05}[method])
            warned = {"warned": ["it is a part"]} if method == "zs_pag" else {}
            rows.append({"kind": "part of a class", "request": "50 % of a class"} | half | judged | warned)
            refused = NOTHING | {"refused": "no class is left", "seed": seed, "method": method}
            result = refused if method == "zs_pag" else dict.fromkeys(PARTS, 0.9) | judged
            rows.append({"kind": "across classes", "request": "1 % of all samples"} | result)
        for kind, growth in (("in a row", 0.001), ("in a row, untold", 0.1)):
            place = NOTHING | {"kind": kind, "seed": seed}
            for step in (1, 2):
                lost = {"by_class": [0.0] * (step - 1) + [growth * step], "acc_retain": 0.9}
                rows.append(place | {"step": step, "over_unlearning": growth * step, "drift": growth * step} | lost)
            rows.append(place | {"step": 3, "refused": "too few proxies"})
    return pd.DataFrame(rows)


def test_classes_at_once_are_means_over_seeds_in_percent():
    forget, lost, gap = scenarios.together_panels(made())
    assert forget["groups"] == ["2 classes"]
    assert forget["series"] == {"original": [90], "retrained": [0], "ZS-PAG": [1]}
    assert lost["series"]["ZS-PAG"] == pytest.approx([1])
    assert gap["series"]["retrained"] == [0]


def test_a_row_ends_where_it_was_refused():
    back, lost, drift = scenarios.row_panels(made())
    for panel in (back, lost, drift):
        steps = {name: curve["x"] for name, curve in panel["series"].items()}
        assert steps == {"told what is gone": [1, 2], "not told": [1, 2]}
    assert back["series"]["not told"]["y"] == pytest.approx([10, 20])
    assert drift["series"]["told what is gone"]["y"] == pytest.approx([0.001, 0.002])


def test_a_ruined_model_has_no_point_of_drift():
    rows = made()
    rows["drift"] = rows["drift"].astype(object).where(~((rows["kind"] == "in a row") & (rows["step"] == 2)), None)
    back, _, drift = scenarios.row_panels(rows)
    assert drift["series"]["told what is gone"]["x"] == [1]
    assert back["series"]["told what is gone"]["x"] == [1, 2]


def test_what_was_refused_has_no_bar():
    half, across = scenarios.part_panels(made())
    assert half["series"]["ZS-PAG"] == pytest.approx([5, 5, 5])
    assert half["series"]["retrained"] == pytest.approx([80, 80, 80])
    assert across["series"]["ZS-PAG"] == [0, 0, 0]
    assert across["series"]["original"] == pytest.approx([90, 90, 90])


@pytest.mark.parametrize(
    ("panels", "kind"),
    [(scenarios.together_panels, "bars"), (scenarios.row_panels, "curves"), (scenarios.part_panels, "bars")],
)
def test_the_panels_can_be_drawn(panels, kind):
    result = {"draw": kind, "data": {"panels": panels(made())}, "profile": "digits", "provenance": {}}
    assert plots.draw(result).axes


def test_the_method_s_own_words_are_repeated_once():
    assert sorted(scenarios.said(made())) == [
        "across classes: refused. no class is left",
        "in a row, untold: refused. too few proxies",
        "in a row: refused. too few proxies",
        "part of a class: done, with a warning. it is a part",
    ]


def test_the_summary_follows_the_numbers():
    at_once, told, untold, half = scenarios.summary(made())
    assert at_once == "At once, up to 2 classes: 1.0 % still recognized, +1.00 points over-unlearned."
    assert "after 2 requests 0.2 % of the best known" in told
    assert "with a drift of 0.2000 nats" in untold
    assert half == "Half of a class: of the other half 5.0 % is still recognized, 80.0 % after retraining."


def test_where_everything_was_refused_nothing_is_said():
    rows = made().assign(acc_retain=math.nan)
    assert scenarios.summary(rows) == []
    panels = scenarios.row_panels(rows)
    assert panels[0]["series"]["not told"]["x"] == []
    assert plots.draw({"draw": "curves", "data": {"panels": panels}, "profile": "digits", "provenance": {}}).axes
