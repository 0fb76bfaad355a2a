"""What a benchmark found: a number, what it has to reach, and the seconds behind it.

Invariant: a number that nobody could measure is None, with the reason; it neither holds nor fails.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.stages.timing import Timing


@dataclass(frozen=True)
class Finding:
    """One number of one stage.

    Attributes:
        stage: The stage it belongs to.
        case: Net, sizes or whatever else it was measured on.
        what: What the number is, as a reader says it.
        value: The number, or None where it could not be measured.
        at_least: What it has to reach, or None.
        at_most: What it must not exceed, or None.
        seconds: Median seconds behind it, by way, with the fastest and the slowest.
        note: What a reader should know, such as why there is no number.
        curve: What was measured along an axis: its name, ``x`` and ``y``.
    """

    stage: str
    case: str
    what: str
    value: float | None
    at_least: float | None = None
    at_most: float | None = None
    seconds: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    note: str = ""
    curve: dict[str, Any] = field(default_factory=dict)

    @property
    def wanted(self) -> str:
        """What the number has to be, in words; empty where it only informs."""
        if self.at_least is not None:
            return f"at least {self.at_least:g}"
        return "" if self.at_most is None else f"at most {self.at_most:g}"

    @property
    def verdict(self) -> str:
        """Whether it is: "yes", "no", "not measured", or nothing where nothing is wanted."""
        if self.value is None:
            return "not measured"
        if self.at_least is not None:
            return "yes" if self.value >= self.at_least else "no"
        return "" if self.at_most is None else "yes" if self.value <= self.at_most else "no"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, the words included."""
        return asdict(self) | {"wanted": self.wanted, "verdict": self.verdict}


def spread(timings: Mapping[str, Timing]) -> dict[str, tuple[float, float, float]]:
    """Return median, fastest and slowest seconds by way."""
    return {name: one.spread for name, one in timings.items()}
