"""What an audit found: its rows by measure, few enough to be kept in a file.

Invariant: nothing here sees a model.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from zspag.lab.audit.returns import arrivals, mean_curves
from zspag.report.tables import columns

Findings = dict[str, pd.DataFrame]


def measured(rows: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Return the rows of one measure, with its columns."""
    return rows[rows["measure"] == measure].dropna(axis=1, how="all").reset_index(drop=True)


def findings(rows: pd.DataFrame) -> Findings:
    """Return the rows of ``audit`` by measure, training curves as means over classes and as arrivals.

    Args:
        rows: Of ``audit``.

    Returns:
        A frame per measure, but for "relearning": "curves" of ``mean_curves`` and "arrivals" of ``arrivals`` instead.
    """
    found = {str(measure): measured(rows, str(measure)) for measure in rows["measure"].unique()}
    curves = found.pop("relearning")
    return found | {"curves": mean_curves(curves), "arrivals": arrivals(curves)}


def packed(found: Findings) -> dict[str, dict[str, list[Any]]]:
    """Return findings as a file keeps them: by measure and column, None where a row has nothing."""
    return {name: columns(frame) for name, frame in found.items()}


def unpacked(kept: Mapping[str, Mapping[str, list[Any]]]) -> Findings:
    """Return findings from what ``packed`` made of them."""
    return {name: pd.DataFrame(dict(columns)) for name, columns in kept.items()}
