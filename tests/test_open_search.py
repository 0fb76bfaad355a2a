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


def places_of(search):
    return [PLACE_OF[one.lr] for one in search.trials]


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


@pytest.mark.parametrize("first", [-9, -5, START - 1, START, START + 1, 4])
def test_the_smallest_rate_that_forgets_is_found_from_wherever_the_search_starts(first):
    found, ran = searched(window(first, first + 2))
    assert place_of(found) == first
    assert {first - 1, first + 1} <= set(ran)  # a gentler one does not forget, a larger one is no better
    assert len(ran) == len(set(ran))
    assert not found.at_edge


def test_a_start_that_is_ruined_searches_below_and_never_above_the_first_ruin():
    found, ran = searched(window(-6, -4), start=0)
    assert place_of(found) == -6
    assert max(ran) == 0
    assert not found.at_edge
    assert found.trials[-1].forget_accuracy is None  # the ruin is kept in what was tried


def test_a_start_far_too_small_climbs_until_something_is_forgotten():
    found, ran = searched(window(3, 5), start=SMALLEST)
    assert place_of(found) == 3
    assert set(ran) == set(range(SMALLEST, 5))


def test_a_rate_that_is_left_for_a_larger_one_did_more_damage():
    falling = {-3: 3.0, -2: 1.0, -1: 0.3, 0: 0.1, 1: 0.4}
    found, ran = searched(window(-3, 9, damage=lambda place: falling.get(place, 5.0)))
    assert place_of(found) == 0
    assert 1 in ran
    flat, _ = searched(window(-3, 9))
    assert place_of(flat) == -3  # the same rates without a difference: the gentlest


def test_where_nothing_ever_forgets_there_is_no_best_and_the_edge_is_said():
    found, ran = searched(lambda place: trial(place, forgot=False))
    assert found.best is None
    assert found.at_edge
    assert LARGEST in ran


def test_where_everything_is_ruined_the_search_goes_down_to_the_smallest():
    found, ran = searched(lambda place: trial(place, drift=None))
    assert found.best is None
    assert found.at_edge
    assert set(ran) == set(range(SMALLEST, START + 1))


def test_the_smallest_rate_alone_is_found_below_ruin():
    found, _ = searched(window(SMALLEST, SMALLEST + 1))
    assert place_of(found) == SMALLEST
    assert found.at_edge


def test_where_even_the_smallest_rate_forgets_the_edge_is_said():
    found, _ = searched(window(-99, 99))
    assert place_of(found) == SMALLEST
    assert found.at_edge
    inside, _ = searched(window(SMALLEST + 1, 99))
    assert place_of(inside) == SMALLEST + 1
    assert not inside.at_edge


def test_where_the_largest_rate_is_the_best_the_edge_is_said():
    found, _ = searched(window(LARGEST, 99))
    assert place_of(found) == LARGEST
    assert found.at_edge
    better_and_better, ran = searched(window(-2, 99, damage=lambda place: 10.0 ** -(3 * place)))
    assert place_of(better_and_better) == LARGEST == max(ran)
    assert better_and_better.at_edge


def test_trials_come_back_smallest_rate_first_each_of_them_once():
    found, ran = searched(window(-6, -4), start=1)
    assert places_of(found) == sorted(set(ran))
    assert len(ran) == len(set(ran))


# ---- Which trial is the best


def of(*trials):
    """Search over exactly these trials: steps 0, 1, ...; below nothing forgets, above all is ruined."""
    found, _ = searched(
        lambda place: (
            trials[place] if 0 <= place < len(trials) else trial(place, forgot=False, drift=None if place > 0 else 0.0)
        ),
        start=0,
    )
    return place_of(found)


def test_unseen_samples_come_before_damage():
    careless = trial(0, drift=0.001, unseen=0.5)
    assert of(careless, trial(1, drift=0.9, unseen=0.5 - UNSEEN - 0.01)) == 1
    assert of(careless, trial(1, drift=0.9, unseen=0.5 - UNSEEN + 0.01)) == 0


def test_among_those_that_forget_unseen_samples_damage_decides_beyond_a_factor():
    assert of(trial(0, drift=ALIKE + 0.1), trial(1, drift=1.0)) == 1
    assert of(trial(0, drift=ALIKE - 0.1), trial(1, drift=1.0)) == 0  # alike: the gentler one


def test_of_trials_alike_the_gentlest_is_taken_even_if_it_is_not_the_least():
    assert of(trial(0, drift=0.9), trial(1, drift=0.6), trial(2, drift=0.5), trial(3, drift=0.55)) == 0
    assert of(trial(0, drift=1.3), trial(1, drift=0.6), trial(2, drift=0.5), trial(3, drift=0.55)) == 1


def test_a_trial_that_does_not_forget_is_never_taken_however_little_damage_it_does():
    found, _ = searched(lambda place: trial(place, forgot=place == 1, drift=0.0 if place != 1 else 9.0), start=0)
    assert place_of(found) == 1


def test_no_damage_at_all_is_alike_to_nothing_but_itself():
    assert of(trial(0, drift=0.0), trial(1, drift=0.0)) == 0
    assert of(trial(0, drift=1e-9), trial(1, drift=0.0)) == 1


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


def test_with_rising_damage_the_start_does_not_matter():
    for first in range(SMALLEST + 1, LARGEST):
        curve = window(first, 99, damage=lambda place: 0.01 * 3.0**place)
        assert {place_of(searched(curve, start=start)[0]) for start in PLACES} == {first}


# ---- Which layers


def one(layers, drift, *, unseen=0.0, forgot=True):
    own = trial(0, drift=drift, unseen=unseen, layers=layers, forgot=forgot)
    return Search((own,), 0 if forgot else None, not forgot)


def chosen_of(**searches):
    asked = []

    def search(layers, start):
        asked.append(layers)
        assert start == START
        return searches[layers]

    layers, found, trials = choose(search, layers=tuple(searches), start=START)
    assert found is searches[layers]
    assert trials == [searches[name].trials[0] for name in asked]  # everything that ran is reported
    return layers, asked


def test_other_layers_are_taken_only_where_they_halve_the_damage():
    damage = 10 * HARMLESS
    assert chosen_of(all=one("all", damage), body=one("body", WORTH * damage * 0.99))[0] == "body"
    assert chosen_of(all=one("all", damage), body=one("body", WORTH * damage * 1.01))[0] == "all"


def test_each_choice_has_to_halve_the_damage_of_the_one_that_was_taken_before():
    searches = {"all": one("all", 1.0), "body": one("body", 0.4), "head": one("head", 0.3)}
    assert chosen_of(**searches)[0] == "body"
    assert chosen_of(**{**searches, "head": one("head", 0.19)})[0] == "head"
    assert chosen_of(**{**searches, "body": one("body", 0.6)})[0] == "head"


def test_less_damage_buys_no_unseen_samples():
    assert chosen_of(all=one("all", 1.0), head=one("head", 0.1, unseen=UNSEEN + 0.01))[0] == "all"
    assert chosen_of(all=one("all", 1.0), head=one("head", 0.1, unseen=UNSEEN - 0.01))[0] == "head"


def test_where_all_layers_are_harmless_nothing_else_is_tried():
    assert chosen_of(all=one("all", HARMLESS), body=one("body", 0.0), head=one("head", 0.0)) == ("all", ["all"])
    layers, asked = chosen_of(all=one("all", 3 * HARMLESS), body=one("body", HARMLESS), head=one("head", 0.0))
    assert (layers, asked) == ("body", ["all", "body"])


def test_where_all_layers_do_not_forget_any_choice_that_does_is_taken():
    assert chosen_of(all=one("all", 0.0, forgot=False), body=one("body", 9.0), head=one("head", 8.0))[0] == "body"
    nothing = {name: one(name, 0.0, forgot=False) for name in ("all", "body", "head")}
    assert chosen_of(**nothing) == ("all", ["all", "body", "head"])


def test_a_choice_that_does_not_forget_never_replaces_one_that_does():
    assert chosen_of(all=one("all", 9.0), body=one("body", 0.0, forgot=False))[0] == "all"


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
