"""Tables from files: what the rows of a grid say, averaged as the protocol fixes it.

Protocol: seeds are averaged per class; intervals are t intervals over classes (classes - 1 degrees of freedom); sample
standard deviations with ddof 1. Rates follow the forget-only rule; a second table takes each
run's best rate in hindsight.

Invariant: nothing here sees a model; every number in a README or notebook comes out of these functions.
"""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

Panel = dict[str, Any]

SAFE_FORGET = 0.01  # acc_forget at or below this is forgotten (evaluation.md, safe window)
SAFE_RETAIN = 0.005  # over-unlearning at or below this is safe
REFERENCES = ("original", "masked", "retrained")
# Two-sided 97.5 % points of Student's t for 1..30 degrees of freedom; a table keeps scipy out of a reader's way.
_T975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def by_rule(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row per method, class and seed: the run the forget-only rule takes, and the references."""
    return frame[frame["lr"].isna() | frame["chosen"].eq(True)]


def in_hindsight(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row per method, class and seed: the run that loses least.

    A run loses what acc_forget exceeds 1 % by, plus its over-unlearning; ties go to the smaller drift. (To ask for 1 %
    first would take a ruined model before one that still knows one of 36 test images.) This reads test data: an
    oracle's choice, which shows that no competitor was starved.
    """
    lost = (frame["acc_forget"] - SAFE_FORGET).clip(lower=0) + frame["over_unlearning"]
    ordered = frame.assign(_lost=lost).sort_values(["_lost", "drift"], kind="stable")
    return ordered.groupby(["method", "forget", "seed"], sort=False).head(1).drop(columns="_lost").sort_index()


def over_classes(rows: pd.DataFrame, column: str) -> dict[str, dict[str, float]]:
    """Return, per method, mean, t interval half-width and standard deviation over classes of a column.

    With one class the interval and the deviation are 0: there is no spread to report.
    """
    answer = {}
    per_class = rows.groupby(["method", "forget"], sort=False)[column].mean()
    for method, values in per_class.groupby("method", sort=False):
        count = len(values)
        deviation = float(values.std(ddof=1)) if count > 1 else 0.0
        half = _T975[min(count - 1, len(_T975)) - 1] * deviation / math.sqrt(count) if count > 1 else 0.0
        answer[str(method)] = {"mean": float(values.mean()), "half": half, "sd": deviation, "classes": count}
    return answer


def curve(frame: pd.DataFrame, method: str, column: str) -> dict[str, list[float]]:
    """Return rate against the mean over classes of a column, with its interval, ready for ``plots.curves``."""
    own = frame[(frame["method"] == method) & frame["lr"].notna()]
    points: dict[str, list[float]] = {"x": [], "y": [], "low": [], "high": []}
    for lr, rows in own.groupby("lr"):
        here = over_classes(rows, column)[method]
        for key, value in zip(
            points, (lr, here["mean"], here["mean"] - here["half"], here["mean"] + here["half"]), strict=True
        ):
            points[key].append(float(value))
    return points


def safe_rates(frame: pd.DataFrame, method: str) -> list[float]:
    """Return the longest run of neighbouring rates at which the method forgets and retains, on average over classes.

    Safe means mean acc_forget <= 1 % and mean over-unlearning <= 0.5 points on test data.
    """
    own = frame[(frame["method"] == method) & frame["lr"].notna()]
    per_class = own.groupby(["lr", "forget"])[["acc_forget", "over_unlearning"]].mean()
    means = per_class.groupby("lr").mean()
    best: list[float] = []
    current: list[float] = []
    for lr, row in means.iterrows():
        safe = row["acc_forget"] <= SAFE_FORGET and row["over_unlearning"] <= SAFE_RETAIN
        current = [*current, float(lr)] if safe else []
        best = max(best, current, key=len)
    return best


def window(rates: Sequence[float]) -> float:
    """Return the width of a safe window as its largest rate over its smallest: 1 for a single rate, 0 for none."""
    return rates[-1] / rates[0] if rates else 0.0


def window_text(frame: pd.DataFrame, method: str) -> str:
    """Return a safe window in words; an end that is also the ladder's is marked, for nobody looked beyond it."""
    rates, tried = safe_rates(frame, method), sorted(frame.loc[frame["method"] == method, "lr"].dropna().unique())
    if not rates:
        return "none"
    low, high = f"{rates[0]:g}", f"{rates[-1]:g}"
    low = f"\u2264 {low}" if rates[0] == tried[0] else low
    high = f"\u2265 {high}" if rates[-1] == tried[-1] else high
    return f"{max(low, high)} only" if len(rates) == 1 else f"{low} – {high}"  # "≤" and "≥" sort behind digits


def ladder_panels(frame: pd.DataFrame, methods: Sequence[str], titles: dict[str, str]) -> dict[str, Any]:
    """Return the three panels of learning-rate curves for ``plots.curves``: forgetting, over-unlearning, drift."""
    axes: dict[str, tuple[str, int, dict[str, float], Panel]] = {
        "acc_forget": ("forget accuracy on test images (%)", 100, {"1 %": 100 * SAFE_FORGET}, {"ylim": [-3, 103]}),
        "over_unlearning": (
            "over-unlearning (points)", 100, {"half a point": 100 * SAFE_RETAIN}, {"ylim": [-1, 8]},
        ),
        "drift": ("drift (nats)", 1, {}, {"ylog": True, "ylim": [1e-4, 30]}),
    }  # fmt: skip
    panels = []
    for column, (label, factor, lines, extra) in axes.items():
        series: Panel = {}
        for method in methods:
            points = curve(frame, method, column)
            series[titles[method]] = {"x": points.pop("x")} | {
                key: [factor * value for value in values] for key, values in points.items()
            }
        shared = {"series": series, "xlabel": "learning rate", "ylabel": label, "xlog": True, "lines": lines}
        panels.append(shared | extra)
    return {"panels": panels, "columns": 3, "size": [4.3, 3.9]}


def main_table(rows: pd.DataFrame, frame: pd.DataFrame, titles: dict[str, str]) -> pd.DataFrame:
    """Return the table a reader looks at first, one line per method, percentages as "mean ± half-width".

    Args:
        rows: One row per method, class and seed, from ``by_rule`` or ``in_hindsight``.
        frame: The whole grid, for the safe window.
        titles: Readable names of the methods.
    """
    means = {name: over_classes(rows, name) for name in ("acc_forget", "acc_retain", "over_unlearning", "drift", "gap")}
    lines: list[dict[str, Any]] = []
    for method in dict.fromkeys(rows["method"]):
        own = rows[rows["method"] == method]
        lines.append(
            {
                "method": titles.get(method, method),
                "forget %": _percent(means["acc_forget"][method]),
                "retain %": _percent(means["acc_retain"][method]),
                "over-unlearning": _percent(means["over_unlearning"][method]),
                "drift (nats)": f"{means['drift'][method]['mean']:.4f}"
                if means["drift"][method]["mean"] < 99
                else "> 99",
                "gap to retrained": _percent(means["gap"][method]),
                "rate": "" if own["lr"].isna().all() else f"{own['lr'].median():g}",
                "safe window": "" if method in REFERENCES else window_text(frame, method),
                "reads retain data": _reads(own, method),
            }
        )
    return pd.DataFrame(lines).set_index("method")


def _percent(value: dict[str, float]) -> str:
    if math.isnan(value["mean"]):
        return "not measured"
    return f"{100 * value['mean']:.2f} ± {100 * value['half']:.2f}"


def _reads(rows: pd.DataFrame, method: str) -> str:
    if method == "retrained":
        return "all"
    if method in REFERENCES:
        return "no"
    most = int(rows["retain_samples_read"].max())
    return f"yes ({most})" if most else "no (0 counted)"


def markdown(table: pd.DataFrame) -> str:
    """Return a table as GitHub markdown, its index as first column."""
    header = [table.index.name or "", *map(str, table.columns)]
    lines = [
        header,
        ["---"] * len(header),
        *([str(name), *map(str, row)] for name, row in zip(table.index, table.values, strict=True)),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
