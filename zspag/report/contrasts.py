"""What the rows of an ablation say: means over its cases, and panels that look alike for every axis.

Invariant: nothing here sees a model. A value at which any case could not run has no mean.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

Panel = dict[str, Any]

COLUMNS = ("acc_forget", "acc_retain", "over_unlearning", "drift", "hit_rate", "free", "eps", "lr", "samples")
# Per column: label, factor, limits, whether logarithmic. The limits are the same in every figure, so that heights can
# be compared between figures; what lies beyond them, such as a ruined model, is drawn at the edge.
_AXES: dict[str, tuple[str, float, tuple[float, float], bool]] = {
    "acc_forget": ("forget accuracy (%)", 100, (-3, 103), False),
    "over_unlearning": ("over-unlearning (points)", 100, (-1.5, 6.5), False),
    "drift": ("drift (nats)", 1, (3e-5, 3), True),
    "hit_rate": ("attacks that arrive (%)", 100, (-3, 103), False),
    "free": ("directions left free (%)", 100, (-3, 103), False),
    "eps": ("radius of the rule (pixels)", 1, (0, 1.05), False),
}
OUTCOME = ("acc_forget", "over_unlearning", "drift")
FORGOTTEN = 0.05  # a class of digits has 36 test images; of these one or two may still be recognized


def means(frame: pd.DataFrame, axis: str) -> pd.DataFrame:
    """Return one line per value of an axis, in its order: means over cases, "reached" by all, "failed" in any."""
    groups = frame[frame["axis"] == axis].groupby("value", sort=False)
    table = groups[list(COLUMNS)].agg(lambda values: values.mean(skipna=False))
    failed = groups["failed"].agg(lambda reasons: bool((reasons != "").any()))
    reached = groups["reached"].agg(lambda flags: bool(flags.eq(True).all()))
    return table.assign(reached=reached, failed=failed)


def forgotten(table: pd.DataFrame) -> pd.DataFrame:
    """Return the lines of ``means`` at which every run reached its goal and unseen images are forgotten as well."""
    return table[table["reached"] & (table["acc_forget"] <= FORGOTTEN)]


def ends(table: pd.DataFrame) -> tuple[Any, Any, float]:
    """Return the first and the last value that ran, and the drift of the first over that of the last.

    Where nothing ran, all three are NaN.
    """
    ran = table[~table["failed"]]
    if ran.empty:
        return math.nan, math.nan, math.nan
    return ran.index[0], ran.index[-1], float(ran["drift"].iloc[0] / ran["drift"].iloc[-1])


def verdict(table: pd.DataFrame, *, own: Any) -> str:
    """Return half a sentence: how many values forget, which drifts least, and how the profile's own compares."""
    drift = forgotten(table)["drift"]
    text = f"{len(drift)} of {len(table)} values forget"
    if drift.empty:
        return text
    least, most = drift.idxmin(), drift.idxmax()
    text += f", with a drift from {drift[least]:.4f} ({word(least)}) to {drift[most]:.4f} nats ({word(most)})"
    if own in drift.index:
        text += f"; the profile's own value, {word(own)}, drifts {drift[own] / drift[least]:.1f} times the least"
    elif own in table.index:
        text += f"; the profile's own value, {word(own)}, is not among them"
    return text


def word(value: Any) -> str:
    """Return a value of an axis as text, numbers with three digits."""
    return f"{value:.3g}" if isinstance(value, (int, float)) else str(value)


def curve_panels(
    frame: pd.DataFrame,
    titles: Mapping[str, str],
    *,
    columns: Sequence[str] = OUTCOME,
    x: str = "value",
    options: Mapping[str, Any],
) -> list[Panel]:
    """Return one panel per column for ``plots.curves``: mean over cases, the band from the least to the largest case.

    Args:
        frame: Rows of ``ablation.table``.
        titles: Axes to draw, each with the name of its curve.
        columns: What to draw.
        x: Column that holds the place on the axis.
        options: What all panels share, such as ``xlabel``.
    """
    panels = []
    for column in columns:
        series = {title: _points(frame, axis, column, x) for axis, title in titles.items()}
        panels.append(_panel(column) | {"series": series} | dict(options))
    return panels


def bar_panels(
    frame: pd.DataFrame, titles: Mapping[str, str], *, columns: Sequence[str] = OUTCOME, options: Mapping[str, Any]
) -> list[Panel]:
    """Return one panel per column for ``plots.bars``: means over cases, 0 where an axis lacks a value of another."""
    panels = []
    for column in columns:
        found = {title: _points(frame, axis, column, "value") for axis, title in titles.items()}
        heights = {title: dict(zip(points["x"], points["y"], strict=True)) for title, points in found.items()}
        groups = list(dict.fromkeys(value for bars in heights.values() for value in bars))
        series = {title: [bars.get(group, 0) for group in groups] for title, bars in heights.items()}
        panels.append(_panel(column) | {"groups": groups, "series": series} | dict(options))
    return panels


def _panel(column: str) -> Panel:
    label, _, limits, logarithmic = _AXES[column]
    return {"ylabel": label, "ylim": list(limits), "ylog": logarithmic}


def _points(frame: pd.DataFrame, axis: str, column: str, x: str) -> dict[str, list[Any]]:
    own = frame[frame["axis"] == axis]
    _, factor, limits, _ = _AXES[column]
    points: dict[str, list[Any]] = {"x": [], "y": [], "low": [], "high": []}
    for value, rows in own.groupby("value", sort=False):
        if (rows["failed"] != "").any():
            continue
        scaled = factor * rows[column].astype(float)
        points["x"].append(value if x == "value" else float(rows[x].mean()))
        shown = pd.Series({"y": scaled.mean(), "low": scaled.min(), "high": scaled.max()}).clip(*limits)
        for name, number in shown.items():
            points[str(name)].append(float(number))
    return points
