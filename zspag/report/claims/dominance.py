"""Claim C5: among methods that see the forget set alone, is ZS-PAG dominated?

Methods are compared on (gap, drift, safe window, AIN) together: the gap alone would rank head-only edits first.

Invariant: nothing here sees a model; without a number nothing is compared.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from zspag.report.tables import over_classes, safe_rates, window

# What methods are compared on (claim C5), and which way is better: -1 lower, 1 higher.
COMPARED = {"gap": -1, "drift": -1, "safe window": 1, "AIN": 1}


def comparison(rows: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """Return what claim C5 compares, one line per forget-only method, the masked original among them.

    Args:
        rows: One row per method, class and seed, from ``by_rule``. AIN is ``relearn_steps`` over those of the retrained
            model of the same class and seed; it is left out where the rows do not have it for every method.
        frame: The whole grid, for the safe window.

    Returns:
        Columns of ``COMPARED``, indexed by method. Gap is a fraction, drift in nats, the safe window a factor.

    Note:
        CHOICE: the masked original has no learning rate to miss, so its window is infinite; a method with rates of
        which none is safe has a window of 0.
    """
    most = rows.groupby("method", sort=False)["retain_samples_read"].max().fillna(0)
    methods = [name for name in most.index if most[name] == 0 and name not in ("original", "retrained")]
    measured = [name for name in ("gap", "drift") if rows[name].notna().any()]  # no gap without retrained models
    columns = {name: {method: over_classes(rows, name)[method]["mean"] for method in methods} for name in measured}
    columns["safe window"] = {
        method: math.inf if method == "masked" else window(safe_rates(frame, method)) for method in methods
    }
    relearned = _relearning(rows)
    if all(math.isfinite(relearned.get(method, math.nan)) for method in methods):
        columns["AIN"] = {method: relearned[method] for method in methods}
    return pd.DataFrame(columns, index=pd.Index(methods, name="method"))


def _relearning(rows: pd.DataFrame) -> dict[str, float]:
    """Return AIN of the methods that have it for every class and seed, seeds averaged per class.

    A retrained model that needs no step gives none.
    """
    if "relearn_steps" not in rows:
        return {}
    key = ["forget", "seed"]
    retrained = rows[rows["method"] == "retrained"].set_index(key)["relearn_steps"].astype(float).rename("_retrained")
    joined = rows.join(retrained.where(retrained > 0), on=key)
    ratio = joined.assign(AIN=joined["relearn_steps"].astype(float) / joined["_retrained"])
    complete = ratio["AIN"].notna().groupby(ratio["method"]).all()
    return {method: values["mean"] for method, values in over_classes(ratio, "AIN").items() if complete[method]}


def dominated(summary: pd.DataFrame) -> dict[str, list[str]]:
    """Return, per method, who dominates it: at least as good on all that is compared, and better on one (Pareto).

    Args:
        summary: From ``comparison``; columns of ``COMPARED`` count, others do not. Numbers that agree to nine decimals
            are equal, whatever the order in which they were summed.

    Raises:
        ValueError: If a number is missing, for nothing can be compared with it.

    Example:
        >>> both = pd.DataFrame({"gap": [0.1, 0.2], "drift": [0.0, 0.0]}, index=["near", "far"])
        >>> dominated(both)
        {'near': [], 'far': ['near']}
    """
    columns = [name for name in COMPARED if name in summary]
    scores = summary[columns].astype(float).round(9) * [COMPARED[name] for name in columns]
    if missing := [str(name) for name in scores.index[scores.isna().any(axis=1)]]:
        raise ValueError(
            f"{', '.join(missing)}: a number of {', '.join(columns)} is missing, so nothing can be compared"
        )
    return {
        str(name): [
            str(other) for other, rival in scores.iterrows() if bool((rival >= own).all()) and bool((rival > own).any())
        ]
        for name, own in scores.iterrows()
    }


def comparison_table(summary: pd.DataFrame, titles: Mapping[str, str]) -> pd.DataFrame:
    """Return the comparison as a reader sees it, with the verdict: who dominates a method, if anybody does."""
    beaten = dominated(summary)
    lines: list[dict[str, Any]] = []
    for name, row in summary.iterrows():
        line = {
            "method": titles.get(str(name), str(name)),
            **({"gap (points)": f"{100 * row['gap']:.2f}"} if "gap" in summary else {}),
            "drift (nats)": f"{row['drift']:.4f}" if row["drift"] < 99 else "> 99",
            "safe window (factor)": f"{row['safe window']:.0f}" if math.isfinite(row["safe window"]) else "no rate",
        }
        if "AIN" in summary:
            line["AIN"] = f"{row['AIN']:.3f}"
        lines.append(line | {"dominated by": _named(beaten[str(name)], titles) or "nobody"})
    return pd.DataFrame(lines).set_index("method")


def _named(methods: Sequence[str], titles: Mapping[str, str]) -> str:
    """List up to three titles, which may hold commas, and count the rest."""
    first = [titles.get(name, name) for name in methods[:3]]
    return "; ".join([*first, *([f"{len(methods) - 3} more"] if len(methods) > 3 else [])])


def verdict(summary: pd.DataFrame, titles: Mapping[str, str], method: str) -> str:
    """Return claim C5 in one sentence: whether a method is dominated, by whom, and on what it was compared."""
    words = {"gap": "gap to retraining", "drift": "drift", "safe window": "safe window", "AIN": "relearning (AIN)"}
    *first, last = [words[name] for name in COMPARED if name in summary]
    lacking = [words[name] for name in COMPARED if name not in summary]
    left_out = f" ({' and '.join(lacking)} not measured in these rows)" if lacking else ""
    by = dominated(summary)[method]
    rivals = len(summary) - 1
    count = f"{len(by) or 'none'} of the {rivals} other forget-only methods, the masked original included"
    said = f"is dominated by {count}" + (f": {_named(by, titles)}" if by else "")
    return f"On {', '.join(first)} and {last} together{left_out}, {titles.get(method, method)} {said}."
