"""The verdicts: every claim holds on results made for it, falls by each single number, and needs a measurement."""

import shutil

import pytest

from tests import recorded
from tests.frames import grid
from zspag.profiles import PROFILES
from zspag.report.claims import Check, Verdict, judge, lines, table
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
    assert words(folder) == dict.fromkeys(CLAIMS, "yes")


def test_what_is_not_recorded_is_not_measured(tmp_path):
    assert words(tmp_path / "nowhere") == dict.fromkeys(CLAIMS, "not measured")


def number(name, value):
    return lambda content: content["numbers"].update({name: [value, None]})


def measured(key, **values):
    return lambda content: content["measurements"][key].update(values)


def worse(rival):
    return lambda content: content["measurements"]["against"][rival]["js_retain"].update(mean=-0.0005)


SPOILT = {
    "capture": ("C1", "03_capture", number("capture_of_oracle_proxies", 0.96)),
    "selectivity of one layer": ("C1", "03_capture", measured("selectivity", noise=[1.3, 0.9])),
    "against soft labels": ("C3", "04_verdict", worse("soft")),
    "against random labels": ("C3", "04_verdict", worse("random")),
    "retained accuracy": ("C3", "04_verdict", measured("over_unlearning", mean=0.002)),
    "bound below what it bounds": ("C4", "01_bound", measured("proxies", bound=[0.09, 19.0, 0.0])),
    "slack": ("C4", "01_bound", measured("proxies", bound=[0.1, 20.1, 0.0])),
    "first order too small": ("C4", "01_first_order", number("ratio", 0.6)),
    "first order too large": ("C4", "01_first_order", number("ratio", 1.4)),
    "exposed share": ("C4", "01_proxy_bound", measured("T3", measured=[0.11, 0.1])),
    "cost": ("C6", "05_cost", measured("seconds", proxies=0.6)),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_every_claim_falls_by_each_single_number_and_no_other_claim_does(folder, fault):
    claim, name, spoil = SPOILT[fault]
    recorded.change(folder, name, spoil)
    assert words(folder) == dict.fromkeys(CLAIMS, "yes") | {claim: "no"}


def test_titles_legends_and_captions_decide_nothing(folder):
    before = judge(folder, profile="digits")
    panels = [{"title": "selectivity", "series": {"proxies": [0.0], "noise": [9.0]}}]
    for path in folder.glob("*.json"):
        recorded.change(folder, path.stem, lambda content: content.update(data={"panels": panels}, caption="T3"))
    assert judge(folder, profile="digits") == before


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

    def narrow(content):
        kept = [row for row in content["measurements"]["rows"] if row["method"] != "zs_pag"]
        content["measurements"]["rows"] = kept + grid("zs_pag", one)

    recorded.change(folder, recorded.SWEEP, narrow)
    wide, drift = checks(folder, "C2")
    assert (wide.word, wide.found, drift.word) == ("no", "1 against 0", "yes")


def test_dominance_and_cost_are_judged_on_the_sweep_and_without_one_on_notebook_05(folder):
    better = grid("head_only", {0.01: (0.0, 0.0, 0.0), 1.0: (0.0, 0.0, 0.0)})
    recorded.sweep(folder, further=[row | {"gap": 0.01} for row in better])
    assert words(folder)["C5"] == "no"
    seconds = {"proxies": 1.0, "subspaces": 0.0, "update": 1.0, "retraining": 1.0}
    recorded.change(folder, recorded.SWEEP, lambda content: content["measurements"].update(seconds=seconds))
    assert [check.file for claim in ("C5", "C6") for check in checks(folder, claim)] == [recorded.SWEEP] * 2
    assert words(folder)["C6"] == "no"
    (folder / f"{recorded.SWEEP}.json").unlink()
    assert [check.file for claim in ("C5", "C6") for check in checks(folder, claim)] == ["05_comparison", "05_cost"]
    assert (words(folder)["C5"], words(folder)["C6"]) == ("yes", "yes")
    recorded.change(folder, "05_comparison", lambda content: content["measurements"].update(dominated_by=["masked"]))
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
    windows = checks(folder, "C2")[::2]
    assert {one.file: one.word for one in windows} == {recorded.SWEEP: "yes", "sweep_digits_digits_7": "no"}


def test_rows_may_be_kept_by_column_as_well(folder):
    before = judge(folder, profile="digits")

    def by_column(content):
        rows = content["measurements"]["rows"]
        content["measurements"]["rows"] = {name: [row.get(name) for row in rows] for name in rows[-1]}

    recorded.change(folder, recorded.SWEEP, by_column)
    assert judge(folder, profile="digits") == before


def test_limits_are_a_table_by_profile(folder):
    assert words(folder, "digits")["C6"] == "yes"
    assert words(folder, "paper")["C6"] == "no"  # where a training takes long, much less is asked for
    assert set(LIMITS) <= set(PROFILES)
    assert LIMITS["digits"] == LIMITS["cpu"] == Limits()


def test_claim_holds_only_if_every_check_does():
    good, bad = (Check("size", "at least 1", "2", holds, "file") for holds in (True, False))
    found = [Verdict("C9", "it is", some).word for some in ((), (good,), (good, bad))]
    assert found == ["not measured", "yes", "no"]


def test_both_ways_of_showing_name_claim_number_and_file():
    verdicts = [Verdict("C9", "it is large", (Check("size", "at least 1", "0.5", False, "a_file"),))]
    assert lines(verdicts) == ["C9 no: it is large", "   no  size: 0.5", "       required: at least 1 [a_file]"]
    assert table(verdicts).splitlines()[2:] == [
        "| **C9** | **it is large** |  |  | **no** |  |",
        "|  | size | at least 1 | 0.5 | no | a_file |",
    ]
