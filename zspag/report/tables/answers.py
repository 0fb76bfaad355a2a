"""Tables for readers, each of which answers one question, from the rows of a grid.

No single number decides: a method counts as beaten only where another one is at least as good on everything that is
compared (``claims.dominated``).

Invariant: nothing here sees a model; every number in a README or notebook comes out of these functions.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from zspag.report.tables.averages import REFERENCES, by_rule, over_classes, paired
from zspag.report.tables.cells import percent, spread_table
from zspag.report.tables.costs import cost_table, preparation
from zspag.report.tables.curves import window_text


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
                "forget %": percent(means["acc_forget"][method]),
                "retain %": percent(means["acc_retain"][method]),
                "over-unlearning": percent(means["over_unlearning"][method]),
                "drift (nats)": f"{means['drift'][method]['mean']:.4f}"
                if means["drift"][method]["mean"] < 99
                else "> 99",
                "gap to retrained": percent(means["gap"][method]),
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
    return spread_table(rows, titles, columns, factor=100, digits=2)


def distance_table(rows: pd.DataFrame, titles: Mapping[str, str]) -> pd.DataFrame:
    """Answer one question, one line per method: how far from the retrained model, in accuracy?

    The first two columns are differences to the retrained model of the same class and seed (see ``paired``) and have a
    sign; the gap is a mean of absolute differences. Cells as in ``forgetting_table``.
    """
    gaps = paired(rows, ("acc_forget", "acc_retain"), baseline="retrained")
    itself = {"mean": 0.0, "half": 0.0, "sd": 0.0, "classes": rows["forget"].nunique()}
    away = {
        name: {method: gap[name] for method, gap in gaps.items()} | {"retrained": itself}
        for name in ("acc_forget", "acc_retain")
    }
    columns = {
        "forget - retrained (points)": away["acc_forget"],
        "retain - retrained (points)": away["acc_retain"],
        "gap (points)": over_classes(rows, "gap"),
    }
    return spread_table(rows, titles, columns, factor=100, digits=2)


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
        spread_table(rows, titles, {name: over_classes(rows, column)}, factor=factor, digits=digits)
        for name, (column, factor, digits) in shown.items()
    ]
    return pd.concat(parts, axis=1)


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


def _reads(rows: pd.DataFrame, method: str) -> str:
    if method == "retrained":
        return "all"
    if method in REFERENCES:
        return "no"
    most = int(rows["retain_samples_read"].max())
    return f"yes ({most})" if most else "no (0 counted)"
