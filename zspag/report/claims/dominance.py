"""Claim C5: among methods that see the forget set alone, is ZS-PAG dominated?

Methods are compared on gap, drift, safe window and what the original's head still recognizes, together: the gap alone
would rank head-only edits first. Relearning under the own head (AIN) plays no part: it measures one row of the head.

Invariant: nothing here sees a model; without a number nothing is compared.
"""

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from zspag.report.tables import nats, over_classes, safe_rates, window

# What methods are compared on (claim C5), and which way is better: -1 lower, 1 higher.
COMPARED = {"gap": -1, "drift": -1, "safe window": 1, "restored": -1}


def comparison(rows: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """Return what claim C5 compares, one line per forget-only method, the masked original among them.

    Args:
        rows: One row per method, class and seed, from ``by_rule``. "restored" is left out unless every method has it
            for every class and seed; older records do not know it.
        frame: The whole grid, for the safe window.

    Returns:
        Columns of ``COMPARED``, indexed by method. Gap and "restored" are fractions, drift in nats, the safe window a
        factor.

    Note:
        CHOICE: the masked original has no learning rate to choose, so its window is infinite; a method with rates of
        which none is safe has a window of 0.
    """
    most = rows.groupby("method", sort=False)["retain_samples_read"].max().fillna(0)
    methods = [name for name in most.index if most[name] == 0 and name not in ("original", "retrained")]
    measured = [name for name in ("gap", "drift") if rows[name].notna().any()]  # no gap without retrained models
    columns = {name: {method: over_classes(rows, name)[method]["mean"] for method in methods} for name in measured}
    columns["safe window"] = {
        method: math.inf if method == "masked" else window(safe_rates(frame, method)) for method in methods
    }
    if "restored" in rows and rows.loc[rows["method"].isin(methods), "restored"].notna().all():
        found = over_classes(rows.astype({"restored": float}), "restored")
        columns["restored"] = {method: found[method]["mean"] for method in methods}
    return pd.DataFrame(columns, index=pd.Index(methods, name="method"))


def dominated(summary: pd.DataFrame) -> dict[str, list[str]]:
    """Return, per method, who dominates it: at least as good on all that is compared, and better on one (Pareto).

    Args:
        summary: From ``comparison``; other columns than those of ``COMPARED`` do not count. Numbers that agree to nine
            decimals are equal, because sums depend on their order.

    Raises:
        ValueError: If a number is missing, because nothing can be compared with it.

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
    better = {name: (scores >= own).all(axis=1) & (scores > own).any(axis=1) for name, own in scores.iterrows()}
    return {str(name): [str(other) for other in scores.index[rivals]] for name, rivals in better.items()}


def comparison_table(summary: pd.DataFrame, titles: Mapping[str, str]) -> pd.DataFrame:
    """Return the comparison as a reader sees it, with the verdict: who dominates a method, if anybody does."""
    shown = {
        "gap": ("gap (points)", lambda gap: f"{100 * gap:.2f}"),
        "drift": ("drift (nats)", nats),
        "safe window": ("safe window (factor)", lambda factor: f"{factor:.0f}" if math.isfinite(factor) else "no rate"),
        "restored": ("under the original's head (%)", lambda share: f"{100 * share:.1f}"),
    }
    table = pd.DataFrame({text: summary[name].map(view) for name, (text, view) in shown.items() if name in summary})
    table["dominated by"] = [_named(better, titles) or "nobody" for better in dominated(summary).values()]
    return table.rename(index=dict(titles)).rename_axis("method")


def _named(methods: Sequence[str], titles: Mapping[str, str]) -> str:
    """List up to three titles, which may hold commas, and count the rest."""
    more = [f"{len(methods) - 3} more"] if len(methods) > 3 else []
    return "; ".join([*(titles.get(name, name) for name in methods[:3]), *more])


def verdict(summary: pd.DataFrame, titles: Mapping[str, str], method: str) -> str:
    """Return claim C5 in words: whether a method is dominated, by whom, and on what it was compared."""
    words = {"gap": "gap to retraining", "drift": "drift", "safe window": "safe window"}
    words["restored"] = "recall under the original's head"
    *first, last = [words[name] for name in COMPARED if name in summary]
    lacking = [words[name] for name in COMPARED if name not in summary]
    left_out = f" ({' and '.join(lacking)} not measured in these rows)" if lacking else ""
    by = dominated(summary)[method]
    count = f"{len(by) or 'none'} of the {len(summary) - 1} other forget-only methods, the masked original included"
    names = f": {_named(by, titles)}" if by else ""
    return (
        f"On {', '.join(first)} and {last} together{left_out}, {titles.get(method, method)} is dominated by"
        f" {count}{names}."
    )
