"""Requests beyond one class (``lab.scenarios``) as figures and as words: what held, what failed, what the method said.

Invariant: nothing here sees a model; a request that was refused has no bar and ends its curve.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd

Panel = dict[str, Any]
TITLES = {"original": "original", "retrained": "retrained", "zs_pag": "ZS-PAG"}
IN_A_ROW = {
    "in a row": ("told what is gone", "where the method is told what is gone"),
    "in a row, untold": ("not told", "where it is not told"),
}
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
    """Return what comes back, what is lost and what drifts as one request follows the other: means, seeds as bands."""
    own = rows[rows["kind"].isin(IN_A_ROW) & rows["acc_retain"].notna()]
    own = own.assign(back=[max(by_class) for by_class in own["by_class"]])
    shown = {
        "back": ("best known of the classes forgotten so far (%)", 100, PERCENT),
        "over_unlearning": ("over-unlearning (points)", 100, {}),
        "drift": ("drift (nats)", 1, {}),
    }
    panels = []
    for column, (label, factor, limits) in shown.items():
        series = {}
        for kind, (name, _) in IN_A_ROW.items():
            known = own[own["kind"] == kind].dropna(subset=[column])  # a ruined model has no drift
            groups = known.astype({column: float}).groupby("step")[column]
            ends = {"y": groups.mean(), "low": groups.min(), "high": groups.max()}
            curve: dict[str, list[float]] = {end: (factor * values).tolist() for end, values in ends.items()}
            series[name] = {"x": [int(step) for step in groups.groups]} | curve
        panels.append({"xlabel": "requests so far", "ylabel": label, "series": series} | dict(limits))
    return panels


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
    """Return a bar per method and group: the mean over seeds, in %; a method that was refused everywhere has none."""
    means = rows.astype({column: float}).groupby(["method", "request"])[column].mean().dropna() * 100
    series = {title: [float(means.get((name, group), 0.0)) for group in groups] for name, title in TITLES.items()}
    return {"groups": list(groups), "series": series}


def said(rows: pd.DataFrame) -> list[str]:
    """Return a line per kind of request and message of the method: refusals first, then warnings.

    Args:
        rows: Of ``lab.scenarios.table``.
    """
    refused = rows[rows["refused"].fillna("") != ""].drop_duplicates(["kind", "refused"])
    warned = rows[["kind", "warned"]].explode("warned").dropna().drop_duplicates()
    return [
        *(f"{row['kind']}: refused. {row['refused']}" for row in refused.to_dict("records")),
        *(f"{row['kind']}: done, with a warning. {row['warned']}" for row in warned.to_dict("records")),
    ]


def summary(rows: pd.DataFrame) -> list[str]:
    """Return what the method made of each kind of request that it did not refuse, in a sentence each.

    Args:
        rows: Of ``lab.scenarios.table``; means over seeds.
    """
    done = rows[rows["acc_retain"].notna()]
    own = {str(kind): part for kind, part in done[done["method"] == "zs_pag"].groupby("kind")}
    lines = []
    if "at once" in own:
        part = own["at once"]
        most, lost = max(map(len, part["classes"])), 100 * part["over_unlearning"].mean()
        known = _percent(part["acc_forget"])
        lines.append(f"At once, up to {most} classes: {known} still recognized, {lost:+.2f} points over-unlearned.")
    for kind, (_, told) in IN_A_ROW.items():
        if kind in set(done["kind"]):
            last = done[done["kind"] == kind].sort_values("step").groupby("seed").last()
            best = _percent(pd.Series([max(by_class) for by_class in last["by_class"]]))
            lines.append(
                f"In a row, {told}: after {last['step'].min():.0f} requests {best} of the best known forgotten class is"
                f" still recognized, with a drift of {last['drift'].astype(float).mean():.4f} nats."
            )
    if "part of a class" in own:
        target = done[(done["kind"] == "part of a class") & (done["method"] == "retrained")]
        left, wanted = (_percent(part["acc_rest"]) for part in (own["part of a class"], target))
        lines.append(f"Half of a class: of the other half {left} is still recognized, {wanted} after retraining.")
    if "across classes" in own:
        kept = _percent(own["across classes"]["acc_retain"])
        lines.append(f"Samples across classes, where not refused: {kept} of the test images are still recognized.")
    return lines


def _percent(values: "pd.Series[float]") -> str:
    return f"{100 * values.astype(float).mean():.1f} %"
