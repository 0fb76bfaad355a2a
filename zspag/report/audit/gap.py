"""How much of the gap to retraining a network closes in its features, and what that costs the retained classes.

Per probe the original's recall of the class is one end of a ruler, and the retrained network's is the other. A method
that takes the class out of the features closes the gap between them; one that edits the head alone closes nothing,
however slowly its network relearns.

Invariant: a share of a gap that is not larger than the retrained networks' own spread is not a number.
"""

import pandas as pd

from zspag.report.audit.findings import TITLES, Findings, apart
from zspag.report.audit.panels import Panel

PROBES = {  # what judges, by its name in rows and in figures
    "linear": "linear probe",
    "mlp": "nonlinear probe",
    "neighbours": "nearest neighbours",
    "class means": "nearest class mean",
    "original's head": "original's head",
}


def gap_closed(found: Findings) -> pd.DataFrame:
    """Return what each network closes of the gap to retraining, per probe of what enters the head and per class.

    Returns:
        Columns method, forget and probe, and of these

        * "known", "original", "retrained": recalls of the class, fractions, means over the seeds in which none of the
          three networks was ruined;
        * "spread": mean absolute difference of the recalls of two retrained networks of different seeds;
        * "share": (original - known) / (original - retrained);
        * "lost": points of accuracy on retained test images that the network lies below the masked original.

    Note:
        "share" is NaN where the gap is not larger than the spread, for two retrained networks differ by as much. With
        one seed the spread is not known (NaN), and a share is given wherever the gap is above 0. "lost" of the
        retrained network is NaN there, for a record with one seed does not hold it.
    """
    probes, restored, kept = found["probes"], found["restored"], found["distance"]
    last = probes[probes["depth"] == probes["depth"].max()]
    rows = pd.concat([last, restored.assign(probe="original's head", known=restored["acc_forget"])])
    wide = rows.pivot(index=["probe", "forget", "seed"], columns="method", values="known")
    spread = wide["retrained"].groupby(["probe", "forget"]).agg(apart).rename("spread")
    accuracy = kept[kept["split"] == "retain_test"].pivot(index=["forget", "seed"], columns="method", values="accuracy")
    lost = 100 * accuracy.rsub(accuracy["masked"], axis=0).groupby("forget").mean()
    parts = []
    for method in (name for name in TITLES if name in wide):
        judged = wide[["original", "retrained"]].assign(known=wide[method]).dropna()
        parts.append(judged.groupby(["probe", "forget"]).mean().reset_index().assign(method=method))
    closed = pd.concat(parts, ignore_index=True).join(spread, on=["probe", "forget"])
    gap = closed["original"] - closed["retrained"]
    closed["share"] = ((closed["original"] - closed["known"]) / gap).where(gap > closed["spread"].fillna(0.0))
    return closed.join(lost.unstack().rename("lost"), on=["method", "forget"])


def gap_panels(found: Findings, *, title: str) -> list[Panel]:
    """Return a panel per probe: the share of the gap that a network closes, over the retained points that it lost.

    A mark is the mean over the classes of which there is a share; the title counts them. Panels name their kind, for
    they stand beside others.
    """
    closed, panels = gap_closed(found), []
    for probe, name in PROBES.items():
        rows = closed[closed["probe"] == probe]
        if rows.empty:  # an older record lacks this probe
            continue
        known = rows.dropna(subset=["share", "lost"])
        counted = f"{known['forget'].nunique()} of {rows['forget'].nunique()} classes"
        series = {
            TITLES[str(method)]: {"x": [own["lost"].mean()], "y": [100 * own["share"].mean()]}
            for method, own in known.groupby("method", sort=False)
        }
        panel = {
            "kind": "scatter",
            "title": f"{title}: {name} ({counted})",
            "xlabel": "retained points lost against the masked original",
            "ylabel": "gap to retraining closed (%)",
            "series": series,
            "lines": {"as the original": 0, "as retrained": 100},
            "dot": 40,
        }
        panels.append(panel)
    return panels
