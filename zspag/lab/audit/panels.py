"""Panels of an audit's figures: the same few shapes for every data set, so that they can stand side by side.

Invariant: nothing here sees a model. A network that was ruined everywhere has no bar and no curve.
"""

from typing import Any

import pandas as pd

from zspag.lab.audit.findings import Findings
from zspag.lab.experiment import TITLES
from zspag.report.tables import over_classes

Panel = dict[str, Any]
ATTACKS = {
    "loss": "loss",
    "confidence": "confidence",
    "entropy": "entropy",
    "modified_entropy": "modified entropy",
    "regression": "all four",
}
SPLITS = {"forget_train": "forget, training", "forget_test": "forget, test", "retain_test": "retained, test"}
PERCENT = {"ylim": [0, 105]}
RULER = ("original", "retrained", "zs_pag")  # both ends of it and what is measured: more bands hide each other


def membership_panels(found: Findings, *, title: str) -> list[Panel]:
    """Return AUC per attack and network; the dashed line is a blind attack."""
    return [
        _bars(found["membership"], "attack", "auc", names=ATTACKS)
        | {"title": title, "xlabel": "score the attack looks at", "ylabel": "AUC of the attack"}
        | {"lines": {"blind": 0.5}, "ylim": [0, 1.05]}
    ]


def distance_panels(found: Findings, *, title: str) -> list[Panel]:
    """Return agreement with the retrained network, Jensen-Shannon divergence, and ZRF, per split and network."""
    rows = found["distance"]
    shown: dict[str, tuple[str, float, Panel]] = {
        "agreement": ("agreement with the retrained network (%)", 100, PERCENT),
        "js": ("JS divergence to it (nats)", 1, {"ylim": [0, 0.75]}),
        "zrf": ("ZRF", 1, {"ylim": [0, 1.05]}),
    }
    return [
        _bars(rows, "split", column, names=SPLITS, factor=factor) | {"title": title, "ylabel": label} | limits
        for column, (label, factor, limits) in shown.items()
    ]


def probe_panels(found: Findings, *, title: str) -> list[Panel]:
    """Return recall of the forget class by a linear probe, and CKA to the retrained network, over the stages."""
    probes, likeness = found["probes"], found["likeness"]
    shared = {"title": title, "xlabel": "weighted layer whose input is probed (the last one: the head)"}
    return [
        shared
        | {"series": _curves(probes[probes["probe"] == "linear"], "depth", "known", factor=100)}
        | {"ylabel": "forget class, linear probe (%)"}
        | PERCENT,
        shared
        | {"series": _curves(likeness.dropna(subset=["cka"]), "depth", "cka")}
        | {"ylabel": "CKA to the retrained network", "ylim": [0, 1.05]},
    ]


def restored_panels(found: Findings, *, title: str) -> list[Panel]:
    """Return what recognizes the forget class: the network, two probes of its features, the original's head on them."""
    rows = pd.concat(
        [
            found["restored"].assign(asked="its own answer", known=found["restored"]["acc_forget_before"]),
            _last(found["probes"], "class means").assign(asked="nearest class mean"),
            _last(found["probes"], "linear").assign(asked="linear probe"),
            found["restored"].assign(asked="original's head", known=found["restored"]["acc_forget"]),
        ],
        ignore_index=True,
    )
    names = {name: name for name in rows["asked"].unique()}
    return [
        _bars(rows, "asked", "known", names=names, factor=100)
        | {"title": title, "ylabel": "forget class recognized (%)"}
        | PERCENT
    ]


def relearning_panels(found: Findings, *, title: str) -> list[Panel]:
    """Return forget accuracy, then retained accuracy, over the steps: a panel per rate at which the class is shown."""
    return _training_panels(found, "the class", title=title)


def recovery_panels(found: Findings, *, title: str) -> list[Panel]:
    """Return forget accuracy, then retained accuracy, over the steps: a panel per rate at which others are shown."""
    return _training_panels(found, "other classes", title=title)


def trace_panels(found: Findings, *, title: str) -> list[Panel]:
    """Return what outputs on forget images betray: entropy, labels, and the mass left on the class."""
    kinds = {
        "entropy_ks": "entropy (KS)",
        "label_distance": "predicted labels",
        "forget_mass": "probability of the class",
    }
    rows = found["streisand"].melt(["method", "forget", "seed"], list(kinds), var_name="kind")
    return [
        _bars(rows, "kind", "value", names=kinds)
        | {"title": title, "ylabel": "distance to the retrained network; probability", "ylim": [0, 1.05]}
    ]


def residual_panels(found: Findings, *, title: str) -> list[Panel]:
    """Return the share of moved forget images that is recognized, over the radius, per kind of move."""
    rows = found["residual"].assign(pixels=found["residual"]["radius"] * 255)
    return [
        {"title": f"{title}: moved {moved}", "series": _curves(own, "pixels", "known", factor=100)}
        | {"xlabel": "radius (255ths of the pixel range)", "ylabel": "forget images recognized (%)", "xlog": True}
        | PERCENT
        for moved, own in rows.groupby("moved", sort=False)
    ]


def spread_panels(found: Findings, *, title: str) -> list[Panel]:
    """Return, class by class, membership AUC and linear probe of three networks; bands span the seeds."""
    attacks = found["membership"]
    shown = {
        "AUC of the attack on all four scores": (attacks[attacks["attack"] == "regression"], "auc", 1),
        "forget class, linear probe (%)": (_last(found["probes"], "linear"), "known", 100),
    }
    return [
        {"title": title, "xlabel": "forgotten class", "ylabel": label, "series": _seeds(rows, column, factor=factor)}
        for label, (rows, column, factor) in shown.items()
    ]


def _training_panels(found: Findings, shown: str, *, title: str) -> list[Panel]:
    rows = found["curves"][found["curves"]["shown"] == shown]
    rows = rows.assign(place=rows["step"].clip(lower=0.5))  # a logarithmic axis has no 0: the untouched network
    kinds = {"acc_forget": "forget accuracy (%)", "acc_retain": "retained accuracy (%)"}
    return [
        {"title": f"{title}: rate {lr:g}", "xlabel": "steps (leftmost: none)", "ylabel": label, "xlog": True}
        | {"series": {TITLES[method]: _line(own, column) for method, own in part.groupby("method", sort=False)}}
        | PERCENT
        | {"plain": True}
        for column, label in kinds.items()
        for lr, part in rows.groupby("lr", sort=False)
    ]


def _line(rows: pd.DataFrame, column: str) -> dict[str, list[float]]:
    return {"x": rows["place"].tolist(), "y": (100 * rows[column]).tolist()}


def _last(probes: pd.DataFrame, probe: str) -> pd.DataFrame:
    """Return the rows of a probe of what enters the head."""
    return probes[(probes["probe"] == probe) & (probes["depth"] == probes["depth"].max())]


def _bars(rows: pd.DataFrame, by: str, column: str, *, names: dict[str, str], factor: float = 1) -> Panel:
    """Group by ``by``; a network's bar is its mean over classes, with the interval where three classes or more are."""
    several = rows["forget"].nunique() > 2  # the interval of two classes is 13 standard errors wide
    panel: Panel = {"groups": list(names.values()), "series": {}, "errors": {}}
    for method, own in rows.groupby("method", sort=False):
        means = [over_classes(own[own[by] == group], column)[str(method)] for group in names]
        panel["series"][TITLES[str(method)]] = [factor * mean["mean"] for mean in means]
        if several:
            panel["errors"][TITLES[str(method)]] = [factor * mean["half"] for mean in means]
    return panel


def _curves(rows: pd.DataFrame, x: str, column: str, *, factor: float = 1) -> Panel:
    """Return a curve per network: mean over classes, seeds averaged first; the band spans the classes."""
    per_class = rows.groupby(["method", x, "forget"], sort=False)[column].mean() * factor
    methods = per_class.groupby("method", sort=False)
    return {TITLES[str(method)]: _banded(own.groupby(x, sort=False)) for method, own in methods}


def _seeds(rows: pd.DataFrame, column: str, *, factor: float) -> Panel:
    """Return a curve per network over the classes: mean over seeds, the band spans them."""
    return {
        TITLES[str(method)]: _banded((own.set_index("forget")[column] * factor).groupby("forget"))
        for method, own in rows[rows["method"].isin(RULER)].groupby("method", sort=False)
    }


def _banded(groups: Any) -> dict[str, list[float]]:
    means = groups.mean()
    return {
        "x": [float(place) for place in means.index],
        "y": means.tolist(),
        "low": groups.min().tolist(),
        "high": groups.max().tolist(),
    }
