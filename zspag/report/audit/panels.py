"""Panels of an audit's figures: the same few shapes for every data set, so that they can stand side by side.

Invariant: nothing here sees a model. A network that was ruined everywhere has no bar and no curve.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from zspag.report.audit.findings import OWN, TITLES, Findings
from zspag.report.tables import over_classes
from zspag.report.tables.averages import FEWEST

Panel = dict[str, Any]
ATTACKS = {name: name.replace("_", " ") for name in ("loss", "confidence", "entropy", "modified_entropy")}
ATTACKS["regression"] = "all four"
SPLITS = {"forget_train": "forget, training", "forget_test": "forget, test", "retain_test": "retained, test"}
PERCENT = {"ylim": [0, 105]}
RULER = ("original", "retrained", "zs_pag")  # both ends of it and what is measured: more bands hide each other


def membership_panels(found: Findings, *, title: str) -> list[Panel]:
    """Return AUC per attack and network; the dashed line is a blind attack."""
    bars = _bars(found["membership"], "attack", "auc", names=ATTACKS)
    labels = {"title": title, "xlabel": "score the attack looks at", "ylabel": "AUC of the attack"}
    return [bars | labels | {"lines": {"blind": 0.5}, "ylim": [0, 1.05]}]


def distance_panels(found: Findings, *, title: str) -> list[Panel]:
    """Return agreement with the retrained network, Jensen-Shannon divergence, and ZRF, per split and network."""
    shown: dict[str, tuple[str, float, Panel]] = {
        "agreement": ("agreement with the retrained network (%)", 100, PERCENT),
        "js": ("JS divergence to it (nats)", 1, {"ylim": [0, 0.75]}),
        "zrf": ("ZRF", 1, {"ylim": [0, 1.05]}),
    }
    panels = []
    for column, (label, factor, limits) in shown.items():
        bars = _bars(found["distance"], "split", column, names=SPLITS, factor=factor)
        panels.append(bars | {"title": title, "ylabel": label} | limits)
    return panels


def probe_panels(found: Findings, *, title: str) -> list[Panel]:
    """Return recall of the forget class by a linear probe, and CKA to the retrained network, over the stages."""
    probes, likeness = found["probes"], found["likeness"].dropna(subset=["cka"])
    shared = {"title": title, "xlabel": "layer whose input is probed (the last: the head)"}
    recall = _curves(probes[probes["probe"] == "linear"], "depth", "known", factor=100)
    alike = {"series": _curves(likeness, "depth", "cka"), "ylabel": "CKA to the retrained network", "ylim": [0, 1.05]}
    return [shared | {"series": recall, "ylabel": "forget class, linear probe (%)"} | PERCENT, shared | alike]


def restored_panels(found: Findings, *, title: str) -> list[Panel]:
    """Return what recognizes the forget class: the network, probes of its features, the original's head on them."""
    restored = found["restored"]
    asked = {
        "its own answer": restored.assign(known=restored["acc_forget_before"]),
        "nearest class mean": _last(found["probes"], "class means"),
        "nearest neighbours": _last(found["probes"], "neighbours"),
        "linear probe": _last(found["probes"], "linear"),
        "nonlinear probe": _last(found["probes"], "mlp"),
        "original's head": restored.assign(known=restored["acc_forget"]),
    }
    asked = {name: part for name, part in asked.items() if len(part)}  # older records lack two probes
    rows = pd.concat([part.assign(asked=name) for name, part in asked.items()], ignore_index=True)
    bars = _bars(rows, "asked", "known", names={name: name for name in asked}, factor=100)
    return [bars | {"title": title, "ylabel": "forget class recognized (%)"} | PERCENT]


def relearning_panels(found: Findings, *, title: str, rates: Sequence[float] | None = None) -> list[Panel]:
    """Return forget accuracy, then retained accuracy, over the steps of training on the class: a panel per rate.

    Every network is trained under its own head.
    """
    curves = found["curves"][(found["curves"]["shown"] == "the class") & (found["curves"]["head"] == OWN)]
    return _training_panels(curves if rates is None else curves[curves["lr"].isin(rates)], title=title)


def recovery_panels(found: Findings, *, title: str) -> list[Panel]:
    """Return forget accuracy, then retained accuracy, over the steps of training on other classes: a panel per rate."""
    return _training_panels(found["curves"][found["curves"]["shown"] == "other classes"], title=title)


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


def trace_panels(found: Findings, *, title: str) -> list[Panel]:
    """Return what outputs on forget images betray: entropy, labels, and the mass left on the class."""
    kinds = {
        "entropy_ks": "entropy (KS)",
        "label_distance": "predicted labels",
        "forget_mass": "probability of the class",
    }
    rows = found["streisand"].melt(["method", "forget", "seed"], list(kinds), var_name="kind")
    labels = {"title": title, "ylabel": "distance to the retrained network; probability", "ylim": [0, 1.05]}
    return [_bars(rows, "kind", "value", names=kinds) | labels]


def residual_panels(found: Findings, *, title: str) -> list[Panel]:
    """Return the share of moved forget images that is recognized, over the radius, per kind of move."""
    rows = found["residual"].assign(pixels=found["residual"]["radius"] * 255)
    axes = {"xlabel": "radius (255ths of the pixel range)", "ylabel": "forget images recognized (%)", "xlog": True}
    return [
        {"title": f"{title}: moved {moved}", "series": _curves(own, "pixels", "known", factor=100)} | axes | PERCENT
        for moved, own in rows.groupby("moved", sort=False)
    ]


def spread_panels(found: Findings, *, title: str) -> list[Panel]:
    """Return, class by class, membership AUC and linear probe of three networks; bands span the seeds."""
    attacks = found["membership"]
    shown = {
        "AUC of the attack on all four scores": (attacks[attacks["attack"] == "regression"], "auc", 1),
        "forget class, linear probe (%)": (_last(found["probes"], "linear"), "known", 100),
    }
    panels = []
    for label, (rows, column, factor) in shown.items():
        few = rows[rows["method"].isin(RULER)].assign(shown=factor * rows[column])
        series = {
            TITLES[method]: _banded(own.groupby("forget")["shown"]) for method, own in few.groupby("method", sort=False)
        }
        panels.append({"title": title, "xlabel": "forgotten class", "ylabel": label, "series": series})
    return panels


def _last(probes: pd.DataFrame, probe: str) -> pd.DataFrame:
    """Return the rows of a probe of what enters the head."""
    return probes[(probes["probe"] == probe) & (probes["depth"] == probes["depth"].max())]


def _bars(rows: pd.DataFrame, by: str, column: str, *, names: Mapping[str, str], factor: float = 1) -> Panel:
    """Group by ``by``; a network's bar is its mean over classes, with the interval from ``FEWEST`` classes on."""
    several = rows["forget"].nunique() >= FEWEST
    means = [over_classes(rows[rows[by] == group], column) for group in names]
    panel: Panel = {"groups": list(names.values()), "series": {}, "errors": {}}
    for method in rows["method"].unique():
        panel["series"][TITLES[method]] = [factor * mean[method]["mean"] for mean in means]
        if several:
            panel["errors"][TITLES[method]] = [factor * mean[method]["half"] for mean in means]
    return panel


def _curves(rows: pd.DataFrame, x: str, column: str, *, factor: float = 1) -> Panel:
    """Return a curve per network: mean over classes, seeds averaged first; the band spans the classes."""
    per_class = rows.groupby(["method", x, "forget"], sort=False)[column].mean() * factor
    methods = per_class.groupby("method", sort=False)
    return {TITLES[str(method)]: _banded(own.groupby(x, sort=False)) for method, own in methods}


def _banded(groups: Any) -> dict[str, list[float]]:
    means = groups.mean()
    places = [float(place) for place in means.index]
    return {"x": places, "y": means.tolist(), "low": groups.min().tolist(), "high": groups.max().tolist()}
