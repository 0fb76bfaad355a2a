"""How far the run is: one bar in seconds, from what each notebook took last time.

Invariant: the bar shows time only; whether a notebook succeeded is decided elsewhere.
"""

import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager

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

    ``expected`` holds the seconds that each notebook may take, in order; None where nobody knows.
    """

    def __init__(self, expected: Mapping[str, float | None], *, say: Callable[[str], None]) -> None:
        self._left, self._count, self._say = dict(expected), len(expected), say

    @contextmanager
    def running(self, name: str) -> Generator[None, None, None]:
        """Announce notebook ``name`` and move the bar while the body runs; afterwards it counts as done."""
        number = self._count - len(self._left) + 1
        known = [seconds for seconds in self._left.values() if seconds is not None]
        left = f"about {duration(sum(known))} left in all" if len(known) == len(self._left) else "not timed before"
        self._say(f"[{number}/{self._count}] {name} ({left})")
        expected = self._left.pop(name) or UNKNOWN
        over = threading.Event()
        ticker = threading.Thread(target=self._tick, args=(name, expected, over), daemon=True)
        ticker.start()
        try:
            yield
        finally:
            over.set()
            ticker.join()

    def _tick(self, name: str, expected: float, over: threading.Event) -> None:
        started = time.monotonic()
        later = sum(seconds or UNKNOWN for seconds in self._left.values())
        shape = "{desc} |{bar}| {n:.0f}/{total:.0f} s{postfix}"
        with tqdm(total=expected, desc=name, bar_format=shape, disable=not sys.stderr.isatty(), leave=False) as bar:
            while not over.wait(1.0):
                bar.n = min(time.monotonic() - started, expected)
                bar.set_postfix_str(f"about {duration(expected - bar.n + later)} left")
