"""What a method costs and what it reads, from the rows of a grid.

Invariant: nothing here sees a model; every rate that the rule tried is paid for.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from zspag.report.tables.averages import over_classes
from zspag.report.tables.cells import spread


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
            "chosen run (s)": spread(seconds[method], factor=1, digits=2),
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
