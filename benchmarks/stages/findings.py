"""What a benchmark found: a number, what it has to reach, its rounds, and the seconds behind it.

Invariant: a number that nobody could measure is None, with the reason; it neither reaches a bar nor misses it.
"""

import statistics
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
        rounds: The number of every interleaved round, where there were several; ``value`` is their median.
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
    rounds: tuple[float, ...] = ()
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
        """Return "met", "missed", "within noise", "not measured", or nothing where nothing is wanted.

        A bar is met when every round meets it, and missed when no round does. Otherwise it lies within the noise.
        """
        if self.value is None:
            return "not measured"
        if not self.wanted:
            return ""
        meets = [
            one >= self.at_least if self.at_least is not None else one <= self.at_most
            for one in self.rounds or (self.value,)
        ]
        return "met" if all(meets) else "within noise" if any(meets) else "missed"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, the words included."""
        return asdict(self) | {"wanted": self.wanted, "verdict": self.verdict}


def compared(
    stage: str,
    case: str,
    what: str,
    timings: Mapping[str, Timing],
    one: str,
    other: str,
    *,
    factor: float = 1.0,
    at_least: float | None = None,
    at_most: float | None = None,
    note: str = "",
) -> Finding:
    """Return the time of way ``one`` over that of way ``other``, round by round.

    Args:
        stage: As in ``Finding``.
        case: As in ``Finding``.
        what: As in ``Finding``.
        timings: Ways that were timed in the same rounds. One that is missing is a peer that is not installed.
        one: Name of a way.
        other: Name of another way.
        factor: Every ratio is multiplied by it.
        at_least: As in ``Finding``.
        at_most: As in ``Finding``.
        note: As in ``Finding``.
    """
    if missing := [name for name in (one, other) if name not in timings]:
        note = f"{missing[0]} is not installed: make bench fetches it"
        return Finding(stage, case, what, None, at_least, at_most, note=note)
    pairs = zip(timings[one].seconds, timings[other].seconds, strict=True)
    rounds = tuple(factor * first / second for first, second in pairs)
    seconds = spread({name: timings[name] for name in (one, other)})
    return Finding(stage, case, what, statistics.median(rounds), at_least, at_most, rounds, seconds, note)


def spread(timings: Mapping[str, Timing]) -> dict[str, tuple[float, float, float]]:
    """Return median, fastest and slowest seconds by way."""
    return {name: one.spread for name, one in timings.items()}
