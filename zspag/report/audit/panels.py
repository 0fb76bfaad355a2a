"""Panels of an audit's figures: the same few shapes for every data set, so that they can stand side by side.

Invariant: nothing here sees a model. A network that was ruined everywhere has no curve.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from zspag.report.audit.findings import OWN, TITLES, Findings

Panel = dict[str, Any]
PERCENT = {"ylim": [0, 105]}


def probe_panels(found: Findings, *, title: str) -> list[Panel]:
    """Return recall of the forget class by a linear probe, and CKA to the retrained network, over the stages."""
    probes, likeness = found["probes"], found["likeness"].dropna(subset=["cka"])
    shared = {"title": title, "xlabel": "layer whose input is probed (the last: the head)"}
    recall = _curves(probes[probes["probe"] == "linear"], "depth", "known", factor=100)
    alike = {"series": _curves(likeness, "depth", "cka"), "ylabel": "CKA to the retrained network", "ylim": [0, 1.05]}
    return [shared | {"series": recall, "ylabel": "forget class, linear probe (%)"} | PERCENT, shared | alike]


def relearning_panels(found: Findings, *, title: str, rates: Sequence[float] | None = None) -> list[Panel]:
    """Return forget accuracy, then retained accuracy, over the steps of training on the class: a panel per rate.

    Every network is trained under its own head.
    """
    curves = found["curves"][(found["curves"]["shown"] == "the class") & (found["curves"]["head"] == OWN)]
    return _training_panels(curves if rates is None else curves[curves["lr"].isin(rates)], title=title)


def _training_panels(curves: pd.DataFrame, *, title: str) -> list[Panel]:
    rows = curves.assign(place=curves["step"].clip(lower=0.5))  # a logarithmic axis has no 0: the untouched network
    panels = []
    for column, label in {"acc_forget": "forget accuracy (%)", "acc_retain": "retained accuracy (%)"}.items():
        for lr, part in rows.groupby("lr", sort=False):
            series = {
                TITLES[method]: {"x": own["place"].tolist(), "y": (100 * own[column]).tolist()}
                for method, own in part.groupby("method", sort=False)
            }
            axes = {"xlabel": "steps (leftmost: none)", "ylabel": label, "xlog": True}
            panels.append({"title": f"{title}: rate {lr:g}"} | axes | {"series": series} | PERCENT | {"plain": True})
    return panels


def residual_panels(found: Findings, *, title: str) -> list[Panel]:
    """Return the share of moved forget images that is recognized, over the radius, per kind of move."""
    rows = found["residual"].assign(pixels=found["residual"]["radius"] * 255)
    axes = {"xlabel": "radius (255ths of the pixel range)", "ylabel": "forget images recognized (%)", "xlog": True}
    return [
        {"title": f"{title}: moved {moved}", "series": _curves(own, "pixels", "known", factor=100)} | axes | PERCENT
        for moved, own in rows.groupby("moved", sort=False)
    ]


def _curves(rows: pd.DataFrame, x: str, column: str, *, factor: float = 1) -> Panel:
    """Return a curve per network: mean over classes, seeds averaged first; the band spans the classes."""
    per_class = rows.groupby(["method", x, "forget"], sort=False)[column].mean() * factor
    methods = per_class.groupby("method", sort=False)
    return {TITLES[str(method)]: _banded(own.groupby(x, sort=False)) for method, own in methods}


def _banded(groups: Any) -> dict[str, list[float]]:
    means = groups.mean()
    places = [float(place) for place in means.index]
    return {"x": places, "y": means.tolist(), "low": groups.min().tolist(), "high": groups.max().tolist()}
