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
    return pd.DataFrame(methods, index=["gap", "drift", "safe window", "restored"]).T


def test_better_on_one_and_as_good_on_the_rest_dominates():
    summary = scores(a=(0.1, 0.2, 10, 0.4), b=(0.1, 0.2, 10, 0.5), c=(0.1, 0.2, 10, 0.4))
    assert dominated(summary) == {"a": [], "b": ["a", "c"], "c": []}  # equals do not dominate each other


@pytest.mark.parametrize(
    ("better", "other"),
    [
        ((0.1, 0, 1, 0), (0.2, 0, 1, 0)),
        ((0, 0.1, 1, 0), (0, 0.2, 1, 0)),
        ((0, 0, 3, 0), (0, 0, 1, 0)),
        ((0, 0, 1, 0.2), (0, 0, 1, 0.9)),
        ((0, 0, 1, 0), (0, 0, 0, 0)),  # a window of a single rate beats none
        ((0, 0, math.inf, 0), (0, 0, 3000, 0)),
    ],
)
def test_every_column_has_the_right_direction(better, other):
    assert dominated(scores(better=better, other=other)) == {"better": [], "other": ["better"]}


def test_one_advantage_is_enough_not_to_be_dominated():
    assert dominated(scores(a=(0.1, 0.0, 100, 0.2), b=(0.9, 9.0, 0, 0.1))) == {"a": [], "b": []}


def test_rounding_of_a_sum_makes_nobody_better():
    assert dominated(scores(a=(0.1 + 0.2, 0, 1, 0), b=(0.3, 0, 1, 0))) == {"a": [], "b": []}


def test_nothing_is_compared_with_a_missing_number():
    with pytest.raises(ValueError, match="b: a number of gap, drift, safe window, restored is missing"):
        dominated(scores(a=(0.1, 0.0, 100, 0.1), b=(0.9, NAN, 0, 0.2)))


def restored(frame, **shares):
    """Give the chosen runs and the references what the original's head recognizes: {method: (class 3, class 5)}."""
    known = {(method, forget): n for method, pair in shares.items() for forget, n in zip((3, 5), pair, strict=True)}
    has = frame["lr"].isna() | frame["chosen"].eq(True)
    keys = zip(frame["method"], frame["forget"], strict=True)
    return frame.assign(restored=pd.Series([known[key] for key in keys], frame.index).where(has))


SHARES = {"original": (0.9, 0.7), "masked": (0.9, 0.7), "retrained": (0.0, 0.0), "oracle": (0.1, 0.1)}


def test_comparison_takes_forget_only_methods_and_the_masked_original(whole):
    summary = comparison(by_rule(whole), whole)
    assert list(summary.index) == ["masked", "zs_pag"]
    assert list(summary.columns) == ["gap", "drift", "safe window"]
    assert summary["safe window"].tolist() == [math.inf, pytest.approx(10 / 3)]
    assert dominated(summary) == {"masked": [], "zs_pag": []}  # one drifts less, the other has the smaller gap


def test_what_the_originals_head_recognizes_is_compared_and_less_is_better(whole):
    frame = restored(whole, zs_pag=(0.1, 0.2), **SHARES)
    summary = comparison(by_rule(frame), frame)
    assert summary["restored"].to_dict() == {"masked": pytest.approx(0.8), "zs_pag": pytest.approx(0.15)}
    even = summary.assign(gap=0.1, drift=0.1, **{"safe window": 10.0})
    assert dominated(even) == {"masked": ["zs_pag"], "zs_pag": []}


def test_it_is_left_out_unless_all_of_it_was_measured(whole):
    complete = {"zs_pag": (0.1, 0.2), **SHARES}
    assert "restored" in comparison(by_rule(restored(whole, **complete)), whole)
    assert "restored" not in comparison(by_rule(restored(whole, **complete | {"zs_pag": (NAN, 0.2)})), whole)
    assert "restored" in comparison(by_rule(restored(whole, **complete | {"oracle": (NAN, 0.2)})), whole)


def test_table_and_sentence_name_who_dominates():
    titles = {"zs_pag": "ZS-PAG", "masked": "masked original"}
    summary = scores(masked=(0.1, 0.0, math.inf, 0.2), zs_pag=(0.1, 0.1, 10, 0.2), far=(0.9, 100.0, 0, 0.2))
    table = comparison_table(summary, titles)
    assert table["dominated by"].tolist() == ["nobody", "masked original", "masked original; ZS-PAG"]
    assert table["safe window (factor)"].tolist() == ["no rate", "10", "0"]
    assert table.loc["far", "drift (nats)"] == "> 99"
    everything = "On gap to retraining, drift, safe window and recall under the original's head together, "
    assert verdict(summary, titles, "zs_pag") == everything + (
        "ZS-PAG is dominated by 1 of the 2 other forget-only methods, the masked original included: masked original."
    )
    summary.loc["zs_pag", "restored"] = 0.1
    assert "ZS-PAG is dominated by none of the 2 other forget-only methods" in verdict(summary, titles, "zs_pag")
    without = verdict(summary.drop(columns="restored"), titles, "zs_pag")
    left_out = "(recall under the original's head not measured in these rows)"
    assert without.startswith(f"On gap to retraining, drift and safe window together {left_out}")


def test_many_who_dominate_are_counted():
    better = {name: (0.1, 0.1, 10, 0.5) for name in "abcde"}
    table = comparison_table(scores(**better, last=(0.2, 0.2, 1, 0.9)), {})
    assert table.loc["last", "dominated by"] == "a; b; c; 2 more"
