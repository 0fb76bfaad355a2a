"""Tables from files: what the rows of a grid say, averaged as the protocol fixes it.

Protocol: seeds are averaged per class; intervals are t intervals over classes (classes - 1 degrees of freedom); sample
standard deviations with ddof 1. Rates follow the forget-only rule; a second table takes each
run's best rate in hindsight. No single number decides: a method counts as beaten only where another one is at least as
good on everything that is compared (``dominated``).

Invariant: nothing here sees a model; every number in a README or notebook comes out of these functions.
"""

import math
from collections.abc import Mapping, Sequence
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


def to_retrained(rows: pd.DataFrame, column: str) -> dict[str, dict[str, float]]:
    """Return what ``over_classes`` does of the paired difference to the retrained model, seeds averaged first.

    Every class is compared with itself, so that an easy class does not widen the interval.
    """
    per_class = rows.groupby(["method", "forget"], sort=False)[column].mean().reset_index()
    retrained = per_class[per_class["method"] == "retrained"].set_index("forget")[column]
    per_class[column] -= per_class["forget"].map(retrained)
    return over_classes(per_class, column)


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


def tradeoff_panels(
    frame: pd.DataFrame, methods: Sequence[str], titles: Mapping[str, str], *, close: Panel
) -> dict[str, Any]:
    """Return two panels for ``plots.curves``: retained over forget accuracy along each method's ladder.

    Args:
        frame: The whole grid; a point is the mean over classes at one rate, neighbouring rates are joined.
        methods: Which methods, one curve each.
        titles: Readable names of the methods.
        close: ``xlim`` and ``ylim`` of the second panel, in %.
    """
    series: Panel = {}
    for method in methods:
        x, y = (curve(frame, method, column)["y"] for column in ("acc_forget", "acc_retain"))
        series[titles[method]] = {"x": [100 * value for value in x], "y": [100 * value for value in y]}
    level = 100 * over_classes(frame[frame["method"] == "masked"], "acc_retain")["masked"]["mean"]
    shared: Panel = {
        "series": series,
        "lines": {"masked original": level},
        "xlabel": "forget accuracy on test images (%)",
        "ylabel": "retained accuracy (%)",
    }
    whole = {"title": "the whole ladder", "xlim": [-3, 103], "ylim": [0, 103]}
    panels = [shared | whole, shared | {"title": "the corner that matters"} | close]
    return {"panels": panels, "columns": 2, "size": [5.2, 4.2]}


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


def forgetting_table(rows: pd.DataFrame, titles: Mapping[str, str]) -> pd.DataFrame:
    """Answer one question, one line per method: did it forget, and did it keep the rest?

    Cells read "mean ± half-width of the t interval over classes (sample standard deviation)".

    Args:
        rows: One row per method, class and seed, from ``by_rule`` or ``in_hindsight``.
        titles: Readable names of the methods.
    """
    columns = {
        "forget, test %": over_classes(rows, "acc_forget"),
        "forget, training %": over_classes(rows, "acc_forget_train"),
        "retain, test %": over_classes(rows, "acc_retain"),
        "over-unlearning (points)": over_classes(rows, "over_unlearning"),
    }
    return _spread_table(rows, titles, columns, factor=100, digits=2)


def distance_table(rows: pd.DataFrame, titles: Mapping[str, str]) -> pd.DataFrame:
    """Answer one question, one line per method: how far from the retrained model, in accuracy?

    The first two columns are paired differences (see ``to_retrained``) and have a sign; the gap is a mean of absolute
    differences. Cells as in ``forgetting_table``.
    """
    columns = {
        "forget - retrained (points)": to_retrained(rows, "acc_forget"),
        "retain - retrained (points)": to_retrained(rows, "acc_retain"),
        "gap (points)": over_classes(rows, "gap"),
    }
    return _spread_table(rows, titles, columns, factor=100, digits=2)


def prediction_table(rows: pd.DataFrame, titles: Mapping[str, str], noise: pd.DataFrame) -> pd.DataFrame:
    """Answer one question, one line per method: how far from the retrained model, image by image?

    Args:
        rows: As in ``forgetting_table``.
        titles: Readable names of the methods.
        noise: Rows of ``experiment.retraining_noise``; they make the last line, the floor. None without rows.
    """
    shown = {
        "agreement, forget %": ("agreement_forget", 100, 1),
        "agreement, retain %": ("agreement_retain", 100, 1),
        "JS, forget (nats)": ("js_forget", 1, 4),
        "JS, retain (nats)": ("js_retain", 1, 4),
    }
    if len(noise):
        rows = pd.concat([rows, noise.assign(method="two retrained models")])
    parts = [
        _spread_table(rows, titles, {name: over_classes(rows, column)}, factor=factor, digits=digits)
        for name, (column, factor, digits) in shown.items()
    ]
    return pd.concat(parts, axis=1)


def cost_table(
    rows: pd.DataFrame,
    frame: pd.DataFrame,
    titles: Mapping[str, str],
    *,
    reads: Mapping[str, str],
    before: Mapping[str, float],
    retraining: float | None,
) -> pd.DataFrame:
    """Answer one question, one line per method: what does it cost, and what does it read?

    Args:
        rows: One row per method, class and seed, from ``by_rule``.
        frame: The whole grid: the rule tries every rate up to the chosen one, and they are paid for.
        titles: Readable names of the methods.
        reads: What data a method may touch, in words.
        before: Seconds a method spends before its update (proxies, subspaces), 0 where it is not named; empty, where
            this is not known, leaves the column out.
        retraining: Seconds of retraining on the same machine; None leaves the ratio out.
    """
    own = rows[rows["lr"].notna()]
    chosen = own.set_index(["method", "forget", "seed"])["lr"].rename("_chosen")
    joined = frame.join(chosen, on=["method", "forget", "seed"])
    counted = joined[joined["lr"] <= joined["_chosen"]].groupby(["method", "forget", "seed"], sort=False)["seconds"]
    tried = over_classes(counted.sum().reset_index(), "seconds")
    seconds, epochs = over_classes(own, "seconds"), over_classes(own, "epochs")
    lines: list[dict[str, Any]] = []
    for method in dict.fromkeys(own["method"]):
        total = tried[method]["mean"] + before.get(method, 0.0)
        line: dict[str, Any] = {
            "method": titles.get(method, method),
            "chosen run (s)": _spread(seconds[method], factor=1, digits=2),
            "epochs": f"{epochs[method]['mean']:.1f}",
            "all rates tried (s)": f"{tried[method]['mean']:.2f}",
        }
        if before:
            line["before (s)"] = f"{before.get(method, 0.0):.2f}"
        if retraining is not None:
            line["in all / retraining"] = f"{total / retraining:.2f}"
        line |= {
            "may read": reads[method],
            "retained samples counted": int(own.loc[own["method"] == method, "retain_samples_read"].max()),
        }
        lines.append(line)
    return pd.DataFrame(lines).set_index("method")


def preparation(seconds: Mapping[str, float], reads: Mapping[str, str]) -> dict[str, float]:
    """Return what ``cost_table`` charges before the update: proxies and subspaces, to whoever may read proxies.

    In full, although some need less: an upper bound.

    Args:
        seconds: From ``experiment.stage_seconds``.
        reads: What data a method may touch, in words.
    """
    return {name: seconds["proxies"] + seconds["subspaces"] for name, words in reads.items() if "proxies" in words}


def every_table(
    frame: pd.DataFrame,
    titles: Mapping[str, str],
    *,
    reads: Mapping[str, str],
    noise: pd.DataFrame,
    seconds: Mapping[str, float],
) -> dict[str, pd.DataFrame]:
    """Return the tables of a grid at the rate that the forget-only rule takes, by the question each one answers.

    Args:
        frame: The whole grid.
        titles: Readable names of the methods.
        reads: What data a method may touch, in words.
        noise: As in ``prediction_table``.
        seconds: From ``experiment.stage_seconds``; empty where stages and retraining were not timed.
    """
    rows = by_rule(frame)
    before = preparation(seconds, reads) if seconds else {}
    retrained = (
        {
            "How far from retraining, in accuracy?": distance_table(rows, titles),
            "How far from retraining, image by image?": prediction_table(rows, titles, noise),
        }
        if "retrained" in set(rows["method"])
        else {}
    )
    return {
        "Did it forget, and did it keep the rest?": forgetting_table(rows, titles),
        **retrained,
        "What does it cost, and what does it read?": cost_table(
            rows, frame, titles, reads=reads, before=before, retraining=seconds.get("retraining")
        ),
    }


def _spread_table(
    rows: pd.DataFrame,
    titles: Mapping[str, str],
    columns: Mapping[str, dict[str, dict[str, float]]],
    *,
    factor: float,
    digits: int,
) -> pd.DataFrame:
    lines = [
        {"method": titles.get(method, method)}
        | {name: _spread(values[method], factor=factor, digits=digits) for name, values in columns.items()}
        for method in dict.fromkeys(rows["method"])
    ]
    return pd.DataFrame(lines).set_index("method")


def _spread(value: dict[str, float], *, factor: float, digits: int) -> str:
    # Adding 0 turns a -0.00 into 0.00.
    mean, half, deviation = (f"{round(factor * value[key], digits) + 0.0:.{digits}f}" for key in ("mean", "half", "sd"))
    return f"{mean} ± {half} ({deviation})" if value["classes"] > 1 else mean  # one class has no spread to report


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
