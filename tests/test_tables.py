"""Tables say what the rows say: means, intervals and picks by hand or by scipy."""

import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tests.frames import NAN, grid, references, rows, whole_frame
from zspag.report.tables import (
    by_rule,
    cost_table,
    curve,
    distance_table,
    every_table,
    forgetting_table,
    in_hindsight,
    ladder_panels,
    main_table,
    markdown,
    over_classes,
    paired,
    prediction_table,
    safe_rates,
    window,
    window_text,
)
from zspag.report.tables.cells import percent, spread

# Means and intervals


def test_seeds_are_averaged_per_class_and_intervals_run_over_classes():
    values = {0: (0.80, 0.90), 3: (0.70, 0.74), 7: (0.95, 0.99), 9: (0.60, 0.60)}
    per_class = [np.mean(numbers) for numbers in values.values()]
    low, high = stats.t.interval(0.95, len(per_class) - 1, np.mean(per_class), stats.sem(per_class))
    answer = over_classes(pd.DataFrame(rows("a", values)), "acc_retain")["a"]
    assert answer["mean"] == pytest.approx(np.mean(per_class))
    assert answer["half"] == pytest.approx((high - low) / 2, rel=1e-9)
    assert answer["sd"] == pytest.approx(np.std(per_class, ddof=1))
    assert answer["classes"] == 4


def test_class_with_more_seeds_weighs_no_more():
    frame = pd.DataFrame(rows("a", {0: (0.2, 0.4, 0.6), 1: (0.8,)}, seeds=(0, 1, 2)))
    assert over_classes(frame, "acc_retain")["a"]["mean"] == pytest.approx((0.4 + 0.8) / 2)
    assert frame["acc_retain"].mean() != pytest.approx((0.4 + 0.8) / 2)


def test_one_class_has_no_spread_to_report():
    answer = over_classes(pd.DataFrame(rows("a", {4: (0.2, 0.6)})), "acc_retain")["a"]
    assert answer == {"mean": pytest.approx(0.4), "half": 0.0, "sd": 0.0, "classes": 1} | dict.fromkeys(
        ("low", "high"), pytest.approx(0.4)
    )


@pytest.mark.parametrize("count", [2, 10, 100])
def test_half_widths_are_those_of_student_however_many_classes_there_are(count):
    values = {label: (0.5 + 0.01 * (label % 7),) for label in range(count)}
    answer = over_classes(pd.DataFrame(rows("a", values)), "acc_retain")["a"]
    exact = stats.t.ppf(0.975, count - 1) * answer["sd"] / math.sqrt(count)
    assert answer["half"] == pytest.approx(exact, rel=1e-12)


def test_methods_do_not_mix():
    frame = pd.DataFrame(rows("a", {0: (0.2,), 1: (0.4,)}) + rows("b", {0: (0.9,), 1: (0.7,)}))
    answer = over_classes(frame, "acc_retain")
    assert list(answer) == ["a", "b"]
    assert [answer[name]["mean"] for name in answer] == pytest.approx([0.3, 0.8])


# Which run counts


def test_rule_takes_the_chosen_run_of_each_case_and_the_references():
    frame = pd.DataFrame(references() + grid("a", {0.1: (0.5, 0, 0), 0.3: (0.0, 0.2, 1), 1.0: (0.0, 0.1, 1)}))
    taken = by_rule(frame)
    assert len(taken) == len(references()) + 2
    assert taken[taken["method"] == "a"]["lr"].tolist() == [0.3, 0.3]


@pytest.mark.parametrize(
    ("ladder", "taken"),
    [
        ({0.1: (1 / 36, 0.0, 0.001), 3.0: (0.0, 0.88, 2.3)}, 0.1),  # no ruined model for the sake of one test image
        ({0.1: (0.5, -0.1, 0.0), 0.3: (0.01, 0.02, 0.3), 1.0: (0.0, 0.01, 0.4), 3.0: (0.0, 0.3, 0.1)}, 1.0),
        ({0.1: (0.0, 0.01, 0.5), 0.3: (0.0, 0.01, 0.2), 1.0: (0.0, 0.01, 0.9)}, 0.3),  # ties are broken by drift
        ({0.1: (0.5, 0.02, 0.0), 0.3: (0.2, 0.01, 0.0)}, 0.3),  # none forgets: the one that comes closest
    ],
)
def test_hindsight_takes_the_run_that_loses_least(ladder, taken):
    frame = pd.DataFrame(grid("a", ladder))
    assert in_hindsight(frame)["lr"].tolist() == [taken, taken]
    rule = next((lr for lr, point in ladder.items() if point[0] <= 0.01), max(ladder))
    assert by_rule(frame)["lr"].tolist() == [rule, rule]  # which looks at forget images alone


def test_hindsight_sees_a_tie_although_sums_differ_in_their_last_bit():
    ladder = {0.1: (0.0, 0.3, 0.5), 0.3: (0.0, 0.1 + 0.2, 0.2)}
    assert ladder[0.1][1] < ladder[0.3][1]  # by rounding alone
    assert in_hindsight(pd.DataFrame(grid("a", ladder)))["lr"].tolist() == [0.3, 0.3]
    ladder[0.3] = (0.0, 0.3 + 1e-6, 0.2)  # the control: a difference that somebody measured
    assert in_hindsight(pd.DataFrame(grid("a", ladder)))["lr"].tolist() == [0.1, 0.1]


def test_hindsight_picks_case_by_case_and_keeps_the_references():
    mixed = grid("a", {0.1: (0.0, 0.00, 0), 0.3: (0.0, 0.05, 0)}, classes=(3,))
    mixed += grid("a", {0.1: (0.4, 0.00, 0), 0.3: (0.0, 0.05, 0)}, classes=(5,))
    taken = in_hindsight(pd.DataFrame(references() + mixed))
    assert dict(taken[taken["method"] == "a"][["forget", "lr"]].to_numpy()) == {3: 0.1, 5: 0.3}
    assert len(taken) == len(references()) + 2
    assert "_lost" not in taken


# Curves and safe windows


def test_curve_gives_mean_and_interval_at_every_rate():
    frame = pd.DataFrame(
        references()
        + grid("a", {0.1: (0.4, 0, 0.1), 0.3: (0.1, 0, 0)}, classes=(3,))
        + grid("a", {0.1: (0.8, 0, 0.3), 0.3: (0.1, 0, 0)}, classes=(5,))
        + grid("b", {0.1: (1.0, 0, 0)})
    )
    points, forget = curve(frame, "a", "drift"), curve(frame, "a", "acc_forget")
    assert points["x"] == forget["x"] == [0.1, 0.3]
    assert forget["y"] == pytest.approx([0.6, 0.1])
    half = stats.t.ppf(0.975, 1) * np.std([0.4, 0.8], ddof=1) / math.sqrt(2)
    assert half > 0.6  # an accuracy below 0 or above 1 there is not
    assert forget["low"] == pytest.approx([0.0, 0.1])
    assert forget["high"] == pytest.approx([1.0, 0.1])
    half = stats.t.ppf(0.975, 1) * np.std([0.1, 0.3], ddof=1) / math.sqrt(2)
    assert points["low"] == pytest.approx([0.2 - half, 0.0])
    assert points["high"] == pytest.approx([0.2 + half, 0.0])


FORGETS, SAFE, HARMS = (0.5, 0.0, 0), (0.01, 0.005, 0), (0.0, 0.006, 0)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([FORGETS, SAFE, SAFE, HARMS], [0.03, 0.1]),
        ([SAFE, SAFE, SAFE, SAFE], [0.01, 0.03, 0.1, 0.3]),
        ([SAFE, HARMS, SAFE, SAFE], [0.1, 0.3]),  # a hole ends a window
        ([SAFE, HARMS, SAFE, HARMS], [0.01]),  # of two windows of one size, the gentler
        ([FORGETS, HARMS, FORGETS, HARMS], []),
    ],
)
def test_safe_rates_are_the_longest_run_of_neighbours(points, expected):
    ladder = dict(zip((0.01, 0.03, 0.1, 0.3), points, strict=True))
    assert safe_rates(pd.DataFrame(references() + grid("a", ladder)), "a") == expected


def test_safety_is_judged_on_the_mean_over_classes():
    frame = pd.DataFrame(
        grid("a", {0.1: (0.015, 0.0, 0)}, classes=(3,)) + grid("a", {0.1: (0.005, 0.0, 0)}, classes=(5,))
    )
    assert safe_rates(frame, "a") == [0.1]
    worse = pd.DataFrame(
        grid("a", {0.1: (0.030, 0.0, 0)}, classes=(3,)) + grid("a", {0.1: (0.005, 0.0, 0)}, classes=(5,))
    )
    assert safe_rates(worse, "a") == []


def test_window_is_a_factor():
    assert window([0.01, 0.1, 1.0]) == pytest.approx(100)
    assert (window([0.3]), window([])) == (1, 0)


@pytest.mark.parametrize(
    ("points", "text"),
    [
        ([HARMS, SAFE, SAFE, HARMS], "0.03 – 0.1"),
        ([SAFE, SAFE, HARMS, HARMS], "≤ 0.01 – 0.03"),
        ([HARMS, HARMS, SAFE, SAFE], "0.1 – ≥ 0.3"),
        ([HARMS, SAFE, HARMS, HARMS], "0.03 only"),
        ([HARMS, HARMS, HARMS, SAFE], "≥ 0.3 only"),
        ([HARMS, HARMS, HARMS, HARMS], "none"),
    ],
)
def test_window_that_ends_where_the_ladder_ends_is_marked(points, text):
    ladder = dict(zip((0.01, 0.03, 0.1, 0.3), points, strict=True))
    assert window_text(pd.DataFrame(references() + grid("a", ladder)), "a") == text


def test_panels_of_a_ladder_show_percent_points_and_nats():
    ladder_frame = pd.DataFrame(references() + grid("a", {0.01: (0.50, -0.10, 0.0), 0.03: (0.01, 0.02, 0.3)}))
    panels = ladder_panels(ladder_frame, ["a"], {"a": "A"})["panels"]
    forget, lost, drift = (panel["series"]["A"] for panel in panels)
    assert forget["x"] == lost["x"] == drift["x"] == [0.01, 0.03]
    assert forget["y"] == pytest.approx([50, 1])
    assert lost["y"] == pytest.approx([-10, 2])
    assert drift["y"] == pytest.approx([0.0, 0.3])
    assert [panel["lines"] for panel in panels] == [{"1 %": 1.0}, {"half a point": 0.5}, {}]


@pytest.mark.parametrize(("classes", "drawn"), [((3,), False), ((3, 5, 7, 8), False), ((1, 3, 5, 7, 8), True)])
def test_an_interval_is_drawn_of_five_classes_or_more(classes, drawn):
    frame = pd.DataFrame(grid("a", {0.01: (0.50, -0.10, 0.0), 0.03: (0.01, 0.02, 0.3)}, classes=classes))
    for panel in ladder_panels(frame, ["a"], {"a": "A"})["panels"]:
        assert set(panel["series"]["A"]) == {"x", "y"} | ({"low", "high"} if drawn else set())


# The table


@pytest.fixture(scope="module")
def table():
    frame = pd.DataFrame(
        references()
        + grid("a", {0.1: (0.5, 0, 0), 0.3: (0.0, 0.004, 0.02), 1.0: (0.0, 0.004, 0.03)})
        + grid("b", {0.1: (0.0, 0.002, 0.01), 0.3: (0.0, 0.2, 250.0)}, read=1292)
        + grid("c", {0.1: (0.5, 0, 0), 0.3: (0.0, 0.2, 250.0)})
    )
    return main_table(by_rule(frame), frame, {"a": "Method A", "b": "Method B"})


def test_main_table_has_one_line_per_method_under_its_title(table):
    assert list(table.index) == ["original", "masked", "retrained", "Method A", "Method B", "c"]
    assert table.loc["Method A", "over-unlearning"] == "0.40"
    assert table.loc["Method A", "rate"] == "0.3"
    assert table.loc["Method A", "drift (nats)"] == "0.0200"
    assert table.loc["c", "drift (nats)"] == "> 99"


def test_main_table_says_who_read_retain_data(table):
    reads = table["reads retain data"]
    assert reads["Method B"] == "yes (1292)"
    assert reads["Method A"] == reads["c"] == "no (0 counted)"
    assert (reads["retrained"], reads["original"], reads["masked"]) == ("all", "no", "no")


def test_main_table_names_the_safe_window(table):
    safe = table["safe window"]
    assert safe["Method A"] == "0.3 – ≥ 1"
    assert safe["Method B"] == "≤ 0.1 only"
    assert safe["c"] == "none"
    assert (safe["original"], table.loc["original", "rate"]) == ("", "")


def test_markdown_has_a_header_a_rule_and_a_line_per_row():
    table = pd.DataFrame({"forget %": ["1.00 ± 0.20", "0"], "rate": [0.3, NAN]}, index=["A", "B"])
    table.index.name = "method"
    assert markdown(table).splitlines() == [
        "| method | forget % | rate |",
        "| --- | --- | --- |",
        "| A | 1.00 ± 0.20 | 0.3 |",
        "| B | 0 | nan |",
    ]


# Paired with retraining


def test_difference_to_retraining_is_paired_by_class():
    """An easy and a hard class differ by 40 points, a method from retraining by 1 and 3: the latter counts."""
    own, retrained = {0: (0.50, 0.52), 3: (0.90, 0.94)}, {0: (0.50, 0.50), 3: (0.89, 0.89)}
    frame = pd.DataFrame(rows("a", own) + rows("retrained", retrained))
    differences = [0.01, 0.03]
    low, high = stats.t.interval(0.95, 1, np.mean(differences), stats.sem(differences))
    answer = paired(frame, ("acc_retain",), baseline="retrained")["a"]["acc_retain"]
    assert answer["mean"] == pytest.approx(0.02)
    assert answer["half"] == pytest.approx((high - low) / 2, rel=1e-9)
    assert answer["sd"] == pytest.approx(np.std(differences, ddof=1))
    assert over_classes(frame, "acc_retain")["a"]["half"] > 10 * answer["half"]  # the control: unpaired


def test_pairs_are_formed_by_class_and_not_by_place():
    frame = pd.DataFrame(rows("a", {0: (0.5,), 3: (0.9,)}) + rows("retrained", {3: (0.9,), 0: (0.5,)}))
    gap = paired(frame, ("acc_retain",), baseline="retrained")["a"]["acc_retain"]
    assert gap == {"mean": 0, "half": 0, "sd": 0, "classes": 2, "lower": 0, "pairs": 2}


# Narrow tables

FIVE = {"mean": 0.906, "half": 0.1271, "sd": 0.0141, "classes": 5}


@pytest.fixture
def whole():
    return whole_frame()


def test_forgetting_table_gives_mean_interval_and_deviation(whole):
    table = forgetting_table(by_rule(whole), {"zs_pag": "ZS-PAG"})
    assert table.loc["ZS-PAG", "retain, test %"] == "90.60 (1.41)"
    assert table.loc["ZS-PAG", "over-unlearning (points)"] == "0.40 (0.00)"
    assert list(table.index) == ["original", "masked", "retrained", "ZS-PAG", "oracle"]
    assert spread(FIVE, factor=100, digits=2) == "90.60 ± 12.71 (1.41)"
    assert (percent(FIVE), percent(FIVE | {"classes": 4})) == ("90.60 ± 12.71", "90.60")
    cut = FIVE | {"low": 0.7789, "high": 1.0}
    assert (percent(cut), percent(cut | {"classes": 4})) == ("90.60 (77.89 to 100.00)", "90.60")
    assert spread(cut, factor=100, digits=2) == "90.60, 77.89 to 100.00 (1.41)"


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[1] / "results").glob("*.md")), ids=lambda path: path.name
)
def test_no_interval_of_a_share_on_a_page_leaves_its_range(path):
    lines, share = path.read_text(encoding="utf-8").splitlines(), []
    for line in lines:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if "%" in line and ("forget %" in cells or "forget, test %" in cells):
            share = [index for index, cell in enumerate(cells) if cell.endswith("%")]
        elif not line.startswith("|"):
            share = []
        for index in share:
            assert " ± " not in cells[index], line  # which can leave it; the ends do not
            ends = [float(end) for end in re.findall(r"-?\d+\.\d+", cells[index])]
            assert all(0 <= end <= 100 for end in ends), line


def test_one_class_is_shown_without_a_spread(whole):
    one = by_rule(whole[whole["forget"] == 3])
    assert forgetting_table(one, {}).loc["zs_pag", "retain, test %"] == "89.60"


def test_distance_table_has_signs_and_no_minus_zero(whole):
    table = distance_table(by_rule(whole), {})
    assert table.loc["zs_pag", "retain - retrained (points)"].startswith("0.60 (")
    assert table.loc["retrained"].tolist()[:2] == ["0.00 (0.00)"] * 2
    whole.loc[whole["method"] == "masked", "acc_retain"] -= 1e-9
    assert "-0.00" not in distance_table(by_rule(whole), {}).loc["masked", "retain - retrained (points)"]


def test_noise_floor_is_the_last_line_where_there_is_one(whole):
    floor = pd.DataFrame({"forget": [3, 3, 5, 5], "agreement_forget": [0.7, 0.9, 0.6, 0.6]})
    floor = floor.assign(agreement_retain=1.0, js_forget=0.1, js_retain=0.0)
    table = prediction_table(by_rule(whole), {}, floor)
    assert table.index[-1] == "two retrained models"
    assert table.loc["two retrained models", "agreement, forget %"].startswith("70.0 (")
    assert "two retrained models" not in prediction_table(by_rule(whole), {}, pd.DataFrame()).index


def test_cost_counts_every_rate_the_rule_tried_and_what_came_before(whole):
    reads = {"zs_pag": "forget set", "oracle": "everything"}
    own = cost_table(by_rule(whole), whole, {}, reads=reads, before={"zs_pag": 6.0}, retraining=20.0)
    line = own.loc["zs_pag"]
    assert (line["all rates tried (s)"], line["before (s)"], line["in all / retraining"]) == ("4.00", "6.00", "0.50")
    assert own.loc["oracle", "in all / retraining"] == "0.10"
    assert own["retained samples counted"].to_dict() == {"zs_pag": 0, "oracle": 99}
    bare = cost_table(by_rule(whole), whole, {}, reads=reads, before={}, retraining=None)
    assert {"before (s)", "in all / retraining"}.isdisjoint(bare.columns)


def test_every_table_answers_one_question(whole):
    options = {"reads": {"zs_pag": "forget set, proxies", "oracle": "y"}, "noise": pd.DataFrame()}
    made = every_table(whole, {}, **options, seconds={})
    assert all(question.endswith("?") for question in made)
    assert [len(table) for table in made.values()] == [5, 5, 5, 2]
    seconds = {"proxies": 3.0, "subspaces": 1.0, "update": 9.0, "retraining": 16.0}
    timed = every_table(whole, {}, **options, seconds=seconds)["What does it cost, and what does it read?"]
    assert timed["before (s)"].to_dict() == {"zs_pag": "4.00", "oracle": "0.00"}
    assert timed["in all / retraining"].to_dict() == {"zs_pag": "0.50", "oracle": "0.12"}
    assert "before (s)" not in made["What does it cost, and what does it read?"]
