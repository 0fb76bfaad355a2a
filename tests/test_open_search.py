"""The search for a rate has no edge but those of its range, and takes the gentlest of the trials that are good."""

import itertools
import math
import random

import pytest

from zspag.calibration.open_search import (
    ALIKE,
    HARMLESS,
    LARGEST,
    SMALLEST,
    UNSEEN,
    WORTH,
    Search,
    choose,
    layer_choices,
    least_bad,
    rate_at,
    search_rate,
)
from zspag.outcome import Trial

START = -2
PLACES = range(SMALLEST, LARGEST + 1)
PLACE_OF = {rate_at(place): place for place in PLACES}


def trial(place, *, forgot=True, drift=0.1, unseen=None, layers="all"):
    """A trial at a step of the scale; ``drift=None`` is a ruined one."""
    unseen = (0.0 if forgot else 1.0) if unseen is None else unseen
    return Trial(layers, rate_at(place), None if drift is None else unseen, drift, forgot and drift is not None, 0.0)


def searched(curve, *, start=START):
    """Search over trials that ``curve`` gives for a step of the scale; return the search and the steps in order."""
    ran = []

    def attempt(lr):
        ran.append(PLACE_OF[lr])
        return curve(ran[-1])

    return search_rate(attempt, start=start), ran


def place_of(search):
    return PLACE_OF[search.trials[search.best].lr]


def window(first, ruined, *, damage=lambda _: 0.1):
    """Rates below ``first`` do not forget, rates from ``ruined`` on make everything infinite."""

    def curve(place):
        if place >= ruined:
            return trial(place, drift=None)
        return trial(place, forgot=place >= first, drift=damage(place))

    return curve


# ---- The scale


def test_rates_are_one_and_three_times_powers_of_ten():
    assert [rate_at(place) for place in (-4, -3, -2, -1, 0, 1, 2, 3)] == [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]
    rates = [rate_at(place) for place in PLACES]
    assert (rates[0], rates[-1]) == (1e-5, 300.0)
    assert all(2.99 < larger / smaller < 3.34 for smaller, larger in itertools.pairwise(rates))
    assert {f"{rate:.0e}"[0] for rate in rates} == {"1", "3"}


# ---- Where the search ends


@pytest.mark.parametrize(
    ("first", "ruined", "start", "best", "edge"),
    [
        *((first, first + 2, START, first, False) for first in (-9, -5, START - 1, START, START + 1, 4)),
        *((first, 99, start, first, False) for first in (SMALLEST + 1, LARGEST - 1) for start in PLACES),
        (-6, -4, 0, -6, False),  # the start is ruined
        (3, 5, SMALLEST, 3, False),  # the start is far too small
        (SMALLEST, SMALLEST + 1, START, SMALLEST, True),
        (-99, 99, START, SMALLEST, True),  # even the smallest rate forgets
        (LARGEST, 99, START, LARGEST, True),
        (99, 99, START, None, True),  # nothing ever forgets
        (99, SMALLEST, START, None, True),  # everything is ruined
    ],
)
def test_the_gentlest_rate_that_forgets_is_found_from_wherever_the_search_starts(first, ruined, start, best, edge):
    found, ran = searched(window(first, ruined, damage=lambda place: 0.01 * 3.0 ** max(0, place)), start=start)
    assert (None if found.best is None else place_of(found), found.at_edge) == (best, edge)
    assert [PLACE_OF[one.lr] for one in found.trials] == sorted(ran)  # smallest first, each of them once
    assert len(ran) == len(set(ran))
    if best is None:
        assert (SMALLEST if ruined == SMALLEST else LARGEST) in ran
    else:  # a gentler one does not forget, a larger one is no better
        assert {max(SMALLEST, best - 1), min(LARGEST, best + 1)} <= set(ran)
    if start >= ruined:
        assert max(ran) == start  # nothing above the first ruin is tried


def test_a_rate_that_is_left_for_a_larger_one_did_more_damage():
    falling = {-3: 3.0, -2: 1.0, -1: 0.3, 0: 0.1, 1: 0.4}
    found, ran = searched(window(-3, 9, damage=lambda place: falling.get(place, 5.0)))
    assert place_of(found) == 0
    assert 1 in ran
    better_and_better, ran = searched(window(-2, 99, damage=lambda place: 10.0 ** -(3 * place)))
    assert place_of(better_and_better) == LARGEST == max(ran)
    assert better_and_better.at_edge
    flat, _ = searched(window(-3, 9))
    assert place_of(flat) == -3  # the same rates without a difference: the gentlest


# ---- Which trial is the best


@pytest.mark.parametrize(
    ("trials", "best"),
    [
        # Unseen samples come before damage.
        ([{"drift": 0.001, "unseen": 0.5}, {"drift": 0.9, "unseen": 0.5 - UNSEEN - 0.01}], 1),
        ([{"drift": 0.001, "unseen": 0.5}, {"drift": 0.9, "unseen": 0.5 - UNSEEN + 0.01}], 0),
        # Among those alike in that, damage decides beyond a factor, and else the gentlest is taken.
        ([{"drift": ALIKE + 0.1}, {"drift": 1.0}], 1),
        ([{"drift": ALIKE - 0.1}, {"drift": 1.0}], 0),
        ([{"drift": 0.9}, {"drift": 0.6}, {"drift": 0.5}, {"drift": 0.55}], 0),
        ([{"drift": 1.3}, {"drift": 0.6}, {"drift": 0.5}, {"drift": 0.55}], 1),
        # No damage at all is alike to nothing but itself.
        ([{"drift": 0.0}, {"drift": 0.0}], 0),
        ([{"drift": 1e-9}, {"drift": 0.0}], 1),
        # What does not forget is never taken, however little damage it does.
        ([{"drift": 0.0, "forgot": False}, {"drift": 9.0}, {"drift": 0.0, "forgot": False}], 1),
    ],
)
def test_the_best_trial_forgets_unseen_samples_does_little_damage_and_is_gentle(trials, best):
    """Trials stand at steps 0, 1, ...; below nothing forgets, above all is ruined."""

    def curve(place):
        if 0 <= place < len(trials):
            return trial(place, **trials[place])
        return trial(place, forgot=False, drift=None if place > 0 else 0.0)

    assert place_of(searched(curve, start=0)[0]) == best


# ---- Properties over random curves


def random_curve(draw):
    """Forgetting sets in at some rate and ruin at a later one; damage is monotone, or falls and then rises."""
    first = draw.randint(SMALLEST - 3, LARGEST + 3)
    ruined = draw.randint(first, LARGEST + 4)
    low, slope = draw.randint(SMALLEST, LARGEST), draw.uniform(0.1, 2.0)
    monotone = draw.random() < 0.5
    noise = {place: draw.uniform(-0.3, 0.3) for place in PLACES}
    unseen = {place: draw.choice((0.0, 0.0, 0.01, 0.05, 0.3)) for place in PLACES}

    def curve(place):
        if place >= ruined:
            return trial(place, drift=None)
        steps = place - SMALLEST if monotone else abs(place - low)
        return trial(
            place, forgot=place >= first, drift=math.exp(slope * steps + noise[place]),
            unseen=unseen[place] if place >= first else 1.0,
        )  # fmt: skip

    return curve


@pytest.mark.parametrize("start", [SMALLEST, START, 1, LARGEST])
def test_on_any_curve_the_search_ends_only_where_both_neighbours_are_no_better(start):
    draw, ends = random.Random(start), set()
    for _ in range(300):
        curve = random_curve(draw)
        found, ran = searched(curve, start=start)
        tried = {place: curve(place) for place in ran}
        forgot = {place: one for place, one in tried.items() if one.forgot}
        ends.add((found.best is None, found.at_edge))
        assert sorted(ran) == list(range(min(ran), max(ran) + 1))  # no gap in which a better rate could lie
        assert len(ran) == len(set(ran))
        if found.best is None:
            assert not forgot
            assert found.at_edge
            continue
        best = place_of(found)
        least = min(one.forget_accuracy for one in forgot.values())
        assert tried[best].forgot
        assert tried[best].forget_accuracy <= least + UNSEEN
        for place, other in forgot.items():
            if other.forget_accuracy <= least + UNSEEN:  # nobody good does half the damage, or as little more gently
                assert tried[best].drift <= ALIKE * other.drift
                assert place >= best or other.drift > ALIKE * min(
                    one.drift for one in forgot.values() if one.forget_accuracy <= least + UNSEEN
                )
        gentlest = min(forgot)
        assert gentlest == SMALLEST or not tried[gentlest - 1].forgot
        assert best == LARGEST or best + 1 in tried
        assert found.at_edge == (best in (SMALLEST, LARGEST))
    assert ends >= {(True, True), (False, False), (False, True)}  # all three kinds of end were met


# ---- Which layers


def one(layers, drift, *, unseen=0.0, forgot=True):
    own = trial(0, drift=drift, unseen=unseen, layers=layers, forgot=forgot)
    return Search((own,), 0 if forgot else None, not forgot)


D = 10 * HARMLESS


@pytest.mark.parametrize(
    ("searches", "layers", "asked"),
    [
        # Other layers are taken only where they halve the damage of what was taken before.
        ({"all": one("all", D), "body": one("body", WORTH * D * 0.99)}, "body", 2),
        ({"all": one("all", D), "body": one("body", WORTH * D * 1.01)}, "all", 2),
        ({"all": one("all", 1.0), "body": one("body", 0.4), "head": one("head", 0.3)}, "body", 3),
        ({"all": one("all", 1.0), "body": one("body", 0.4), "head": one("head", 0.19)}, "head", 3),
        ({"all": one("all", 1.0), "body": one("body", 0.6), "head": one("head", 0.3)}, "head", 3),
        # Less damage buys no unseen samples.
        ({"all": one("all", 1.0), "head": one("head", 0.1, unseen=UNSEEN + 0.01)}, "all", 2),
        ({"all": one("all", 1.0), "head": one("head", 0.1, unseen=UNSEEN - 0.01)}, "head", 2),
        # Where there is no harm, nothing else is tried.
        ({"all": one("all", HARMLESS), "body": one("body", 0.0)}, "all", 1),
        ({"all": one("all", 3 * HARMLESS), "body": one("body", HARMLESS), "head": one("head", 0.0)}, "body", 2),
        # What forgets replaces what does not, and never the other way round.
        ({"all": one("all", 0.0, forgot=False), "body": one("body", 9.0), "head": one("head", 8.0)}, "body", 3),
        ({"all": one("all", 0.0, forgot=False), "body": one("body", 0.0, forgot=False)}, "all", 2),
        ({"all": one("all", 9.0), "body": one("body", 0.0, forgot=False)}, "all", 2),
    ],
)
def test_other_layers_are_taken_only_where_they_are_clearly_better(searches, layers, asked):
    starts = []

    def search(name, start):
        starts.append(start)
        return searches[name]

    chosen, found, trials = choose(search, layers=tuple(searches), start=START)
    assert chosen == layers
    assert found is searches[layers]
    assert starts == [START] * asked
    assert trials == [one.trials[0] for one in searches.values()][:asked]  # everything that ran is reported


def test_the_choices_of_layers_split_the_weights_in_the_order_of_their_use():
    names = ("first", "second", "third")
    every = layer_choices(names, "auto")
    assert list(every) == ["all", "body", "head"]
    assert every["all"] == (*every["body"], *every["head"]) == names
    assert every["head"] == ("third",)
    for wanted in ("all", "body", "head"):
        assert layer_choices(names, wanted) == {wanted: every[wanted]}
        assert layer_choices(("only",), wanted) == {wanted: ("only",)}  # a model of one weight has no body
    assert layer_choices(("only",), "auto") == {"all": ("only",)}


# ---- Nothing forgets


def test_the_least_bad_is_sound_and_forgets_most_the_gentlest_of_equals():
    ruined, half, same, none = (
        trial(-5, drift=None), trial(1, forgot=False, unseen=0.5), trial(0, forgot=False, unseen=0.5),
        trial(-4, forgot=False, unseen=1.0),
    )  # fmt: skip
    assert least_bad([none, ruined, half, same]) is same
    assert least_bad([none, ruined]) is none
    worse = trial(2, drift=None)
    assert least_bad([worse, ruined]) is ruined
