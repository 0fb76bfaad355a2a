"""Claim C5: who is dominated is decided by all measures together."""

import math

import pandas as pd
import pytest

from tests.frames import NAN, whole_frame
from zspag.report.claims import comparison, comparison_table, dominated, verdict
from zspag.report.tables import by_rule


@pytest.fixture(scope="module")
def whole():
    return whole_frame()


def scores(**methods):
    return pd.DataFrame(methods, index=["gap", "drift", "safe window", "AIN"]).T


def test_better_on_one_and_as_good_on_the_rest_dominates():
    summary = scores(a=(0.1, 0.2, 10, 0.5), b=(0.1, 0.2, 10, 0.4), c=(0.1, 0.2, 10, 0.5))
    assert dominated(summary) == {"a": [], "b": ["a", "c"], "c": []}  # equals do not dominate each other


@pytest.mark.parametrize(
    ("better", "other"),
    [
        ((0.1, 0, 1, 0), (0.2, 0, 1, 0)),
        ((0, 0.1, 1, 0), (0, 0.2, 1, 0)),
        ((0, 0, 3, 0), (0, 0, 1, 0)),
        ((0, 0, 1, 0.9), (0, 0, 1, 0.2)),
        ((0, 0, 1, 0), (0, 0, 0, 0)),  # a window of a single rate beats none
        ((0, 0, math.inf, 0), (0, 0, 3000, 0)),
    ],
)
def test_every_column_has_the_right_direction(better, other):
    assert dominated(scores(better=better, other=other)) == {"better": [], "other": ["better"]}


def test_one_advantage_is_enough_not_to_be_dominated():
    assert dominated(scores(a=(0.1, 0.0, 100, 0.1), b=(0.9, 9.0, 0, 0.2))) == {"a": [], "b": []}


def test_rounding_of_a_sum_makes_nobody_better():
    assert dominated(scores(a=(0.1 + 0.2, 0, 1, 0), b=(0.3, 0, 1, 0))) == {"a": [], "b": []}


def test_nothing_is_compared_with_a_missing_number():
    with pytest.raises(ValueError, match="b: a number of gap, drift, safe window, AIN is missing"):
        dominated(scores(a=(0.1, 0.0, 100, 0.1), b=(0.9, NAN, 0, 0.2)))


def relearning(frame, **steps):
    """Give the chosen runs and the references their steps: {method: (class 3, class 5)}."""
    counted = {(method, forget): n for method, pair in steps.items() for forget, n in zip((3, 5), pair, strict=True)}
    has = frame["lr"].isna() | frame["chosen"].eq(True)
    keys = zip(frame["method"], frame["forget"], strict=True)
    return frame.assign(relearn_steps=pd.Series([counted[key] for key in keys], frame.index).where(has))


STEPS = {"original": (0.0, 0.0), "masked": (2.0, 2.0), "retrained": (10.0, 40.0), "oracle": (1.0, 1.0)}


def test_comparison_takes_forget_only_methods_and_the_masked_original(whole):
    summary = comparison(by_rule(whole), whole)
    assert list(summary.index) == ["masked", "zs_pag"]
    assert list(summary.columns) == ["gap", "drift", "safe window"]
    assert summary["safe window"].tolist() == [math.inf, pytest.approx(10 / 3)]
    assert dominated(summary) == {"masked": [], "zs_pag": []}  # one drifts less, the other has the smaller gap


def test_relearning_is_a_ratio_per_class_and_not_of_means(whole):
    frame = relearning(whole, zs_pag=(5.0, 10.0), **STEPS)
    summary = comparison(by_rule(frame), frame)
    assert summary.loc["zs_pag", "AIN"] == pytest.approx((5 / 10 + 10 / 40) / 2)
    assert summary.loc["zs_pag", "AIN"] != pytest.approx(15 / 50)
    assert summary.loc["masked", "AIN"] == pytest.approx((2 / 10 + 2 / 40) / 2)


@pytest.mark.parametrize("gap", [{"zs_pag": (NAN, 5.0)}, {"retrained": (0.0, 5.0)}])
def test_relearning_is_left_out_unless_all_of_it_was_measured(whole, gap):
    complete = {"zs_pag": (5.0, 5.0), **STEPS}
    assert "AIN" in comparison(by_rule(relearning(whole, **complete)), whole)
    assert "AIN" not in comparison(by_rule(relearning(whole, **complete | gap)), whole)


def test_table_and_sentence_name_who_dominates():
    titles = {"zs_pag": "ZS-PAG", "masked": "masked original"}
    summary = scores(masked=(0.1, 0.0, math.inf, 0.2), zs_pag=(0.1, 0.1, 10, 0.1), far=(0.9, 100.0, 0, 0.0))
    table = comparison_table(summary, titles)
    assert table["dominated by"].tolist() == ["nobody", "masked original", "masked original; ZS-PAG"]
    assert table["safe window (factor)"].tolist() == ["no rate", "10", "0"]
    assert table.loc["far", "drift (nats)"] == "> 99"
    everything = "On gap to retraining, drift, safe window and relearning under the own head (AIN) together, "
    assert verdict(summary, titles, "zs_pag") == everything + (
        "ZS-PAG is dominated by 1 of the 2 other forget-only methods, the masked original included: masked original."
        " AIN measures one row of the head, and is no evidence of removal."
    )
    summary.loc["zs_pag", "AIN"] = 0.3
    assert "ZS-PAG is dominated by none of the 2 other forget-only methods" in verdict(summary, titles, "zs_pag")
    without = verdict(summary.drop(columns="AIN"), titles, "zs_pag")
    left_out = "(relearning under the own head (AIN) not measured in these rows)"
    assert without.startswith(f"On gap to retraining, drift and safe window together {left_out}")
    assert "one row of the head" not in without


def test_many_who_dominate_are_counted():
    better = {name: (0.1, 0.1, 10, 0.5) for name in "abcde"}
    table = comparison_table(scores(**better, last=(0.2, 0.2, 1, 0.1)), {})
    assert table.loc["last", "dominated by"] == "a; b; c; 2 more"
