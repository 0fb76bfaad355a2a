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
# What labels are compared by (claim C3): name and unit, factor, digits; less is better in all three.
C3_MEASURES: dict[str, tuple[str, float, int]] = {
    "over_unlearning": ("over-unlearning (points)", 100.0, 2),
    "drift": ("drift (thousandths of a nat)", 1000.0, 2),
    "nll_retain": ("negative log-likelihood (thousandths of a nat)", 1000.0, 2),
}
C3_SWEEP = "sweep_cifar10_conv7_airplane-cat-horse"  # the files of the two halves are called after it
RIVALS = ("random_labels", "second_best_labels", "zs_pag")  # labels that claim C3 says are improved on
FROZEN = "balanced_labels"
# What methods are compared on (claim C5), and which way is better: -1 lower, 1 higher.
COMPARED = {"gap": -1, "drift": -1, "safe window": 1, "AIN": 1}
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


def ranked(gap: dict[str, float]) -> str:
    """Say in a word whether a paired difference, where less is better, is beyond its interval.

    Example:
        >>> ranked({"mean": -2.0, "half": 1.0, "classes": 3}), ranked({"mean": -1.0, "half": 2.0, "classes": 3})
        ('better', 'not distinguishable')
    """
    if gap["classes"] < 2 or abs(gap["mean"]) <= gap["half"]:
        return "not distinguishable"
    return "better" if gap["mean"] < 0 else "worse"


def improves(gaps: dict[str, dict[str, float]]) -> str:
    """Say whether a method improves on its baseline: better in one of the paired measures and worse in none.

    Args:
        gaps: Per measure, less being better, a paired difference as in ``paired``.

    Returns:
        "better", "worse" (in at least one measure), or "not distinguishable".
    """
    words = {ranked(gap) for gap in gaps.values()}
    return "worse" if "worse" in words else "better" if "better" in words else "not distinguishable"


def label_table(halves: dict[str, pd.DataFrame], *, baseline: str, titles: dict[str, str]) -> pd.DataFrame:
    """Return the table of claim C3: every method minus the baseline, on the half it was chosen on and on the other.

    Args:
        halves: Per half of the test set, the rows of its grid.
        baseline: The method that is subtracted.
        titles: Readable names of the methods.

    Returns:
        One line per method, as "mean ± half-width (pairs that are lower of all pairs)"; a method that was run on one
        half only has empty cells for the other.
    """
    lines: dict[str, dict[str, str]] = {}
    for half, frame in halves.items():
        ruled = by_rule(frame)
        gaps = paired(ruled[~ruled["method"].isin(REFERENCES)], tuple(C3_MEASURES), baseline=baseline)
        for method, measures in gaps.items():
            for column, (text, factor, digits) in C3_MEASURES.items():
                gap = measures[column]
                cell = f"{factor * gap['mean']:+.{digits}f} ± {factor * gap['half']:.{digits}f}"
                share = f" ({gap['lower']} of {gap['pairs']})"
                lines.setdefault(titles.get(method, method), {})[f"{half}: {text}"] = cell + share
    columns = [f"{half}: {text}" for half in halves for text, *_ in C3_MEASURES.values()]
    return pd.DataFrame.from_dict(lines, orient="index", columns=columns).fillna("").rename_axis("labels")


def label_verdict(frame: pd.DataFrame, *, titles: dict[str, str]) -> str:
    """Return the verdict on claim C3 in sentences composed from the rows of the half that confirms.

    Args:
        frame: Rows of the grid on that half; ``FROZEN`` and the labels it is to beat are among them.
        titles: Readable names of the methods.
    """
    ruled = by_rule(frame)
    ruled = ruled[~ruled["method"].isin(REFERENCES)]
    words = {}
    for rival in RIVALS:
        two = ruled[ruled["method"].isin([FROZEN, rival])]
        words[rival] = improves(paired(two, tuple(C3_MEASURES), baseline=rival)[FROZEN])
    lost = over_classes(ruled, "over_unlearning")[FROZEN]
    kept = lost["mean"] <= lost["half"]
    holds = all(word == "better" for word in words.values()) and kept
    cases = ruled[["forget", "seed"]].drop_duplicates()
    against = "; ".join(f"{word} than {titles[rival]}" if word != "not distinguishable"
                        else f"{word} from {titles[rival]}" for rival, word in words.items())  # fmt: skip
    return (
        f"Claim C3 is **{'supported' if holds else 'not supported'}**: the frozen formula, {titles[FROZEN]}, on the"
        f" half of the test set that it was not chosen on ({cases['forget'].nunique()} classes,"
        f" {cases['seed'].nunique()} fresh original{'s' * (cases['seed'].nunique() > 1)}), is {against}. Against the"
        f" masked original it loses {100 * lost['mean']:+.2f} ± {100 * lost['half']:.2f} points of retained accuracy,"
        f" {'within' if kept else 'beyond'} the interval."
    )


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
    """Return all tables of a grid at the rate that the forget-only rule takes, by the question each one answers.

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
        "Who is dominated?": comparison_table(comparison(rows, frame), titles),
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


def markdown(table: pd.DataFrame) -> str:
    """Return a table as GitHub markdown, its index as first column."""
    header = [table.index.name or "", *map(str, table.columns)]
    lines = [
        header,
        ["---"] * len(header),
        *([str(name), *map(str, row)] for name, row in zip(table.index, table.values, strict=True)),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
