"""Claim C7: removal is judged by probes, the original's head and what it costs, and falls by each of them alone."""

import pytest

from tests import recorded
from zspag.report import readme
from zspag.report.claims import judge, lines


def verdict(folder):
    return next(one for one in judge(folder, profile="digits") if one.claim == "C7")


def verdict_of(folder, **options):
    recorded.audit(folder, **options)
    return verdict(folder)


def found(folder, **options):
    names = ("linear", "mlp", "answered", "back", "lost")
    return dict(zip(names, verdict_of(folder, **options).checks, strict=True))


def test_the_claim_is_ours_and_says_so(tmp_path):
    assert "ours, no claim of the paper" in verdict(tmp_path).statement
    assert all(check.subject.startswith("removal (ours)") for check in verdict_of(tmp_path).checks)


def each(value):
    return (value,) * len(recorded.CLASSES)


def test_what_holds_just_so_is_supported(tmp_path):
    """At the limits themselves: the retrained networks know 2 % with the original's head, and differ by 1 %."""
    at_the_limit = {"linear": each(0.7), "mlp": each(0.5), "answered": 0.02, "restored": 0.03, "lost": 0.3}
    assert [check.word for check in verdict_of(tmp_path, **at_the_limit).checks] == ["supported"] * 5


@pytest.mark.parametrize(
    ("options", "place", "word"),
    [
        ({"linear": each(0.69)}, 0, "contradicted"),
        ({"linear": (0.3, 0.5, 0.8, 0.9, 1.0)}, 0, "undecided"),  # 70 % on average, and anywhere
        ({"mlp": each(0.49)}, 1, "contradicted"),
        ({"answered": 0.021}, 2, "contradicted"),
        ({"restored": 0.031}, 3, "contradicted"),
        ({"lost": 0.31}, 4, "contradicted"),
        ({"linear": each(0.0)}, 0, "contradicted"),  # a class that is only silent
    ],
)
def test_it_falls_by_each_number_alone(tmp_path, options, place, word):
    one = verdict_of(tmp_path, **options)
    assert [check.word for check in one.checks] == [word if index == place else "supported" for index in range(5)]
    assert one.word == word


def test_two_classes_decide_nothing_and_are_shown(tmp_path):
    one = found(tmp_path, linear=(0.7, 0.8))
    assert one["linear"].found == "75.0 (70.0 to 80.0) %"
    assert one["linear"].n == "2 classes x 2 originals"
    assert one["linear"].required == "at least 70 %"
    assert one["mlp"].required == "at least 50 %"
    assert one["back"].required == "at most 3.0 % (retrained networks and their spread)"
    assert one["back"].found == "0.0 (0.0 to 0.0) %, retrained 2.0 %"
    few = "above that in 0 of 2 classes"
    assert (one["lost"].required, one["lost"].found) == ("at most 0.3", f"0.10 (0.10 to 0.10); {few}")
    assert (one["answered"].required, one["answered"].found) == ("at most 2 %", f"0.0 (0.0 to 0.0) %; {few}")
    dear = found(tmp_path, lost=0.4)["lost"]
    assert dear.found == "0.40 ± 0.00; above that in 5 of 5 classes"
    assert {check.file for check in one.values()} == {recorded.AUDIT}
    assert {check.word for check in one.values()} == {"undecided"}


def test_a_class_whose_gap_is_within_the_retrained_networks_spread_does_not_count_and_is_counted(tmp_path):
    """The spread is .02: class 5 has a gap of .01, and closes none of it."""
    one = found(tmp_path, linear=(0.8, 0.0), retrained=(0.5, 0.89))
    assert one["linear"].found == "80.0 %"
    assert one["linear"].n == ("1 class x 2 originals; 1 of 2 not counted: gap within the retrained networks' spread")
    wide = found(tmp_path, linear=(0.8, 0.0), retrained=(0.5, 0.87))  # a gap of .03 counts
    assert wide["linear"].n == "2 classes x 2 originals"
    assert wide["linear"].found.startswith("40.0 ")


def test_what_goes_beyond_retraining_in_one_class_does_not_pay_for_another(tmp_path):
    one = found(tmp_path, linear=(0.3, 1.8))
    assert one["linear"].found == "65.0 (30.0 to 100.0) %"


def test_without_any_gap_the_probes_say_nothing_and_the_head_and_the_loss_are_judged_all_the_same(tmp_path):
    answered, head, loss = verdict_of(tmp_path, retrained=each(0.89)).checks
    assert "open model" in answered.subject
    assert "original's head" in head.subject
    assert "accuracy lost" in loss.subject


@pytest.mark.parametrize(("restored", "word"), [(0.02, "supported"), (0.021, "contradicted")])
def test_with_one_seed_the_spread_is_not_known_and_two_percent_may_be_recognized(tmp_path, restored, word):
    one = found(tmp_path, restored=restored, seeds=1)
    assert (one["back"].word, one["back"].required) == (word, "at most 2.0 % (one seed: no spread)")
    assert one["linear"].n == "5 classes x 1 original"
    backwards = found(tmp_path, seeds=1, linear=(0.8, 0.8), retrained=(0.5, 0.95))
    assert backwards["linear"].n.endswith("1 of 2 not counted: no gap above 0")


def test_a_network_that_was_ruined_is_no_removal_whatever_the_others_say(tmp_path):
    one = verdict_of(tmp_path, ruined=[(3, 1)])
    assert one.word == "contradicted"
    assert (one.checks[0].found, one.checks[0].required) == ("1 of 10", "none")
    assert [check.word for check in one.checks[1:]] == ["supported"] * 5
    everywhere = verdict_of(tmp_path, linear=(0.8, 0.8), ruined=[(3, 0), (3, 1), (5, 0), (5, 1)])
    assert [(check.word, check.found) for check in everywhere.checks] == [("contradicted", "4 of 4")]


def test_an_audit_that_did_not_look_at_removal_measures_nothing(tmp_path):
    assert verdict_of(tmp_path, methods=("zs_pag",)).word == "not measured"
    assert lines([verdict(tmp_path)])[0].startswith("C7 not measured: removal (ours")


def test_other_methods_that_were_audited_beside_it_change_nothing(tmp_path):
    alone = verdict_of(tmp_path)
    assert verdict_of(tmp_path, methods=("zs_pag", "remove")) == alone


def test_the_readme_shows_the_claim_measured_or_not(tmp_path):
    recorded.write(tmp_path / "cpu", "01_first_order", numbers={"ratio": 1.2})
    recorded.audit(tmp_path / "digits")
    shown = readme.verdicts(tmp_path)
    (row,) = [line for line in shown.splitlines() if line.startswith("| C7: ")]
    assert row.endswith(" | not measured | **supported**, 5 classes x 2 originals |")
