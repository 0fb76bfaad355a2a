"""Curves over the learning rate: points with intervals, safe windows, and the panels that ``plots.curves`` draws.

Invariant: nothing here sees a model; a window is read off means over classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from zspag.report.tables.averages import FEWEST, SAFE_FORGET, SAFE_RETAIN, over_classes

Panel = dict[str, Any]


def curve(frame: pd.DataFrame, method: str, column: str) -> dict[str, list[float]]:
    """Return rate against the mean over classes of a column, with its interval, ready for ``plots.curves``."""
    own = frame[(frame["method"] == method) & frame["lr"].notna()]
    points: dict[str, list[float]] = {"x": [], "y": [], "low": [], "high": []}
    for lr, rows in own.groupby("lr"):
        here = over_classes(rows, column)[method]
        points["x"].append(float(lr))
        points["y"].append(here["mean"])
        points["low"].append(here.get("low", here["mean"] - here["half"]))
        points["high"].append(here.get("high", here["mean"] + here["half"]))
    return points


def safe_rates(frame: pd.DataFrame, method: str) -> list[float]:
    """Return the longest run of neighbouring rates at which the method forgets and retains, on average over classes.

    Safe means mean acc_forget <= 1 % and mean over-unlearning <= 0.5 points on test data.
    """
    own = frame[(frame["method"] == method) & frame["lr"].notna()]
    per_class = own.groupby(["lr", "forget"])[["acc_forget", "over_unlearning"]].mean()
    means = per_class.groupby("lr").mean()
    safe = (means["acc_forget"] <= SAFE_FORGET) & (means["over_unlearning"] <= SAFE_RETAIN)
    best: list[float] = []
    current: list[float] = []
    for lr, holds in safe.items():
        current = [*current, float(lr)] if holds else []
        best = max(best, current, key=len)
    return best


def window(rates: Sequence[float]) -> float:
    """Return the width of a safe window as its largest rate over its smallest: 1 for a single rate, 0 for none."""
    return rates[-1] / rates[0] if rates else 0.0


def window_text(frame: pd.DataFrame, method: str) -> str:
    """Return a safe window in words; ≤ or ≥ marks an end that is also the ladder's, because nobody looked beyond it."""
    rates, tried = safe_rates(frame, method), frame.loc[frame["method"] == method, "lr"]
    if not rates:
        return "none"
    low = "≤ " if rates[0] == tried.min() else ""
    high = "≥ " if rates[-1] == tried.max() else ""
    if len(rates) == 1:
        return f"{high or low}{rates[0]:g} only"
    return f"{low}{rates[0]:g} – {high}{rates[-1]:g}"


def ladder_panels(frame: pd.DataFrame, methods: Sequence[str], titles: Mapping[str, str]) -> Panel:
    """Return the three panels of learning-rate curves for ``plots.curves``: forgetting, over-unlearning, drift.

    Of fewer than ``FEWEST`` classes no interval is drawn: that of two is 13 standard errors wide and hides every curve.
    """
    drawn = ("y", "low", "high") if frame["forget"].nunique() >= FEWEST else ("y",)
    axes: dict[str, tuple[str, int, dict[str, float], Panel]] = {
        "acc_forget": ("forget accuracy on test images (%)", 100, {"1 %": 100 * SAFE_FORGET}, {"ylim": [-3, 103]}),
        "over_unlearning": ("over-unlearning (points)", 100, {"half a point": 100 * SAFE_RETAIN}, {"ylim": [-1, 8]}),
        "drift": ("drift (nats)", 1, {}, {"ylog": True, "ylim": [1e-4, 30]}),
    }
    panels = []
    for column, (label, factor, lines, extra) in axes.items():
        series: Panel = {}
        for method in methods:
            points = curve(frame, method, column)
            heights = {key: [factor * value for value in points[key]] for key in drawn}
            series[titles[method]] = {"x": points["x"]} | heights
        shared = {"series": series, "xlabel": "learning rate", "ylabel": label, "xlog": True, "lines": lines}
        panels.append(shared | extra)
    return {"panels": panels, "columns": 3, "size": [4.3, 3.9]}
