"""Cells and lines of a table: how a mean with its spread is written.

Invariant: a number is rounded here and nowhere before.
"""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd


def spread_table(
    rows: pd.DataFrame,
    titles: Mapping[str, str],
    columns: Mapping[str, dict[str, dict[str, float]]],
    *,
    factor: float,
    digits: int,
) -> pd.DataFrame:
    """Return a table of one line per method.

    Args:
        rows: Rows of the methods, in whose order the lines come.
        titles: Readable names of the methods.
        columns: Per column what ``over_classes`` says of every method.
        factor: What the numbers are multiplied with, such as 100 for %.
        digits: Digits behind the point.
    """
    lines = [
        {"method": titles.get(method, method)}
        | {name: spread(values[method], factor=factor, digits=digits) for name, values in columns.items()}
        for method in dict.fromkeys(rows["method"])
    ]
    return pd.DataFrame(lines).set_index("method")


def spread(value: dict[str, float], *, factor: float, digits: int) -> str:
    """Return a cell: "mean ± half-width of the interval (sample standard deviation)"."""
    # Adding 0 turns a -0.00 into 0.00.
    mean, half, deviation = (f"{round(factor * value[key], digits) + 0.0:.{digits}f}" for key in ("mean", "half", "sd"))
    return f"{mean} ± {half} ({deviation})" if value["classes"] > 1 else mean  # one class has no spread to report


def percent(value: dict[str, float]) -> str:
    """Return a fraction as a cell in %: "mean ± half-width of the interval"."""
    if math.isnan(value["mean"]):
        return "not measured"
    return f"{100 * value['mean']:.2f} ± {100 * value['half']:.2f}"


def markdown(table: pd.DataFrame) -> str:
    """Return a table as GitHub markdown, its index as first column."""
    header = [table.index.name or "", *map(str, table.columns)]
    lines = [
        header,
        ["---"] * len(header),
        *([str(name), *map(str, row)] for name, row in zip(table.index, table.values, strict=True)),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def columns(frame: pd.DataFrame) -> dict[str, list[Any]]:
    """Return rows as a file keeps them, by column; None where a row has nothing.

    Example:
        >>> columns(pd.DataFrame({"method": ["masked", "ascent"], "lr": [math.nan, 0.1]}))
        {'method': ['masked', 'ascent'], 'lr': [None, 0.1]}
    """
    known = frame.astype(object).where(frame.notna(), None)
    return {str(name): list(values) for name, values in known.items()}
