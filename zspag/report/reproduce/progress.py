"""How far the run is: one bar in seconds, from what each notebook took last time and the pace of those that ended.

Invariant: the bar shows time only; whether a notebook succeeded is decided elsewhere.
"""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Self

from tqdm import tqdm

UNKNOWN = 60.0  # seconds that the bar assumes for a notebook without a known time


def duration(seconds: float) -> str:
    """Return a length of time for people.

    Example:
        >>> duration(7.2), duration(80), duration(7300)
        ('7 s', '1 min 20 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class Clock:
    """A progress bar over notebooks; where the error stream is no terminal, only the lines that go to ``say``.

    ``expected`` holds the seconds that each notebook may take; None where nobody knows. ``at_once`` of them run side
    by side.
    """

    def __init__(
        self,
        expected: Mapping[str, float | None],
        *,
        at_once: int = 1,
        say: Callable[[str], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._expected = {name: seconds or UNKNOWN for name, seconds in expected.items()}
        self._unknown = {name for name, seconds in expected.items() if seconds is None}
        self._waiting, self._begun = list(expected), dict[str, float]()
        self._ended = {"expected": 0.0, "measured": 0.0}  # seconds of notebooks whose time was known before
        self._at_once, self._say, self._now = at_once, say, now
        shape = "{desc} |{bar}| {n:.0f}/{total:.0f} s{postfix}"
        self._total, hidden = sum(self._expected.values()), not sys.stderr.isatty()
        self._bar = tqdm(total=self._total, bar_format=shape, disable=hidden, leave=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def starts(self, name: str) -> None:
        """Announce notebook ``name``."""
        left = "not timed before"
        if self._unknown.isdisjoint([*self._waiting, *self._begun]):
            left = f"about {duration(self.left())} left in all"
        number = len(self._expected) - len(self._waiting) + 1
        self._waiting.remove(name)
        self._begun[name] = self._now()
        self._say(f"[{number}/{len(self._expected)}] {name} ({left})")

    def ends(self, name: str) -> None:
        """Count notebook ``name`` as done."""
        took = self._now() - self._begun.pop(name)
        if name not in self._unknown:
            self._ended["measured"] += took
            self._ended["expected"] += self._expected[name]

    def left(self) -> float:
        """Return the seconds that the rest will take at the pace of what has ended."""
        pace = self._ended["measured"] / self._ended["expected"] if self._ended["expected"] else 1.0
        rest = [pace * self._expected[name] for name in self._waiting]
        under_way = {name: self._now() - begun for name, begun in self._begun.items()}
        rest += [max(pace * self._expected[name] - so_far, 0.0) for name, so_far in under_way.items()]
        return max(sum(rest) / self._at_once, *rest, 0.0)  # the longest one ends no sooner for the others

    def moves(self) -> None:
        """Move the bar to where the run is now."""
        left = self.left()
        self._bar.n = max(self._total - left * self._at_once, 0.0)
        self._bar.set_description_str(", ".join(self._begun), refresh=False)
        self._bar.set_postfix_str(f"about {duration(left)} left")
