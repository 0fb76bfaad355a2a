"""Tables for readers, each of which answers one question, from the rows of a grid.

Every table has one line per method, under its readable name from ``titles``. No single number decides: a method counts
as beaten only where another one is at least as good on everything that is compared (``claims.dominated``).

Invariant: nothing here sees a model; every rate that the rule tried is paid for.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from zspag.report.tables.averages import REFERENCES, by_rule, over_classes, paired
from zspag.report.tables.cells import lines_of, nats, percent, spread, spread_table
from zspag.report.tables.curves import window_text


def main_table(rows: pd.DataFrame, frame: pd.DataFrame, titles: Mapping[str, str]) -> pd.DataFrame:
    """Return the table a reader looks at first, percentages with their intervals.

    Args:
        rows: One row per method, class and seed, from ``by_rule`` or ``in_hindsight``.
        frame: The whole grid, for the safe window.
        titles: Readable names of the methods.
    """
    methods = list(dict.fromkeys(rows["method"]))
    means = {name: over_classes(rows, name) for name in ("acc_forget", "acc_retain", "over_unlearning", "drift", "gap")}
    rates = rows.groupby("method")["lr"].median()
    read = rows.groupby("method")["retain_samples_read"].max()
    counted = {name: f"yes ({most:.0f})" if most else "no (0 counted)" for name, most in read.items()}
    counted |= {"original": "no", "masked": "no", "retrained": "all"}
    cells = {
        "forget %": [percent(means["acc_forget"][method]) for method in methods],
        "retain %": [percent(means["acc_retain"][method]) for method in methods],
        "over-unlearning": [percent(means["over_unlearning"][method]) for method in methods],
        "drift (nats)": [nats(means["drift"][method]["mean"]) for method in methods],
        "gap to retrained": [percent(means["gap"][method]) for method in methods],
        "rate": ["" if pd.isna(rates[method]) else f"{rates[method]:g}" for method in methods],
        "safe window": ["" if method in REFERENCES else window_text(frame, method) for method in methods],
        "reads retain data": [counted[method] for method in methods],
    }
    return pd.DataFrame(cells, index=lines_of(methods, titles))


def forgetting_table(rows: pd.DataFrame, titles: Mapping[str, str]) -> pd.DataFrame:
    """Answer: did it forget, and did it keep the rest?

    Cells read "mean ± half-width of the t interval over classes (sample standard deviation)"; that of a share is
    given by its ends.

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
    return spread_table(rows, titles, columns, factor=100, digits=2)


def originals_table(rows: pd.DataFrame, titles: Mapping[str, str]) -> pd.DataFrame:
    """Answer: does a method do to other originals what it did to the one whose rates it was given?

    Args:
        rows: As in ``forgetting_table``, of several originals, each told by its seed.
        titles: Readable names of the methods.
    """
    methods = list(dict.fromkeys(rows["method"]))
    cells = {}
    for seed, own in rows.groupby("seed"):
        for name, text in (("acc_forget", "forget %"), ("over_unlearning", "points lost")):
            means = over_classes(own, name)
            cells[f"seed {seed}: {text}"] = [percent(means[method]) for method in methods]
    return pd.DataFrame(cells, index=lines_of(methods, titles))


def distance_table(rows: pd.DataFrame, titles: Mapping[str, str]) -> pd.DataFrame:
    """Answer: how far from the retrained model, in accuracy? Arguments and cells as in ``forgetting_table``.

    The first two columns are paired differences to the retrained model and have a sign (see ``paired``); the gap is a
    mean of absolute differences.
    """
    gaps = paired(rows, ("acc_forget", "acc_retain"), baseline="retrained")
    itself = {"mean": 0.0, "half": 0.0, "sd": 0.0, "classes": rows["forget"].nunique()}
    gaps["retrained"] = {"acc_forget": itself, "acc_retain": itself}
    columns = {
        "forget - retrained (points)": {method: gap["acc_forget"] for method, gap in gaps.items()},
        "retain - retrained (points)": {method: gap["acc_retain"] for method, gap in gaps.items()},
        "gap (points)": over_classes(rows, "gap"),
    }
    return spread_table(rows, titles, columns, factor=100, digits=2)


def prediction_table(rows: pd.DataFrame, titles: Mapping[str, str], noise: pd.DataFrame) -> pd.DataFrame:
    """Answer: how far from the retrained model, image by image?

    Args:
        rows: As in ``forgetting_table``.
        titles: Readable names of the methods.
        noise: Rows of ``experiment.retraining_noise``, which make the last line, the floor; may be empty.
    """
    if len(noise):
        rows = pd.concat([rows, noise.assign(method="two retrained models")])
    shown = {
        "agreement, forget %": ("agreement_forget", 100, 1),
        "agreement, retain %": ("agreement_retain", 100, 1),
        "JS, forget (nats)": ("js_forget", 1, 4),
        "JS, retain (nats)": ("js_retain", 1, 4),
    }
    parts = [
        spread_table(rows, titles, {name: over_classes(rows, column)}, factor=factor, digits=digits)
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
    """Answer: what does it cost, and what does it read?

    Args:
        rows: One row per method, class and seed, from ``by_rule``.
        frame: The whole grid: the rule tries every rate up to the chosen one, and all are paid for.
        titles: Readable names of the methods.
        reads: What data a method may touch, in words; empty leaves the column out.
        before: Seconds a method spends before its update (proxies, subspaces), 0 where it is not named; empty, where
            this is not known, leaves the column out.
        retraining: Seconds of retraining on the same machine; None leaves the ratio out.
    """
    own, case = rows[rows["lr"].notna()], ["method", "forget", "seed"]
    joined = frame.join(own.set_index(case)["lr"].rename("_chosen"), on=case)
    paid = joined[joined["lr"] <= joined["_chosen"]].groupby(case, sort=False)["seconds"].sum()
    tried, seconds = over_classes(paid.reset_index(), "seconds"), over_classes(own, "seconds")
    epochs = over_classes(own, "epochs")
    methods = list(dict.fromkeys(own["method"]))
    spent = {method: before.get(method, 0.0) for method in methods}
    read = own.groupby("method")["retain_samples_read"].max()
    cells: dict[str, list[Any]] = {
        "chosen run (s)": [spread(seconds[method], factor=1, digits=2) for method in methods],
        "epochs": [f"{epochs[method]['mean']:.1f}" for method in methods],
        "all rates tried (s)": [f"{tried[method]['mean']:.2f}" for method in methods],
    }
    if before:
        cells["before (s)"] = [f"{spent[method]:.2f}" for method in methods]
    if retraining is not None:
        cells["in all / retraining"] = [
            f"{(tried[method]['mean'] + spent[method]) / retraining:.2f}" for method in methods
        ]
    if reads:
        cells["may read"] = [reads[method] for method in methods]
    cells["retained samples counted"] = [int(read[method]) for method in methods]
    return pd.DataFrame(cells, index=lines_of(methods, titles))


def preparation(seconds: Mapping[str, float], reads: Mapping[str, str]) -> dict[str, float]:
    """Return the seconds before the update, proxies and subspaces in full, of each method that may read proxies.

    Some methods need less, so this is an upper bound.

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
    shown = {"Did it forget, and did it keep the rest?": forgetting_table(rows, titles)}
    if "retrained" in set(rows["method"]):
        shown["How far from retraining, in accuracy?"] = distance_table(rows, titles)
        shown["How far from retraining, image by image?"] = prediction_table(rows, titles, noise)
    before = preparation(seconds, reads) if seconds else {}
    shown["What does it cost, and what does it read?"] = cost_table(
        rows, frame, titles, reads=reads, before=before, retraining=seconds.get("retraining")
    )
    return shown
