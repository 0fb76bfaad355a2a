"""How long something takes: ways to do the same, run in turns, medians and spread; and what a process needs in all.

Invariant: ways that are compared are interleaved, so that a machine that slows down in between slows them all.
"""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from zspag.runtime import begin_worker

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Timing:
    """Seconds of one way, round by round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> tuple[float, float, float]:
        """Median, fastest and slowest."""
        return self.median, min(self.seconds), max(self.seconds)


def timed(function: Callable[[], object]) -> float:
    """Return the seconds of one call, what a GPU still works on included."""
    _wait()
    started = time.perf_counter()
    function()
    _wait()
    return time.perf_counter() - started


def interleaved(ways: Mapping[str, Callable[[], object]], *, repeats: int, warm: bool = True) -> dict[str, Timing]:
    """Time several ways in turns.

    Args:
        ways: What to call, by name.
        repeats: Rounds, each of which calls every way once.
        warm: Call every way once before the first round.
    """
    if warm:
        for way in ways.values():
            way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            seconds[name].append(timed(way))
    return {name: Timing(tuple(each)) for name, each in seconds.items()}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def alone(function: Callable[..., Answer], *arguments: Any, threads: int) -> Answer:
    """Call a module-level function in a process of its own, with nothing but imports behind it."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=begin_worker, initargs=(threads,)) as pool:
        return pool.submit(function, *arguments).result()


def exponent(x: list[float], y: list[float]) -> float:
    """Return the slope of log y over log x by least squares: 1 is linear growth.

    Example:
        >>> round(exponent([1, 2, 4], [3, 12, 48]), 6)
        2.0
    """
    across, up = torch.tensor(x, dtype=torch.float64).log(), torch.tensor(y, dtype=torch.float64).log()
    across = across - across.mean()
    return float((across * up).sum() / (across * across).sum())
