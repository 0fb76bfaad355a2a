"""The bars of the zoo, each a function of rows: the measured value, on how many rows, and whether it is met.

A row of ours that failed meets no bar. Bars are about open models.

Invariant: a verdict is computed from rows; without rows it is "not measured", never "met".
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, median, stdev
from typing import Any

Row = dict[str, Any]

MET, NOT_MET, NOT_MEASURED = "met", "not met", "not measured"
LOST_MEDIAN, LOST_WORST = 0.1, 1.0  # points
UNSEEN = {200: 0.02, 50: 0.10}  # most of the class's unseen images, by forget images
FALSE_BY = 0.10  # how far unseen images may lie above the goal of a run that says "reached"
AGAINST_OLD = 0.2  # points, or two standard errors


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        name: What is measured.
        wanted: The bound, in words.
        value: What was measured, in words; "" where nothing was.
        n: Rows (or nets) that it rests on.
        failed: Rows among them that failed.
        verdict: "met", "not met" or "not measured".
    """

    name: str
    wanted: str
    value: str
    n: int
    failed: int
    verdict: str


def arm_rows(rows: Iterable[Row], arm: str) -> list[Row]:
    """Return the rows of one arm."""
    return [row for row in rows if row["arm"] == arm]


def sound(rows: Iterable[Row]) -> list[Row]:
    """Return the rows that did not fail."""
    return [row for row in rows if row["error"] is None]


def values(rows: Iterable[Row], measure: str) -> list[float]:
    """Return one measure of every sound row; what is not finite counts as infinite."""
    found = (row["measures"][measure] for row in sound(rows))
    return [math.inf if value is None else value for value in found]


def case(row: Row) -> tuple[str, int, int]:
    """Return what a row is about: net, forget class and forget images."""
    return row["net"], row["label"], row["samples"]


def falsely_reached(row: Row, *, goal: float) -> bool:
    """Return whether a run says "reached" while unseen images of the class lie far above the goal."""
    return bool(row["error"] is None and row["reached"] and row["measures"]["forget_unseen"] > goal + FALSE_BY)


def _bar(
    name: str,
    wanted: str,
    chosen: Sequence[Row],
    measure: str,
    most: float,
    fold: Callable[[list[float]], float],
    form: Callable[[float], str],
) -> Bar:
    """Compare one figure of one measure with its bound."""
    found, failed = values(chosen, measure), len(chosen) - len(sound(chosen))
    if not chosen:
        return Bar(name, wanted, "", 0, 0, NOT_MEASURED)
    if not found:
        return Bar(name, wanted, "", len(chosen), failed, NOT_MET)
    value = fold(found)
    return Bar(name, wanted, form(value), len(chosen), failed, MET if value <= most and not failed else NOT_MET)


def points(value: float) -> str:
    """Return points with two decimals."""
    return f"{value:+.2f}" if math.isfinite(value) else "not finite"


def percent(value: float) -> str:
    """Return a fraction as percent."""
    return f"{100 * value:.1f} %"


def lost_bars(rows: Sequence[Row], arm: str = "zs_pag") -> list[Bar]:
    """Return the bars on retained accuracy."""
    own = arm_rows(rows, arm)
    return [
        _bar("points lost, median", f"<= {LOST_MEDIAN}", own, "lost_points", LOST_MEDIAN, median, points),
        _bar("points lost, worst", f"<= {LOST_WORST:g}", own, "lost_points", LOST_WORST, max, points),
    ]


def unseen_bars(rows: Sequence[Row], arm: str = "zs_pag") -> list[Bar]:
    """Return the bars on unseen images of the class, by the number of forget images."""
    own = arm_rows(rows, arm)
    many = [row for row in own if row["samples"] >= 200]
    fifty = [row for row in own if row["samples"] == 50]
    return [
        _bar("forget unseen, 200 images or more, worst", "<= 2 %", many, "forget_unseen", UNSEEN[200], max, percent),
        _bar("forget unseen, 50 images, worst", "<= 10 %", fifty, "forget_unseen", UNSEEN[50], max, percent),
    ]


def reached_bar(rows: Sequence[Row], *, goal: float, arm: str = "zs_pag") -> Bar:
    """Return the bar on runs that say "reached" and are wrong by more than ``FALSE_BY``."""
    own = arm_rows(rows, arm)
    name, wanted = "false 'reached' by over 10 points", "0 runs"
    if not own:
        return Bar(name, wanted, "", 0, 0, NOT_MEASURED)
    wrong, failed = sum(falsely_reached(row, goal=goal) for row in own), len(own) - len(sound(own))
    return Bar(name, wanted, f"{wrong} runs", len(own), failed, NOT_MET if wrong or failed else MET)


@dataclass(frozen=True)
class Drift:
    """Drift of one net beside its two controls, on the cases that all three have.

    Attributes:
        net: Name of the net.
        own: Median drift of ours, in nats.
        head_only: The same of the head-only control.
        delete: The same of DELETE.
        lowest: Cases in which ours drifts no further than either.
        n: Cases.
        verdict: Whether our median is at most that of both.
    """

    net: str
    own: float
    head_only: float
    delete: float
    lowest: int
    n: int
    verdict: str


def drifts(rows: Sequence[Row], arm: str = "zs_pag") -> list[Drift]:
    """Return the comparison of drifts, net by net."""
    found = {name: {case(row): row for row in sound(arm_rows(rows, name))} for name in (arm, "head_only", "delete")}
    answers = []
    for net in dict.fromkeys(row["net"] for row in rows):
        shared = [key for key in found[arm] if key[0] == net and all(key in part for part in found.values())]
        if not shared:
            answers.append(Drift(net, math.nan, math.nan, math.nan, 0, 0, NOT_MEASURED))
            continue
        each = {name: values([part[key] for key in shared], "drift") for name, part in found.items()}
        own, head, delete = (median(each[name]) for name in (arm, "head_only", "delete"))
        lowest = sum(a <= min(b, c) for a, b, c in zip(each[arm], each["head_only"], each["delete"], strict=True))
        answers.append(Drift(net, own, head, delete, lowest, len(shared), MET if own <= min(head, delete) else NOT_MET))
    return answers


def drift_bar(rows: Sequence[Row]) -> Bar:
    """Return the bar on drift: nets whose median is at most that of both controls."""
    each = [one for one in drifts(rows) if one.verdict != NOT_MEASURED]
    name, wanted = "drift at most that of head only and DELETE", "every net"
    if not each:
        return Bar(name, wanted, "", 0, 0, NOT_MEASURED)
    met = sum(one.verdict == MET for one in each)
    return Bar(name, wanted, f"{met} of {len(each)} nets", len(each), 0, MET if met == len(each) else NOT_MET)


def worse_than_old(rows: Sequence[Row]) -> dict[str, tuple[float, float, int]]:
    """Return per net how many points more than fa40f86 ours lost: mean, two standard errors, cases."""
    new, before = ({case(row): row for row in sound(arm_rows(rows, arm))} for arm in ("zs_pag", "fa40f86"))
    answers = {}
    for net in dict.fromkeys(key[0] for key in new if key in before):
        more = [
            new[key]["measures"]["lost_points"] - before[key]["measures"]["lost_points"]
            for key in new
            if key[0] == net and key in before
        ]
        error = 2 * stdev(more) / math.sqrt(len(more)) if len(more) > 1 else math.inf
        answers[net] = (mean(more), error, len(more))
    return answers


def old_bar(rows: Sequence[Row]) -> Bar:
    """Return the bar against fa40f86: no net loses more than ``AGAINST_OLD`` points, or two standard errors."""
    each = worse_than_old(rows)
    name, wanted = "points lost beyond fa40f86, worst net", f"<= {AGAINST_OLD} or 2 s.e."
    if not each:
        return Bar(name, wanted, "", 0, 0, NOT_MEASURED)
    kept = all(more <= max(AGAINST_OLD, error if n > 1 else 0) for more, error, n in each.values())
    return Bar(name, wanted, points(max(more for more, _, _ in each.values())), len(each), 0, MET if kept else NOT_MET)


def all_bars(rows: Sequence[Row], *, goal: float) -> list[Bar]:
    """Return every bar that rows decide."""
    return [*lost_bars(rows), *unseen_bars(rows), drift_bar(rows), reached_bar(rows, goal=goal), old_bar(rows)]


def time_bars(timing: dict[str, Any] | None) -> list[Bar]:
    """Return the bars on time, from a run in which both sides took turns."""
    entries = [] if timing is None else timing["nets"]
    every, plain = ([e["ratio"] for e in entries if e["norm"] in kinds or not kinds] for kinds in ((), ("none",)))
    bars = [
        _time("fa40f86 over ours, any net, least", ">= 1", every, 1.0),
        _time("fa40f86 over ours, nets without norm, least", ">= 3", plain, 3.0),
    ]
    shares = {e["net"]: e["training_share"] for e in entries if e.get("training_share")}
    net = "cifar10-resnet18"  # conv7's share is measured in three rounds: results/bench
    found = [1 / shares[net]] if net in shares else []
    bars.append(_time("ResNet-18, 3 epochs: training over ours", ">= 20", found, 20))
    lenet = [e["ours_seconds"] for e in entries if e["net"] == "mnist-lenet" and e["samples"] == 50]
    name, wanted = "LeNet, 50 images, seconds", "<= 10"
    if not lenet:
        return [*bars, Bar(name, wanted, "", 0, 0, NOT_MEASURED)]
    return [*bars, Bar(name, wanted, f"{lenet[0]:.1f}", 1, 0, MET if lenet[0] <= 10 else NOT_MET)]


def _time(name: str, wanted: str, ratios: Sequence[float | None], least: float) -> Bar:
    found = [ratio for ratio in ratios if ratio is not None]
    failed = len(ratios) - len(found)
    if not ratios:
        return Bar(name, wanted, "", 0, 0, NOT_MEASURED)
    worst = min(found, default=0.0)
    return Bar(name, wanted, f"{worst:.2f}", len(ratios), failed, MET if worst >= least and not failed else NOT_MET)
