"""Panels of the figures of requests, from the rows of ``requests.table``.

Invariant: nothing here sees a model; a request that was refused has no bar and ends its curve.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from zspag.lab.experiment import TITLES

Panel = dict[str, Any]
COMPARED = ("original", "retrained", "zs_pag")
PERCENT = {"ylim": [0, 105]}


def together_panels(rows: pd.DataFrame) -> list[Panel]:
    """Return forget accuracy, over-unlearning and gap of the requests to forget several classes at once."""
    own = rows[rows["kind"] == "at once"]
    shown = {
        "acc_forget": ("forget accuracy (%)", PERCENT),
        "over_unlearning": ("over-unlearning (points)", {}),
        "gap": ("gap to retraining (points)", {}),
    }
    return [
        _bars(own, own["request"].unique(), column) | {"xlabel": "forgotten at once", "ylabel": label} | dict(limits)
        for column, (label, limits) in shown.items()
    ]


def row_panels(rows: pd.DataFrame) -> list[Panel]:
    """Return what comes back, what is lost and what drifts as one request follows the other."""
    own = rows[rows["kind"].isin(["in a row", "in a row, untold"]) & rows["acc_retain"].notna()]
    own = own.assign(back=[max(by_class) for by_class in own["by_class"]])
    names = {"in a row": "told what is gone", "in a row, untold": "not told"}
    shown = {
        "back": ("best known of the classes forgotten so far (%)", 100, PERCENT),
        "over_unlearning": ("over-unlearning (points)", 100, {}),
        "drift": ("drift (nats)", 1, {}),
    }
    return [
        {"xlabel": "requests so far", "ylabel": label} | _curves(own, names, column, factor) | dict(limits)
        for column, (label, factor, limits) in shown.items()
    ]


def part_panels(rows: pd.DataFrame) -> list[Panel]:
    """Return what a part of a class, and samples across classes, come to: what is named, and what shall stay."""
    parts = {"acc_forget_train": "named", "acc_rest": "others of the class", "acc_forget": "test images"}
    panels = []
    for kind, title in {"part of a class": "half of a class", "across classes": "samples across classes"}.items():
        own = rows[(rows["kind"] == kind) & rows["acc_retain"].notna()]
        long = own.melt(["request", "method"], list(parts), var_name="part")
        long["request"] = long["request"] + ": " + long["part"].map(parts)
        panel = _bars(long, sorted(long["request"].unique()), "value")
        panels.append(panel | {"title": title, "ylabel": "recognized (%)"} | PERCENT)
    return panels


def _bars(rows: pd.DataFrame, groups: Sequence[str], column: str) -> Panel:
    """A bar per method and group: the mean over seeds, in %; a method that was refused in any of them has none."""
    panel: Panel = {"groups": list(groups), "series": {}}
    for method in COMPARED:
        own = rows[rows["method"] == method].set_index("request")[column].astype(float).dropna()
        heights = [100 * float(own[own.index == group].mean()) if group in own.index else 0.0 for group in groups]
        panel["series"][TITLES[method]] = heights
    return panel


def _curves(rows: pd.DataFrame, names: Mapping[str, str], column: str, factor: float) -> Panel:
    """A curve per kind: means over seeds, bands that span them."""
    series = {}
    for kind, name in names.items():
        known = rows[rows["kind"] == kind].dropna(subset=[column])  # a ruined model has no drift
        groups = known.astype({column: float}).groupby("step")[column]
        ends = {"y": groups.mean(), "low": groups.min(), "high": groups.max()}
        series[name] = {"x": [int(step) for step in groups.groups]} | {
            end: (factor * values).tolist() for end, values in ends.items()
        }
    return {"series": series}
