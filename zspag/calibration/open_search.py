"""The search for layers and rate: which trials are run, and which one is taken.

A gentler rate than the chosen one was tried, and did not forget or did more damage. A larger one was tried, too, and
was no better. Only the ends of the whole range can end the search earlier; ``at_edge`` then says so.

Invariant: the search sees trials, and nothing else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from zspag.outcome import Trial

SMALLEST, LARGEST = -10, 5  # steps of about a factor 3, as in 0.1, 0.3, 1: rates from 1e-5 to 300
ALIKE = 2.0  # damages within this factor are alike, and the gentler rate is taken: held-out proxies overrate fast ones
UNSEEN = 0.02  # held-out accuracy by which a run may be worse than the best one and still be chosen for its damage
HARMLESS = 0.03  # nats of damage below which no other choice of layers is looked for
WORTH = 0.5  # share of the damage of all layers that another choice must stay below to be taken


def rate_at(place: int) -> float:
    """Return the rate at a step of the scale ..., 0.1, 0.3, 1, 3, ...

    Example:
        >>> [rate_at(place) for place in (-3, -2, 0, 1)]
        [0.03, 0.1, 1.0, 3.0]
    """
    decade, odd = divmod(place, 2)
    return float(f"{3 if odd else 1}e{decade}")


@dataclass(frozen=True)
class Search:
    """Trials of one choice of layers over rates, smallest first, and the index of the best (None: nothing forgets)."""

    trials: tuple[Trial, ...]
    best: int | None
    at_edge: bool


def choose(
    search: Callable[[str, int], Search], *, layers: Sequence[str], start: int
) -> tuple[str, Search, list[Trial]]:
    """Search the rate for all layers, and for other choices of layers where all layers do damage.

    Args:
        search: Maps a choice of layers and a first step of the scale to a search.
        layers: Choices in the order of preference.
        start: First step of the scale.

    Returns:
        The choice, its search, and the trials of all searches. CHOICE: a choice has to halve the damage of the one
        before it: held-out proxies tell good from bad, but rank the good ones poorly.
    """
    chosen = layers[0]
    tried: list[Trial] = []
    best = search(chosen, start)
    tried += best.trials
    for other in layers[1:]:
        if best.best is not None and _damage(best.trials[best.best]) <= HARMLESS:
            break
        found = search(other, start)
        tried += found.trials
        if found.best is not None and (best.best is None or _better(found, best)):
            chosen, best = other, found
    return chosen, best, tried


def _better(found: Search, best: Search) -> bool:
    assert found.best is not None
    assert best.best is not None
    own, other = found.trials[found.best], best.trials[best.best]
    return _damage(own) < WORTH * _damage(other) and _unseen(own) <= _unseen(other) + UNSEEN


def search_rate(attempt: Callable[[float], Trial], *, start: int) -> Search:
    """Search the rate from ``rate_at(start)``, in both directions.

    Args:
        attempt: Runs at a rate.
        start: First step of the scale.

    Returns:
        The trials, smallest rate first. The best one forgets; among those that do, it forgets unseen samples about as
        well as any, and does about as little damage as any of these; among equals it is the gentlest.
    """
    tried: dict[int, Trial] = {}

    def at(place: int) -> Trial:
        if place not in tried:
            tried[place] = attempt(rate_at(place))
        return tried[place]

    rate = start
    while not at(rate).forgot and tried[rate].forget_accuracy is not None and rate < LARGEST:
        rate += 1
    if tried[rate].forget_accuracy is None:  # ruined: only below can there be a rate that forgets
        while at(rate).forget_accuracy is None and rate > SMALLEST:
            rate -= 1  # up to the first sound one: if that does not forget, a gentler one forgets even less
    while rate > SMALLEST and at(rate - 1).forgot:
        rate -= 1
    while (best := _best(tried)) is not None and best == max(tried) and best < LARGEST:
        at(best + 1)
    order = sorted(tried)
    edge = best is None or best == LARGEST or (best == SMALLEST and tried[SMALLEST].forgot)
    return Search(tuple(tried[one] for one in order), None if best is None else order.index(best), edge)


def _best(tried: dict[int, Trial]) -> int | None:
    forgot = {rate: trial for rate, trial in tried.items() if trial.forgot}
    if not forgot:
        return None
    fewest = min(map(_unseen, forgot.values()))
    good = {rate: _damage(trial) for rate, trial in forgot.items() if _unseen(trial) <= fewest + UNSEEN}
    least = min(good.values())
    return min(rate for rate, damage in good.items() if damage <= least * ALIKE)


def _damage(trial: Trial) -> float:
    return float("inf") if trial.drift is None else trial.drift


def _unseen(trial: Trial) -> float:
    return 1.0 if trial.forget_accuracy is None else trial.forget_accuracy


def least_bad(trials: Sequence[Trial]) -> Trial:
    """Return the sound trial that forgets most where none forgets enough, the gentlest of equals."""
    sound = [trial for trial in trials if trial.forget_accuracy is not None] or list(trials)
    return min(sound, key=lambda trial: (_unseen(trial), trial.lr))


def layer_choices(names: Sequence[str], wanted: str) -> dict[str, tuple[str, ...]]:
    """Return the weights of every choice of layers: "all", "body" (all but the last used), "head" (the last used).

    Args:
        names: Weights that can move, in the order of their use.
        wanted: "auto" for every choice, or one of them.
    """
    every = {"all": tuple(names), "body": tuple(names[:-1]), "head": tuple(names[-1:])}
    if len(names) == 1:
        every = {"all": tuple(names)}
    return every if wanted == "auto" else {wanted: every.get(wanted, tuple(names))}
