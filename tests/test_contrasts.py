"""Means and panels of an ablation: what could not run is nowhere averaged away."""

import math

import pandas as pd
import pytest

from zspag.report.contrasts import bar_panels, curve_panels, ends, forgotten, means, verdict

DONE = {"hit_rate": 1.0, "free": 0.5, "eps": 0.1, "lr": 1.0, "samples": 9, "failed": "", "reached": True}


def row(axis, value, forget, drift, **others):
    place = {"axis": axis, "value": value, "forget": forget, "seed": 0}
    return (
        place | DONE | {"acc_forget": 0.1 * forget, "acc_retain": 0.9, "over_unlearning": 0.01, "drift": drift} | others
    )


FAILED = {"axis": "a", "value": 3, "forget": 2, "seed": 0, "failed": "no sample reached class 4"}
FRAME = pd.DataFrame(
    [
        *(row("a", 2, 1, 0.2), row("a", 2, 2, 0.4)),
        *(row("a", 1, 1, 50.0, reached=False), row("a", 1, 2, 0.01)),
        *(row("a", 3, 1, 0.3), FAILED),
        row("b", "word", 1, 0.6),
    ]
)


def test_means_keep_the_order_of_the_axis_and_a_value_at_which_one_case_failed_has_none():
    table = means(FRAME, "a")
    assert list(table.index) == [2, 1, 3]
    assert table.loc[2, "drift"] == pytest.approx(0.3)
    assert table.loc[2, "acc_forget"] == pytest.approx(0.15)
    assert table["reached"].tolist() == [True, False, False]
    assert table["failed"].tolist() == [False, False, True]
    assert pd.isna(table.loc[3, "drift"])


def test_curves_leave_it_out_and_span_the_cases():
    forget, _, drift = curve_panels(FRAME, {"a": "one"}, options={"xlabel": "a"})
    points = {"x": [2, 1], "y": [15, 15], "low": [10, 10], "high": [20, 20]}
    assert forget["series"]["one"] == {name: pytest.approx(values) for name, values in points.items()}
    assert drift["series"]["one"]["high"] == pytest.approx([0.4, 3])  # a ruined model is cut, not dropped
    assert (forget["xlabel"], forget["ylabel"], drift["ylog"]) == ("a", "forget accuracy (%)", True)
    (other,) = curve_panels(FRAME, {"a": "one"}, columns=["drift"], x="samples", options={})
    assert other["series"]["one"]["x"] == [9.0, 9.0]  # the place on another column


def test_bars_stand_side_by_side_where_axes_share_values():
    frame = pd.concat([FRAME, pd.DataFrame([row("c", "word", 1, 0.2), row("c", "other", 1, 0.1)])])
    (drift,) = bar_panels(frame, {"b": "one", "c": "two"}, columns=["drift"], options={"xlabel": "x"})
    assert drift["groups"] == ["word", "other"]
    assert drift["series"] == {"one": [0.6, 0], "two": [0.2, 0.1]}


def test_an_axis_where_nothing_ran_is_an_empty_curve():
    (drift,) = curve_panels(pd.DataFrame([FAILED, row("b", 1, 1, 1.0)]), {"a": "one"}, columns=["drift"], options={})
    assert drift["series"]["one"]["x"] == []


def axis_of(*drifts, acc_forget=0.0, **others):
    rows = [row("a", index, 1, drift, acc_forget=acc_forget, **others) for index, drift in enumerate(drifts)]
    return means(pd.DataFrame(rows), "a")


def test_forgotten_asks_for_the_goal_and_for_unseen_images():
    assert len(forgotten(axis_of(0.1, 0.2))) == 2
    assert len(forgotten(axis_of(0.1, 0.2, acc_forget=0.06))) == 0
    assert len(forgotten(axis_of(0.1, 0.2, reached=False))) == 0
    assert list(forgotten(means(FRAME, "a")).index) == []


def test_the_verdict_follows_the_numbers_whichever_way_they_fall():
    table = axis_of(0.2, 0.1, 0.4)
    said = "3 of 3 values forget, with a drift from 0.1000 (1) to 0.4000 nats (2)"
    assert verdict(table, own=2) == f"{said}; the profile's own value, 2, drifts 4.0 times the least"
    assert verdict(table, own=9) == said
    assert verdict(axis_of(0.1, acc_forget=0.9), own=0) == "0 of 1 values forget"
    mixed = pd.concat([table, axis_of(0.3, acc_forget=0.9).rename({0: "word"})])
    assert verdict(mixed, own="word").endswith("; the profile's own value, word, is not among them")


def test_the_ends_of_an_axis_are_those_that_ran():
    assert ends(means(FRAME, "a")) == (2, 1, pytest.approx(0.3 / 25.005))
    nothing = means(pd.DataFrame([FAILED, row("b", 1, 1, 1.0)]), "a")
    assert all(math.isnan(part) for part in ends(nothing))
