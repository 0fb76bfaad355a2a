"""Averages over a grid, as the protocol fixes them: which run counts, means and intervals, paired differences.

Protocol: seeds are averaged per class; intervals are t intervals over classes (classes - 1 degrees of freedom); sample
standard deviations with ddof 1. Rates follow the forget-only rule; a second look takes each run's best rate in
hindsight.

Invariant: nothing here sees a model.
"""

import math
from collections.abc import Sequence

import pandas as pd

SAFE_FORGET = 0.01  # acc_forget at or below this is forgotten (evaluation.md, safe window)
SAFE_RETAIN = 0.005  # over-unlearning at or below this is safe
REFERENCES = ("original", "masked", "retrained")
# Two-sided 97.5 % points of Student's t for 1..30 degrees of freedom; a table keeps scipy out of a reader's way.
_T975 = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
    2.160,
    2.145,
    2.131,
    2.120,
    2.110,
    2.101,
    2.093,
    2.086,
    2.080,
    2.074,
    2.069,
    2.064,
    2.060,
    2.056,
    2.052,
    2.048,
    2.045,
    2.042,
)


def by_rule(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row per method, class and seed: the run the forget-only rule takes, and the references."""
    return frame[frame["lr"].isna() | frame["chosen"].eq(True)]


def in_hindsight(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row per method, class and seed: the run that loses least.

    A run loses what acc_forget exceeds 1 % by, plus its over-unlearning; ties go to the smaller drift, and losses that
    agree to nine decimals are a tie, whatever the order in which they were summed. (To ask for 1 % first would take a
    ruined model before one that still knows one of 36 test images.) This reads test data: an oracle's choice, which
    shows that no competitor was starved.
    """
    lost = ((frame["acc_forget"] - SAFE_FORGET).clip(lower=0) + frame["over_unlearning"]).round(9)
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


def paired(rows: pd.DataFrame, columns: Sequence[str], *, baseline: str) -> dict[str, dict[str, dict[str, float]]]:
    """Return every method's differences to a baseline, per class and seed, averaged as the protocol has it.

    Classes differ much more than methods do; a difference within one class and seed is free of that.

    Args:
        rows: One row per method, class and seed, from ``by_rule`` or ``in_hindsight``.
        columns: Columns to compare, such as "drift".
        baseline: The method that is subtracted.

    Returns:
        Per method (but the baseline) and column what ``over_classes`` returns of the differences, and "lower" of
        "pairs": in how many of the classes and seeds the method has the smaller value.

    Raises:
        ValueError: If a method lacks a class or seed that the baseline has, or the other way round.
    """
    answer: dict[str, dict[str, dict[str, float]]] = {}
    for column in columns:
        wide = rows.pivot(index=["forget", "seed"], columns="method", values=column)
        if wide.isna().any(axis=None):
            lacking = ", ".join(wide.columns[wide.isna().any()])
            raise ValueError(f"{column} cannot be paired: some class and seed has none for {lacking}")
        gaps = wide.drop(columns=baseline).sub(wide[baseline], axis=0)
        means = over_classes(gaps.reset_index().melt(["forget", "seed"], var_name="method"), "value")
        for method, mean in means.items():
            counts = {"lower": int((gaps[method] < 0).sum()), "pairs": len(gaps)}
            answer.setdefault(method, {})[column] = mean | counts
    return answer
