"""The report of one run: what its page says, what its JSON holds, what its figure shows."""

import io
import itertools
import json
import math
import subprocess
import sys
from dataclasses import asdict, replace
from fractions import Fraction

import pytest
from PIL import Image

from zspag.calibration.open_search import ALIKE, UNSEEN, WORTH
from zspag.calibration.trials import HURRY
from zspag.calibration.verdict import TRUSTED
from zspag.config import RemovalConfig, UpdateConfig
from zspag.outcome import REMOVAL, Epoch, Layer, Remainder, Report, Trial, upper_bound
from zspag.outcome.page import WIDTH

TRIALS = (
    Trial("all", 0.1, 0.2, 0.002, forgot=False, seconds=1.0),
    Trial("all", 0.3, 0.01, 0.011, forgot=True, seconds=1.0),
    Trial("all", 3.0, None, None, forgot=False, seconds=0.5),
    Trial("body", 0.1, 0.4, 0.0008, forgot=False, seconds=1.0),
    Trial("body", 0.3, 0.0, 0.0041, forgot=True, seconds=1.0),
    Trial("head", 3.0, 0.0, 0.031, forgot=True, seconds=1.0),
)
LAYERS = (
    Layer("conv1.weight", 9, 2, 0.004, 0.03, moved=True, reason=""),
    Layer("conv2.weight", 288, 120, 0.01, 0.12, moved=True, reason=""),
    Layer("fc.weight", 1024, 900, 0.05, 0.33, moved=False, reason="the body forgets with less drift"),
)
REPORT = Report(
    forget_classes=(3,),
    already_forgotten=(),
    samples=200,
    original_accuracy=0.985,
    forget_accuracy=0.0,
    unseen_accuracy=0.0,
    eps=0.031,
    hits={0: 1.0, 2: 0.97, 10: 0.92},
    layers=LAYERS,
    chosen="body",
    lr=0.3,
    tried=TRIALS,
    history=(Epoch(2.0, 0.5, 0.1), Epoch(1.0, 0.0, 0.1)),
    drift=0.0046,
    remainder=Remainder(
        measurable=True, probe_before=0.97, probe_after=0.74, probe_chance=0.51, original_head=0.12, note=""
    ),
    reached=True,
    silenced=True,
    at_edge=False,
    warnings=("the original recognizes only 45.0 % of the forget set: " + "check the images and their labels, " * 4,),
    seconds={"proxies": 4.25, "calibration": 8.5},
)
DEEP = replace(
    REPORT,
    forget_classes=(3, 5, 7),
    already_forgotten=(1,),
    layers=tuple(
        Layer(f"encoder.stages.{i}.blocks.{i}.attention.projection.weight", 768, 300, i / 100, i / 50, i > 2, f"why{i}")
        for i in range(54)
    ),
    tried=tuple(
        Trial(part, 3.0**step, 0.1, math.exp(step), forgot=step > 0, seconds=1.0)
        for part in ("all", "body", "head", "fc_in")
        for step in range(-4, 5)
    ),
    hits=dict.fromkeys(range(1000), 0.9),
)
BARE = replace(
    REPORT,
    samples=1,
    unseen_accuracy=None,
    hits={},
    layers=(),
    tried=(),
    history=(),
    drift=None,
    remainder=None,
    warnings=(),
    seconds={},
)
ALL = [pytest.param(report, id=name) for name, report in {"usual": REPORT, "deep": DEEP, "bare": BARE}.items()]


def _text(report):
    """Return the page as one line, for sentences are wrapped."""
    return " ".join(str(report).split())


@pytest.mark.parametrize("report", ALL)
def test_the_page_fits_a_terminal_and_needs_no_unicode(report):
    lines = str(report).splitlines()
    assert max(map(len, lines)) <= WIDTH == 88
    assert len(lines) <= (46 if report is REPORT else 52)  # a printed page holds 60
    assert str(report).isascii()
    assert "None" not in str(report)
    assert "nan" not in str(report)


def test_the_page_names_what_was_forgotten_and_with_how_many_images():
    assert "Unlearning class 3 with 200 images" in str(REPORT)
    assert "Unlearning classes 3, 5 and 7 with 200 images" in str(DEEP)
    assert "class 1 (named as forgotten before)" in _text(DEEP)
    assert "with 1 image\n" in str(BARE)


def test_an_unlearning_that_failed_and_was_only_closed_is_not_called_forgotten():
    failed = replace(REPORT, reached=False, forget_accuracy=0.42)
    assert "forget set `open_model` (updates alone) recognizes 42.0 % of it, the original 98.5 %." in _text(failed)
    assert failed.verdict == (
        "Goal NOT reached: too many images of class 3 are still recognized; closed rows only silence the class."
    )
    assert "silenced, NOT forgotten" in _text(failed)
    assert "NOT forgotten" not in _text(REPORT)
    assert "NOT reached, only silenced" in failed.plot().get_suptitle()
    assert REPORT.plot().get_suptitle().endswith("suppressed")
    assert "NOT" not in REPORT.plot().get_suptitle()


def test_the_verdict_promises_no_more_than_silence():
    """Suppressed is not removed, whatever the goal was, and what was not looked at is not known."""
    assert REPORT.verdict == (
        "Goal reached: class 3 is suppressed, not removed: the original's head, put back, recognizes 12.0 % of the"
        " forget images."
    )
    assert DEEP.verdict.startswith("Goal reached: classes 3, 5 and 7 are suppressed, not removed")
    assert REPORT.verdict in _text(REPORT)
    assert BARE.verdict.endswith("suppressed. What is left in the features is not known.")
    removed = replace(REPORT, chosen=REMOVAL, lr=0.8)
    assert removed.verdict == (
        "Goal reached: class 3 is answered no more. What is left in the features: the original's head, put back,"
        " recognizes 12.0 % of the forget images."
    )
    assert removed.plot().get_suptitle().endswith("answered no more")


def test_every_yes_and_no_stands_beside_its_rule_with_the_numbers_that_decide():
    """The page names the defaults; if one of them changes, this fails."""
    update, removal = UpdateConfig(), RemovalConfig()
    goal, trusted, least = (f"{100 * share:g} %" for share in (update.forget_accuracy, TRUSTED, UNSEEN))
    assert f"Reached is at most {goal} of it and {trusted} of held-out images (default)." in _text(REPORT)
    assert f"Reached is at most {goal} of it (default)." in _text(BARE)
    epochs = f"after {update.epochs // HURRY} of {update.epochs} epochs, both times (defaults)"
    assert f"forgot: at most {goal} of the fitted half recognized {epochs}." in _text(REPORT)
    assert (ALIKE, WORTH) == (2.0, 0.5)
    assert "Rule: the gentlest rate within twice the least drift; body or head only if that halves it." in _text(REPORT)
    share = Trial(REMOVAL, 0.8, 0.0, 0.005, forgot=True, seconds=1.0)
    removed = replace(REPORT, chosen=REMOVAL, lr=0.8, tried=(replace(share, lr=0.4, forgot=False), share))
    assert f"forgot: at most {least} of it recognized." in _text(removed)
    assert f"Rule: the largest share that forgot with a drift of at most {removal.damage:g} nats" in _text(removed)
    assert "no share forgot with LITTLE damage. Rule: the smallest share" in _text(replace(removed, at_edge=True))
    other = replace(REPORT, chosen="delete", tried=(replace(share, layers="delete"),) * 2)
    assert f"forgot: at most {goal} of the forget set is recognized (default)." in _text(other)
    assert "Rule: the smallest rate that forgot." in _text(other)


def test_a_drift_says_which_model_and_which_images():
    assert "0.0046 nats (0: none), on proxies of the forget set" in _text(REPORT)
    assert "accuracy and drift are of the half left out and its proxies" in _text(REPORT)
    failed = Trial("body", 1.0, 0.2, None, forgot=False, seconds=1.0)
    assert "Without a drift" not in _text(REPORT)  # one diverged, which its row says
    assert "Without a drift: final runs that did not forget." in _text(replace(REPORT, tried=(*TRIALS[:2], failed)))


def test_a_range_of_one_value_is_one_value_and_a_number_keeps_its_unit():
    assert "92.0 % (class 10) to 100.0 % of attacks arrived, by class" in _text(REPORT)
    assert "90.0 % of attacks arrived, in every class" in _text(DEEP)
    for report in (REPORT, DEEP, BARE):
        assert not [line for line in str(report).splitlines() if line.strip().startswith("%")]


def test_rows_that_stayed_open_say_why():
    assert "rows open: the head is normed." in _text(replace(REPORT, silenced=False, left_open="the head is normed"))
    assert "rows closed: no input makes `model` answer class 3" in _text(REPORT)
    assert "answer classes 1, 3, 5 and 7" in _text(DEEP)


@pytest.mark.parametrize(("samples", "bound", "asks"), [(20, "13.9 %", True), (200, "1.5 %", False)])
def test_no_hit_among_n_held_out_images_promises_about_three_in_n(samples, bound, asks):
    report = replace(REPORT, samples=samples)
    assert f"of {samples} held-out forget images 0 were recognized" in _text(report)
    assert f"at most {bound} (95 % bound)" in _text(report)
    assert ("More images would make the bound tighter" in _text(report)) is asks


def test_the_bound_counts_the_images_that_were_held_out_not_all_of_them():
    assert replace(REPORT, unseen_samples=20).unseen_bound > 9 * REPORT.unseen_bound
    assert BARE.unseen_bound is None
    assert "nothing is known about unseen images" in _text(BARE)


@pytest.mark.parametrize(("hits", "count"), [(0, 7), (1, 7), (3, 11), (10, 11)])
def test_at_the_bound_so_few_hits_have_a_probability_of_5_percent(hits, count):
    share = Fraction(upper_bound(hits, count))
    at_most = sum(math.comb(count, i) * share**i * (1 - share) ** (count - i) for i in range(hits + 1))
    assert float(at_most) == pytest.approx(0.05, abs=1e-9)


def test_the_bound_lies_above_the_share_grows_with_it_and_holds_for_thousands():
    bounds = [upper_bound(hits, 2000) for hits in (0, 1, 20, 1000, 1999)]
    assert bounds == sorted(bounds)
    assert bounds[0] == pytest.approx(3 / 2000, rel=0.01)
    assert bounds[3] == pytest.approx(0.5 + 1.645 * math.sqrt(0.25 / 2000), abs=0.001)  # the normal approximation
    assert upper_bound(5, 5) == 1


def test_the_page_says_why_the_chosen_trial_was_taken_only_if_the_numbers_bear_it():
    assert "body layers, rate 0.3: 3 of 6 trials forgot, this one with the least drift." in _text(REPORT)
    assert "this one with the least drift" not in _text(replace(REPORT, chosen="head", lr=3.0))
    assert "none of 2 trials forgot" in _text(replace(REPORT, tried=(TRIALS[0], TRIALS[3])))
    assert "EDGE" in _text(replace(REPORT, at_edge=True))
    assert "EDGE" not in _text(REPORT)


def test_the_chosen_trial_is_marked_and_always_listed():
    for report in (REPORT, replace(DEEP, chosen="fc_in", lr=27.0)):
        (marked,) = [line.split() for line in str(report).splitlines() if line.strip().startswith("> ")]
        assert marked[1:3] == [report.chosen, f"{report.lr:g}"]
    assert "diverged" in str(REPORT)
    assert f"and {len(DEEP.tried) - 6} more in report.tried" in str(DEEP)


def test_of_many_layers_those_that_leak_most_are_listed_and_frozen_ones_keep_their_reasons():
    assert "fc.weight stayed: the body forgets with less drift" in _text(REPORT)
    leaks = [line.split()[-4] for line in str(DEEP).splitlines() if "projection  " in line]
    assert leaks == [f"{percent}.0" for percent in range(48, 54)]
    assert REPORT.frozen == {"fc.weight": "the body forgets with less drift"}
    assert REPORT.free_dimension == {"conv1.weight": 2, "conv2.weight": 120}


def test_what_cannot_be_measured_is_said_not_shown_as_a_number():
    blind = replace(REPORT, remainder=replace(REPORT.remainder, measurable=False, note="8 sources"))
    assert "features not measurable: 8 sources. The original's head, put back, recognizes 12.0 %" in _text(blind)
    assert "97.0 % before and 74.0 % after; 51.0 % under permuted labels." in _text(REPORT)
    assert "features not looked at." in _text(BARE)
    assert len(REPORT.plot().axes[3].patches) == 3
    assert len(blind.plot().axes[3].patches) == 1
    assert not BARE.plot().axes[3].patches


def test_every_warning_and_every_stage_stands_on_the_page():
    assert " ".join(REPORT.warnings[0].split()) in _text(REPORT)
    assert "12.8 in all: proxies 4.2, calibration 8.5" in _text(REPORT)
    assert "WARNING" not in str(BARE)


@pytest.mark.parametrize("report", ALL)
def test_the_dictionary_is_json_and_comes_back_the_same(report):
    plain = report.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert set(plain) == set(asdict(report))


def test_numbers_that_json_does_not_know_become_null():
    wild = replace(REPORT, drift=math.inf, history=(Epoch(math.nan, 1.0, 0.1),))
    with pytest.raises(ValueError, match="JSON compliant"):
        json.dumps(asdict(wild), allow_nan=False)
    plain = json.loads(json.dumps(wild.to_dict(), allow_nan=False))
    assert plain["drift"] is None
    assert plain["history"] == [{"loss": None, "forget_accuracy": 1.0, "seconds": 0.1}]
    assert plain["hits"] == {"0": 1.0, "2": 0.97, "10": 0.92}
    assert "inf nats" in str(wild)


def _drawn(report):
    figure = report.plot()
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return figure, Image.open(file)


def _overlapping(figure):
    """Return pairs of texts, legends included, that run into each other."""
    shown = list(figure.texts)
    for axis in figure.axes:
        shown += [axis.title, axis.xaxis.label, axis.yaxis.label, *axis.texts, axis.get_legend()]
        for side, (low, high) in ((axis.xaxis, axis.get_xlim()), (axis.yaxis, axis.get_ylim())):
            shown += [tick.label1 for tick in side.get_major_ticks() if low <= tick.get_loc() <= high]
    boxes = [(one, one.get_window_extent()) for one in shown if one is not None and getattr(one, "_text", "legend")]
    return [(one, other) for (one, a), (other, b) in itertools.combinations(boxes, 2) if a.overlaps(b)]


@pytest.mark.parametrize("report", ALL)
def test_the_figure_is_1000_pixels_wide_labelled_and_nothing_runs_into_anything(report):
    figure, picture = _drawn(report)
    assert picture.width == 1000
    assert not _overlapping(figure)
    for axis in figure.axes:
        assert axis.get_title()
        assert axis.get_ylabel()


def test_texts_that_overlap_would_be_found():
    figure = REPORT.plot()
    figure.axes[0].set_title("a title that is much too long for its panel " * 3)
    figure.savefig(io.BytesIO(), format="png")
    assert _overlapping(figure)


def _marks(axis, fill):
    """Return (x, y) of the single marks that are open (white), or full."""
    found = [line for line in axis.lines if line.get_marker() in ("o", "s", "^", "D") and len(line.get_xdata()) == 1]
    drawn = [line for line in found if line.get_markersize() < 10 and (line.get_markerfacecolor() == "white") is fill]
    return sorted((line.get_xdata()[0], line.get_ydata()[0]) for line in drawn)


def test_rates_that_did_not_forget_have_open_marks_and_the_chosen_one_a_ring():
    axis = REPORT.plot().axes[0]
    drawn = [trial for trial in TRIALS if trial.drift is not None]
    assert _marks(axis, fill=True) == sorted((trial.lr, trial.drift) for trial in drawn if not trial.forgot)
    assert _marks(axis, fill=False) == sorted((trial.lr, trial.drift) for trial in drawn if trial.forgot)
    (ring,) = [line for line in axis.lines if line.get_markersize() == 15]
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (0.3, 0.0041)
    assert {line.get_marker() for line in axis.lines} >= {"o", "s", "^", "x"}  # told apart without colour


def test_drawing_leaves_no_figure_to_pyplot_and_a_notebook_shows_it_all_the_same():
    program = (
        "import sys; sys.path.insert(0, 'tests'); from test_outcome import REPORT; figure = REPORT.plot();"
        "assert 'matplotlib.pyplot' not in sys.modules;"
        "assert figure._repr_png_().startswith(b'\\x89PNG')"
    )
    ended = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
