"""Where a curve of relearning arrives, and how its steps compare with a retrained network's (AIN)."""

import pandas as pd
import pytest

from zspag.lab.audit.returns import curve_arrivals, indices


def curves(accuracies, *, seed=0, lr=0.1):
    rows = [
        {"lr": lr, "seed": seed, "step": 2 * i, "samples": 6 * i, "acc_forget": value, "acc_retain": 1 - value}
        for i, value in enumerate(accuracies)
    ]
    return pd.DataFrame(rows)


def test_an_arrival_is_the_first_row_at_or_above_the_level():
    found = curve_arrivals(curves([0.0, 0.3, 0.4, 0.3, 0.6]), original=0.8, shares=(0.5, 1.0))
    half, whole = found.to_dict("records")
    row = {"lr": 0.1, "seed": 0, "step": 4, "samples": 12, "acc_forget": 0.4, "acc_retain": 0.6}
    assert half == row | {"share": 0.5, "reached": True}
    assert (whole["step"], whole["reached"], whole["acc_forget"]) == (8, False, 0.6)


def test_the_index_is_the_ratio_of_the_mean_steps_and_says_what_was_not_reached():
    own = pd.concat([curves([0, 1, 1, 1]), curves([0, 0, 1, 1], seed=1)])
    other = pd.concat([curves([0, 0, 0, 1]), curves([0, 0, 0, 0.4], seed=1)])
    found = indices(*(curve_arrivals(part, original=1.0, shares=(0.5,)) for part in (own, other)))
    (row,) = found.to_dict("records")
    steps = {"steps": 3.0, "steps_retrained": 6.0, "index": 0.5}
    assert row == {"lr": 0.1, "share": 0.5, "reached": 1.0, "reached_retrained": 0.5} | steps


def test_a_model_compared_with_itself_has_index_one_and_no_index_where_nothing_was_lost():
    assert indices(*[curve_arrivals(curves([0, 0, 1]), original=1.0)] * 2)["index"].tolist() == [1.0, 1.0]
    assert indices(*[curve_arrivals(curves([1.0, 1.0]), original=1.0)] * 2)["index"].isna().all()


@pytest.mark.parametrize("other", [curves([0, 1], seed=1), curves([0, 1], lr=0.2)])
def test_an_index_over_other_rates_or_seeds_is_refused(other):
    with pytest.raises(ValueError, match="same rates, seeds and shares"):
        indices(*(curve_arrivals(part, original=1.0) for part in (curves([0, 1]), other)))
