"""The verdicts: every claim holds on results made for it, falls by each single number, and needs a measurement."""

import pytest

from tests import recorded
from zspag.profiles import PROFILES
from zspag.report.claims import Check, Verdict, judge, lines, table
from zspag.report.claims.checks import LIMITS, Limits

CLAIMS = ("C1", "C2", "C3", "C4", "C5", "C6")


def words(folder, profile="digits"):
    return {verdict.claim: verdict.word for verdict in judge(folder, profile=profile)}


@pytest.fixture
def folder(tmp_path):
    recorded.everything(tmp_path / "digits")
    return tmp_path / "digits"


def test_every_claim_holds_where_everything_was_made_for_it(folder):
    assert words(folder) == dict.fromkeys(CLAIMS, "yes")


def test_what_is_not_recorded_is_not_measured(tmp_path):
    assert words(tmp_path / "nowhere") == dict.fromkeys(CLAIMS, "not measured")


def number(name, value):
    return lambda content: content["numbers"].update({name: [value, None]})


def series(panel, name, values):
    return lambda content: content["data"]["panels"][panel]["series"].update({name: values})


def worse(rival):
    return lambda content: content["data"]["against"][rival]["js_retain"].update(mean=-0.0005)


SPOILT = {
    "capture": ("C1", "03_capture", number("capture_of_oracle_proxies", 0.96)),
    "selectivity of one layer": ("C1", "03_capture", series(1, "noise", [1.3, 0.9])),
    "against soft labels": ("C3", "04_verdict", worse("soft")),
    "against random labels": ("C3", "04_verdict", worse("random")),
    "retained accuracy": ("C3", "04_verdict", lambda content: content["data"]["over_unlearning"].update(mean=0.002)),
    "bound below what it bounds": ("C4", "01_bound", series(0, "bound", [0.09, 19.0, 0.0])),
    "slack": ("C4", "01_bound", series(0, "bound", [0.1, 20.1, 0.0])),
    "first order too small": ("C4", "01_first_order", number("ratio", 0.6)),
    "first order too large": ("C4", "01_first_order", number("ratio", 1.4)),
    "exposed share": ("C4", "01_proxy_bound", series(0, "retain data, measured", [0.11, 0.1])),
    "dominated": ("C5", "05_comparison", number("methods that dominate ZS-PAG", 1)),
    "cost": ("C6", "05_cost", number("seconds proxies", 0.6)),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_every_claim_falls_by_each_single_number_and_no_other_claim_does(folder, fault):
    claim, name, spoil = SPOILT[fault]
    recorded.change(folder, name, spoil)
    assert words(folder) == dict.fromkeys(CLAIMS, "yes") | {claim: "no"}


@pytest.mark.parametrize(
    ("claims", "options"),
    [
        (["C1", "C2"], {"controls": 0.0005}),  # others drift less
        (["C2"], {"unprojected": {0.1: (0.0, 0.0, 0.03), 0.2: (0.0, 0.0, 0.03), 0.3: (0.0, 0.0, 0.03)}}),  # 10 of 3
        (["C2"], {"own": 0.012}),
    ],
)
def test_claims_about_a_grid_fall_with_its_rows(folder, claims, options):
    recorded.sweep(folder, **options)
    assert [claim for claim, word in words(folder).items() if word == "no" and claim != "C5"] == claims


def test_window_of_a_single_rate_is_not_wider_than_none(folder):
    one = {0.1: (0.0, 0.0, 0.001), 0.3: (0.0, 0.02, 0.001), 1.0: (0.0, 0.02, 0.001)}
    recorded.change(
        folder,
        recorded.SWEEP,
        lambda content: content["data"].update(
            rows=[row for row in content["data"]["rows"] if row["method"] != "zs_pag"] + recorded.grid("zs_pag", one)
        ),
    )
    (verdict,) = [verdict for verdict in judge(folder, profile="digits") if verdict.claim == "C2"]
    assert [check.word for check in verdict.checks] == ["no", "yes"]
    assert verdict.checks[0].found == "1 against 0"


def test_sweep_in_which_another_method_is_better_in_everything_dominates(folder):
    assert words(folder)["C5"] == "yes"
    better = {0.01: (0.0, 0.0, 0.0), 1.0: (0.0, 0.0, 0.0)}
    rows = [row | {"gap": 0.01} for row in recorded.grid("head_only", better)]
    recorded.change(folder, recorded.SWEEP, lambda content: content["data"]["rows"].extend(rows))
    assert words(folder)["C5"] == "no"


def test_claim_c3_is_judged_on_the_half_that_confirms(folder):
    recorded.half(folder, "first", added=0.1)
    assert words(folder)["C3"] == "yes"
    recorded.half(folder, "second", added=0.1)
    assert words(folder)["C3"] == "no"


def test_half_a_test_set_alone_is_no_evidence(tmp_path):
    recorded.half(tmp_path, "second", added=-0.1)
    assert words(tmp_path)["C3"] == "not measured"


def test_sweep_that_was_cut_down_is_judged_beside_the_whole_one(folder):
    cut = {"forget_samples": 7, "name": "digits"}
    narrow = {0.1: (0.0, 0.0, 0.03), 0.3: (0.0, 0.0, 0.03), 1.0: (0.0, 0.0, 0.03)}
    recorded.sweep(folder, "sweep_digits_digits_7", config=cut, unprojected=narrow)
    (verdict,) = [verdict for verdict in judge(folder, profile="digits") if verdict.claim == "C2"]
    assert [(one.file, one.word) for one in verdict.checks if one.subject.startswith("safe window")] == [
        (recorded.SWEEP, "yes"), ("sweep_digits_digits_7", "no"),
    ]  # fmt: skip


def test_rows_may_be_kept_by_column_as_well(folder):
    before = judge(folder, profile="digits")

    def by_column(content):
        rows = content["data"]["rows"]
        content["data"]["rows"] = {name: [row.get(name) for row in rows] for name in rows[-1]}

    recorded.change(folder, recorded.SWEEP, by_column)
    assert judge(folder, profile="digits") == before


def test_limits_are_a_table_by_profile(folder):
    assert words(folder, "digits")["C6"] == "yes"
    assert words(folder, "paper")["C6"] == "no"  # where a training takes long, much less is asked for
    assert set(LIMITS) <= set(PROFILES)
    assert LIMITS["digits"] == LIMITS["cpu"] == Limits()


def test_claim_holds_only_if_every_check_does():
    good, bad = (Check("size", "at least 1", "2", holds, "file") for holds in (True, False))
    assert [Verdict("C9", "it is", checks).word for checks in ((), (good,), (good, bad))] == [
        "not measured",
        "yes",
        "no",
    ]


def test_both_ways_of_showing_name_claim_number_and_file():
    verdicts = [Verdict("C9", "it is large", (Check("size", "at least 1", "0.5", False, "a_file"),))]
    assert lines(verdicts) == ["C9 no: it is large", "   no  size: 0.5", "       required: at least 1 [a_file]"]
    assert table(verdicts).splitlines()[2:] == [
        "| **C9** | **it is large** |  |  | **no** |  |",
        "|  | size | at least 1 | 0.5 | no | a_file |",
    ]
