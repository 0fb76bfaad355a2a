"""The table of benchmarks.

Invariant: a number nobody measured has an empty cell and a verdict that says so.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from zspag.report.tables.cells import markdown


def benchmarks(found: Sequence[Mapping[str, Any]]) -> str:
    """Return findings as a table, one line each.

    Args:
        found: Findings as a result file holds them.
    """
    names = {"case": "measured on", "what": "number", "wanted": "wanted", "value": "found", "verdict": "reached"}
    lines = [dict(row) | {"value": number(row["value"])} for row in found]
    return markdown(pd.DataFrame(lines).set_index("stage")[[*names]].rename(columns=names)) + "\n"


def number(value: float | None) -> str:
    """Return a number with three digits; nothing for None.

    Example:
        >>> number(0.12345), number(4321.5), number(None)
        ('0.123', '4322', '')
    """
    return "" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
