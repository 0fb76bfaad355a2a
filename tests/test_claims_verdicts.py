"""The verdicts: every claim is supported by results made for it, and contradicted or undecided by single numbers."""

import shutil

import pandas as pd
import pytest

from tests import recorded
from tests.frames import grid
from tests.recorded import CLASSES as CASES
from zspag.profiles import PROFILES
from zspag.report import results
from zspag.report.claims import Check, Verdict, judge, lines, table
from zspag.report.claims.decisions import at_least, at_most, difference, interval, spread_out
from zspag.report.claims.verdicts import LIMITS, Limits

CLAIMS = ("C1", "C2", "C3", "C4", "C5", "C6", "C7")


def words(folder, profile="digits"):
    return {verdict.claim: verdict.word for verdict in judge(folder, profile=profile)}


def checks(folder, claim):
    return next(verdict.checks for verdict in judge(folder, profile="digits") if verdict.claim == claim)


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    folder = tmp_path_factory.mktemp("everything") / "digits"
    recorded.everything(folder)
    return folder


@pytest.fixture
def folder(everything, tmp_path):
    return shutil.copytree(everything, tmp_path / "digits")


def test_every_claim_holds_where_everything_was_made_for_it(folder):
    assert words(folder) == dict.fromkeys(CLAIMS, "supported")


def test_what_is_not_recorded_is_not_measured(tmp_path):
    assert words(tmp_path / "nowhere") == dict.fromkeys(CLAIMS, "not measured")


def number(name, value):
    return lambda content: content["numbers"].update({name: [value, None]})


def measured(key, **values):
    return lambda content: content["measurements"][key].update(values)


def labels(column, mean, wobble=0.0):
    """Give the labels that follow their influence other values: ``mean``, by ``wobble`` more or less per class."""

    def spoil(content):
        for row in content["measurements"]["rows"]:
            if row["method"] == "process_labels":
                row[column] = mean + wobble * (1 if row["forget"] % 2 == 0 else -1)

    return spoil


SPOILT = {
    "capture": ("C1", "contradicted", "03_capture", number("capture_of_oracle_proxies", 0.96)),
    "selectivity of one layer": ("C1", "contradicted", "03_capture", measured("selectivity", noise=[1.5, 0.9])),
    "selectivity by a hair": ("C1", "undecided", "03_capture", measured("selectivity", noise=[1.21, 0.9])),
    "no better than soft labels": ("C3", "undecided", recorded.SWEEP, labels("js_retain", 0.012, 0.001)),
    "worse than random labels": ("C3", "contradicted", recorded.SWEEP, labels("js_retain", 0.014)),
    "half a point lost": ("C3", "contradicted", recorded.SWEEP, labels("over_unlearning", 0.0061, 0.0005)),
    "half a point lost, perhaps": ("C3", "undecided", recorded.SWEEP, labels("over_unlearning", 0.0056, 0.0005)),
    "half a point lost, perhaps not": ("C3", "undecided", recorded.SWEEP, labels("over_unlearning", 0.0048, 0.0005)),
    "bound below what it bounds": ("C4", "contradicted", "01_bound", measured("proxies", bound=[0.09, 19.0, 0.0])),
    "slack": ("C4", "contradicted", "01_bound", measured("proxies", bound=[0.1, 20.1, 0.0])),
    "first order too small": ("C4", "contradicted", "01_first_order", number("ratio", 0.6)),
    "first order too large": ("C4", "contradicted", "01_first_order", number("ratio", 1.5)),
    "first order perhaps too large": ("C4", "undecided", "01_first_order", number("ratio", 1.2935)),
    "first order the other way": ("C4", "contradicted", "01_first_order", number("ratio", -1.0)),
    "exposed share": ("C4", "contradicted", "01_proxy_bound", measured("T3", measured=[0.11, 0.1])),
    "cost": ("C6", "contradicted", recorded.SWEEP, measured("seconds", proxies=0.7)),
    "cost within the noise of times": ("C6", "undecided", recorded.SWEEP, measured("seconds", proxies=0.55)),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_every_claim_falls_by_each_single_number_and_no_other_claim_does(folder, fault):
    claim, word, name, spoil = SPOILT[fault]
    recorded.change(folder, name, spoil)
    assert words(folder) == dict.fromkeys(CLAIMS, "supported") | {claim: word}


@pytest.mark.parametrize(
    ("file", "headline", "tolerance", "least", "most", "turns"),
    [
        ("03_capture", "capture_of_oracle_proxies", 0.01, 0.94, 1.0, False),
        ("03_capture", "capture_of_oracle_proxies", None, 0.94, 1.0, True),  # nothing is known of how it varies
        ("01_first_order", "ratio", "x1.1", 1.0, 1.6, False),
        ("01_first_order", "ratio", "x1.3", 1.0, 1.6, False),
    ],
)
def test_what_counts_as_reproduced_turns_no_verdict_over(folder, file, headline, tolerance, least, most, turns):
    claim, factor = {"03_capture": "C1", "01_first_order": "C4"}[file], results.factor_of(tolerance)

    def word(value):
        recorded.change(folder, file, lambda content: content["numbers"].update({headline: [value, tolerance]}))
        return words(folder)[claim]

    pairs = set()
    for value in (least + (most - least) * step / 12 for step in range(13)):
        end = value * factor if factor else value + (tolerance or 0.01)
        pairs.add(frozenset([word(value), word(end)]))
    assert (frozenset(["supported", "contradicted"]) in pairs) == turns


def test_times_of_a_card_that_others_used_as_well_are_no_evidence_of_cost(folder):
    recorded.change(folder, recorded.SWEEP, lambda content: content["provenance"].update(device="cuda"))
    assert words(folder) == dict.fromkeys(CLAIMS, "supported") | {"C6": "not measured"}


def test_a_small_loss_of_retained_accuracy_is_none_although_its_interval_excludes_zero(folder):
    recorded.change(folder, recorded.SWEEP, labels("over_unlearning", 0.0018, 0.0005))
    assert words(folder)["C3"] == "supported"
    recorded.change(folder, recorded.SWEEP, labels("over_unlearning", 0.0018, 0.15))  # noise passes no test
    assert words(folder)["C3"] == "undecided"


def test_titles_legends_and_captions_decide_nothing(folder):
    before = judge(folder, profile="digits")
    panels = [{"title": "selectivity", "series": {"proxies": [0.0], "noise": [9.0]}}]
    for path in folder.glob("*.json"):
        recorded.change(folder, path.stem, lambda content: content.update(data={"panels": panels}, caption="T3"))
    assert judge(folder, profile="digits") == before


@pytest.mark.parametrize(
    ("expected", "options"),
    [
        ({"C1": "contradicted", "C2": "contradicted"}, {"controls": 0.0005}),  # others drift less
        (
            {"C2": "undecided"},
            {"unprojected": {0.1: (0.0, 0.0, 0.03), 0.3: (0.0, 0.0, 0.03)}},
        ),  # 30 against 3: a rung off 5
        ({"C2": "contradicted"}, {"unprojected": {0.1: (0.0, 0.0, 0.03), 3.0: (0.0, 0.0, 0.03)}}),  # as wide
        ({"C2": "contradicted"}, {"own": 0.012}),
        ({f"C{place}": "undecided" for place in (1, 2, 3, 6)}, {"classes": CASES[:4]}),  # too few to decide
    ],
)
def test_claims_about_a_grid_fall_with_its_rows(folder, expected, options):
    recorded.sweep(folder, **options)
    assert {claim: word for claim, word in words(folder).items() if word != "supported" and claim != "C5"} == expected


def test_window_of_a_single_rate_is_not_wider_than_none(folder):
    one = {0.1: (0.0, 0.0, 0.001), 0.3: (0.0, 0.02, 0.001), 1.0: (0.0, 0.02, 0.001)}

    def narrow(content):
        kept = [row for row in content["measurements"]["rows"] if row["method"] != "zs_pag"]
        content["measurements"]["rows"] = kept + [
            row | {"js_retain": 0.012} for row in grid("zs_pag", one, classes=CASES)
        ]

    recorded.change(folder, recorded.SWEEP, narrow)
    wide, drift = checks(folder, "C2")
    assert (wide.word, wide.found, drift.word) == ("contradicted", "1 against 0", "supported")


def test_dominance_and_cost_are_judged_on_the_sweep(folder):
    better = grid("head_only", {0.01: (0.0, 0.0, 0.0), 1.0: (0.0, 0.0, 0.0)}, classes=CASES)
    recorded.sweep(folder, further=[row | {"gap": 0.01} for row in better])
    assert words(folder)["C5"] == "contradicted"
    hair = [row | {"drift": 0.001, "gap": 0.1 + (0.3 if row["forget"] == 3 else -0.08)} for row in better]
    recorded.sweep(folder, further=hair)  # by the mean alone
    assert words(folder)["C5"] == "undecided"
    recorded.sweep(folder, further=[row | {"gap": 0.01} for row in better])
    seconds = {"proxies": 1.0, "subspaces": 0.0, "update": 1.0, "retraining": 1.0}
    recorded.change(folder, recorded.SWEEP, lambda content: content["measurements"].update(seconds=seconds))
    assert [check.file for claim in ("C5", "C6") for check in checks(folder, claim)] == [recorded.SWEEP] * 2
    assert words(folder)["C6"] == "contradicted"
    (folder / f"{recorded.SWEEP}.json").unlink()
    assert (words(folder)["C5"], words(folder)["C6"]) == ("not measured", "not measured")


def test_claim_c3_is_judged_on_the_half_that_confirms(folder):
    recorded.half(folder, "first", added=0.1)
    assert words(folder)["C3"] == "supported"
    recorded.half(folder, "second", added=0.1)
    assert words(folder)["C3"] == "contradicted"


def test_half_a_test_set_alone_is_no_evidence(tmp_path):
    recorded.half(tmp_path, "second", added=-0.1)
    assert words(tmp_path)["C3"] == "not measured"


def test_sweep_that_was_cut_down_is_judged_beside_the_whole_one(folder):
    cut = {"forget_samples": 7, "name": "digits"}
    narrow = {0.1: (0.0, 0.0, 0.03), 3.0: (0.0, 0.0, 0.03)}
    recorded.sweep(folder, "sweep_digits_digits_7", config=cut, unprojected=narrow)
    windows = checks(folder, "C2")[::2]
    assert {one.file: one.word for one in windows} == {
        recorded.SWEEP: "supported",
        "sweep_digits_digits_7": "contradicted",
    }


def test_a_sweep_of_older_defaults_counts_only_where_there_is_none_of_todays(folder):
    narrow = {0.1: (0.0, 0.0, 0.03), 3.0: (0.0, 0.0, 0.03)}
    old = {"forget_samples": 7, "name": "digits"} | recorded.OLD
    recorded.sweep(folder, "sweep_digits_digits_7", config=old, unprojected=narrow)
    assert {one.file for one in checks(folder, "C2")} == {recorded.SWEEP}
    assert words(folder)["C2"] == "supported"
    recorded.change(folder, recorded.SWEEP, lambda content: content["provenance"]["config"].update(arch="another"))
    assert {one.file for one in checks(folder, "C2")} == {recorded.SWEEP, "sweep_digits_digits_7"}


def test_rows_may_be_kept_by_column_as_well(folder):
    before = judge(folder, profile="digits")

    def by_column(content):
        rows = content["measurements"]["rows"]
        content["measurements"]["rows"] = {name: [row.get(name) for row in rows] for name in rows[-1]}

    recorded.change(folder, recorded.SWEEP, by_column)
    assert judge(folder, profile="digits") == before


def test_limits_are_a_table_by_profile(folder):
    assert words(folder, "digits")["C6"] == "supported"
    assert words(folder, "paper")["C6"] == "contradicted"  # where a training takes long, much less is asked for
    assert set(LIMITS) <= set(PROFILES)
    assert LIMITS["digits"] == LIMITS["cpu"] == Limits()


def check(word):
    return Check("size", "at least 1", "0.5", word, "1 case", "a_file")


def test_one_contradiction_is_enough_and_doubt_spreads():
    good, bad, open_ = (check(word) for word in ("supported", "contradicted", "undecided"))
    found = [Verdict("C9", "it is", "", some).word for some in ((), (good,), (good, open_), (good, open_, bad))]
    assert found == ["not measured", "supported", "undecided", "contradicted"]


def test_both_ways_of_showing_name_claim_number_paper_and_file():
    verdicts = [Verdict("C9", "it is large", '"very large"', (check("contradicted"),)), Verdict("C8", "ours", "", ())]
    assert lines(verdicts) == [
        "C9 contradicted: it is large",
        '   the paper: "very large"',
        "   contradicted: size: 0.5 (n = 1 case)",
        "       required: at least 1 [a_file]",
        "C8 not measured: ours",
        "   the paper: nothing",
    ]
    assert table(verdicts).splitlines()[2:] == [
        '| **C9** | **it is large** (paper: "very large") |  |  |  | **contradicted** |  |',
        "|  | size | at least 1 | 0.5 | 1 case | contradicted | a_file |",
        "| **C8** | **ours** (paper: nothing) |  |  |  | **not measured** |  |",
    ]


# How numbers decide


def of(mean, half, classes=5):
    return {"mean": mean, "half": half, "classes": classes}


@pytest.mark.parametrize(
    ("gap", "word"),
    [
        (of(-1.0, 1.0), "supported"),  # it ends on the limit
        (of(-1.0, 1.1), "undecided"),
        (of(1.0, 1.0), "undecided"),
        (of(1.0, 0.9), "contradicted"),
        (of(-1.0, 0.0, classes=4), "undecided"),
        (of(9.0, 0.0, classes=4), "undecided"),
    ],
)
def test_a_difference_is_decided_by_its_whole_interval(gap, word):
    assert difference(gap) == word
    assert difference(gap | {"mean": gap["mean"] + 0.3}, most=0.3) == word


def test_a_mean_is_decided_by_the_t_interval_of_its_classes():
    values = pd.Series([0.6, 0.7, 0.8, 0.9, 1.0])
    half = 2.7764451 * values.std(ddof=1) / 5**0.5
    for least, word in ((0.8 - half - 1e-6, "supported"), (0.8, "undecided"), (0.8 + half + 1e-6, "contradicted")):
        assert at_least(values, least) == word
        assert at_most(-values, -least) == word
    assert at_least(values[:4], 0.0) == "undecided"


def test_intervals_are_shown_from_five_classes_on():
    values = pd.Series([0.6, 0.7, 0.8, 0.9, 1.0])
    half = 2.7764451 * values.std(ddof=1) / 5**0.5
    assert spread_out(values, factor=100, digits=2) == f"80.00 ± {100 * half:.2f}"
    assert spread_out(values[:4], factor=100, digits=0) == "75 (60 to 90)"
    assert spread_out(values[:1], factor=100, digits=0) == "60"
    assert interval(of(-0.002, 0.001), factor=1000, digits=1) == "-2.0 ± 1.0"
    assert interval(of(-0.002, 0.001, classes=4), factor=1000, digits=1) == "-2.0 (no interval)"
