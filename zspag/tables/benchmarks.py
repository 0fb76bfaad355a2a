"""The table of benchmarks.

Invariant: a number nobody measured has no cell of its own making: it says so.
"""

from collections.abc import Mapping, Sequence
from typing import Any


def benchmarks(found: Sequence[Mapping[str, Any]]) -> str:
    """Return findings as a table, one line each.

    Args:
        found: Findings as a result file holds them.
    """
    header = ["stage", "measured on", "number", "wanted", "found", "reached"]
    lines = [header, ["---"] * len(header)]
    lines += [
        [row["stage"], row["case"], row["what"], row["wanted"], number(row["value"]), row["verdict"]] for row in found
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def number(value: float | None) -> str:
    """Return a number with three digits; nothing for None.

    Example:
        >>> number(0.12345), number(4321.5), number(None)
        ('0.123', '4322', '')
    """
    return "" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
