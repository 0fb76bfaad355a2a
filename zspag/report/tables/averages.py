"""Averages over a grid: which run counts, means and intervals, paired differences, and who is better.

Protocol: seeds are averaged per class; intervals are 95 % t intervals over classes (classes - 1 degrees of freedom),
cut at the ends of the range where there is one; of fewer than ``FEWEST`` classes none is shown. Sample standard
deviations have ddof 1. Rates follow the forget-only
rule; a second look takes each run's best rate in hindsight.

Invariant: nothing here sees a model, and nothing is better within its interval.
"""

import math
from collections.abc import Mapping, Sequence

import pandas as pd
from scipy.special import stdtrit  # scipy.stats.t.ppf without the second that importing scipy.stats takes

SAFE_FORGET = 0.01  # acc_forget at or below this is forgotten (evaluation.md, safe window)
SAFE_RETAIN = 0.005  # over-unlearning at or below this is safe
REFERENCES = ("original", "masked", "retrained")
_SHARES = ("acc_forget", "acc_forget_train", "acc_retain", "acc_retain_micro", "agreement_forget", "agreement_retain")
IN_RANGE = {*_SHARES, "restored", "gap", "js_forget", "js_retain"}  # columns that are never below 0
FEWEST = 5  # classes whose interval says anything: that of two is 13 standard errors wide


def by_rule(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row per method, class and seed: the run the forget-only rule takes, and the references."""
    return frame[frame["lr"].isna() | frame["chosen"].eq(True)]


def in_hindsight(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row per method, class and seed: the run that loses least. It reads test data: an oracle's choice.

    A run loses what acc_forget exceeds 1 % by, plus its over-unlearning. (To ask for 1 % first would prefer a ruined
    model to one that still knows one of 36 test images.) Losses that agree to nine decimals are a tie, because sums
    depend on their order; ties go to the smaller drift.
    """
    lost = ((frame["acc_forget"] - SAFE_FORGET).clip(lower=0) + frame["over_unlearning"]).round(9)
    ordered = frame.assign(_lost=lost).sort_values(["_lost", "drift"], kind="stable")
    return ordered.groupby(["method", "forget", "seed"], sort=False).head(1).drop(columns="_lost").sort_index()


def half_width(values: pd.Series) -> float:
    """Return the half-width of the 95 % t interval of the mean of two values or more."""
    count = len(values)
    return float(stdtrit(count - 1, 0.975)) * float(values.std(ddof=1)) / math.sqrt(count)


def in_range(mean: float, half: float) -> tuple[float, float]:
    """Return the ends of the interval of a share or distance, cut where it would leave 0 to 1.

    CHOICE: the percentile bootstrap stays in range by itself, but of ten classes it is too narrow: it called a check
    supported that the t interval leaves undecided.

    Example:
        >>> in_range(0.25, 0.5)
        (0.0, 0.75)
    """
    return max(0.0, mean - half), min(1.0, mean + half)


def over_classes(rows: pd.DataFrame, column: str) -> dict[str, dict[str, float]]:
    """Return, per method, mean, interval half-width ("half"), deviation ("sd") and number of classes of a column.

    With one class half-width and deviation are 0: there is no spread to report. Of a column ``IN_RANGE`` there are the
    ends of the interval ("low", "high") as well.
    """
    answer = {}
    per_class = rows.groupby(["method", "forget"], sort=False)[column].mean()
    for method, values in per_class.groupby("method", sort=False):
        count, half, deviation = len(values), 0.0, 0.0
        if count > 1:
            deviation = float(values.std(ddof=1))
            half = half_width(values)
        answer[str(method)] = {"mean": float(values.mean()), "half": half, "sd": deviation, "classes": count}
        if column in IN_RANGE:
            answer[str(method)] |= dict(zip(("low", "high"), in_range(float(values.mean()), half), strict=True))
    return answer


def paired(rows: pd.DataFrame, columns: Sequence[str], *, baseline: str) -> dict[str, dict[str, dict[str, float]]]:
    """Return every method's differences to a baseline within each class and seed, averaged as the protocol has it.

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


def ranked(gap: Mapping[str, float]) -> str:
    """Return "better" or "worse" where a paired difference (less is better) is beyond its interval.

    Of fewer than ``FEWEST`` classes none is.

    Example:
        >>> ranked({"mean": -2.0, "half": 1.0, "classes": 5}), ranked({"mean": -1.0, "half": 2.0, "classes": 5})
        ('better', 'not distinguishable')
    """
    if gap["classes"] < FEWEST or abs(gap["mean"]) <= gap["half"]:
        return "not distinguishable"
    return "better" if gap["mean"] < 0 else "worse"


def improves(gaps: Mapping[str, Mapping[str, float]]) -> str:
    """Return "better" where a method is better in one of the paired measures and worse in none.

    Args:
        gaps: Per measure (less is better) a paired difference, as in ``paired``.

    Returns:
        "better", "worse" (in at least one measure), or "not distinguishable".
    """
    words = {ranked(gap) for gap in gaps.values()}
    return "worse" if "worse" in words else "better" if "better" in words else "not distinguishable"
