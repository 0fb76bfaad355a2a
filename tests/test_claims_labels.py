"""Claim C3: who is better is decided by paired intervals, on a half of the test set that nothing was chosen on."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tests.frames import rows
from zspag.report.claims import (
    BEST_LABELS,
    C3_MEASURES,
    FROZEN,
    RIVALS,
    improves,
    label_table,
    label_verdict,
    paired,
    ranked,
)
from zspag.report.tables import over_classes

OURS = (BEST_LABELS, FROZEN)
HARD = {0: (0.3, 0.5), 1: (0.2, 0.0), 3: (-0.2, 0.1), 5: (0.6, 0.7), 7: (0.9, 0.4)}  # class: by seed
OFFSETS = {(forget, seed): pair[seed - 1] for forget, pair in HARD.items() for seed in (1, 2)}


def compared(differences, *, noise=0.0):
    """Rows of one rate per method, class and seed: an offset of the case plus what the method adds to all measures."""
    return pd.DataFrame(
        [
            {"method": method, "forget": forget, "seed": seed, "lr": 1.0, "chosen": True, "acc_forget": 0.0125}
            | {column: offset + added + noise * (-1) ** (forget + seed) * (method in OURS) for column in C3_MEASURES}
            for method, added in differences.items()
            for (forget, seed), offset in OFFSETS.items()
        ]
    )


def test_paired_differences_are_free_of_what_is_common_to_a_class_and_seed():
    frame = compared({"zs_pag": 0.0, "a": 0.25})
    gap = paired(frame, ("drift",), baseline="zs_pag")["a"]["drift"]
    assert gap["mean"] == pytest.approx(0.25)
    assert gap["half"] == pytest.approx(0, abs=1e-12)
    assert (gap["lower"], gap["pairs"], gap["classes"]) == (0, 10, 5)
    assert over_classes(frame, "drift")["a"]["half"] > 0.3  # unpaired, classes drown the difference


def test_interval_of_paired_differences_is_that_of_scipy_over_classes():
    values = {
        "zs_pag": {0: (0.1, 0.3), 3: (0.5, 0.5), 7: (0.2, 0.0)},
        "a": {0: (0.2, 0.3), 3: (0.1, 0.6), 7: (0.9, 0.2)},
    }
    frame = pd.DataFrame([row for name, numbers in values.items() for row in rows(name, numbers, column="drift")])
    gaps = [np.mean(values["a"][c]) - np.mean(values["zs_pag"][c]) for c in (0, 3, 7)]
    low, high = stats.t.interval(0.95, 2, np.mean(gaps), stats.sem(gaps))
    gap = paired(frame, ("drift",), baseline="zs_pag")["a"]["drift"]
    assert gap["mean"] == pytest.approx(np.mean(gaps))
    assert gap["half"] == pytest.approx((high - low) / 2, rel=1e-9)
    assert (gap["lower"], gap["pairs"]) == (1, 6)


def test_a_pair_that_lacks_a_side_is_refused():
    frame = compared({"zs_pag": 0.0, "a": 0.25, "b": 0.1})
    frame = frame[~(frame["method"].eq("a") & frame["forget"].eq(7))]
    with pytest.raises(ValueError, match="drift cannot be paired: some class and seed has none for a"):
        paired(frame, ("drift",), baseline="zs_pag")


def gap_of(mean, half=1.0, classes=5):
    return {"mean": mean, "half": half, "classes": classes}


def test_a_difference_counts_beyond_its_interval_only():
    words = [ranked(gap_of(mean)) for mean in (-1.1, -0.9, 0.9, 1.1)]
    assert words == ["better", "not distinguishable", "not distinguishable", "worse"]
    assert ranked(gap_of(-5.0, half=0.0, classes=4)) == "not distinguishable"  # too few for an interval


def test_improving_is_better_in_one_measure_and_worse_in_none():
    better, same, worse = gap_of(-2.0), gap_of(0.0), gap_of(2.0)
    assert improves({"a": better, "b": same}) == "better"
    assert improves({"a": same, "b": same}) == "not distinguishable"
    assert improves({"a": better, "b": worse}) == "worse"


def test_label_table_shows_both_halves_in_units_and_leaves_out_what_was_not_run():
    first, second = compared({"zs_pag": 0.0, "a": 0.25, "b": -0.5}), compared({"zs_pag": 0.0, "b": 0.125})
    table = label_table({"first": first, "second": second}, baseline="zs_pag", titles={"a": "labels A"})
    assert list(table.index) == ["labels A", "b"]
    assert table.loc["labels A", "first: drift (thousandths of a nat)"] == "+250.00 ± 0.00 (0 of 10)"
    assert table.loc["b", "second: forget %"] == "1.25"
    assert table.loc["b", "first: over-unlearning (points)"] == "-50.00 ± 0.00 (10 of 10)"
    assert table.loc["b", "second: over-unlearning (points)"] == "+12.50 ± 0.00 (0 of 10)"
    assert (table.loc["labels A", [name for name in table if name.startswith("second")]] == "").all()


def verdict(differences, *, noise=0.01):
    """Return what is said of the labels, and of what was frozen beside them; rivals are at 0 unless they are named."""
    titles = {name: f"<{name}>" for name in (*OURS, *RIVALS)}
    frame = compared(dict.fromkeys(RIVALS, 0.0) | differences, noise=noise)
    labels, frozen = label_verdict({"first": frame, "second": frame}, titles=titles).split("What did best of all")
    return labels, frozen


def test_verdict_supports_the_claim_only_if_the_labels_beat_every_rival():
    won, _ = verdict(dict.fromkeys(OURS, -2.0))
    assert "is **supported**" in won
    assert won.count("better than <") == 3
    assert "5 classes, 2 fresh originals, learning rates: 1)" in won
    lost, _ = verdict(dict.fromkeys(OURS, -2.0) | {"zs_pag": -4.0})
    assert "is **contradicted**" in lost
    assert "worse than <zs_pag>" in lost
    level, _ = verdict(dict.fromkeys(OURS, 0.0), noise=0.5)
    assert "is **undecided**" in level
    assert "not distinguishable from <random_labels>" in level


def test_what_was_frozen_is_told_beside_the_labels_and_does_not_decide_for_them():
    labels, frozen = verdict({BEST_LABELS: 2.0, FROZEN: -2.0})
    assert "is **contradicted**" in labels
    assert labels.count("worse than <") == frozen.count("better than <") == 3
    labels, frozen = verdict({BEST_LABELS: -2.0, FROZEN: 2.0})
    assert "is **supported**" in labels
    assert frozen.count("worse than <") == 3


def test_verdict_asks_for_retained_accuracy_as_well():
    below = verdict(dict.fromkeys(RIVALS, 9.0) | dict.fromkeys(OURS, 5.0))  # better than all, worse than the original
    assert "is **contradicted**" in below[0]
    for part in below:
        assert part.count("better than <") == 3
        assert "points, more than 0.5" in part
    assert all("points, at most 0.5" in part for part in verdict(dict.fromkeys(OURS, -5.0)))


def test_classes_that_the_first_half_did_not_use_are_told_apart():
    titles = {name: f"<{name}>" for name in (*OURS, *RIVALS)}
    rivals = dict.fromkeys(RIVALS, 0.0)
    won, lost = (compared(rivals | dict.fromkeys(OURS, added), noise=0.01) for added in (-2.0, 2.0))
    second = pd.concat([lost[lost["forget"] == 0], won[won["forget"] != 0]])
    told_of = {
        used: label_verdict({"first": won[won["forget"].isin(used)], "second": second}, titles=titles)
        for used in ((), (0,), (0, 1, 3, 5), (3,))
    }
    whole, new = told_of[()].split("On the 5 classes that the first half did not use: ")
    assert "better than <" not in whole + new
    assert "did not use" in told_of[(0,)]
    assert "did not use" not in told_of[(0, 1, 3, 5)]  # one class is left
    assert told_of[(3,)].split("did not use: ")[1].count("better than <") == 0
