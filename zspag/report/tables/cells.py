"""How numbers are written in a table.

Invariant: a number is rounded here and nowhere before.
"""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from zspag.report.tables.averages import FEWEST


def spread_table(
    rows: pd.DataFrame,
    titles: Mapping[str, str],
    columns: Mapping[str, dict[str, dict[str, float]]],
    *,
    factor: float,
    digits: int,
) -> pd.DataFrame:
    """Return a table with one line per method.

    Args:
        rows: Rows of the methods, in whose order the lines come.
        titles: Readable names of the methods.
        columns: Per column what ``over_classes`` returns.
        factor: What the numbers are multiplied with, such as 100 for %.
        digits: Digits behind the point.
    """
    methods = list(dict.fromkeys(rows["method"]))
    cells = {
        name: [spread(values[method], factor=factor, digits=digits) for method in methods]
        for name, values in columns.items()
    }
    return pd.DataFrame(cells, index=lines_of(methods, titles))


def lines_of(methods: list[str], titles: Mapping[str, str]) -> "pd.Index[str]":
    """Return the first column of a table: the readable name of each method."""
    return pd.Index([titles.get(method, method) for method in methods], name="method")


def spread(value: Mapping[str, float], *, factor: float, digits: int) -> str:
    """Return a cell: "mean ± half-width of the interval (sample standard deviation)", or "mean, low to high (...)".

    Of fewer than ``FEWEST`` classes there is no interval, and of one no deviation.
    """
    # Adding 0 turns a -0.00 into 0.00.
    mean, half, deviation = (f"{round(factor * value[key], digits) + 0.0:.{digits}f}" for key in ("mean", "half", "sd"))
    if value["classes"] < FEWEST:
        return f"{mean} ({deviation})" if value["classes"] > 1 else mean
    if "low" in value:
        return f"{mean}, {factor * value['low']:.{digits}f} to {factor * value['high']:.{digits}f} ({deviation})"
    return f"{mean} ± {half} ({deviation})"


def percent(value: Mapping[str, float]) -> str:
    """Return a fraction as a cell in %, with its interval; of fewer than ``FEWEST`` classes the mean alone."""
    if math.isnan(value["mean"]):
        return "not measured"
    mean = f"{100 * value['mean']:.2f}"
    if value["classes"] < FEWEST:
        return mean
    if "low" in value:
        return f"{mean} ({100 * value['low']:.2f} to {100 * value['high']:.2f})"
    return f"{mean} ± {100 * value['half']:.2f}"


def nats(drift: float) -> str:
    """Return a drift as a cell; that of a ruined model has no digits."""
    return f"{drift:.4f}" if drift < 99 else "> 99"


def markdown(table: pd.DataFrame) -> str:
    """Return a table as GitHub markdown, its index as first column."""
    header = [table.index.name or "", *map(str, table.columns)]
    body = [[str(name), *map(str, row)] for name, row in zip(table.index, table.to_numpy(dtype=object), strict=True)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *body])


def columns(frame: pd.DataFrame) -> dict[str, list[Any]]:
    """Return rows as a file keeps them, by column; None where a row has nothing.

    Example:
        >>> columns(pd.DataFrame({"method": ["masked", "ascent"], "lr": [math.nan, 0.1]}))
        {'method': ['masked', 'ascent'], 'lr': [None, 0.1]}
    """
    known = frame.astype(object).where(frame.notna(), None)
    return {str(name): list(values) for name, values in known.items()}
